// Pad, upsample, filter and downsample images in channels-last layout: the inner loop runs over the channels of a pixel.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/util/BFloat16.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "images.h"
#include "low_pass.h"

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

// What a row of the result is made of. T is the images' type, A that of what is added.
template <typename T, typename A>
struct Row {
    const T* x;              // the image [height, width, channels]
    T* out;                  // [width, channels]
    const A* add;            // [width, channels] or null
    const float* f;
    int64_t kw, kh, channels, oy;
    Axis ax, ay;
};

template <typename T, typename A>
inline __attribute__((always_inline)) void row_body(const Row<T, A>& r, float* sum) {
    const int64_t channels = r.channels;
    // Taps that meet pixels of the input; with up to four of them there is no need for a row of sums.
    const bool few = ((r.kh + r.ay.up - 1) / r.ay.up) * ((r.kw + r.ax.up - 1) / r.ax.up) <= 4;
    for (int64_t ox = 0; ox < r.ax.out; ++ox) {
        const T* place[4] = {r.x, r.x, r.x, r.x};
        float tap[4] = {0, 0, 0, 0};
        int64_t count = 0;
        for (int64_t c = 0; !few && c < channels; ++c) sum[c] = 0;
        for (int64_t ky = r.ay.first_tap(r.oy); ky < r.kh; ky += r.ay.up) {
            const int64_t py = r.oy * r.ay.down - r.ay.pad + ky, iy = py / r.ay.up;
            if (py < 0 || iy >= r.ay.size) continue;
            for (int64_t kx = r.ax.first_tap(ox); kx < r.kw; kx += r.ax.up) {
                const int64_t px = ox * r.ax.down - r.ax.pad + kx, ix = px / r.ax.up;
                if (px < 0 || ix >= r.ax.size) continue;
                const T* p = r.x + (iy * r.ax.size + ix) * channels;
                const float t = r.f[ky * r.kw + kx];
                if (few) {
                    place[count] = p;
                    tap[count++] = t;
                } else {
                    for (int64_t c = 0; c < channels; ++c) sum[c] += t * widen(p[c]);
                }
            }
        }
        T* q = r.out + ox * channels;
        const T *p0 = place[0], *p1 = place[1], *p2 = place[2], *p3 = place[3];
        const float t0 = tap[0], t1 = tap[1], t2 = tap[2], t3 = tap[3];
        if (!few) {
            for (int64_t c = 0; c < channels; ++c) narrow(sum[c], q[c]);
        } else if (r.add) {
            const A* add = r.add + ox * channels;
            for (int64_t c = 0; c < channels; ++c)
                narrow(widen(add[c]) + (t0 * widen(p0[c]) + t1 * widen(p1[c]) + t2 * widen(p2[c]) + t3 * widen(p3[c])), q[c]);
        } else {
            for (int64_t c = 0; c < channels; ++c)
                narrow(t0 * widen(p0[c]) + t1 * widen(p1[c]) + t2 * widen(p2[c]) + t3 * widen(p3[c]), q[c]);
        }
    }
}

OMNI_CLONES void row(const Row<float, float>& r, float* sum) { row_body(r, sum); }
OMNI_CLONES void row(const Row<float, uint16_t>& r, float* sum) { row_body(r, sum); }
OMNI_CLONES void row(const Row<uint16_t, uint16_t>& r, float* sum) { row_body(r, sum); }

template <typename T, typename A>
void filter_image(const at::Tensor& x, const at::Tensor& out, const at::Tensor& f, const Axis& ax, const Axis& ay, const at::Tensor* add) {
    const int64_t n = x.size(0), channels = x.size(1);
    const T* source = static_cast<const T*>(x.const_data_ptr());
    T* target = static_cast<T*>(out.mutable_data_ptr());
    const A* added = add ? static_cast<const A*>(add->const_data_ptr()) : nullptr;
    at::parallel_for(0, n * ay.out, std::max<int64_t>(1, 32768 / (ax.out * channels + 1)), [&](int64_t begin, int64_t end) {
        std::vector<float> sum(channels);
        for (int64_t line = begin; line < end; ++line) {
            const int64_t place = line * ax.out * channels;
            row(Row<T, A>{source + line / ay.out * ax.size * ay.size * channels, target + place, added ? added + place : nullptr,
                          f.const_data_ptr<float>(), f.size(1), f.size(0), channels, line % ay.out, ax, ay},
                sum.data());
        }
    });
}

// Without inserted zeros, and with a filter that goes along one axis, then along the other. An image's rows lie one after the
// other, so both passes run over whole rows, whatever the number of channels.

template <typename T>
struct SeparableRow {
    const T* x;              // the image [height, width, channels]
    T* out;                  // [width, channels]
    float* columns;          // room for a row filtered along y, with what is padded on both sides
    const T* empty;          // a row of zeros
    Taps taps;
    int64_t channels, oy;
    Axis ax, ay;
};

