// The transforms of minimal filtering F(4, R) in one direction, for R = 3, 2 and 1 taps (Lavin and Gray 1509.09308): 4 results
// from 3 + R products. R = 3 has the points 0, +-2/3, +-3/2 and infinity, R = 2 has 0, +-3/4, 2 and infinity, which lose fewer
// bits than the usual ones; with one tap the values are taken as they are.
//
// In two directions the transforms of both follow one another, and (3 + R)^2 products stand for 16 R^2.
#include "simd.h"

namespace omni { namespace OMNI_ISA {

constexpr int TILE = 4;
constexpr float P = 2.0f / 3, Q = 3.0f / 2, S = P * P + Q * Q;   // points of R = 3; P * Q = 1
constexpr float U = 3.0f / 4, V = 2;                             // points of R = 2: +-U and V

// Values and products of a tile in one direction.
constexpr int points(int taps) { return TILE - 1 + taps; }

// The transforms work on every step-th of `points` values, the filter's on every from-th of its taps.
template <int R>
OMNI_INLINE void transform_input(vf* d, int step) {
    if constexpr (R == 3) {
        const vf d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step], d5 = d[5 * step];
        const vf even1 = d4 - d2 * (Q * Q), odd1 = d3 * P - d1 * Q, even2 = d4 - d2 * (P * P), odd2 = d3 * Q - d1 * P;
        d[0] = d0 - d2 * S + d4;
        d[step] = even1 + odd1;
        d[2 * step] = even1 - odd1;
        d[3 * step] = even2 + odd2;
        d[4 * step] = even2 - odd2;
        d[5 * step] = d1 - d3 * S + d5;
    } else if constexpr (R == 2) {
        const vf d1 = d[step], d3 = d[3 * step];
        const vf s0 = d1 - d[0] * V, s1 = d[2 * step] - d1 * V, s2 = d3 - d[2 * step] * V, s3 = d[4 * step] - d3 * V;
        d[0] = s2 - s0 * (U * U);
        d[step] = s2 + s1 * U;
        d[2 * step] = s2 - s1 * U;
        d[3 * step] = d3 - d1 * (U * U);
        d[4 * step] = s3 - s1 * (U * U);
    }
}

template <int R>
OMNI_INLINE void transform_filter(const vf* g, int from, vf* out, int step) {
    if constexpr (R == 3) {
        constexpr float NP = 1 / (2 * P * P * (P * P - Q * Q)), NQ = 1 / (2 * Q * Q * (Q * Q - P * P));
        const vf g0 = g[0], g1 = g[from], g2 = g[2 * from];
        const vf even1 = (g0 + g2 * (P * P)) * NP, odd1 = g1 * (P * NP), even2 = (g0 + g2 * (Q * Q)) * NQ, odd2 = g1 * (Q * NQ);
        out[0] = g0;
        out[step] = even1 + odd1;
        out[2 * step] = even1 - odd1;
        out[3 * step] = even2 + odd2;
        out[4 * step] = even2 - odd2;
        out[5 * step] = g2;
    } else if constexpr (R == 2) {
        const vf g0 = g[0], g1 = g[from];
        out[0] = g0 * (1 / (U * U * V));
        out[step] = (g0 + g1 * U) * (1 / (2 * U * U * (U - V)));
        out[2 * step] = (g0 - g1 * U) * (-1 / (2 * U * U * (U + V)));
        out[3 * step] = (g0 + g1 * V) * (1 / (V * (V * V - U * U)));
        out[4 * step] = g1;
    } else {
        out[0] = g[0];
    }
}

template <int R>
OMNI_INLINE void transform_output(const vf* m, int from, vf* out, int step) {
    const vf sum1 = m[from] + m[2 * from], diff1 = m[from] - m[2 * from];
    if constexpr (R == 3) {
        const vf sum2 = m[3 * from] + m[4 * from], diff2 = m[3 * from] - m[4 * from];
        out[0] = m[0] + sum1 + sum2;
        out[step] = diff1 * P + diff2 * Q;
        out[2 * step] = sum1 * (P * P) + sum2 * (Q * Q);
        out[3 * step] = diff1 * (P * P * P) + diff2 * (Q * Q * Q) + m[5 * from];
    } else if constexpr (R == 2) {
        out[0] = m[0] + sum1 + m[3 * from];
        out[step] = diff1 * U + m[3 * from] * V;
        out[2 * step] = sum1 * (U * U) + m[3 * from] * (V * V);
        out[3 * step] = diff1 * (U * U * U) + m[3 * from] * (V * V * V) + m[4 * from];
    } else {
        for (int k = 0; k < TILE; k++) out[k * step] = m[k * from];
    }
}

// The transpose of transform_output<3>.
OMNI_INLINE void spread_output(const vf* y, int from, vf* m, int step) {
    const vf y0 = y[0], y1 = y[from], y2 = y[2 * from], y3 = y[3 * from];
    const vf even1 = y0 + y2 * (P * P), odd1 = y1 * P + y3 * (P * P * P), even2 = y0 + y2 * (Q * Q), odd2 = y1 * Q + y3 * (Q * Q * Q);
    m[0] = y0;
    m[step] = even1 + odd1;
    m[2 * step] = even1 - odd1;
    m[3 * step] = even2 + odd2;
    m[4 * step] = even2 - odd2;
    m[5 * step] = y3;
}

// Matrices of weights in one direction: with one tap all products have the same.
constexpr int weight_points(int taps) { return taps == 1 ? 1 : points(taps); }

// Taps [ROWS, COLUMNS] -> [weight_points(ROWS), COLUMNS].
template <int ROWS, int COLUMNS>
OMNI_INLINE void transform_columns(const vf* taps, vf* half) {
    for (int t = 0; t < COLUMNS; t++) transform_filter<ROWS>(taps + t, COLUMNS, half + t, COLUMNS);
}

// Taps [ROWS, COLUMNS] -> [weight_points(ROWS), weight_points(COLUMNS)].
template <int ROWS, int COLUMNS>
OMNI_INLINE void transform_taps(const vf* taps, vf* u) {
    constexpr int HIGH = weight_points(ROWS), WIDE = weight_points(COLUMNS);
    vf half[HIGH * COLUMNS];
    transform_columns<ROWS, COLUMNS>(taps, half);
    for (int t = 0; t < HIGH; t++) transform_filter<COLUMNS>(half + COLUMNS * t, 1, u + WIDE * t, 1);
}

}}  // namespace omni::OMNI_ISA
