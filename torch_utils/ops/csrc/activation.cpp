// What surrounds a convolution in a layer of a network, on channels-last images: bias and activation with their gradients, and the
// gradients of styles, demodulation and noise. The derivative of the activation is read from its result, so that nothing else
// has to be kept. Sums over pixels are taken in pieces that do not depend on the number of threads.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <cmath>
#include <optional>
#include <tuple>
#include <vector>

#include "images.h"

namespace omni {
namespace {

using at::Tensor;
using Optional = std::optional<Tensor>;

constexpr int64_t PIECE = 256;   // pixels whose sums are taken at once
constexpr int64_t LANES = 16;    // of sums over channels

// v < 0 becomes slope * v; then times gain; then held to +-clamp, if `clamped`.
struct Activation {
    float slope, gain, clamp;
    bool clamped;
    Activation(double s, double g, double c) : slope(float(s)), gain(float(g)), clamp(float(c)), clamped(std::isfinite(c)) {}
};

// Images [images, pixels, channels], channels-last.
struct Extent { int64_t images, pixels, channels; };

Extent extent_of(const Tensor& t) {
    TORCH_CHECK(t.dim() == 4 && (t.scalar_type() == at::kFloat || t.scalar_type() == at::kBFloat16),
                "images [N, C, H, W] in float32 or bfloat16 are needed");
    return {t.size(0), t.size(2) * t.size(3), t.size(1)};
}

Tensor last(const Tensor& t) { return t.contiguous(at::MemoryFormat::ChannelsLast); }

Tensor like(const Tensor& t) { return at::empty(t.sizes(), t.options().memory_format(at::MemoryFormat::ChannelsLast)); }

const float* floats(const Optional& t, const char* name, int64_t numel) {
    if (!t) return nullptr;
    TORCH_CHECK(t->scalar_type() == at::kFloat && t->is_contiguous() && t->numel() == numel, name, " must be ", numel, " contiguous float32");
    return t->const_data_ptr<float>();
}

template <typename T>
struct Forward {
    const T* x;
    T* y;
    const float* bias;
    int64_t pixels, channels;
    Activation act;
};

template <typename T>
inline __attribute__((always_inline)) void forward_body(const Forward<T>& r) {
    const float gain = r.act.gain, negative = r.act.gain * r.act.slope, most = r.act.clamped ? r.act.clamp : INFINITY, least = -most;
    const int64_t channels = r.channels;
    const float* __restrict bias = r.bias;
    for (int64_t p = 0; p < r.pixels; p++) {
        const T* __restrict x = r.x + p * channels;
        T* __restrict y = r.y + p * channels;
        for (int64_t c = 0; c < channels; c++) {
            float v = widen(x[c]) + bias[c];
            v *= v > 0 ? gain : negative;
            v = v > most ? most : v;
            v = v < least ? least : v;
            narrow(v, y[c]);
        }
    }
}
OMNI_CLONES void forward_pixels(const Forward<float>& r) { forward_body(r); }
OMNI_CLONES void forward_pixels(const Forward<uint16_t>& r) { forward_body(r); }

// Gradients of some pixels of one image.
template <typename T>
struct Backward {
    const T *dy, *y;
    T* dx;
    const float *scale, *noise, *bias;   // of the image; null for none
    float *bias_sum, *scale_sum;         // [channels], added to
    float* noise_grad;                   // [pixels] or null
    float* row;                          // room for [channels]
    int64_t pixels, channels;
    Activation act;
};

// Derivative at a place with the result y; `most` is the clamp, or infinity and a result that is infinite has none.
inline __attribute__((always_inline)) float slope_at(float y, float gain, float negative, float most) {
    float slope = y > 0 ? gain : negative;
    slope = y >= most ? 0.0f : slope;
    return y <= -most ? 0.0f : slope;
}

template <typename T>
inline __attribute__((always_inline)) void backward_body(const Backward<T>& r) {
    const float gain = r.act.gain, negative = r.act.gain * r.act.slope, most = r.act.clamped ? r.act.clamp : INFINITY;
    const int64_t channels = r.channels;
    float* __restrict bias_sum = r.bias_sum;
    for (int64_t p = 0; p < r.pixels; p++) {
        const T *__restrict dy = r.dy + p * channels, *__restrict y = r.y + p * channels;
        T* __restrict dx = r.dx + p * channels;
        for (int64_t c = 0; c < channels; c++) {
            const float g = widen(dy[c]) * slope_at(widen(y[c]), gain, negative, most);
            bias_sum[c] += g;
            narrow(g, dx[c]);
        }
    }
}
OMNI_CLONES void backward_pixels(const Backward<float>& r) { backward_body(r); }
OMNI_CLONES void backward_pixels(const Backward<uint16_t>& r) { backward_body(r); }

// The same of a layer: y = activation(scale * convolution + noise + bias), where the convolution is found from y.
template <typename T>
inline __attribute__((always_inline)) void layer_body(const Backward<T>& r) {
    const float gain = r.act.gain, negative = r.act.gain * r.act.slope, most = r.act.clamped ? r.act.clamp : INFINITY;
    const float back = 1 / gain, back_negative = 1 / negative;
    const int64_t channels = r.channels;
    const float *__restrict scale = r.scale, *__restrict bias = r.bias;
    float *__restrict bias_sum = r.bias_sum, *__restrict scale_sum = r.scale_sum, *__restrict row = r.row;
    for (int64_t p = 0; p < r.pixels; p++) {
        const T *__restrict dy = r.dy + p * channels, *__restrict y = r.y + p * channels;
        T* __restrict dx = r.dx + p * channels;
        const float noise = r.noise ? r.noise[p] : 0.0f;
        // Three loops: the compiler tells but so many pointers from one another.
        for (int64_t c = 0; c < channels; c++) row[c] = widen(dy[c]) * slope_at(widen(y[c]), gain, negative, most);
        for (int64_t c = 0; c < channels; c++) {
            bias_sum[c] += row[c];
            narrow(row[c] * scale[c], dx[c]);
        }
        for (int64_t c = 0; c < channels; c++) {
            const float v = widen(y[c]);
            scale_sum[c] += row[c] * (v * (v > 0 ? back : back_negative) - noise - bias[c]);
        }
        if (!r.noise_grad) continue;
        float sum[LANES] = {}, total = 0;
        for (int64_t c = 0; c < channels; c += LANES)
            for (int64_t lane = 0; lane < LANES; lane++) sum[lane] += row[c + lane];
        for (int64_t lane = 0; lane < LANES; lane++) total += sum[lane];
        r.noise_grad[p] = total;
    }
}
OMNI_CLONES void layer_pixels(const Backward<float>& r) { layer_body(r); }
OMNI_CLONES void layer_pixels(const Backward<uint16_t>& r) { layer_body(r); }

// Gradients of x and styles from that of x * styles, of some pixels of one image.
template <typename T>
struct Modulation {
    T* grad;
    const T* x;
    const float* styles;
    float* styles_sum;
    int64_t pixels, channels;
};

template <typename T>
inline __attribute__((always_inline)) void modulation_body(const Modulation<T>& r) {
    for (int64_t p = 0; p < r.pixels; p++)
        for (int64_t c = 0; c < r.channels; c++) {
            const int64_t i = p * r.channels + c;
            const float g = widen(r.grad[i]);
            r.styles_sum[c] += g * widen(r.x[i]);
            narrow(g * r.styles[c], r.grad[i]);
        }
}
OMNI_CLONES void modulation_pixels(const Modulation<float>& r) { modulation_body(r); }
OMNI_CLONES void modulation_pixels(const Modulation<uint16_t>& r) { modulation_body(r); }

int64_t pieces_of(const Extent& e) { return (e.pixels + PIECE - 1) / PIECE; }

// work(image, first pixel, pixels, piece) for all pieces.
template <typename F>
void for_pieces(const Extent& e, F work) {
    const int64_t pieces = pieces_of(e);
    at::parallel_for(0, e.images * pieces, std::max<int64_t>(1, 32768 / (PIECE * e.channels + 1)), [&](int64_t begin, int64_t end) {
        for (int64_t piece = begin; piece < end; piece++) {
            const int64_t first = piece % pieces * PIECE;
            work(piece / pieces, first, std::min(PIECE, e.pixels - first), piece);
        }
    });
}

Tensor sums_for(const Extent& e) { return at::zeros({e.images, pieces_of(e), e.channels}, at::kFloat); }

template <typename T>
void forward_images(const Tensor& x, const Tensor& y, const float* bias, const Activation& act) {
    const Extent e = extent_of(x);
    for_pieces(e, [&](int64_t image, int64_t first, int64_t pixels, int64_t) {
        const int64_t at = (image * e.pixels + first) * e.channels;
        forward_pixels(Forward<T>{static_cast<const T*>(x.const_data_ptr()) + at, static_cast<T*>(y.mutable_data_ptr()) + at, bias, pixels,
                                  e.channels, act});
    });
}

Tensor activate(const Tensor& input, const Optional& bias, double slope, double gain, double clamp) {
    const Extent e = extent_of(input);
    const Tensor x = last(input), y = like(x);
    const Tensor none = bias ? *bias : at::zeros({e.channels}, at::kFloat);
    const float* b = floats(none, "bias", e.channels);
    if (x.scalar_type() == at::kFloat) forward_images<float>(x, y, b, {slope, gain, clamp});
    else forward_images<uint16_t>(x, y, b, {slope, gain, clamp});
    return y;
}

template <typename T>
void backward_images(const Tensor& dy, const Tensor& y, const Tensor& dx, const Tensor& bias_sums, const Tensor& scale_sums,
                     const float* scale, const float* noise, bool noise_each, const float* bias, float* noise_grad, const Activation& act) {
    const Extent e = extent_of(y);
    for_pieces(e, [&](int64_t image, int64_t first, int64_t pixels, int64_t piece) {
        const int64_t place = image * e.pixels + first, at = place * e.channels;
        std::vector<float> row(scale ? e.channels : 0);
        const Backward<T> r{static_cast<const T*>(dy.const_data_ptr()) + at,
                            static_cast<const T*>(y.const_data_ptr()) + at,
                            static_cast<T*>(dx.mutable_data_ptr()) + at,
                            scale ? scale + image * e.channels : nullptr,
                            noise ? noise + (noise_each ? place : first) : nullptr,
                            bias,
                            bias_sums.mutable_data_ptr<float>() + piece * e.channels,
                            scale ? scale_sums.mutable_data_ptr<float>() + piece * e.channels : nullptr,
                            noise_grad ? noise_grad + place : nullptr,
                            row.data(),
                            pixels,
                            e.channels,
                            act};
        if (scale) layer_pixels(r);
        else backward_pixels(r);
    });
}

// (gradient of x, of the bias [C]) of activate() from its result y.
std::tuple<Tensor, Tensor> activate_grad(const Tensor& result_grad, const Tensor& result, double slope, double gain, double clamp) {
    TORCH_CHECK(result_grad.sizes() == result.sizes() && result_grad.scalar_type() == result.scalar_type(), "activate_grad: unlike images");
    const Extent e = extent_of(result);
    const Tensor dy = last(result_grad), y = last(result), dx = like(y), sums = sums_for(e);
    const Activation act(slope, gain, clamp);
    if (y.scalar_type() == at::kFloat) backward_images<float>(dy, y, dx, sums, sums, nullptr, nullptr, false, nullptr, nullptr, act);
    else backward_images<uint16_t>(dy, y, dx, sums, sums, nullptr, nullptr, false, nullptr, nullptr, act);
    return {dx, sums.sum(at::IntArrayRef({0, 1}))};
}

// Gradients of the layer y = activation(scale * z + noise + bias): of z, bias [C], noise [N, H, W] and scale [N, C].
std::tuple<Tensor, Tensor, Tensor, Tensor> layer_grad(const Tensor& result_grad, const Tensor& result, const Tensor& scale,
                                                      const Optional& noise, const Tensor& bias, double slope, double gain, double clamp) {
    TORCH_CHECK(result_grad.sizes() == result.sizes() && result_grad.scalar_type() == result.scalar_type(), "layer_grad: unlike images");
    const Extent e = extent_of(result);
    TORCH_CHECK(e.channels % LANES == 0 && slope != 0 && gain != 0, "layer_grad takes multiples of 16 channels, slope and gain not 0");
    const Tensor dy = last(result_grad), y = last(result), dx = like(y), bias_sums = sums_for(e), scale_sums = sums_for(e);
    const bool each = noise && noise->numel() == e.images * e.pixels;
    const float* n = floats(noise, "noise", each ? e.images * e.pixels : e.pixels);
    Tensor noise_grad = at::empty({n ? e.images : 0, result.size(2), result.size(3)}, at::kFloat);
    float* ng = n ? noise_grad.mutable_data_ptr<float>() : nullptr;
    const float *s = floats(scale, "scale", e.images * e.channels), *b = floats(bias, "bias", e.channels);
    const Activation act(slope, gain, clamp);
    if (y.scalar_type() == at::kFloat) backward_images<float>(dy, y, dx, bias_sums, scale_sums, s, n, each, b, ng, act);
    else backward_images<uint16_t>(dy, y, dx, bias_sums, scale_sums, s, n, each, b, ng, act);
    return {dx, bias_sums.sum(at::IntArrayRef({0, 1})), noise_grad, scale_sums.sum(at::IntArrayRef({1})) / scale};
}

template <typename T>
void modulation_images(const Tensor& grad, const Tensor& x, const float* styles, const Tensor& sums) {
    const Extent e = extent_of(x);
    for_pieces(e, [&](int64_t image, int64_t first, int64_t pixels, int64_t piece) {
        const int64_t at = (image * e.pixels + first) * e.channels;
        modulation_pixels(Modulation<T>{static_cast<T*>(grad.mutable_data_ptr()) + at, static_cast<const T*>(x.const_data_ptr()) + at,
                                        styles + image * e.channels, sums.mutable_data_ptr<float>() + piece * e.channels, pixels, e.channels});
    });
}

// `grad`, that of x * styles, becomes that of x; returns that of styles [N, C].
Tensor modulation_grad(Tensor& grad, const Tensor& input, const Tensor& styles) {
    const Extent e = extent_of(grad);
    TORCH_CHECK(grad.is_contiguous(at::MemoryFormat::ChannelsLast) && grad.sizes() == input.sizes() && grad.scalar_type() == input.scalar_type(),
                "modulation_grad takes two equal channels-last images");
    const Tensor x = last(input), sums = sums_for(e);
    const float* s = floats(styles, "styles", e.images * e.channels);
    if (x.scalar_type() == at::kFloat) modulation_images<float>(grad, x, s, sums);
    else modulation_images<uint16_t>(grad, x, s, sums);
    return sums.sum(at::IntArrayRef({1}));
}

TORCH_LIBRARY_FRAGMENT(omnihead, m) {
    m.def("activate(Tensor x, Tensor? bias, float slope, float gain, float clamp) -> Tensor");
    m.impl("activate", c10::DispatchKey::CPU, activate);
    m.def("activate_grad(Tensor result_grad, Tensor result, float slope, float gain, float clamp) -> (Tensor, Tensor)");
    m.impl("activate_grad", c10::DispatchKey::CPU, activate_grad);
    m.def("layer_grad(Tensor result_grad, Tensor result, Tensor scale, Tensor? noise, Tensor bias, float slope, float gain, float clamp) "
          "-> (Tensor, Tensor, Tensor, Tensor)");
    m.impl("layer_grad", c10::DispatchKey::CPU, layer_grad);
    m.def("modulation_grad(Tensor(a!) grad, Tensor x, Tensor styles) -> Tensor");
    m.impl("modulation_grad", c10::DispatchKey::CPU, modulation_grad);
}

}  // namespace
}  // namespace omni
