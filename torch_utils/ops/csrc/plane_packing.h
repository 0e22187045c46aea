// Planes as the networks make them, channel by channel, and as the kernels read them, all channels of a cell together.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace omni {
namespace {

using at::Tensor;

constexpr int64_t PAD = 16;

int64_t padded(int64_t num) { return (num + PAD - 1) / PAD * PAD; }

// Large memory for a short while, in large pages where the system has them: lookups go all over it.
struct Buffer {
    static constexpr size_t PAGE = size_t(1) << 21;
    float* data;
    explicit Buffer(int64_t floats) {
        const size_t bytes = (floats * sizeof(float) + PAGE) / PAGE * PAGE;
        data = static_cast<float*>(std::aligned_alloc(PAGE, bytes));
        TORCH_CHECK(data, "not enough memory for ", bytes, " bytes");
#if defined(__linux__)
        madvise(data, bytes, MADV_HUGEPAGE);   // advice only: if it fails, pages are small
#endif
    }
    Buffer(const Buffer&) = delete;
    ~Buffer() { std::free(data); }
};

// Four rows of four numbers, rows and columns exchanged.
inline void transpose4(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
#if defined(__SSE__)
    __m128 a = _mm_loadu_ps(from), b = _mm_loadu_ps(from + from_stride);
    __m128 c = _mm_loadu_ps(from + 2 * from_stride), d = _mm_loadu_ps(from + 3 * from_stride);
    _MM_TRANSPOSE4_PS(a, b, c, d);
    _mm_storeu_ps(to, a), _mm_storeu_ps(to + to_stride, b);
    _mm_storeu_ps(to + 2 * to_stride, c), _mm_storeu_ps(to + 3 * to_stride, d);
#else
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) to[j * to_stride + i] = from[i * from_stride + j];
#endif
}

// to [columns, rows] = from [rows, columns] transposed.
void transpose(const float* from, int64_t from_stride, float* to, int64_t to_stride, int64_t rows, int64_t columns) {
    for (int64_t i = 0; i < rows; i += 4)
        for (int64_t j = 0; j < columns; j += 4)
            if (i + 4 <= rows && j + 4 <= columns)
                transpose4(from + i * from_stride + j, from_stride, to + j * to_stride + i, to_stride);
            else
                for (int64_t k = i; k < std::min(i + 4, rows); k++)
                    for (int64_t l = j; l < std::min(j + 4, columns); l++) to[l * to_stride + k] = from[k * from_stride + l];
}

// Sizes of the planes of one identity, [3, channels, layers, height, width].
struct PlaneSizes {
    int64_t channels, layers, cells, wide;
    explicit PlaneSizes(const Tensor& planes)
        : channels(planes.size(2)), layers(planes.size(3)), cells(planes.size(4) * planes.size(5)),
          wide(padded(planes.size(2))) {}
    int64_t planar() const { return 3 * channels * layers * cells; }
    int64_t packed() const { return 3 * wide * layers * cells; }
};

// Run work(planar offset, packed offset, cells) over runs of cells of one identity's planes.
template <typename Work>
void for_cells(const PlaneSizes& s, const Work& work) {
    constexpr int64_t RUN = 64;
    const int64_t runs = (s.cells + RUN - 1) / RUN;
    at::parallel_for(0, 3 * s.layers * runs, 64, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) {
            const int64_t plane = i / (s.layers * runs), layer = i / runs % s.layers, first = i % runs * RUN;
            const int64_t planar = (plane * s.channels * s.layers + layer) * s.cells + first;
            const int64_t packed = ((plane * s.layers + layer) * s.cells + first) * s.wide;
            work(planar, packed, std::min(RUN, s.cells - first));
        }
    });
}

// [3, C, depth, height, width] -> [3, depth, height, width, padded C]
void pack_planes(const PlaneSizes& s, const float* planar, float* packed) {
    for_cells(s, [&](int64_t from, int64_t to, int64_t cells) {
        if (s.wide > s.channels) std::memset(packed + to, 0, cells * s.wide * sizeof(float));
        transpose(planar + from, s.layers * s.cells, packed + to, s.wide, s.channels, cells);
    });
}

void unpack_planes(const PlaneSizes& s, const float* packed, float* planar) {
    for_cells(s, [&](int64_t to, int64_t from, int64_t cells) {
        transpose(packed + from, s.wide, planar + to, s.layers * s.cells, cells, s.channels);
    });
}

}  // namespace
}  // namespace omni
