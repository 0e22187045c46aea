// Short vectors of float for one instruction set, and the few functions the renderer needs on them.
//
// Included once by every volume_render_<set>.cpp and winograd_<set>.cpp, which say OMNI_ISA (a namespace of its own, so that
// no function compiled for AVX-512 can be linked into the baseline) and OMNI_WIDTH (floats in a register). GCC's vector
// extensions stand for intrinsics: the same text becomes SSE, AVX, NEON or SVE code. No standard header with inline functions
// may be included below the target pragma.
#pragma once

#include <cstdint>

#define OMNI_INLINE static inline __attribute__((always_inline))

namespace omni { namespace OMNI_ISA {

constexpr int W = OMNI_WIDTH;
typedef float vf __attribute__((vector_size(4 * OMNI_WIDTH)));
typedef int32_t vi __attribute__((vector_size(4 * OMNI_WIDTH)));
typedef uint32_t vu __attribute__((vector_size(4 * OMNI_WIDTH)));

OMNI_INLINE vf load(const float* p) { vf v; __builtin_memcpy(&v, p, sizeof v); return v; }
OMNI_INLINE void store(float* p, vf v) { __builtin_memcpy(p, &v, sizeof v); }
OMNI_INLINE void store(int32_t* p, vi v) { __builtin_memcpy(p, &v, sizeof v); }

// To aligned memory past the caches, where there is a way; and what must come before others read it.
OMNI_INLINE void stream(float* p, vf v) {
#if OMNI_WIDTH == 16
    _mm512_stream_ps(p, (__m512)v);
#elif OMNI_WIDTH == 8
    _mm256_stream_ps(p, (__m256)v);
#else
    store(p, v);
#endif
}
OMNI_INLINE void end_streams() {
#if OMNI_WIDTH >= 8
    _mm_sfence();
#endif
}

OMNI_INLINE vf splat(float x) {
#if OMNI_WIDTH == 16
    return vf{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x};
#elif OMNI_WIDTH == 8
    return vf{x, x, x, x, x, x, x, x};
#else
    return vf{x, x, x, x};
#endif
}

typedef float v4 __attribute__((vector_size(16)));

OMNI_INLINE float sum(vf v) {
    v4 quarter[W / 4], t;
    __builtin_memcpy(quarter, &v, sizeof v);
#if OMNI_WIDTH == 16
    t = (quarter[0] + quarter[1]) + (quarter[2] + quarter[3]);
#elif OMNI_WIDTH == 8
    t = quarter[0] + quarter[1];
#else
    t = quarter[0];
#endif
    return (t[0] + t[1]) + (t[2] + t[3]);
}

// Where one is NaN the second argument is taken: values that may be NaN stand second where that shall show, first where
// a bound must hold.
OMNI_INLINE vf max(vf a, vf b) { return a > b ? a : b; }
OMNI_INLINE vf min(vf a, vf b) { return a < b ? a : b; }
OMNI_INLINE vf abs(vf a) { return (vf)((vi)a & 0x7fffffff); }
OMNI_INLINE vf where(vi mask, vf a) { return (vf)(mask & (vi)a); }   // a where the mask is set, else 0

// Largest integer not above x; x within the range of int32 (NaN becomes the smallest integer).
OMNI_INLINE vi floor_int(vf x) {
    vi i = __builtin_convertvector(x, vi);
    return i + (vi)(x < __builtin_convertvector(i, vf));
}

// exp(x), relative error below 2e-7; x is held to the normal numbers' range, so that exp(-inf) is 1e-38 instead of 0.
OMNI_INLINE vf exp(vf x) {
    x = min(splat(88.3f), max(splat(-87.3f), x));
    const float magic = 12582912.0f;                                     // 1.5 * 2^23: adding it rounds to an integer
    vf t = x * 1.44269504f + magic;
    vf n = t - magic;
    vf r = x - n * 0.693359375f;                                         // ln 2 in two parts, the first one exact
    r = r + n * 2.12194440e-4f;
    vf p = r * (1.0f / 720) + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return (vf)((vu)p + ((vu)t << 23));                                  // the low bits of t are the exponent
}

#define OMNI_MATH OMNI_INLINE
#include "shared/math.h"

OMNI_INLINE vf softplus(vf x) { return max(splat(0), x) + log1p_unit(exp(-abs(x))); }

// softplus(x), and its derivative 1 / (1 + exp(-x)) in `slope`.
OMNI_INLINE vf softplus(vf x, vf& slope) {
    vf e = exp(-abs(x));
    slope = (x >= splat(0) ? splat(1) : e) / (e + 1.0f);
    return max(splat(0), x) + log1p_unit(e);
}

OMNI_INLINE vf sigmoid(vf x) {
    vf e = exp(-abs(x));
    return (x >= splat(0) ? splat(1) : e) / (e + 1.0f);
}

// P rows and Q vectors of c [M, N] = or += a [M, K] b [K, N]; element (i, k) of a lies at i * ai + k * ak.
template <int P, int Q, bool ADD>
OMNI_INLINE void matmul_tile(int depth, const float* a, int64_t ai, int64_t ak, const float* b, int64_t ldb, float* c,
                             int64_t ldc, const float* bias) {
    vf acc[P][Q];
    for (int q = 0; q < Q; q++) {
        vf start = bias ? load(bias + q * W) : splat(0);
        for (int p = 0; p < P; p++) acc[p][q] = ADD ? load(c + p * ldc + q * W) : start;
    }
    for (int k = 0; k < depth; k++) {
        vf row[Q];
        for (int q = 0; q < Q; q++) row[q] = load(b + k * ldb + q * W);
        for (int p = 0; p < P; p++) {
            vf x = splat(a[p * ai + k * ak]);
            for (int q = 0; q < Q; q++) acc[p][q] += x * row[q];
        }
    }
    for (int p = 0; p < P; p++)
        for (int q = 0; q < Q; q++) store(c + p * ldc + q * W, acc[p][q]);
}

template <int P, int Q, bool ADD>
static void matmul_columns(int rows, int depth, const float* a, int64_t ai, int64_t ak, const float* b, int64_t ldb, float* c,
                           int64_t ldc, const float* bias) {
    int i = 0;
    for (; i + P <= rows; i += P) matmul_tile<P, Q, ADD>(depth, a + i * ai, ai, ak, b, ldb, c + i * ldc, ldc, bias);
    for (; i + 2 <= rows; i += 2) matmul_tile<2, Q, ADD>(depth, a + i * ai, ai, ak, b, ldb, c + i * ldc, ldc, bias);
    for (; i < rows; i++) matmul_tile<1, Q, ADD>(depth, a + i * ai, ai, ak, b, ldb, c + i * ldc, ldc, bias);
}

// c [rows, cols] = (or +=) a b (+ bias), c and b row-major, cols a multiple of 16; see matmul_tile.
template <bool ADD>
static void matmul(int rows, int cols, int depth, const float* a, int64_t ai, int64_t ak, const float* b, int64_t ldb, float* c,
                   int64_t ldc, const float* bias = nullptr) {
    int j = 0;
    // Tiles as large as the registers hold: 32 of them with AVX-512, 16 elsewhere.
    for (; W == 16 && j + 4 * W <= cols; j += 4 * W)
        matmul_columns<6, 4, ADD>(rows, depth, a, ai, ak, b + j, ldb, c + j, ldc, bias ? bias + j : nullptr);
    for (; j + 2 * W <= cols; j += 2 * W)
        matmul_columns<W == 16 ? 8 : 6, 2, ADD>(rows, depth, a, ai, ak, b + j, ldb, c + j, ldc, bias ? bias + j : nullptr);
    for (; j < cols; j += W)
        matmul_columns<8, 1, ADD>(rows, depth, a, ai, ak, b + j, ldb, c + j, ldc, bias ? bias + j : nullptr);
}

}}  // namespace omni::OMNI_ISA
