// Planes channel by channel, as PyTorch has them by default, and as the kernels read them, all channels of a cell together.
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

constexpr size_t LARGE_PAGE = size_t(1) << 21;

// Ask for large pages in memory that nothing was written to yet: lookups go all over it.
inline void advise_large_pages(void* start, size_t bytes) {
#if defined(__linux__)
    const uintptr_t first = (reinterpret_cast<uintptr_t>(start) + LARGE_PAGE - 1) / LARGE_PAGE * LARGE_PAGE;
    const uintptr_t end = (reinterpret_cast<uintptr_t>(start) + bytes) / LARGE_PAGE * LARGE_PAGE;
    if (first < end) madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);   // if it fails, pages are small
#endif
}

// Large memory for a short while.
struct Buffer {
    float* data;
    explicit Buffer(int64_t floats) {
        const size_t bytes = (floats * sizeof(float) + LARGE_PAGE) / LARGE_PAGE * LARGE_PAGE;
        data = static_cast<float*>(std::aligned_alloc(LARGE_PAGE, bytes));
        TORCH_CHECK(data, "not enough memory for ", bytes, " bytes");
        advise_large_pages(data, bytes);
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

// Whether all channels of a cell lie together, and the cells of an identity leave no gaps: the kernels then read and write the
// tensor as it is. Cells in the order of the planes, or of an image whose pixels hold the cells of all planes and layers.
bool cells_together(const Tensor& planes) {
    return planes.size(2) % PAD == 0 && (planes.permute({0, 1, 3, 4, 5, 2}).is_contiguous() ||
                                         planes.permute({0, 4, 5, 1, 3, 2}).is_contiguous());
}

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
