// Modulated 3x3 convolution with everything that follows it in a StyleGAN2 layer, as one PyTorch operator: checks,
// layouts, threads, choice of the instruction set.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <tuple>
#include <vector>

#include "layer_arguments.h"
#include "winograd.h"

namespace omni {
namespace {

using at::Tensor;

// Tiles that a worker takes at a time. A matrix of weights that stays in its second cache is read again for every few tiles, and
// what becomes of these should stay there too; a larger one comes from the third cache, and shall be used by more of them.
constexpr int64_t KEPT_BYTES = 192 << 10, FEW_TILES = 24, MANY_TILES = 96, BLOCK_BYTES = 12 << 20;
constexpr int64_t STREAMED_BYTES = 48 << 20;   // results that no cache would keep until the next layer reads them
constexpr int64_t STRIP_TILES = 256;       // of a layer that doubles the size, before its low-pass filter
constexpr int64_t MOST_ROWS = 256;         // of the matrices whose products are the weight's gradient

constexpr Phase PLAIN[] = {{3, 3, 0, 0}}, POINTWISE[] = {{1, 1, 0, 0}}, DOUBLING[] = {{2, 2, 0, 0}, {2, 1, 0, 1}, {1, 2, 1, 0}, {1, 1, 1, 1}};

bool has(const char* name) {
#if defined(__x86_64__) && defined(__GNUC__)
    if (!std::strcmp(name, "avx2")) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (!std::strcmp(name, "avx512")) return avx512;
    if (!std::strcmp(name, "avx512bf16")) return avx512 && __builtin_cpu_supports("avx512bf16");
#endif
    return !std::strcmp(name, "baseline");
}

}  // namespace

// The best instruction set of this machine, or the lesser one that OMNIHEAD_ISA names; null where there is none of that kind.
const WinogradKernels* winograd_kernels(Products products) {
    const char* wanted = std::getenv("OMNIHEAD_ISA");
    const bool any = !wanted || !*wanted;
    for (const WinogradKernels* k : {winograd_avx512bf16(), winograd_avx512(), winograd_avx2_int16(), winograd_avx2(), winograd_baseline()})
        if (k && has(k->name) && k->products == products && (any || !std::strcmp(wanted, k->name))) return k;
    return products == Products::FLOAT32 ? winograd_baseline() : nullptr;
}

namespace {

Products products_named(c10::string_view name) {
    if (name == "float32") return Products::FLOAT32;
    if (name == "bfloat16") return Products::BFLOAT16;
    TORCH_CHECK(name == "int16", "products must be float32, bfloat16 or int16, got ", name);
    return Products::INT16;
}

// Those that multiply what was asked for, else float.
const WinogradKernels& kernels_of(c10::string_view products) {
    const WinogradKernels* k = winograd_kernels(products_named(products));
    return k ? *k : *winograd_kernels(Products::FLOAT32);
}

bool winograd_multiplies(c10::string_view products) { return winograd_kernels(products_named(products)) != nullptr; }

// [N, O] factors that bring the convolution of inputs scaled by styles [N, I] to unit variance; energy [I, O].
Tensor demodulation(const Convolution& c, const float* energy, const at::TensorOptions& options) {
    Tensor out = at::empty({c.n, c.out}, options);
    float* target = out.mutable_data_ptr<float>();
    std::vector<float> sum(c.out);
    for (int64_t n = 0; n < c.n; n++) {
        std::fill(sum.begin(), sum.end(), 1e-8f);
        for (int64_t i = 0; i < c.in; i++) {
            const float style = c.in_scale ? c.in_scale[n * c.in + i] : 1.0f;
            for (int64_t o = 0; o < c.out; o++) sum[o] += style * style * energy[i * c.out + o];
        }
        for (int64_t o = 0; o < c.out; o++) target[n * c.out + o] = 1 / std::sqrt(sum[o]);
    }
    return out;
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t tiles_of(const Convolution& c, const Strip& s, Phase p, int64_t tile) {
    return s.images * ceil_div(s.rows + (p.rows == 2 && s.last), tile) * ceil_div(c.w + (p.columns == 2), tile);
}

// All images at once, or as much as there is room for before the low-pass filter: images, or rows of one.
std::vector<Strip> strips_of(const Convolution& c, int64_t tile) {
    if (c.up == 1) return {{0, c.n, 0, c.h, true}};
    std::vector<Strip> strips;
    const int64_t most = std::max<int64_t>(STRIP_TILES, 64 * at::get_num_threads());
    const int64_t wide = ceil_div(c.w, tile), per_image = wide * ceil_div(c.h, tile);
    if (per_image <= most) {
        const int64_t images = std::max<int64_t>(1, most / std::max<int64_t>(1, per_image));
        for (int64_t n = 0; n < c.n; n += images) strips.push_back({n, std::min(images, c.n - n), 0, c.h, true});
        return strips;
    }
    const int64_t rows = std::max<int64_t>(1, most / wide) * tile;
    for (int64_t n = 0; n < c.n; n++)
        for (int64_t row = 0; row < c.h; row += rows) strips.push_back({n, 1, row, std::min(rows, c.h - row), row + rows >= c.h});
    return strips;
}

struct Work { Phase phase; const unsigned char* weights; int64_t first, end; };   // tiles of a strip

// A strip in blocks of about equal size, as large as caches hold and as many as there are threads.
std::vector<Work> work_of(const WinogradKernels& k, Convolution& c, const Strip& s, c10::ArrayRef<Phase> phases,
                          c10::ArrayRef<unsigned char*> weights) {
    int64_t all = 0;
    for (Phase p : phases) all += tiles_of(c, s, p, k.tile);
    const int64_t share = ceil_div(all, at::get_num_threads());
    const bool kept = c.in * c.out * (k.products == Products::FLOAT32 ? 4 : 2) <= KEPT_BYTES;
    const int64_t many = std::clamp(BLOCK_BYTES / k.tile_bytes(c), FEW_TILES, MANY_TILES);
    const int64_t most = std::min(kept ? FEW_TILES : many, std::max<int64_t>(share, 1));
    std::vector<Work> work;
    c.block = 0;
    for (size_t p = 0; p < phases.size(); p++) {
        const int64_t tiles = tiles_of(c, s, phases[p], k.tile);
        if (tiles == 0) continue;
        const int64_t block = ceil_div(ceil_div(tiles, ceil_div(tiles, most)), PRODUCT_ROWS) * PRODUCT_ROWS;
        c.block = std::max(c.block, block);
        for (int64_t t = 0; t < tiles; t += block) work.push_back({phases[p], weights[p], t, std::min(tiles, t + block)});
    }
    return work;
}

// Rows of the strip's results: those whose last tap is there.
void low_pass(const WinogradKernels& k, const Convolution& c, const Strip& s) {
    const int64_t first = s.first_row == 0 ? 0 : 2 * s.first_row - 2, end = s.last ? 2 * c.h : 2 * (s.first_row + s.rows) - 2;
    at::parallel_for(0, s.images * (end - first), 4, [&](int64_t begin, int64_t stop) {
        for (int64_t r = begin; r < stop;) {
            const int64_t image = r / (end - first), from = r % (end - first), to = std::min(end - first, from + stop - r);
            k.low_pass(c, s, s.first_image + image, first + from, first + to);
            r += to - from;
        }
    });
}

void convolve(const WinogradKernels& k, Convolution& c, c10::ArrayRef<Phase> phases, c10::ArrayRef<unsigned char*> weights,
              const at::TensorOptions& floats) {
    const std::vector<Strip> strips = strips_of(c, k.tile);
    Tensor between;
    if (c.up == 2) {
        int64_t images = 0;
        for (const Strip& s : strips) images = std::max(images, s.images), c.ring = std::max(c.ring, 2 * s.rows + 4);
        between = at::empty({images * c.ring + 1, 2 * c.w + 3, c.out}, floats);
        for (const Tensor& border : {between[0], between.select(1, 0), between.select(1, 2 * c.w + 2)}) border.zero_();
        c.between = between.mutable_data_ptr<float>();
    }
    for (const Strip& s : strips) {
        const std::vector<Work> work = work_of(k, c, s, phases, weights);
        at::parallel_for(0, work.size(), 1, [&](int64_t begin, int64_t end) {
            Tensor scratch = at::empty({k.scratch_bytes(c)}, floats.dtype(at::kByte));
            for (int64_t i = begin; i < end; i++)
                k.run(c, s, work[i].phase, work[i].weights, work[i].first, work[i].end, scratch.mutable_data_ptr<unsigned char>());
        });
        if (c.up == 2) low_pass(k, c, s);
    }
}

// One tap.
void convolve_pixels(const WinogradKernels& k, const Convolution& c, const unsigned char* weights, const at::TensorOptions& floats) {
    at::parallel_for(0, c.n * c.h * c.w, 1024, [&](int64_t begin, int64_t end) {
        Tensor scratch = at::empty({k.pointwise_bytes(c)}, floats.dtype(at::kByte));
        k.pointwise(c, weights, begin, end, scratch.mutable_data_ptr<unsigned char>());
    });
}

// `folded` [n, O, I...]: the weights of every image.
void few_channels(const WinogradKernels& k, Convolution c, const Tensor& folded) {
    const Tensor weights = folded.contiguous();
    const int64_t pixels = c.h * c.w;
    const float *x = static_cast<const float*>(c.x), *taps = weights.const_data_ptr<float>();
    float* y = static_cast<float*>(c.y);
    for (int64_t n = 0; n < c.n; n++) {
        c.x = x + n * pixels * c.in, c.y = y + n * pixels * c.out;
        at::parallel_for(0, pixels, 1024, [&](int64_t begin, int64_t end) { k.few(c, taps + n * c.out * c.in, begin, end); });
    }
}

// The result, and what its gradient needs besides: the factors of the demodulation [N, O] (undefined without) and the sums of
// squares over the taps [I, O].
std::tuple<Tensor, Tensor, Tensor> layer(const Tensor& input, const Tensor& weight, const Optional& upsampling, const Optional& styles,
                                         bool demodulate, const Optional& noise, const Optional& bias, double slope, double gain,
                                         double clamp, c10::string_view products, bool turned) {
    TORCH_CHECK(input.dim() == 4 && weight.dim() == 4, "winograd_convolve takes x [N, I, H, W] and weight [O, I, 3, 3]");
    TORCH_CHECK(input.scalar_type() == at::kFloat || input.scalar_type() == at::kBFloat16, "winograd_convolve takes float32 or bfloat16");
    TORCH_CHECK(!(upsampling && turned), "winograd_convolve: a layer that doubles the size has no turned weights");
    const Tensor x = input.contiguous(at::MemoryFormat::ChannelsLast);
    const Tensor filter = turned_filter(upsampling);
    Taps taps;
    Convolution c{};
    c.n = x.size(0), c.in = x.size(1), c.h = x.size(2), c.w = x.size(3), c.out = weight.size(turned ? 1 : 0);
    c.up = upsampling ? 2 : 1;
    const int64_t kernel = weight.size(2);
    const bool few = kernel == 1 && c.out <= FEW && c.out > 0 && !noise && !demodulate && !turned && x.scalar_type() == at::kFloat;
    TORCH_CHECK(c.in > 0 && c.in % 16 == 0 && (c.out % 16 == 0 || few), "winograd_convolve takes multiples of 16 channels, got ", c.in, " and ", c.out);
    TORCH_CHECK(kernel == 3 || (kernel == 1 && c.up == 1), "winograd_convolve takes weights of 3x3 taps, or of one without upsampling");
    c.weight = checked(weight, "weight", {turned ? c.in : c.out, turned ? c.out : c.in, kernel, kernel});
    c.taps = kernel * kernel;
    c.turned = turned;
    if (upsampling) c.filter = filter.const_data_ptr<float>();
    if (upsampling && factorise(c.filter, taps)) c.column_taps = taps.y, c.row_taps = taps.x;
    c.in_scale = checked(styles, "styles", {c.n, c.in});
    c.noise_each = noise && noise->size(0) == c.n;
    c.noise = checked(noise, "noise", {c.noise_each ? c.n : 1, c.h * c.up, c.w * c.up});
    c.bias = checked(bias, "bias", {c.out});
    c.half = x.scalar_type() == at::kBFloat16;
    c.x = x.const_data_ptr();
    c.slope = float(slope), c.gain = float(gain), c.clamp = float(clamp);
    Tensor y = at::empty({c.n, c.out, c.h * c.up, c.w * c.up}, x.options().memory_format(at::MemoryFormat::ChannelsLast));
    c.y = y.mutable_data_ptr();
    c.streams = !c.half && int64_t(y.nbytes()) >= STREAMED_BYTES && reinterpret_cast<uintptr_t>(c.y) % 64 == 0;
    const WinogradKernels& k = kernels_of(products);
    if (few) {
        few_channels(k, c, styles ? weight.view({1, c.out, c.in}) * styles->unsqueeze(1) : weight.expand({c.n, c.out, c.in, 1, 1}));
        return {y, {}, {}};
    }
    const c10::ArrayRef<Phase> phases = c.up == 2    ? c10::ArrayRef<Phase>(DOUBLING)
                                          : kernel == 3 ? c10::ArrayRef<Phase>(PLAIN)
                                                        : c10::ArrayRef<Phase>(POINTWISE);
    const at::TensorOptions floats = x.options().dtype(at::kFloat).memory_format(at::MemoryFormat::Contiguous);
    int64_t bytes = 0;
    for (Phase p : phases) bytes += k.weight_bytes(c, p);
    Tensor transformed = at::empty({bytes}, floats.dtype(at::kByte)), energy = at::empty({c.in, c.out}, floats), scale;
    std::vector<unsigned char*> weights{transformed.mutable_data_ptr<unsigned char>()};
    for (Phase p : phases) weights.push_back(weights.back() + k.weight_bytes(c, p));
    c.energy = energy.mutable_data_ptr<float>();
    at::parallel_for(0, k.groups(c), 1, [&](int64_t begin, int64_t end) {
        Tensor room = at::empty({k.transform_floats(c)}, floats);
        for (int64_t g = begin; g < end; g++) k.transform(c, phases.data(), int(phases.size()), weights.data(), g, room.mutable_data_ptr<float>());
    });
    if (demodulate) {
        scale = demodulation(c, c.energy, floats);
        c.out_scale = scale.const_data_ptr<float>();
    }
    if (kernel == 1) convolve_pixels(k, c, weights[0], floats);
    else convolve(k, c, phases, weights, floats);
    return {y, scale, energy};
}

Tensor winograd_convolve(const Tensor& input, const Tensor& weight, const Optional& upsampling, const Optional& styles, bool demodulate,
                        const Optional& noise, const Optional& bias, double slope, double gain, double clamp, c10::string_view products,
                        bool turned) {
    return std::get<0>(layer(input, weight, upsampling, styles, demodulate, noise, bias, slope, gain, clamp, products, turned));
}

std::tuple<Tensor, Tensor, Tensor> winograd_layer(const Tensor& input, const Tensor& weight, const Optional& upsampling,
                                                  const Tensor& styles, const Optional& noise, const Tensor& bias, double slope,
                                                  double gain, double clamp, c10::string_view products) {
    return layer(input, weight, upsampling, styles, true, noise, bias, slope, gain, clamp, products, false);
}

// What unfold() reads: all tiles of x.
Convolution images_of(const Tensor& x) {
    Convolution c{};
    c.n = x.size(0), c.in = x.size(1), c.h = x.size(2), c.w = x.size(3);
    c.half = x.scalar_type() == at::kBFloat16;
    c.x = x.const_data_ptr();
    return c;
}

// Matrices [36, end - first, channels] of these tiles, see WinogradKernels::unfold.
Tensor unfolded(const WinogradKernels& k, Convolution c, bool gradient, int64_t first, int64_t end) {
    c.block = end - first;
    const int64_t area = (k.tile + 2) * (k.tile + 2), step = k.matrix_step(c);
    Tensor out = at::empty({area, step}, at::TensorOptions().dtype(k.products == Products::BFLOAT16 ? at::kBFloat16 : at::kFloat));
    void* target = out.mutable_data_ptr();
    at::parallel_for(first, end, 8, [&](int64_t begin, int64_t stop) { k.unfold(c, gradient, first, begin, stop, target); });
    return out.as_strided({area, c.block, c.in}, {step, c.in, 1});
}

// Gradient [O, I, 3, 3] float of the weight of a plain convolution of `input` [N, I, H, W], times styles [N, I] if there are any,
// from that of its result.
Tensor winograd_weight_gradient(const Tensor& input, const Tensor& result_grad, c10::string_view products, const Optional& styles) {
    TORCH_CHECK(input.dim() == 4 && result_grad.dim() == 4 && input.size(0) == result_grad.size(0) &&
                input.sizes().slice(2) == result_grad.sizes().slice(2),
                "winograd_weight_gradient takes input [N, I, H, W] and gradient [N, O, H, W]");
    for (const Tensor& t : {input, result_grad})
        TORCH_CHECK((t.scalar_type() == at::kFloat || t.scalar_type() == at::kBFloat16) && t.size(1) % 16 == 0,
                    "winograd_weight_gradient takes float32 or bfloat16, and multiples of 16 channels");
    const Tensor x = input.contiguous(at::MemoryFormat::ChannelsLast), grad = result_grad.contiguous(at::MemoryFormat::ChannelsLast);
    TORCH_CHECK(products != "int16", "winograd_weight_gradient has products of float32 or bfloat16");
    const WinogradKernels& k = kernels_of(products);
    Convolution inputs = images_of(x);
    const Convolution grads = images_of(grad);
    inputs.in_scale = checked(styles, "styles", {inputs.n, inputs.in});
    const int64_t in = inputs.in, out = grads.in, area = (k.tile + 2) * (k.tile + 2);
    const int64_t tiles = tiles_of(inputs, {0, inputs.n, 0, inputs.h, true}, PLAIN[0], k.tile);
    const at::TensorOptions floats = at::TensorOptions().dtype(at::kFloat);
    Tensor sum = at::zeros({area, in, out}, floats), taps = at::empty({9, area}, floats);
    for (int64_t first = 0; first < tiles; first += MOST_ROWS) {
        const int64_t end = std::min(tiles, first + MOST_ROWS);
        const Tensor a = unfolded(k, inputs, false, first, end).transpose(1, 2), b = unfolded(k, grads, true, first, end);
        if (a.scalar_type() == at::kFloat) sum.baddbmm_(a, b);
        else sum += at::bmm(a, b);
    }
    k.tap_matrix(taps.mutable_data_ptr<float>());
    return at::mm(taps, sum.view({area, in * out})).view({9, in, out}).permute({2, 1, 0}).reshape({out, in, 3, 3});
}

TORCH_LIBRARY_FRAGMENT(omnihead, m) {
    m.def("winograd_multiplies(str products) -> bool");
    m.impl("winograd_multiplies", winograd_multiplies);
    m.def("winograd_convolve(Tensor x, Tensor weight, Tensor? upsampling, Tensor? styles, bool demodulate, Tensor? noise, Tensor? bias, "
          "float slope, float gain, float clamp, str products, bool turned=False) -> Tensor");
    m.impl("winograd_convolve", c10::DispatchKey::CPU, winograd_convolve);
    m.def("winograd_layer(Tensor x, Tensor weight, Tensor? upsampling, Tensor styles, Tensor? noise, Tensor bias, float slope, float gain, "
          "float clamp, str products) -> (Tensor, Tensor, Tensor)");
    m.impl("winograd_layer", c10::DispatchKey::CPU, winograd_layer);
    m.def("winograd_weight_gradient(Tensor x, Tensor result_grad, str products, Tensor? styles=None) -> Tensor");
    m.impl("winograd_weight_gradient", c10::DispatchKey::CPU, winograd_weight_gradient);
}

}  // namespace
}  // namespace omni