template <typename T>
inline __attribute__((always_inline)) void separable_body(const SeparableRow<T>& r) {
    const int64_t channels = r.channels, numbers = r.ax.size * channels;
    const T* row[SEPARABLE];
    float tap[SEPARABLE];
    for (int64_t k = 0; k < SEPARABLE; ++k) {
        const int64_t iy = r.oy * r.ay.down - r.ay.pad + k;
        row[k] = iy >= 0 && iy < r.ay.size ? r.x + iy * numbers : r.empty;
        tap[k] = r.taps.y[k];
    }
    float* columns = r.columns + r.ax.pad * channels;
    for (int64_t i = 0; i < numbers; ++i)
        columns[i] = (tap[0] * widen(row[0][i]) + tap[1] * widen(row[1][i])) + (tap[2] * widen(row[2][i]) + tap[3] * widen(row[3][i]));
    const float t0 = r.taps.x[0], t1 = r.taps.x[1], t2 = r.taps.x[2], t3 = r.taps.x[3];
    // Neighbours in the result are so far apart in the row, and as many at a time are neighbours there too.
    const int64_t run = r.ax.down == 1 ? r.ax.out * channels : channels;
    for (int64_t first = 0; first * run < r.ax.out * channels; ++first) {
        const float *p0 = r.columns + first * r.ax.down * channels, *p1 = p0 + channels, *p2 = p1 + channels, *p3 = p2 + channels;
        T* q = r.out + first * run;
        for (int64_t i = 0; i < run; ++i) narrow((t0 * p0[i] + t1 * p1[i]) + (t2 * p2[i] + t3 * p3[i]), q[i]);
    }
}
OMNI_CLONES void separable_row(const SeparableRow<float>& r) { separable_body(r); }
OMNI_CLONES void separable_row(const SeparableRow<uint16_t>& r) { separable_body(r); }

template <typename T>
void filter_separably(const at::Tensor& x, const at::Tensor& out, const Taps& taps, const Axis& ax, const Axis& ay) {
    const int64_t n = x.size(0), channels = x.size(1);
    const T* source = static_cast<const T*>(x.const_data_ptr());
    T* target = static_cast<T*>(out.mutable_data_ptr());
    at::parallel_for(0, n * ay.out, std::max<int64_t>(1, 32768 / (ax.out * channels + 1)), [&](int64_t begin, int64_t end) {
        std::vector<float> columns(std::max((ax.out - 1) * ax.down + SEPARABLE, ax.pad + ax.size) * channels);
        const std::vector<T> empty(ax.size * channels);
        for (int64_t line = begin; line < end; ++line)
            separable_row(SeparableRow<T>{source + line / ay.out * ax.size * ay.size * channels, target + line * ax.out * channels,
                                          columns.data(), empty.data(), taps, channels, line % ay.out, ax, ay});
    });
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
    Taps taps;
    if (ax.up == 1 && ay.up == 1 && ax.pad >= 0 && f.size(0) == SEPARABLE && f.size(1) == SEPARABLE && factorise(f.const_data_ptr<float>(), taps)) {
        if (x.scalar_type() == at::kBFloat16) filter_separably<uint16_t>(x, out, taps, ax, ay);
        else filter_separably<float>(x, out, taps, ax, ay);
        return out;
    }
    if (x.scalar_type() == at::kBFloat16) filter_image<uint16_t, uint16_t>(x, out, f, ax, ay, nullptr);
    else filter_image<float, float>(x, out, f, ax, ay, nullptr);
    return out;
}

// An image at twice its size, plus `added` of that size: the skip connection of a synthesis block.
at::Tensor upsample_add(const at::Tensor& image, const at::Tensor& taps, const at::Tensor& added) {
    TORCH_CHECK(image.dim() == 4 && image.scalar_type() == at::kFloat, "upsample_add takes a float32 image [N, C, H, W]");
    TORCH_CHECK(added.scalar_type() == at::kFloat || added.scalar_type() == at::kBFloat16, "upsample_add adds float32 or bfloat16");
    TORCH_CHECK(taps.dim() == 2 && taps.size(0) == 4 && taps.size(1) == 4, "upsample_add takes a filter [4, 4]");
    const at::Tensor x = image.contiguous(at::MemoryFormat::ChannelsLast), add = added.contiguous(at::MemoryFormat::ChannelsLast);
    const at::Tensor f = (taps.to(at::kFloat) * 4).flip({0, 1}).contiguous();
    const Axis ax{x.size(3), 2 * x.size(3), 2, 1, 2}, ay{x.size(2), 2 * x.size(2), 2, 1, 2};
    TORCH_CHECK(add.sizes() == at::IntArrayRef({x.size(0), x.size(1), ay.out, ax.out}), "upsample_add: sizes do not match");
    at::Tensor out = at::empty({x.size(0), x.size(1), ay.out, ax.out}, x.options().memory_format(at::MemoryFormat::ChannelsLast));
    if (add.scalar_type() == at::kFloat) filter_image<float, float>(x, out, f, ax, ay, &add);
    else filter_image<float, uint16_t>(x, out, f, ax, ay, &add);
    return out;
}

TORCH_LIBRARY_IMPL(omnihead, CPU, m) { m.impl("upfirdn2d", upfirdn2d); }

TORCH_LIBRARY_FRAGMENT(omnihead, m) {
    m.def("upsample_add(Tensor image, Tensor f, Tensor added) -> Tensor");
    m.impl("upsample_add", c10::DispatchKey::CPU, upsample_add);
}

}  // namespace
}  // namespace omni
