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
#include <optional>
#include <tuple>
#include <vector>

#include "winograd.h"

namespace omni {
namespace {

using at::Tensor;
using Optional = std::optional<Tensor>;

constexpr int64_t MOST_TILES = 24;   // a worker takes at a time: their transforms fill most of its second-level cache
constexpr int64_t MOST_ROWS = 256;   // of the matrices whose products are the weight's gradient, for the same reason

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

// The best instruction set of this machine, or the lesser one that OMNIHEAD_ISA names; null where there is none of that kind.
// `half`: products of bfloat16.
const WinogradKernels* winograd_kernels(bool half) {
    const char* wanted = std::getenv("OMNIHEAD_ISA");
    const bool any = !wanted || !*wanted;
    for (const WinogradKernels* k : {winograd_avx512bf16(), winograd_avx512(), winograd_avx2(), winograd_baseline()})
        if (k && has(k->name) && k->half_products == half && (any || !std::strcmp(wanted, k->name))) return k;
    return half ? nullptr : winograd_baseline();
}

const float* checked(const Optional& t, const char* name, at::IntArrayRef shape) {
    if (!t) return nullptr;
    TORCH_CHECK(t->scalar_type() == at::kFloat && t->is_contiguous() && t->sizes() == shape, name, " must be float32 of shape ", shape);
    return t->const_data_ptr<float>();
}

bool winograd_half_products() { return winograd_kernels(true) != nullptr; }

// Taps of each of the four pixels that one pixel becomes, from those of the weight: in one direction tap a of the weight
// meets tap a - p + 1 + 2 d of the turned filter at distance d (-1, 0, 1) of phase p.
std::vector<float> phase_taps(const Optional& filter) {
    if (!filter) return {};
    TORCH_CHECK(filter->sizes() == at::IntArrayRef({4, 4}), "winograd_conv3x3: a low-pass filter of 4x4 taps is needed");
    const Tensor f = filter->to(at::kFloat).contiguous();
    const float* taps = f.const_data_ptr<float>();
    std::vector<float> out(4 * 9 * 9, 0.0f);
    for (int p = 0; p < 4; p++)
        for (int d = 0; d < 9; d++)
            for (int a = 0; a < 9; a++) {
                const int y = a / 3 - p / 2 + 2 * (d / 3) - 1, x = a % 3 - p % 2 + 2 * (d % 3) - 1;
                if (y >= 0 && y < 4 && x >= 0 && x < 4) out[(p * 9 + d) * 9 + a] = 4 * taps[(3 - y) * 4 + 3 - x];
            }
    return out;
}

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

// The result, and what its gradient needs besides: the factors of the demodulation [N, O] (undefined without) and the sums of
// squares over the taps [I, O].
std::tuple<Tensor, Tensor, Tensor> layer(const Tensor& input, const Tensor& weight, const Optional& upsampling, const Optional& styles,
                                         bool demodulate, const Optional& noise, const Optional& bias, double slope, double gain,
                                         double clamp, bool half_products, bool turned) {
    TORCH_CHECK(input.dim() == 4 && weight.dim() == 4, "winograd_conv3x3 takes x [N, I, H, W] and weight [O, I, 3, 3]");
    TORCH_CHECK(input.scalar_type() == at::kFloat || input.scalar_type() == at::kBFloat16, "winograd_conv3x3 takes float32 or bfloat16");
    const Tensor x = input.contiguous(at::MemoryFormat::ChannelsLast);
    const std::vector<float> phases = phase_taps(upsampling);
    Convolution c{};
    c.n = x.size(0), c.in = x.size(1), c.h = x.size(2), c.w = x.size(3), c.out = weight.size(turned ? 1 : 0);
    c.up = upsampling ? 2 : 1;
    TORCH_CHECK(c.in % 16 == 0 && c.out % 16 == 0, "winograd_conv3x3 takes multiples of 16 channels, got ", c.in, " and ", c.out);
    c.weight = checked(weight, "weight", {turned ? c.in : c.out, turned ? c.out : c.in, 3, 3});
    c.turned = turned;
    c.phases = phases.data();
    c.in_scale = checked(styles, "styles", {c.n, c.in});
    c.noise_each = noise && noise->size(0) == c.n;
    c.noise = checked(noise, "noise", {c.noise_each ? c.n : 1, c.h * c.up, c.w * c.up});
    c.bias = checked(bias, "bias", {c.out});
    c.half = x.scalar_type() == at::kBFloat16;
    c.x = x.const_data_ptr();
    c.slope = float(slope), c.gain = float(gain), c.clamp = float(clamp);
    Tensor y = at::empty({c.n, c.out, c.h * c.up, c.w * c.up}, x.options().memory_format(at::MemoryFormat::ChannelsLast));
    c.y = y.mutable_data_ptr();
    const WinogradKernels* kernels = half_products ? winograd_kernels(true) : nullptr;
    const WinogradKernels& k = kernels ? *kernels : *winograd_kernels(false);
    c.tiles_high = (c.h + k.tile - 1) / k.tile, c.tiles_wide = (c.w + k.tile - 1) / k.tile;
    const int64_t tiles = c.n * c.tiles_high * c.tiles_wide, share = (tiles + at::get_num_threads() - 1) / at::get_num_threads();
    c.block = std::min(MOST_TILES, (share + 5) / 6 * 6);
    const at::TensorOptions floats = x.options().dtype(at::kFloat).memory_format(at::MemoryFormat::Contiguous);
    Tensor transformed = at::empty({k.transformed_floats(c)}, floats), energy = at::empty({c.in, c.out}, floats), scale;
    float* u = transformed.mutable_data_ptr<float>();
    c.energy = energy.mutable_data_ptr<float>();
    at::parallel_for(0, c.in / 16, 1, [&](int64_t begin, int64_t end) { k.transform(c, u, 16 * begin, 16 * end); });
    if (demodulate) {
        scale = demodulation(c, c.energy, floats);
        c.out_scale = scale.const_data_ptr<float>();
    }
    const int64_t blocks = tiles == 0 ? 0 : (tiles + c.block - 1) / c.block;
    at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
        Tensor scratch = at::zeros({k.scratch_floats(c)}, floats);
        for (int64_t b = begin; b < end; b++)
            k.run(c, u, b * c.block, std::min(tiles, (b + 1) * c.block), scratch.mutable_data_ptr<float>());
    });
    return {y, scale, energy};
}

