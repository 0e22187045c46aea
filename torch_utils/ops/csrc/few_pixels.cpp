// Layers of 3x3 taps whose images have few pixels, on CPU, in float: torch.ops.omnihead.few_pixels_convolve.
//
// The time of such a layer is that of reading its weights, which other ways lay out anew. Here each output channel's are read once: what
// each of its taps makes of each pixel is kept, and summed where it belongs.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "layer_arguments.h"
#include "winograd.h"

namespace omni {
namespace {

using at::Tensor;

struct Images {
    int64_t n, in, h, w, pixels;             // pixels of all images, rounded up
    std::vector<float> values, factors;      // [pixels / 16, in, 16] times the styles; [n, in, 9] squares of the styles
};

Images images_of(const Tensor& input, const float* styles) {
    const Tensor x = input.contiguous();
    Images images{x.size(0), x.size(1), x.size(2), x.size(3), 0, {}, {}};
    const int64_t area = images.h * images.w, in = images.in;
    images.pixels = (images.n * area + PIXELS_ABREAST - 1) / PIXELS_ABREAST * PIXELS_ABREAST;
    images.values.resize(images.pixels * in);
    images.factors.resize(images.n * in * 9);
    const float* from = x.const_data_ptr<float>();
    for (int64_t n = 0; n < images.n; n++)
        for (int64_t i = 0; i < in; i++) {
            const float style = styles ? styles[n * in + i] : 1;
            for (int64_t p = 0; p < area; p++) {
                const int64_t at = n * area + p;
                images.values[(at / PIXELS_ABREAST * in + i) * PIXELS_ABREAST + at % PIXELS_ABREAST] = style * *from++;
            }
            std::fill_n(images.factors.begin() + (n * in + i) * 9, 9, style * style);
        }
    return images;
}

// Image n of one output channel [h, w] of what its taps made [9, pixels].
void gather_taps(const Images& s, const float* z, int64_t n, float* image) {
    for (int64_t r = 0; r < s.h; r++)
        for (int64_t c = 0; c < s.w; c++) {
            float sum = 0;
            for (int64_t a = std::max<int64_t>(0, 1 - r); a < std::min<int64_t>(3, s.h + 1 - r); a++)
                for (int64_t b = std::max<int64_t>(0, 1 - c); b < std::min<int64_t>(3, s.w + 1 - c); b++)
                    sum += z[(a * 3 + b) * s.pixels + (n * s.h + r + a - 1) * s.w + c + b - 1];
            image[r * s.w + c] = sum;
        }
}

// The same of twice the size: the transposed convolution goes to `between` [2 h + 3, 2 w + 3], whose border is zeros, and through the filter.
void spread_taps(const Images& s, const float* z, int64_t n, const float* filter, float* between, float* image) {
    const int64_t wide = 2 * s.w + 3;
    std::fill_n(between, (2 * s.h + 3) * wide, 0.0f);
    for (int64_t t = 0; t < 9; t++)
        for (int64_t r = 0; r < s.h; r++)
            for (int64_t c = 0; c < s.w; c++)
                between[(2 * r + t / 3 + 1) * wide + 2 * c + t % 3 + 1] += z[t * s.pixels + (n * s.h + r) * s.w + c];
    for (int64_t r = 0; r < 2 * s.h; r++)
        for (int64_t c = 0; c < 2 * s.w; c++) {
            float sum = 0;
            for (int64_t a = 0; a < 4; a++)
                for (int64_t b = 0; b < 4; b++) sum += filter[4 * a + b] * between[(r + a) * wide + c + b];
            image[r * 2 * s.w + c] = sum;
        }
}

Tensor few_pixels_convolve(const Tensor& input, const Tensor& weight, const Optional& upsampling, const Optional& styles, bool demodulate,
                           const Optional& noise, const Optional& bias, double slope, double gain, double clamp) {
    TORCH_CHECK(input.dim() == 4 && input.scalar_type() == at::kFloat, "few_pixels_convolve takes x [N, I, H, W] float32");
    TORCH_CHECK(weight.dim() == 4 && weight.size(2) == 3 && weight.size(3) == 3, "few_pixels_convolve takes weights of 3x3 taps");
    const int64_t n = input.size(0), in = input.size(1), out = weight.size(0), up = upsampling ? 2 : 1;
    const int64_t high = input.size(2) * up, wide = input.size(3) * up, area = high * wide;
    const float *w = checked(weight, "weight", {out, in, 3, 3}), *style = checked(styles, "styles", {n, in}), *b = checked(bias, "bias", {out});
    const bool each = noise && noise->size(0) == n;
    const float* grain = checked(noise, "noise", {each ? n : 1, high, wide});
    const Tensor filter = turned_filter(upsampling);
    Tensor y = at::empty({n, out, high, wide}, input.options().memory_format(at::MemoryFormat::ChannelsLast));
    if (y.numel() == 0) return y;
    const Images images = images_of(input, style);
    const WinogradKernels& kernels = *winograd_kernels(Products::FLOAT32);
    float* target = y.mutable_data_ptr<float>();
    const float s = float(slope), g = float(gain), limit = float(clamp);
    at::parallel_for(0, out, 16, [&](int64_t begin, int64_t end) {
        std::vector<float> z(9 * images.pixels), between((high + 3) * (wide + 3)), image(area);
        for (int64_t o = begin; o < end; o++) {
            kernels.tap_products(images.values.data(), images.pixels, in, w + o * in * 9, z.data());
            for (int64_t k = 0; k < n; k++) {
                if (up == 2) spread_taps(images, z.data(), k, filter.const_data_ptr<float>(), between.data(), image.data());
                else gather_taps(images, z.data(), k, image.data());
                const float squares = demodulate ? kernels.energy(in, w + o * in * 9, images.factors.data() + k * in * 9) : 0;
                const float scale = demodulate ? 1 / std::sqrt(squares + 1e-8f) : 1;
                for (int64_t p = 0; p < area; p++) {
                    float v = image[p] * scale + (b ? b[o] : 0) + (grain ? grain[(each ? k * area : 0) + p] : 0);
                    v = (v < 0 ? v * s : v) * g;
                    target[(k * area + p) * out + o] = v > limit ? limit : v < -limit ? -limit : v;
                }
            }
        }
    });
    return y;
}

TORCH_LIBRARY_FRAGMENT(omnihead, m) {
    m.def("few_pixels_convolve(Tensor x, Tensor weight, Tensor? upsampling, Tensor? styles, bool demodulate, Tensor? noise, Tensor? bias, "
          "float slope, float gain, float clamp) -> Tensor");
    m.impl("few_pixels_convolve", c10::DispatchKey::CPU, few_pixels_convolve);
}

}  // namespace
}  // namespace omni
