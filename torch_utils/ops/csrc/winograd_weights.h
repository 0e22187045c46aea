// The weights of convolutions by minimal filtering, from taps to the matrices that tiles are multiplied with, for one instruction set.
#include "winograd_points.h"
#include "winograd_products.h"

namespace omni { namespace OMNI_ISA {

constexpr int MOST_AREA = points(3) * points(3);

// Output channels of a group: as many registers as the product's tiles are wide.
OMNI_INLINE int64_t group_width(const Convolution& c) {
    if (W < 16) return 2 * W;
    return c.out % (4 * W) == 0 ? 4 * W : c.out % (2 * W) == 0 ? 2 * W : W;
}

static int64_t groups(const Convolution& c) { return c.out / group_width(c); }

OMNI_INLINE int64_t weight_matrices(Phase p) { return weight_points(p.rows) * weight_points(p.columns); }

// Matrices of weights [groups, I, group], then, for integers, the factors [O] of each.
static int64_t weight_bytes(const Convolution& c, Phase p) {
    const int64_t factors = PRODUCTS == Products::INT16 ? c.out * sizeof(float) : 0;
    return weight_matrices(p) * (c.in * c.out * sizeof(value) + factors);
}

constexpr int64_t CHANNELS = 16;   // whose weights are transformed at a time: all numbers of channels are multiples of it
constexpr int MOST_TAPS = 9, MOST_GROUP = 64;

// Taps [I, taps, group], their squares' sums [taps, group], scales [MOST_AREA, group], and the matrices of a few channels before
// they go to their places.
static int64_t transform_floats(const Convolution& c) {
    return group_width(c) * (c.in * c.taps + c.taps + MOST_AREA + MOST_AREA * CHANNELS);
}

// The taps of a phase that has so many in both directions, of [taps, group].
template <int RH, int RW>
OMNI_INLINE void choose_taps(const Convolution& c, const float* taps, vf* chosen) {
    constexpr int FIRST[4][3] = {{}, {1}, {2, 0}, {0, 1, 2}};
    for (int a = 0; a < RH; a++)
        for (int b = 0; b < RW; b++)
            chosen[a * RW + b] = load(taps + (c.taps == 1 ? 0 : FIRST[RH][a] * 3 + FIRST[RW][b]) * group_width(c));
}

#ifdef OMNI_INT16_PRODUCTS
// What the norms over the channels of the matrices' columns do not exceed, by those of the taps: a sum is no longer than its terms
// together. That spares a pass over the matrices and costs a bit or two of the weights.
template <int RH, int RW>
OMNI_INLINE void bound_norms(const Convolution& c, const float* tap_squares, vf* norms) {
    constexpr int AREA = weight_points(RH) * weight_points(RW);
    vf squares[RH * RW];
    choose_taps<RH, RW>(c, tap_squares, squares);
    for (int m = 0; m < AREA; m++) norms[m] = splat(0);
    for (int t = 0; t < RH * RW; t++) {
        vf only[RH * RW], u[AREA];
        for (int k = 0; k < RH * RW; k++) only[k] = k == t ? square_root(squares[t]) : splat(0);
        transform_taps<RH, RW>(only, u);
        for (int m = 0; m < AREA; m++) norms[m] += abs(u[m]);
    }
}
#endif

// A few channels are gathered first: the matrices, far from one another, would otherwise all be written to at once.
template <int RH, int RW>
static void transform_phase(const Convolution& c, const float* taps, const float* tap_squares, float* scales, unsigned char* weights,
                            int64_t g) {
    constexpr int HIGH = weight_points(RH), WIDE = weight_points(RW), AREA = HIGH * WIDE;
    const int64_t group = group_width(c);
    value *target = reinterpret_cast<value*>(weights), *some = reinterpret_cast<value*>(scales + MOST_AREA * group);
#ifdef OMNI_INT16_PRODUCTS
    float* inverses = reinterpret_cast<float*>(target + AREA * c.in * c.out);
    for (int64_t v = 0; v < group; v += W) {
        vf norms[AREA];
        bound_norms<RH, RW>(c, tap_squares + v, norms);
        for (int64_t m = 0; m < AREA; m++) {
            store(inverses + m * c.out + g * group + v, inverse_of(norms[m] * norms[m]));
            store(scales + m * group + v, scale_of(norms[m] * norms[m]));
        }
    }
#endif
    for (int64_t i = 0; i < c.in; i += CHANNELS) {
        for (int64_t k = 0; k < CHANNELS; k += TOGETHER)
            for (int64_t v = 0; v < group; v += W) {
                vf half[TOGETHER][HIGH * RW];
                for (int e = 0; e < TOGETHER; e++) {
                    vf chosen[RH * RW];
                    choose_taps<RH, RW>(c, taps + (i + k + e) * c.taps * group + v, chosen);
                    transform_columns<RH, RW>(chosen, half[e]);
                }
                for (int a = 0; a < HIGH; a++) {
                    vf row[TOGETHER][WIDE];
                    for (int e = 0; e < TOGETHER; e++) transform_filter<RW>(half[e] + a * RW, 1, row[e], 1);
                    for (int b = 0; b < WIDE; b++) {
                        const int64_t m = a * WIDE + b;
                        store_weights(some + (m * CHANNELS + k) * group + v * TOGETHER, row[0][b], row[TOGETHER - 1][b], scales + m * group + v);
                    }
                }
            }
        for (int64_t m = 0; m < AREA; m++)
            __builtin_memcpy(target + ((m * groups(c) + g) * c.in + i) * group, some + m * CHANNELS * group, CHANNELS * group * sizeof(value));
    }
}

// Taps [I, taps, group] of a group's output channels, their squares' sums over the channels [taps, group], and those over the taps.
static void load_taps(const Convolution& c, int64_t first, float* taps, float* squares) {
    const int64_t group = group_width(c);
    for (int64_t k = 0; k < c.taps * group; k += W) store(squares + k, splat(0));
    float rows[MOST_GROUP][CHANNELS * MOST_TAPS];
    for (int64_t i = 0; i < c.in; i += CHANNELS) {
        for (int64_t lane = 0; lane < group; lane++)
            for (int64_t k = 0; k < CHANNELS; k++) {
                const int64_t o = first + lane, at = c.turned ? (i + k) * c.out + o : o * c.in + i + k;
                for (int64_t t = 0; t < c.taps; t++) rows[lane][k * c.taps + t] = c.weight[at * c.taps + (c.turned ? c.taps - 1 - t : t)];
            }
        for (int64_t t = 0; t < CHANNELS * c.taps; t++)
            for (int64_t lane = 0; lane < group; lane++) taps[(i * c.taps + t) * group + lane] = rows[lane][t];
        for (int64_t k = i; k < i + CHANNELS; k++)
            for (int64_t v = 0; v < group; v += W) {
                vf energy = splat(0);
                for (int64_t t = 0; t < c.taps; t++) {
                    const vf tap = load(taps + (k * c.taps + t) * group + v), square = tap * tap;
                    energy += square;
                    if (PRODUCTS == Products::INT16) store(squares + t * group + v, load(squares + t * group + v) + square);
                }
                store(c.energy + k * c.out + first + v, energy);
            }
    }
}

static void transform(const Convolution& c, const Phase* phases, int count, unsigned char* const* weights, int64_t g, float* room) {
    float *squares = room + c.in * c.taps * group_width(c), *scales = squares + c.taps * group_width(c);
    load_taps(c, g * group_width(c), room, squares);
    for (int p = 0; p < count; p++) {
        const auto one = phases[p].rows == 3    ? transform_phase<3, 3>
                         : phases[p].rows == 2 ? (phases[p].columns == 2 ? transform_phase<2, 2> : transform_phase<2, 1>)
                                               : (phases[p].columns == 2 ? transform_phase<1, 2> : transform_phase<1, 1>);
        one(c, room, squares, scales, weights[p], g);
    }
}

static void tap_matrix(float* out) {
    for (int tap = 0; tap < 9; tap++) {
        vf taps[9], u[MOST_AREA];
        for (int t = 0; t < 9; t++) taps[t] = splat(t == tap);
        transform_taps<3, 3>(taps, u);
        for (int t = 0; t < MOST_AREA; t++) out[tap * MOST_AREA + t] = u[t][0];
    }
}

}}  // namespace omni::OMNI_ISA
