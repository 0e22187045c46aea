// Winograd's minimal filtering F(4x4, 3x3) (Lavin and Gray 1509.09308) for one instruction set: 36 products where the
// definition takes 144. The interpolation points 0, +-2/3, +-3/2 and infinity lose fewer bits than the usual ones.
//
// A worker takes a block of tiles: their input is transformed, then for every group of output channels the 36 matrix
// products [tiles, I] x [I, group] are taken and transformed back, so that all it writes to but the result stays in cache.
#include "simd.h"
#include "winograd.h"

namespace omni { namespace OMNI_ISA {

constexpr int TILE = 4, PATCH = TILE + 2, AREA = PATCH * PATCH, ROWS = 6;
constexpr int64_t CHANNELS = 16;   // whose weights are transformed at a time: all numbers of channels are multiples of it
constexpr float P = 2.0f / 3, Q = 3.0f / 2, S = P * P + Q * Q;   // the points; P * Q = 1

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

// Six values of the input, of the filter (three) and of the products in one direction; step is the distance between them.
OMNI_INLINE void transform_input(vf* d, int step) {
    const vf d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step], d5 = d[5 * step];
    const vf even1 = d4 - d2 * (Q * Q), odd1 = d3 * P - d1 * Q, even2 = d4 - d2 * (P * P), odd2 = d3 * Q - d1 * P;
    d[0] = d0 - d2 * S + d4;
    d[step] = even1 + odd1;
    d[2 * step] = even1 - odd1;
    d[3 * step] = even2 + odd2;
    d[4 * step] = even2 - odd2;
    d[5 * step] = d1 - d3 * S + d5;
}

OMNI_INLINE void transform_filter(const vf* g, int from, vf* out, int step) {
    constexpr float NP = 1 / (2 * P * P * (P * P - Q * Q)), NQ = 1 / (2 * Q * Q * (Q * Q - P * P));
    const vf g0 = g[0], g1 = g[from], g2 = g[2 * from];
    const vf even1 = (g0 + g2 * (P * P)) * NP, odd1 = g1 * (P * NP), even2 = (g0 + g2 * (Q * Q)) * NQ, odd2 = g1 * (Q * NQ);
    out[0] = g0;
    out[step] = even1 + odd1;
    out[2 * step] = even1 - odd1;
    out[3 * step] = even2 + odd2;
    out[4 * step] = even2 - odd2;
    out[5 * step] = g2;
}

OMNI_INLINE void transform_output(const vf* m, int from, vf* out, int step) {
    const vf sum1 = m[from] + m[2 * from], diff1 = m[from] - m[2 * from];
    const vf sum2 = m[3 * from] + m[4 * from], diff2 = m[3 * from] - m[4 * from];
    out[0] = m[0] + sum1 + sum2;
    out[step] = diff1 * P + diff2 * Q;
    out[2 * step] = sum1 * (P * P) + sum2 * (Q * Q);
    out[3 * step] = diff1 * (P * P * P) + diff2 * (Q * Q * Q) + m[5 * from];
}

// The transpose of transform_output.
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

// Output channels of a group: as many registers as the product's tiles are wide.
OMNI_INLINE int64_t group_width(const Convolution& c) {
    return W == 16 && c.out % 64 == 0 ? 64 : c.out % (2 * W) == 0 ? 2 * W : W;
}

OMNI_INLINE int64_t phases(const Convolution& c) { return c.up * c.up; }

#ifdef OMNI_HALF_PRODUCTS
typedef uint16_t value;
#else
typedef float value;
#endif

// Room of a group's transformed weights.
OMNI_INLINE int64_t group_floats(const Convolution& c) { return AREA * c.in * group_width(c) * sizeof(value) / sizeof(float); }

static int64_t transformed_floats(const Convolution& c) { return phases(c) * c.out / group_width(c) * group_floats(c); }

// Numbers from one of the 36 matrices of a block to the next. A line of the cache is added, for otherwise the 36 lines that
// a tile touches would all fall into a few sets of the cache.
OMNI_INLINE int64_t inputs_step(const Convolution& c) { return c.block * c.in + 64 / sizeof(value); }
OMNI_INLINE int64_t results_step(const Convolution& c) { return c.block * group_width(c) + 16; }

static int64_t scratch_floats(const Convolution& c) { return AREA * (inputs_step(c) + results_step(c)); }

// Taps [9] of W output channels from o on and one input channel.
OMNI_INLINE void load_taps(const Convolution& c, int64_t o, int64_t i, vf* g) {
    float lanes[9][W];
    for (int lane = 0; lane < W; lane++)
        for (int t = 0; t < 9; t++)
            lanes[t][lane] = c.turned ? c.weight[(i * c.out + o + lane) * 9 + 8 - t] : c.weight[((o + lane) * c.in + i) * 9 + t];
    vf energy = splat(0);
    for (int t = 0; t < 9; t++) {
        g[t] = load(lanes[t]);
        energy += g[t] * g[t];
    }
    store(c.energy + i * c.out + o, energy);
}

OMNI_INLINE void transform_filter_2d(const vf* taps, vf* u) {
    vf half[18];
    for (int t = 0; t < 3; t++) transform_filter(taps + t, 3, half + t, 3);
    for (int t = 0; t < PATCH; t++) transform_filter(half + 3 * t, 1, u + PATCH * t, 1);
}

static void tap_matrix(float* out) {
    for (int tap = 0; tap < 9; tap++) {
        vf taps[9], u[AREA];
        for (int t = 0; t < 9; t++) taps[t] = splat(t == tap);
        transform_filter_2d(taps, u);
        for (int t = 0; t < AREA; t++) out[tap * AREA + t] = u[t][0];
    }
}

// The 36 values that 9 taps of one phase become.
OMNI_INLINE void transform_taps(const Convolution& c, int64_t phase, const vf* g, vf* u) {
    vf taps[9];
    for (int t = 0; t < 9; t++) {
        if (c.up == 1) {
            taps[t] = g[t];
            continue;
        }
        taps[t] = splat(0);
        for (int k = 0; k < 9; k++) taps[t] += g[k] * c.phases[(phase * 9 + t) * 9 + k];
    }
    transform_filter_2d(taps, u);
}

// transformed [P, O / group, AREA, I, group] of float, or pairs of channels [.., I / 2, group, 2] of bfloat16. A few channels
// are gathered in a buffer first: 36 rows far from one another would otherwise be written to at once.
static void transform(const Convolution& c, float* transformed, int64_t first, int64_t end) {
    constexpr int64_t MOST_VECTORS = 64 / W > 4 ? 4 : 64 / W, PER_FLOAT = sizeof(float) / sizeof(value);
    const int64_t group = group_width(c), groups = c.out / group;
    vf taps[MOST_VECTORS][CHANNELS][9];
    float rows[AREA][CHANNELS / PER_FLOAT][MOST_VECTORS * W];
    for (int64_t g = 0; g < groups; g++)
        for (int64_t i = first; i < end; i += CHANNELS) {
            for (int64_t v = 0; v < group / W; v++)
                for (int64_t k = 0; k < CHANNELS; k++) load_taps(c, g * group + v * W, i + k, taps[v][k]);
            for (int64_t p = 0; p < phases(c); p++) {
                for (int64_t v = 0; v < group / W; v++)
                    for (int64_t k = 0; k < CHANNELS / PER_FLOAT; k++) {
                        vf u[2][AREA];
                        transform_taps(c, p, taps[v][k * PER_FLOAT], u[0]);
#ifdef OMNI_HALF_PRODUCTS
                        transform_taps(c, p, taps[v][k * PER_FLOAT + 1], u[1]);
                        for (int t = 0; t < AREA; t++) u[0][t] = (vf)(round_half(u[0][t]) | (round_half(u[1][t]) << 16));
#endif
                        for (int t = 0; t < AREA; t++) store(&rows[t][k][v * W], u[0][t]);
                    }
                float* target = transformed + (p * groups + g) * group_floats(c);
                for (int t = 0; t < AREA; t++)
                    for (int64_t k = 0; k < CHANNELS / PER_FLOAT; k++)
                        for (int64_t v = 0; v < group; v += W)
                            store(target + ((t * c.in + i) / PER_FLOAT + k) * group + v, load(&rows[t][k][v]));
            }
        }
}

#ifdef OMNI_HALF_PRODUCTS
// c [P, Q * W] = a [P, depth] b, where a has its channels in a row and b in pairs; both bfloat16.
template <int P, int Q>
OMNI_INLINE void product_tile(int64_t depth, const value* a, const float* b, int64_t ldb, float* c, int64_t ldc) {
    vf acc[P][Q];
    for (int p = 0; p < P; p++)
        for (int q = 0; q < Q; q++) acc[p][q] = splat(0);
    for (int64_t k = 0; k < depth; k += 2) {
        vf row[Q];
        for (int q = 0; q < Q; q++) row[q] = load(b + k / 2 * ldb + q * W);
        for (int p = 0; p < P; p++) {
            float pair;
            __builtin_memcpy(&pair, a + p * depth + k, 4);
            const vf x = splat(pair);
            for (int q = 0; q < Q; q++) acc[p][q] = (vf)_mm512_dpbf16_ps((__m512)acc[p][q], (__m512bh)x, (__m512bh)row[q]);
        }
    }
    for (int p = 0; p < P; p++)
        for (int q = 0; q < Q; q++) store(c + p * ldc + q * W, acc[p][q]);
}
OMNI_INLINE void store_value(value* p, vf v) { store_half(p, v); }
#else
template <int P, int Q>
OMNI_INLINE void product_tile(int64_t depth, const value* a, const float* b, int64_t ldb, float* c, int64_t ldc) {
    matmul_tile<P, Q, false>(int(depth), a, depth, 1, b, ldb, c, ldc, nullptr);
}
OMNI_INLINE void store_value(value* p, vf v) { store(p, v); }
#endif

template <int Q>
static void products(const Convolution& c, const value* inputs, const float* weight, int64_t tiles, float* out) {
    const int64_t group = Q * W, depth_floats = c.in * group * sizeof(value) / sizeof(float);
    for (int t = 0; t < AREA; t++)
        for (int64_t i = 0; i < tiles; i += ROWS)
            product_tile<ROWS, Q>(c.in, inputs + t * inputs_step(c) + i * c.in, weight + t * depth_floats, group,
                                  out + t * results_step(c) + i * group, group);
}

struct Place { int64_t n, row, column; };   // image, and the tile's first pixel before upsampling

OMNI_INLINE Place place_of(const Convolution& c, int64_t tile) {
    const int64_t per_image = c.tiles_high * c.tiles_wide, rest = tile % per_image;
    return {tile / per_image, rest / c.tiles_wide * TILE, rest % c.tiles_wide * TILE};
}

template <bool HALF>
OMNI_INLINE vf load_pixel(const Convolution& c, int64_t index) {
    return HALF ? load_half(static_cast<const uint16_t*>(c.x) + index) : load(static_cast<const float*>(c.x) + index);
}

template <bool HALF>
static void gather(const Convolution& c, Place place, value* target) {
    for (int64_t i = 0; i < c.in; i += W) {
        vf d[AREA];
        const vf scale = c.in_scale ? load(c.in_scale + place.n * c.in + i) : splat(1);
        for (int a = 0; a < PATCH; a++)
            for (int b = 0; b < PATCH; b++) {
                const int64_t y = place.row + a - 1, x = place.column + b - 1;
                const bool inside = y >= 0 && y < c.h && x >= 0 && x < c.w;
                d[a * PATCH + b] = inside ? load_pixel<HALF>(c, ((place.n * c.h + y) * c.w + x) * c.in + i) * scale : splat(0);
            }
        for (int b = 0; b < PATCH; b++) transform_input(d + b, PATCH);
        for (int a = 0; a < PATCH; a++) transform_input(d + a * PATCH, 1);
        for (int t = 0; t < AREA; t++) store_value(target + t * inputs_step(c) + i, d[t]);
    }
}

// As `gather`, of the gradient of a result; no styles.
template <bool HALF>
static void gather_gradient(const Convolution& c, Place place, value* target) {
    for (int64_t i = 0; i < c.in; i += W) {
        vf y[TILE * TILE], half[PATCH * TILE], m[AREA];
        for (int a = 0; a < TILE; a++)
            for (int b = 0; b < TILE; b++) {
                const int64_t row = place.row + a, column = place.column + b;
                const bool inside = row < c.h && column < c.w;
                y[a * TILE + b] = inside ? load_pixel<HALF>(c, ((place.n * c.h + row) * c.w + column) * c.in + i) : splat(0);
            }
        for (int b = 0; b < TILE; b++) spread_output(y + b, TILE, half + b, TILE);
        for (int a = 0; a < PATCH; a++) spread_output(half + a * TILE, 1, m + a * PATCH, 1);
        for (int t = 0; t < AREA; t++) store_value(target + t * inputs_step(c) + i, m[t]);
    }
}

static void unfold(const Convolution& c, bool gradient, int64_t block_start, int64_t first_tile, int64_t end_tile, void* target) {
    const auto one = gradient ? (c.half ? gather_gradient<true> : gather_gradient<false>) : (c.half ? gather<true> : gather<false>);
    for (int64_t t = first_tile; t < end_tile; t++) one(c, place_of(c, t), static_cast<value*>(target) + (t - block_start) * c.in);
}

// `products` of one tile -> the result's pixels of channels [first, first + group) and one phase.
template <bool HALF>
static void scatter(const Convolution& c, Place place, const float* products, int64_t group, int64_t first, int64_t phase) {
    const int64_t height = c.h * c.up, width = c.w * c.up, py = phase / c.up, px = phase % c.up;
    const float* noise = c.noise ? c.noise + (c.noise_each ? place.n * height * width : 0) : nullptr;
    for (int64_t o = 0; o < group; o += W) {
        vf m[AREA], half[TILE * PATCH], y[TILE * TILE];
        for (int t = 0; t < AREA; t++) m[t] = load(products + t * results_step(c) + o);
        for (int b = 0; b < PATCH; b++) transform_output(m + b, PATCH, half + b, PATCH);
        for (int a = 0; a < TILE; a++) transform_output(half + a * PATCH, 1, y + a * TILE, 1);
        const vf scale = c.out_scale ? load(c.out_scale + place.n * c.out + first + o) : splat(1);
        const vf bias = c.bias ? load(c.bias + first + o) : splat(0);
        for (int a = 0; a < TILE && place.row + a < c.h; a++)
            for (int b = 0; b < TILE && place.column + b < c.w; b++) {
                const int64_t pixel = ((place.row + a) * c.up + py) * width + (place.column + b) * c.up + px;
                vf v = y[a * TILE + b] * scale + bias;
                if (noise) v += noise[pixel];
                v = (v < splat(0) ? v * c.slope : v) * c.gain;
                v = max(min(splat(c.clamp), v), splat(-c.clamp));
                const int64_t index = (place.n * height * width + pixel) * c.out + first + o;
                if (HALF) store_half(static_cast<uint16_t*>(c.y) + index, v);
                else store(static_cast<float*>(c.y) + index, v);
            }
    }
}

static void run(const Convolution& c, const float* transformed, int64_t first_tile, int64_t end_tile, float* scratch) {
    const int64_t group = group_width(c), groups = c.out / group, tiles = end_tile - first_tile;
    value* inputs = reinterpret_cast<value*>(scratch);
    float* results = scratch + AREA * inputs_step(c);
    for (int64_t t = 0; t < tiles; t++) {
        const Place place = place_of(c, first_tile + t);
        if (c.half) gather<true>(c, place, inputs + t * c.in);
        else gather<false>(c, place, inputs + t * c.in);
    }
    for (int64_t g = 0; g < phases(c) * groups; g++) {
        // Rows beyond the last tile are computed from what stands there and never read.
        if (group == 4 * W) products<4>(c, inputs, transformed + g * group_floats(c), tiles, results);
        else if (group == 2 * W) products<2>(c, inputs, transformed + g * group_floats(c), tiles, results);
        else products<1>(c, inputs, transformed + g * group_floats(c), tiles, results);
        for (int64_t t = 0; t < tiles; t++) {
            const Place place = place_of(c, first_tile + t);
            if (c.half) scatter<true>(c, place, results + t * group, group, g % groups * group, g / groups);
            else scatter<false>(c, place, results + t * group, group, g % groups * group, g / groups);
        }
    }
}

#define OMNI_TEXT(x) #x
#define OMNI_NAME(x) OMNI_TEXT(x)

static const WinogradKernels table = {OMNI_NAME(OMNI_ISA), sizeof(value) == 2, TILE, transformed_floats, transform, scratch_floats, run,
                                      inputs_step, unfold, tap_matrix};

}}  // namespace omni::OMNI_ISA
