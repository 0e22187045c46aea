// Products of matrices of float, bfloat16 (OMNI_HALF_PRODUCTS, AVX-512) or 16-bit integers (OMNI_INT16_PRODUCTS, AVX2), and how
// their operands are kept: inputs [tiles, I] with rows some distance apart, weights [I, group], or pairs of channels
// [I / 2, group, 2] where a product of 16 bits adds two.
//
// Integers: every row of the inputs and every column of the weights has a scale of its own that brings its Euclidean norm to
// LENGTH. By the inequality of Cauchy and Schwarz no sum of products then exceeds LENGTH^2 < 2^31, and the bits are used:
// of 256 channels a typical value has 11 and a sign.
#include "simd.h"
#include "winograd.h"

namespace omni { namespace OMNI_ISA {

typedef uint16_t vh __attribute__((vector_size(2 * OMNI_WIDTH)));

OMNI_INLINE vf load_half(const uint16_t* p) {
    vh v;
    __builtin_memcpy(&v, p, sizeof v);
    return (vf)(__builtin_convertvector(v, vu) << 16);
}

// The upper halves, rounded to nearest even.
OMNI_INLINE vu round_half(vf v) {
    const vu bits = (vu)v;
    return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

OMNI_INLINE void store_half(uint16_t* p, vf v) {
#ifdef OMNI_HALF_PRODUCTS
    const __m256bh h = _mm512_cvtneps_pbh((__m512)v);
#else
    const vh h = __builtin_convertvector(round_half(v), vh);
#endif
    __builtin_memcpy(p, &h, sizeof h);
}

OMNI_INLINE void store_number(float* p, vf v) { store(p, v); }
OMNI_INLINE void store_number(uint16_t* p, vf v) { store_half(p, v); }

constexpr int ROWS = PRODUCT_ROWS;

#if defined(OMNI_HALF_PRODUCTS)

typedef uint16_t value;
constexpr Products PRODUCTS = Products::BFLOAT16;

constexpr int TOGETHER = 2;   // channels whose weights stand side by side

OMNI_INLINE void store_weights(value* to, vf even, vf odd, const float*) {
    const vu pair = round_half(even) | (round_half(odd) << 16);
    __builtin_memcpy(to, &pair, sizeof pair);
}

template <int QS>
OMNI_INLINE void product_tile(int64_t depth, const value* a, int64_t lda, const value* b, float* c, int64_t ldc, const float*, const float*) {
    vf acc[ROWS][QS];
    for (int p = 0; p < ROWS; p++)
        for (int q = 0; q < QS; q++) acc[p][q] = splat(0);
    for (int64_t k = 0; k < depth; k += 2) {
        vf row[QS];
        for (int q = 0; q < QS; q++) __builtin_memcpy(&row[q], b + k * QS * W + 2 * q * W, sizeof(vf));
        for (int p = 0; p < ROWS; p++) {
            float pair;
            __builtin_memcpy(&pair, a + p * lda + k, 4);
            const vf x = splat(pair);
            for (int q = 0; q < QS; q++) acc[p][q] = (vf)_mm512_dpbf16_ps((__m512)acc[p][q], (__m512bh)x, (__m512bh)row[q]);
        }
    }
    for (int p = 0; p < ROWS; p++)
        for (int q = 0; q < QS; q++) store(c + p * ldc + q * W, acc[p][q]);
}

#elif defined(OMNI_INT16_PRODUCTS)

typedef int16_t value;
constexpr Products PRODUCTS = Products::INT16;
constexpr int TOGETHER = 2;
constexpr int64_t MOST_ROWS = 40;   // that are packed together: as many as matrices, and some more for the last register
constexpr float LENGTH = 32000;   // below 2^15, so that a single value fits too; the rounding of 512 values adds at most 12

// What brings a norm to LENGTH, and back, from its square. Below a norm of 1e-15 all is 0, for squares lose their bits there; where
// the square is infinite or no number, the inverse is no number, and so are the results.
constexpr float LEAST_SQUARE = 1e-30f;
OMNI_INLINE vf square_root(vf v) { return (vf)_mm256_sqrt_ps((__m256)v); }
OMNI_INLINE vf scale_of(vf squares) { return squares > splat(LEAST_SQUARE) ? LENGTH / square_root(squares) : splat(0); }
OMNI_INLINE vf inverse_of(vf squares) {
    const vf inverse = square_root(squares) * (1 / LENGTH) + (squares - squares);   // infinite - infinite is no number
    return squares <= splat(LEAST_SQUARE) ? splat(0) : inverse;
}

OMNI_INLINE __m256i rounded(vf v) { return _mm256_cvtps_epi32((__m256)v); }

OMNI_INLINE void store_weights(value* to, vf even, vf odd, const float* scale) {
    const __m256i low = rounded(even * load(scale)), high = _mm256_slli_epi32(rounded(odd * load(scale)), 16);
    _mm256_storeu_si256((__m256i*)to, _mm256_blend_epi16(low, high, 0xaa));
}

// Rows [count, in] of the inputs, `step` apart; their inverses, `inverses_step` apart.
OMNI_INLINE void pack_inputs(const float* from, int64_t step, int64_t count, int64_t in, value* to, int64_t to_step, float* inverses,
                             int64_t inverses_step) {
    float squares[MOST_ROWS] = {}, scales[MOST_ROWS];
    for (int64_t m = 0; m < count; m++) {
        vf even = splat(0), odd = splat(0);
        for (int64_t i = 0; i < in; i += 2 * W) {
            const vf a = load(from + m * step + i), b = load(from + m * step + i + W);
            even += a * a;
            odd += b * b;
        }
        squares[m] = sum(even + odd);
    }
    for (int64_t m = 0; m < count; m += W) {
        float some[W];
        store(scales + m, scale_of(load(squares + m)));
        store(some, inverse_of(load(squares + m)));
        for (int64_t k = 0; k < W && m + k < count; k++) inverses[(m + k) * inverses_step] = some[k];
    }
    for (int64_t m = 0; m < count; m++) {
        const vf scale = splat(scales[m]);
        for (int64_t i = 0; i < in; i += 2 * W) {
            const __m256i a = rounded(load(from + m * step + i) * scale), b = rounded(load(from + m * step + i + W) * scale);
            _mm256_storeu_si256((__m256i*)(to + m * to_step + i), _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8));
        }
    }
}

// A product of one row with two registers of weights, added to their sums; and of six rows, at some byte of a pair of channels.
#define OMNI_ROW(value, even, odd)                                                                      \
    "vpbroadcastd " value ", %%ymm14\n\t"                                                               \
    "vpmaddwd %%ymm12, %%ymm14, %%ymm15\n\tvpaddd %%ymm15, %[" even "], %[" even "]\n\t"               \
    "vpmaddwd %%ymm13, %%ymm14, %%ymm15\n\tvpaddd %%ymm15, %[" odd "], %[" odd "]\n\t"
#define OMNI_PAIR(byte, weights, more_weights)                                                          \
    "vmovdqu " weights "(%[b]), %%ymm12\n\tvmovdqu " more_weights "(%[b]), %%ymm13\n\t"                \
    OMNI_ROW(byte "(%[a])", "c0", "c1") OMNI_ROW(byte "(%[a], %[lda])", "c2", "c3")                     \
    OMNI_ROW(byte "(%[a], %[lda], 2)", "c4", "c5") OMNI_ROW(byte "(%[a3])", "c6", "c7")                 \
    OMNI_ROW(byte "(%[a], %[lda], 4)", "c8", "c9") OMNI_ROW(byte "(%[a3], %[lda], 2)", "c10", "c11")
#define OMNI_ZERO(sum) "vpxor %[" sum "], %[" sum "], %[" sum "]\n\t"

// Written out: sums, weights, a value and a product take all 16 registers, and compilers find no such order. Depth is a multiple
// of 4.
template <int QS>
OMNI_INLINE void product_tile(int64_t depth, const value* a, int64_t lda, const value* b, float* c, int64_t ldc, const float* a_inverse,
                              const float* b_inverse) {
    static_assert(ROWS == 6 && QS == 2, "the registers hold these tiles");
    __m256i acc[ROWS][QS];
    const value *a3 = a + 3 * lda, *end = a + depth;
    asm volatile(OMNI_ZERO("c0") OMNI_ZERO("c1") OMNI_ZERO("c2") OMNI_ZERO("c3") OMNI_ZERO("c4") OMNI_ZERO("c5") OMNI_ZERO("c6")
                 OMNI_ZERO("c7") OMNI_ZERO("c8") OMNI_ZERO("c9") OMNI_ZERO("c10") OMNI_ZERO("c11")
                 "1:\n\t" OMNI_PAIR("0", "0", "32") OMNI_PAIR("4", "64", "96")
                 "add $8, %[a]\n\tadd $8, %[a3]\n\tsub $-128, %[b]\n\tcmp %[end], %[a]\n\tjb 1b"
                 : [c0] "=&x"(acc[0][0]), [c1] "=&x"(acc[0][1]), [c2] "=&x"(acc[1][0]), [c3] "=&x"(acc[1][1]), [c4] "=&x"(acc[2][0]),
                   [c5] "=&x"(acc[2][1]), [c6] "=&x"(acc[3][0]), [c7] "=&x"(acc[3][1]), [c8] "=&x"(acc[4][0]), [c9] "=&x"(acc[4][1]),
                   [c10] "=&x"(acc[5][0]), [c11] "=&x"(acc[5][1]), [a] "+r"(a), [a3] "+r"(a3), [b] "+r"(b)
                 : [lda] "r"(lda * int64_t(sizeof(value))), [end] "r"(end)
                 : "xmm12", "xmm13", "xmm14", "xmm15", "cc", "memory");
    for (int p = 0; p < ROWS; p++)
        for (int q = 0; q < QS; q++)
            store(c + p * ldc + q * W, (vf)_mm256_cvtepi32_ps(acc[p][q]) * (load(b_inverse + q * W) * a_inverse[p]));
}

#undef OMNI_ZERO
#undef OMNI_PAIR
#undef OMNI_ROW

#else

typedef float value;
constexpr Products PRODUCTS = Products::FLOAT32;

constexpr int TOGETHER = 1;

OMNI_INLINE void store_weights(value* to, vf one, vf, const float*) { store(to, one); }

template <int QS>
OMNI_INLINE void product_tile(int64_t depth, const value* a, int64_t lda, const value* b, float* c, int64_t ldc, const float*, const float*) {
    matmul_tile<ROWS, QS, false>(int(depth), a, lda, 1, b, QS * W, c, ldc, nullptr);
}

#endif

}}  // namespace omni::OMNI_ISA
