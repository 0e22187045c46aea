// Pad, upsample, filter and downsample images in channels-last layout: the inner loop runs over the channels of a pixel.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/util/BFloat16.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <vector>

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define OMNI_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define OMNI_CLONES
#endif

namespace omni {
namespace {

struct Axis {
    int64_t size, out, up, down, pad;   // pixels in and out, factors, padding before the first pixel
    // First tap that meets a pixel of the input at output position o; the others follow every `up` taps.
    int64_t first_tap(int64_t o) const {
        const int64_t rest = (o * down - pad) % up;   // of the upsampled position of tap 0; of its sign
        return rest > 0 ? up - rest : -rest;
    }
};

inline float widen(float x) { return x; }
inline float widen(uint16_t x) {
    const uint32_t bits = uint32_t(x) << 16;
    float out;
    std::memcpy(&out, &bits, 4);
    return out;
}
inline void narrow(float x, float& out) { out = x; }
inline void narrow(float x, uint16_t& out) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    // Round to nearest even; NaN keeps its upper bits and stays NaN.
    out = uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

template <typename T>
inline __attribute__((always_inline)) void row_body(const T* x, T* out, const float* f, int64_t kw, int64_t kh, int64_t channels,
                                                    const Axis& ax, const Axis& ay, int64_t oy, float* sum) {
    for (int64_t ox = 0; ox < ax.out; ++ox) {
        for (int64_t c = 0; c < channels; ++c) sum[c] = 0;
        for (int64_t ky = ay.first_tap(oy); ky < kh; ky += ay.up) {
            const int64_t py = oy * ay.down - ay.pad + ky, iy = py / ay.up;
            if (py < 0 || iy >= ay.size) continue;
            for (int64_t kx = ax.first_tap(ox); kx < kw; kx += ax.up) {
                const int64_t px = ox * ax.down - ax.pad + kx, ix = px / ax.up;
                if (px < 0 || ix >= ax.size) continue;
                const float tap = f[ky * kw + kx];
                const T* p = x + (iy * ax.size + ix) * channels;
                for (int64_t c = 0; c < channels; ++c) sum[c] += tap * widen(p[c]);
            }
        }
        T* q = out + ox * channels;
        for (int64_t c = 0; c < channels; ++c) narrow(sum[c], q[c]);
    }
}

OMNI_CLONES void row_float(const float* x, float* out, const float* f, int64_t kw, int64_t kh, int64_t channels, const Axis& ax,
                           const Axis& ay, int64_t oy, float* sum) {
    row_body(x, out, f, kw, kh, channels, ax, ay, oy, sum);
}

OMNI_CLONES void row_bfloat16(const uint16_t* x, uint16_t* out, const float* f, int64_t kw, int64_t kh, int64_t channels, const Axis& ax,
                              const Axis& ay, int64_t oy, float* sum) {
    row_body(x, out, f, kw, kh, channels, ax, ay, oy, sum);
}

at::Tensor upfirdn2d(const at::Tensor& input, const at::Tensor& filter, at::IntArrayRef up, at::IntArrayRef down, at::IntArrayRef padding) {
    TORCH_CHECK(input.dim() == 4 && filter.dim() == 2, "upfirdn2d takes [N, C, H, W] and [K, K]");
    TORCH_CHECK(input.scalar_type() == at::kFloat || input.scalar_type() == at::kBFloat16, "upfirdn2d takes float32 or bfloat16");
    const at::Tensor x = input.contiguous(at::MemoryFormat::ChannelsLast);
    const at::Tensor f = filter.to(at::kFloat).contiguous();
    const int64_t n = x.size(0), channels = x.size(1), kh = f.size(0), kw = f.size(1);
    Axis ax{x.size(3), 0, up[0], down[0], padding[0]}, ay{x.size(2), 0, up[1], down[1], padding[2]};
    ax.out = (ax.size * ax.up + padding[0] + padding[1] - kw) / ax.down + 1;
    ay.out = (ay.size * ay.up + padding[2] + padding[3] - kh) / ay.down + 1;
    TORCH_CHECK(ax.out > 0 && ay.out > 0, "upfirdn2d: the filter is larger than the padded image");
    at::Tensor out = at::empty({n, channels, ay.out, ax.out}, x.options().memory_format(at::MemoryFormat::ChannelsLast));
    const float* taps = f.const_data_ptr<float>();
    const bool half = x.scalar_type() == at::kBFloat16;
    const char* source = static_cast<const char*>(x.const_data_ptr());
    char* target = static_cast<char*>(out.mutable_data_ptr());
    const int64_t width = half ? 2 : 4;
    at::parallel_for(0, n * ay.out, std::max<int64_t>(1, 32768 / (ax.out * channels + 1)), [&](int64_t begin, int64_t end) {
        std::vector<float> sum(channels);
        for (int64_t row = begin; row < end; ++row) {
            const char* image = source + row / ay.out * ax.size * ay.size * channels * width;
            char* line = target + row * ax.out * channels * width;
            if (half)
                row_bfloat16(reinterpret_cast<const uint16_t*>(image), reinterpret_cast<uint16_t*>(line), taps, kw, kh, channels, ax, ay,
                             row % ay.out, sum.data());
            else
                row_float(reinterpret_cast<const float*>(image), reinterpret_cast<float*>(line), taps, kw, kh, channels, ax, ay,
                          row % ay.out, sum.data());
        }
    });
    return out;
}

TORCH_LIBRARY_IMPL(omnihead, CPU, m) { m.impl("upfirdn2d", upfirdn2d); }

}  // namespace
}  // namespace omni