Tensor winograd_conv3x3(const Tensor& input, const Tensor& weight, const Optional& upsampling, const Optional& styles, bool demodulate,
                        const Optional& noise, const Optional& bias, double slope, double gain, double clamp, bool half_products,
                        bool turned) {
    return std::get<0>(layer(input, weight, upsampling, styles, demodulate, noise, bias, slope, gain, clamp, half_products, turned));
}

std::tuple<Tensor, Tensor, Tensor> winograd_layer(const Tensor& input, const Tensor& weight, const Optional& upsampling,
                                                  const Tensor& styles, const Optional& noise, const Tensor& bias, double slope,
                                                  double gain, double clamp, bool half_products) {
    return layer(input, weight, upsampling, styles, true, noise, bias, slope, gain, clamp, half_products, false);
}

// What unfold() reads: all tiles of x.
Convolution tiles_of(const WinogradKernels& k, const Tensor& x) {
    Convolution c{};
    c.n = x.size(0), c.in = x.size(1), c.h = x.size(2), c.w = x.size(3);
    c.half = x.scalar_type() == at::kBFloat16;
    c.x = x.const_data_ptr();
    c.tiles_high = (c.h + k.tile - 1) / k.tile, c.tiles_wide = (c.w + k.tile - 1) / k.tile;
    return c;
}

// Matrices [36, end - first, channels] of these tiles, see WinogradKernels::unfold.
Tensor unfolded(const WinogradKernels& k, Convolution c, bool gradient, int64_t first, int64_t end) {
    c.block = end - first;
    const int64_t area = (k.tile + 2) * (k.tile + 2), step = k.matrix_step(c);
    Tensor out = at::empty({area, step}, at::TensorOptions().dtype(k.half_products ? at::kBFloat16 : at::kFloat));
    void* target = out.mutable_data_ptr();
    at::parallel_for(first, end, 8, [&](int64_t begin, int64_t stop) { k.unfold(c, gradient, first, begin, stop, target); });
    return out.as_strided({area, c.block, c.in}, {step, c.in, 1});
}

// Gradient [O, I, 3, 3] float of the weight of a plain convolution of `input` [N, I, H, W], times styles [N, I] if there are any,
// from that of its result.
Tensor winograd_weight_gradient(const Tensor& input, const Tensor& result_grad, bool half_products, const Optional& styles) {
    TORCH_CHECK(input.dim() == 4 && result_grad.dim() == 4 && input.size(0) == result_grad.size(0) &&
                input.sizes().slice(2) == result_grad.sizes().slice(2),
                "winograd_weight_gradient takes input [N, I, H, W] and gradient [N, O, H, W]");
    for (const Tensor& t : {input, result_grad})
        TORCH_CHECK((t.scalar_type() == at::kFloat || t.scalar_type() == at::kBFloat16) && t.size(1) % 16 == 0,
                    "winograd_weight_gradient takes float32 or bfloat16, and multiples of 16 channels");
    const Tensor x = input.contiguous(at::MemoryFormat::ChannelsLast), grad = result_grad.contiguous(at::MemoryFormat::ChannelsLast);
    const WinogradKernels* kernels = half_products ? winograd_kernels(true) : nullptr;
    const WinogradKernels& k = kernels ? *kernels : *winograd_kernels(false);
    Convolution inputs = tiles_of(k, x);
    const Convolution grads = tiles_of(k, grad);
    inputs.in_scale = checked(styles, "styles", {inputs.n, inputs.in});
    const int64_t in = inputs.in, out = grads.in, area = (k.tile + 2) * (k.tile + 2);
    const int64_t tiles = inputs.n * inputs.tiles_high * inputs.tiles_wide;
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
    m.def("winograd_half_products() -> bool");
    m.impl("winograd_half_products", winograd_half_products);
    m.def("winograd_conv3x3(Tensor x, Tensor weight, Tensor? upsampling, Tensor? styles, bool demodulate, Tensor? noise, Tensor? bias, "
          "float slope, float gain, float clamp, bool half_products, bool turned=False) -> Tensor");
    m.impl("winograd_conv3x3", c10::DispatchKey::CPU, winograd_conv3x3);
    m.def("winograd_layer(Tensor x, Tensor weight, Tensor? upsampling, Tensor styles, Tensor? noise, Tensor bias, float slope, float gain, "
          "float clamp, bool half_products) -> (Tensor, Tensor, Tensor)");
    m.impl("winograd_layer", c10::DispatchKey::CPU, winograd_layer);
    m.def("winograd_weight_gradient(Tensor x, Tensor result_grad, bool half_products, Tensor? styles=None) -> Tensor");
    m.impl("winograd_weight_gradient", c10::DispatchKey::CPU, winograd_weight_gradient);
}

}  // namespace
}  // namespace omni
