// The decoder's layers on sixteen samples at a time, by tensor cores; one warp. See mma() in gpu.h for what a lane holds.
#pragma once

#include "render.h"

namespace omni {

// A factor of mma_split() in two parts.
template <int NUM>
struct Split {
    float high[NUM], low[NUM];
    OMNI_DEVICE Split of(const float* x) {
        Split s;
#pragma unroll
        for (int i = 0; i < NUM; i++) s.high[i] = to_tf32(x[i]), s.low[i] = x[i] - s.high[i];
        return s;
    }
};

OMNI_DEVICE Split<2> second_factor(float2 pair) {
    const float x[2] = {pair.x, pair.y};
    return Split<2>::of(x);
}

// A result of mma() as the first factor of another one, whose inner index then runs `paired`.
OMNI_DEVICE Split<4> first_factor(const float* result) {
    const float x[4] = {result[0], result[2], result[1], result[3]};
    return Split<4>::of(x);
}

template <int TILES, int STEPS_>
OMNI_DEVICE void multiply(float (*sum)[4], const Split<4>& a, const float2* fragments, int step) {
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
        const Split<2> b = second_factor(fragments[(step * TILES + tile) * LANES + lane()]);
        mma_split(sum[tile], a.high, a.low, b.high, b.low);
    }
}

// sum [16, 8 TILES] += results [16, 8 STEPS] of another mma() by a matrix in fragments with `paired` inner index.
template <int TILES, int INNER>
OMNI_DEVICE void multiply_results(float (*sum)[4], const float (*results)[4], const float2* fragments) {
#pragma unroll
    for (int step = 0; step < INNER; step++) multiply<TILES, INNER>(sum, first_factor(results[step]), fragments, step);
}

template <int TILES>
OMNI_DEVICE void start_with(float (*sum)[4], const float* bias) {
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
        const float2 b = bias ? *reinterpret_cast<const float2*>(bias + tile * 8 + lane() % 4 * 2) : float2{0.0f, 0.0f};
        sum[tile][0] = sum[tile][2] = b.x;
        sum[tile][1] = sum[tile][3] = b.y;
    }
}

// Hidden units before their activation, of sixteen rows of features.
OMNI_DEVICE void first_layer(float (*hidden)[4], const Decoder& d, const float* rows) {
    const int g = lane() / 4, t = lane() % 4;
    start_with<HT>(hidden, d.bias1);
#pragma unroll
    for (int step = 0; step < CT; step++) {
        const float* low = rows + g * ROW + step * 8 + t;
        const float* high = low + 8 * ROW;
        const float x[4] = {low[0], high[0], low[4], high[4]};
        multiply<HT, CT>(hidden, Split<4>::of(x), d.first, step);
    }
}

// exp(-|x|), from which softplus and sigmoid follow.
OMNI_DEVICE float exp_minus(float x) { return exp2_approximate(-fabsf(x) * 1.44269504f); }

// max(x, 0) that keeps a NaN.
OMNI_DEVICE float positive_part(float x) { return x < 0.0f ? 0.0f : x; }

OMNI_DEVICE float softplus(float x) { return positive_part(x) + log1p_unit(exp_minus(x)); }

OMNI_DEVICE float sigmoid_from(float x, float e) { return (x >= 0.0f ? 1.0f : e) / (1.0f + e); }

OMNI_DEVICE void softplus_tiles(float (*hidden)[4]) {
#pragma unroll
    for (int tile = 0; tile < HT; tile++)
        for (int i = 0; i < 4; i++) hidden[tile][i] = softplus(hidden[tile][i]);
}

// The same, and the derivative.
OMNI_DEVICE void softplus_tiles(float (*hidden)[4], float (*slope)[4]) {
#pragma unroll
    for (int tile = 0; tile < HT; tile++)
        for (int i = 0; i < 4; i++) {
            const float x = hidden[tile][i], e = exp_minus(x);
            slope[tile][i] = sigmoid_from(x, e);
            hidden[tile][i] = positive_part(x) + log1p_unit(e);
        }
}

OMNI_DEVICE float activate(float x) {
    if (OMNI_ACTIVATION == 1) return sigmoid_from(x, exp_minus(x)) * 1.002f - 0.001f;
    if (OMNI_ACTIVATION == 2) return (x > 0.0f ? x : x * 0.2f) * 1.41421356f;
    return x;
}

// Derivative of activate() told by its result.
OMNI_DEVICE float activation_slope(float y) {
    if (OMNI_ACTIVATION == 1) {
        const float s = (y + 0.001f) * (1 / 1.002f);
        return s * (1.0f - s) * 1.002f;
    }
    if (OMNI_ACTIVATION == 2) return y > 0.0f ? 1.41421356f : 0.2f * 1.41421356f;
    return 1.0f;
}

// Colours of sixteen samples from their hidden units.
OMNI_DEVICE void second_layer(float (*colour)[4], const Decoder& d, const float (*hidden)[4]) {
    start_with<OT>(colour, d.bias2);
    multiply_results<OT, HT>(colour, hidden, d.second);
#pragma unroll
    for (int tile = 0; tile < OT; tile++)
        for (int i = 0; i < 4; i++) colour[tile][i] = activate(colour[tile][i]);
}

// Products of the rows of a result with a vector: of row g into x, of row g + 8 into y, in all four lanes of a row.
template <int TILES>
OMNI_DEVICE float2 row_products(const float (*result)[4], const float* vector) {
    float2 sum = {0.0f, 0.0f};
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
        const float2 v = *reinterpret_cast<const float2*>(vector + tile * 8 + lane() % 4 * 2);
        sum.x += result[tile][0] * v.x + result[tile][1] * v.y;
        sum.y += result[tile][2] * v.x + result[tile][3] * v.y;
    }
    for (int mask = 1; mask < 4; mask *= 2) sum.x += shuffle_xor(sum.x, mask), sum.y += shuffle_xor(sum.y, mask);
    return sum;
}

// columns[tile] += sum over this lane's two rows, by the rows' factors.
template <int TILES>
OMNI_DEVICE void add_rows(float2* columns, const float (*result)[4], float low, float high) {
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
        columns[tile].x += result[tile][0] * low + result[tile][2] * high;
        columns[tile].y += result[tile][1] * low + result[tile][3] * high;
    }
}

// Columns added up by add_rows in all lanes, as a vector [8 TILES].
template <int TILES>
OMNI_DEVICE void store_columns(float* to, const float2* columns) {
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
        float2 sum = columns[tile];
        for (int mask = 4; mask < LANES; mask *= 2) sum.x += shuffle_xor(sum.x, mask), sum.y += shuffle_xor(sum.y, mask);
        if (lane() < 4) *reinterpret_cast<float2*>(to + tile * 8 + lane() * 2) = sum;
    }
}

}  // namespace omni
