// 3x3 convolutions by minimal filtering for one instruction set.
//
// A worker takes a block of tiles: their input is transformed into (3 + R)^2 matrices [tiles, I], each is multiplied by its
// weights [I, O], and the products are transformed back. A matrix at a time: its weights are read once a block, from a cache
// that all share, and while they are multiplied the tiles of this matrix stay in the worker's own.
#include "few_pixels_kernel.h"
#include "winograd_weights.h"

namespace omni { namespace OMNI_ISA {

constexpr int64_t LINE = 64, LINE_FLOATS = LINE / sizeof(float);

// Lines are made odd in number wherever as many places are written or read in turns: they then fall into different sets of the
// cache.
OMNI_INLINE int64_t odd_lines(int64_t bytes) { return ((bytes + LINE - 1) / LINE | 1) * LINE; }

OMNI_INLINE int64_t row_values(const Convolution& c) { return odd_lines(c.in * sizeof(value)) / sizeof(value); }
OMNI_INLINE int64_t inputs_step(const Convolution& c) { return odd_lines(c.block * row_values(c) * sizeof(value)) / sizeof(value); }
OMNI_INLINE int64_t results_step(const Convolution& c) { return odd_lines(c.block * c.out * sizeof(float)) / sizeof(float); }
OMNI_INLINE int64_t stage_step(const Convolution& c) { return odd_lines(c.in * sizeof(float)) / sizeof(float); }

static int64_t tile_bytes(const Convolution& c) { return MOST_AREA * (row_values(c) * sizeof(value) + c.out * sizeof(float)); }

// Inputs, results and, for integers, one tile before it is rounded and the factors of the rows.
static int64_t scratch_bytes(const Convolution& c) {
    const int64_t floats = results_step(c) + (PRODUCTS == Products::INT16 ? stage_step(c) + c.block : 0);
    return MOST_AREA * (inputs_step(c) * sizeof(value) + floats * sizeof(float));
}

constexpr int64_t PIXEL_BLOCK = 8 * PRODUCT_ROWS;   // pixels that are multiplied with all weights of one tap before the next are read

// Inputs, some pixels before they are rounded, and the factors of the rows.
static int64_t pointwise_bytes(const Convolution& c) {
    return PIXEL_BLOCK * row_values(c) * sizeof(value) + (ROWS * c.in + PIXEL_BLOCK) * sizeof(float);
}

struct Place { int64_t n, row, column; };   // image, and the tile's first row and column among its phase's results

// Rows and columns from which a phase makes one of its own: an image's last row of taps 2 lies beyond the input.
OMNI_INLINE int64_t phase_rows(const Strip& s, Phase p) { return s.rows + (p.rows == 2 && s.last); }
OMNI_INLINE int64_t phase_columns(const Convolution& c, Phase p) { return c.w + (p.columns == 2); }

OMNI_INLINE Place place_of(const Convolution& c, const Strip& s, Phase p, int64_t tile) {
    const int64_t wide = (phase_columns(c, p) + TILE - 1) / TILE, high = (phase_rows(s, p) + TILE - 1) / TILE, rest = tile % (high * wide);
    return {s.first_image + tile / (high * wide), s.first_row + rest / wide * TILE, rest % wide * TILE};
}

template <bool HALF>
OMNI_INLINE vf load_pixel(const Convolution& c, int64_t index) {
    return HALF ? load_half(static_cast<const uint16_t*>(c.x) + index) : load(static_cast<const float*>(c.x) + index);
}

// Asks for a line that the next tile will need: one after the other lies too far from the last for the processor to guess.
template <bool HALF, bool WRITE>
OMNI_INLINE void fetch(const void* image, int64_t index) {
    __builtin_prefetch(static_cast<const char*>(image) + index * (HALF ? 2 : 4), WRITE);
}

// A line of the cache at a time, and all of it at once: the pixels of a tile lie a power of two apart, in the same few sets.
constexpr int LINE_VECTORS = LINE_FLOATS / W;

template <int RH, int RW, bool HALF, bool INSIDE, class T>
OMNI_INLINE void gather_tile(const Convolution& c, Place place, T* target, int64_t step) {
    constexpr int HIGH = points(RH), WIDE = points(RW);
    const int64_t top = place.row - (RH > 1), left = place.column - (RW > 1);
    for (int64_t i = 0; i < c.in; i += LINE_FLOATS) {
        vf d[LINE_VECTORS][HIGH * WIDE], scale[LINE_VECTORS];
        for (int v = 0; v < LINE_VECTORS; v++) scale[v] = c.in_scale ? load(c.in_scale + place.n * c.in + i + v * W) : splat(1);
        for (int b = 0; b < WIDE; b++) {
            vf column[LINE_VECTORS][HIGH];
            for (int a = 0; a < HIGH; a++) {
                const int64_t y = top + a, x = left + b;
                const bool inside = INSIDE || (y >= 0 && y < c.h && x >= 0 && x < c.w);
                if (INSIDE && b >= WIDE - TILE) fetch<HALF, false>(c.x, ((place.n * c.h + y) * c.w + x + TILE) * c.in + i);
                for (int v = 0; v < LINE_VECTORS; v++)
                    column[v][a] = inside ? load_pixel<HALF>(c, ((place.n * c.h + y) * c.w + x) * c.in + i + v * W) * scale[v] : splat(0);
            }
            for (int v = 0; v < LINE_VECTORS; v++) {
                transform_input<RH>(column[v], 1);
                for (int a = 0; a < HIGH; a++) d[v][a * WIDE + b] = column[v][a];
            }
        }
        for (int a = 0; a < HIGH; a++)
            for (int v = 0; v < LINE_VECTORS; v++) {
                vf row[WIDE];
                for (int b = 0; b < WIDE; b++) row[b] = d[v][a * WIDE + b];
                transform_input<RW>(row, 1);
                for (int b = 0; b < WIDE; b++) store_number(target + (a * WIDE + b) * step + i + v * W, row[b]);
            }
    }
}

template <int RH, int RW, bool HALF, class T>
OMNI_INLINE void gather(const Convolution& c, Place place, T* target, int64_t step) {
    const bool inside = place.row >= 1 && place.column >= 1 && place.row + TILE + (RH == 3) <= c.h && place.column + TILE + (RW == 3) <= c.w;
    if (inside) gather_tile<RH, RW, HALF, true>(c, place, target, step);
    else gather_tile<RH, RW, HALF, false>(c, place, target, step);
}

// As `gather`, of the gradient of a result; no styles.
template <bool HALF, class T>
OMNI_INLINE void gather_gradient(const Convolution& c, Place place, T* target, int64_t step) {
    constexpr int PATCH = points(3);
    for (int64_t i = 0; i < c.in; i += W) {
        vf y[TILE * TILE], half[PATCH * TILE], m[MOST_AREA];
        for (int a = 0; a < TILE; a++)
            for (int b = 0; b < TILE; b++) {
                const int64_t row = place.row + a, column = place.column + b;
                const bool inside = row < c.h && column < c.w;
                y[a * TILE + b] = inside ? load_pixel<HALF>(c, ((place.n * c.h + row) * c.w + column) * c.in + i) : splat(0);
            }
        for (int b = 0; b < TILE; b++) spread_output(y + b, TILE, half + b, TILE);
        for (int a = 0; a < PATCH; a++) spread_output(half + a * TILE, 1, m + a * PATCH, 1);
        for (int t = 0; t < MOST_AREA; t++) store_number(target + t * step + i, m[t]);
    }
}

#ifdef OMNI_INT16_PRODUCTS
typedef float unfolded;     // weights' gradients are not taken in integers
#else
typedef value unfolded;
#endif

static int64_t matrix_step(const Convolution& c) { return c.block * c.in + LINE / sizeof(unfolded); }

static void unfold(const Convolution& c, bool gradient, int64_t block_start, int64_t first_tile, int64_t end_tile, void* target) {
    const Strip all{0, c.n, 0, c.h, true};
    for (int64_t t = first_tile; t < end_tile; t++) {
        const Place place = place_of(c, all, {3, 3, 0, 0}, t);
        unfolded* to = static_cast<unfolded*>(target) + (t - block_start) * c.in;
        if (gradient && c.half) gather_gradient<true>(c, place, to, matrix_step(c));
        else if (gradient) gather_gradient<false>(c, place, to, matrix_step(c));
        else if (c.half) gather<3, 3, true>(c, place, to, matrix_step(c));
        else gather<3, 3, false>(c, place, to, matrix_step(c));
    }
}

// What follows the convolution, for channels [first, first + W) of an image's result. A copy, for the compiler must take every
// store for one that changes a Convolution.
template <bool HALF>
struct Finish {
    vf scale, bias;
    const float* noise;   // of the image, or null
    float slope, gain, clamp;
    char* y;
    int64_t pixel_bytes;
    bool streams;

    Finish() = default;
    __attribute__((always_inline)) Finish(const Convolution& c, int64_t n, int64_t first)
        : scale(c.out_scale ? load(c.out_scale + n * c.out + first) : splat(1)), bias(c.bias ? load(c.bias + first) : splat(0)),
          slope(c.slope), gain(c.gain), clamp(c.clamp), pixel_bytes(c.out * (HALF ? 2 : 4)), streams(c.streams) {
        const int64_t pixels = c.h * c.w * c.up * c.up;
        noise = c.noise ? c.noise + (c.noise_each ? n * pixels : 0) : nullptr;
        y = static_cast<char*>(c.y) + n * pixels * pixel_bytes + first * (HALF ? 2 : 4);
    }

    __attribute__((always_inline)) void operator()(int64_t pixel, vf v) const {
        v = v * scale + bias;
        if (noise) v += noise[pixel];
        v = (v < splat(0) ? v * slope : v) * gain;
        v = max(splat(-clamp), min(splat(clamp), v));
        char* at = y + pixel * pixel_bytes;
        if (HALF) store_half(reinterpret_cast<uint16_t*>(at), v);
        else if (streams) stream(reinterpret_cast<float*>(at), v);
        else store(reinterpret_cast<float*>(at), v);
    }

    // Asks for the line that a later pixel will be written to.
    __attribute__((always_inline)) void prepare(int64_t pixel) const {
        if (!streams) __builtin_prefetch(y + pixel * pixel_bytes, 1);
    }
};

// Of a whole line of the cache, or VECTORS of it: lines that are streamed in parts are fetched first.
template <bool HALF, int VECTORS = LINE_VECTORS>
struct FinishLine {
    Finish<HALF> part[VECTORS];

    __attribute__((always_inline)) FinishLine(const Convolution& c, int64_t n, int64_t first) {
        for (int v = 0; v < VECTORS; v++) part[v] = Finish<HALF>(c, n, first + v * W);
    }
};

// Where row r and column x of the transposed convolution stand; columns -1 and 2 w + 1 are zeros.
OMNI_INLINE float* between(const Convolution& c, const Strip& s, int64_t n, int64_t r, int64_t x) {
    return c.between + ((1 + (n - s.first_image) * c.ring + r % c.ring) * (2 * c.w + 3) + x + 1) * c.out;
}

// The products of one tile in LINE_FLOATS channels from o on -> its values.
template <int RH, int RW>
OMNI_INLINE void combine(const float* products, int64_t step, vf (*y)[TILE * TILE]) {
    constexpr int HIGH = points(RH), WIDE = points(RW);
    for (int v = 0; v < LINE_VECTORS; v++) {
        vf half[TILE * WIDE];
        for (int b = 0; b < WIDE; b++) {
            vf m[HIGH];
            for (int a = 0; a < HIGH; a++) m[a] = load(products + (a * WIDE + b) * step + v * W);
            transform_output<RH>(m, 1, half + b, WIDE);
        }
        for (int a = 0; a < TILE; a++) transform_output<RW>(half + a * WIDE, 1, y[v] + a * TILE, 1);
    }
}

// Products of one tile -> its pixels, of the result or of `between`. By lines, as in gather_tile.
template <int RH, int RW, bool HALF, bool INSIDE>
OMNI_INLINE void scatter_tile(const Convolution& c, const Strip& s, Phase p, Place place, const float* products) {
    const int64_t high = INSIDE ? TILE : s.first_row + phase_rows(s, p) - place.row, wide = INSIDE ? TILE : phase_columns(c, p) - place.column;
    const int64_t step = results_step(c), out = c.out, width = c.w;
    for (int64_t o = 0; o < out; o += LINE_FLOATS) {
        vf y[LINE_VECTORS][TILE * TILE];
        combine<RH, RW>(products + o, step, y);
        if constexpr (RH == 3) {
            const FinishLine<HALF> line(c, place.n, o);
            for (int a = 0; a < TILE && (INSIDE || a < high); a++)
                for (int b = 0; b < TILE && (INSIDE || b < wide); b++) {
                    const int64_t pixel = (place.row + a) * width + place.column + b;
                    line.part[0].prepare(pixel + TILE);
                    for (int v = 0; v < LINE_VECTORS; v++) line.part[v](pixel, y[v][a * TILE + b]);
                }
            continue;
        }
        for (int a = 0; a < TILE && (INSIDE || a < high); a++) {
            float* row = between(c, s, place.n, 2 * (place.row + a) + p.y, 2 * place.column + p.x) + o;
            for (int b = 0; b < TILE && (INSIDE || b < wide); b++) {
                fetch<false, true>(row, 2 * (b + TILE) * out);
                for (int v = 0; v < LINE_VECTORS; v++) store(row + 2 * b * out + v * W, y[v][a * TILE + b]);
            }
        }
    }
}

template <int RH, int RW>
OMNI_INLINE void scatter(const Convolution& c, const Strip& s, Phase p, Place place, const float* products) {
    const bool inside = place.row + TILE <= s.first_row + phase_rows(s, p) && place.column + TILE <= phase_columns(c, p);
    constexpr bool RESULT = RH == 3;   // else `between`, which is float
    if (RESULT && c.half) {
        if (inside) scatter_tile<RH, RW, RESULT, true>(c, s, p, place, products);
        else scatter_tile<RH, RW, RESULT, false>(c, s, p, place, products);
    } else {
        if (inside) scatter_tile<RH, RW, false, true>(c, s, p, place, products);
        else scatter_tile<RH, RW, false, false>(c, s, p, place, products);
    }
}

template <int RH, int RW, int QS>
OMNI_INLINE void multiply(const Convolution& c, const value* inputs, const float* row_factors, const value* weights, int64_t tiles,
                          float* results) {
    constexpr int HIGH = points(RH), WIDE = points(RW), WEIGHTS_WIDE = weight_points(RW);
    const int64_t group = QS * W, matrix = c.in * c.out, row = row_values(c);
    const float* factors = reinterpret_cast<const float*>(weights + weight_points(RH) * WEIGHTS_WIDE * matrix);
    for (int64_t m = 0; m < HIGH * WIDE; m++) {
        const int64_t w = (RH == 1 ? 0 : m / WIDE) * WEIGHTS_WIDE + (RW == 1 ? 0 : m % WIDE);
        for (int64_t t = 0; t < tiles; t += ROWS)
            for (int64_t o = 0; o < c.out; o += group)
                product_tile<QS>(c.in, inputs + m * inputs_step(c) + t * row, row, weights + w * matrix + o * c.in,
                                 results + m * results_step(c) + t * c.out + o, c.out, row_factors + m * c.block + t, factors + w * c.out + o);
    }
}

template <int RH, int RW>
static void run_phase(const Convolution& c, const Strip& s, Phase p, const unsigned char* weights, int64_t first, int64_t end,
                      unsigned char* scratch) {
    constexpr int AREA = points(RH) * points(RW);
    const int64_t tiles = end - first, row = row_values(c), step = inputs_step(c), group = group_width(c);
    value* inputs = reinterpret_cast<value*>(scratch);
    float* results = reinterpret_cast<float*>(scratch + MOST_AREA * step * sizeof(value));
    float *stage = results + MOST_AREA * results_step(c), *factors = stage + MOST_AREA * stage_step(c);
    for (int64_t t = 0; t < tiles; t++) {
        const Place place = place_of(c, s, p, first + t);
#ifdef OMNI_INT16_PRODUCTS
        if (c.half) gather<RH, RW, true>(c, place, stage, stage_step(c));
        else gather<RH, RW, false>(c, place, stage, stage_step(c));
        pack_inputs(stage, stage_step(c), AREA, c.in, inputs + t * row, step, factors + t, c.block);
#else
        if (c.half) gather<RH, RW, true>(c, place, inputs + t * row, step);
        else gather<RH, RW, false>(c, place, inputs + t * row, step);
#endif
    }
    // A product's tile has rows beyond the last one; they are never read.
    for (int64_t m = 0; m < AREA; m++)
        for (int64_t t = tiles; t % ROWS; t++) {
            __builtin_memset(inputs + m * step + t * row, 0, row * sizeof(value));
            if (PRODUCTS == Products::INT16) factors[m * c.block + t] = 0;
        }
    const value* matrices = reinterpret_cast<const value*>(weights);
    if constexpr (W == 16) {
        if (group == 4 * W) multiply<RH, RW, 4>(c, inputs, factors, matrices, tiles, results);
        else if (group == 2 * W) multiply<RH, RW, 2>(c, inputs, factors, matrices, tiles, results);
        else multiply<RH, RW, 1>(c, inputs, factors, matrices, tiles, results);
    } else {
        multiply<RH, RW, 2>(c, inputs, factors, matrices, tiles, results);
    }
    for (int64_t t = 0; t < tiles; t++) scatter<RH, RW>(c, s, p, place_of(c, s, p, first + t), results + t * c.out);
}

static void run(const Convolution& c, const Strip& s, Phase p, const unsigned char* weights, int64_t first, int64_t end,
                unsigned char* scratch) {
    const auto one = p.rows == 3    ? run_phase<3, 3>
                     : p.rows == 2 ? (p.columns == 2 ? run_phase<2, 2> : run_phase<2, 1>)
                                   : (p.columns == 2 ? run_phase<1, 2> : run_phase<1, 1>);
    one(c, s, p, weights, first, end, scratch);
    end_streams();
}

constexpr int64_t FILTERED = 32, RUN = 128;   // pixels of a row, and channels, at a time

// Row r of an image: pixels [first, end) of channels [o, stop) of the result, from four rows of `between`. A filter that is a
// product of columns and rows goes along the columns first, over runs of memory.
template <bool HALF, bool SEPARABLE>
OMNI_INLINE void filter_pixels(const Convolution& c, const float* const* rows, int64_t n, int64_t r, int64_t first, int64_t end, int64_t o,
                               int64_t stop) {
    float columns[FILTERED + 3][RUN];
    vf taps[4];
    for (int a = 0; a < 4; a++) taps[a] = splat(SEPARABLE ? c.column_taps[a] : 0);
    for (int64_t x = first, out = c.out; SEPARABLE && x < end + 3; x++)
        for (int64_t k = o; k < stop; k += W) {
            vf sum = load(rows[0] + x * out + k) * taps[0];
            for (int a = 1; a < 4; a++) sum += load(rows[a] + x * out + k) * taps[a];
            store(columns[x - first] + k - o, sum);
        }
    for (int a = 0; a < 4; a++) taps[a] = splat(SEPARABLE ? c.row_taps[a] : 0);
    for (int64_t k = o; k < stop; k += LINE_FLOATS) {
        const FinishLine<HALF> line(c, n, k);
        const int64_t pixel = r * 2 * c.w, out = c.out;
        for (int64_t x = first; x < end; x++) {
            vf sums[LINE_VECTORS];
            for (int v = 0; v < LINE_VECTORS; v++) {
                sums[v] = splat(0);
                for (int b = 0; b < 4; b++)
                    if (SEPARABLE) sums[v] += load(columns[x - first + b] + k + v * W - o) * taps[b];
                    else
                        for (int a = 0; a < 4; a++) sums[v] += load(rows[a] + (x + b) * out + k + v * W) * c.filter[4 * a + b];
            }
            for (int v = 0; v < LINE_VECTORS; v++) line.part[v](pixel + x, sums[v]);
        }
    }
}

// A few columns of all rows, then the next: of the four rows that one needs, three are still in the second cache.
template <bool HALF, bool SEPARABLE>
static void filter_rows(const Convolution& c, const Strip& s, int64_t n, int64_t first, int64_t end) {
    for (int64_t x = 0; x < 2 * c.w; x += FILTERED)
        for (int64_t r = first; r < end; r++) {
            const float* rows[4];
            for (int a = 0; a < 4; a++) rows[a] = r + a < 1 || r + a > 2 * c.h + 1 ? c.between : between(c, s, n, r + a - 1, -1);
            for (int64_t o = 0; o < c.out; o += RUN)
                filter_pixels<HALF, SEPARABLE>(c, rows, n, r, x, x + FILTERED < 2 * c.w ? x + FILTERED : 2 * c.w, o,
                                               o + RUN < c.out ? o + RUN : c.out);
        }
}

static void low_pass(const Convolution& c, const Strip& s, int64_t image, int64_t first, int64_t end) {
    if (c.row_taps) c.half ? filter_rows<true, true>(c, s, image, first, end) : filter_rows<false, true>(c, s, image, first, end);
    else c.half ? filter_rows<true, false>(c, s, image, first, end) : filter_rows<false, false>(c, s, image, first, end);
    end_streams();
}

// One tap: pixels [first, end) of all images, those of one of them at a time.
template <bool HALF, int QS>
static void multiply_pixels(const Convolution& c, const value* weights, int64_t first, int64_t end, unsigned char* scratch) {
    constexpr int VECTORS = QS < LINE_VECTORS ? QS : LINE_VECTORS;
    const int64_t area = c.h * c.w, row = row_values(c), group = QS * W;
    value* inputs = reinterpret_cast<value*>(scratch);
    float *styled = reinterpret_cast<float*>(inputs + PIXEL_BLOCK * row), *factors = styled + ROWS * c.in;
    const float* weight_factors = reinterpret_cast<const float*>(weights + c.in * c.out);
    for (int64_t start = first; start < end;) {
        const int64_t n = start / area, rest = (n + 1) * area < end ? (n + 1) * area - start : end - start;
        const int64_t count = rest < PIXEL_BLOCK ? rest : PIXEL_BLOCK;
        for (int64_t p = 0; p < count; p += ROWS) {
            const int64_t some = count - p < ROWS ? count - p : ROWS;
            for (int64_t r = 0; r < some; r++)
                for (int64_t i = 0; i < c.in; i += W) {
                    const vf style = c.in_scale ? load(c.in_scale + n * c.in + i) : splat(1);
                    const vf v = load_pixel<HALF>(c, (start + p + r) * c.in + i) * style;
#ifdef OMNI_INT16_PRODUCTS
                    store(styled + r * c.in + i, v);
                }
            pack_inputs(styled, c.in, some, c.in, inputs + p * row, row, factors + p, 1);
#else
                    store_number(inputs + (p + r) * row + i, v);
                }
#endif
        }
        for (int64_t p = count; p % ROWS; p++) {   // rows beyond the last one; what becomes of them is dropped
            __builtin_memset(inputs + p * row, 0, row * sizeof(value));
            factors[p] = 0;
        }
        for (int64_t p = 0; p < count; p += ROWS)
            for (int64_t o = 0; o < c.out; o += group) {
                float results[ROWS * QS * W];
                product_tile<QS>(c.in, inputs + p * row, row, weights + o * c.in, results, group, factors + p, weight_factors + o);
                for (int64_t k = 0; k < group; k += VECTORS * W) {
                    const FinishLine<HALF, VECTORS> line(c, n, o + k);
                    for (int64_t r = 0; r < ROWS && p + r < count; r++)
                        for (int v = 0; v < VECTORS; v++)
                            line.part[v](start - n * area + p + r, load(results + r * group + k + v * W));
                }
            }
        start += count;
    }
}

template <bool HALF>
static void pointwise_of(const Convolution& c, const unsigned char* weights, int64_t first, int64_t end, unsigned char* scratch) {
    const value* matrix = reinterpret_cast<const value*>(weights);
    if (group_width(c) == 2 * W) return multiply_pixels<HALF, 2>(c, matrix, first, end, scratch);
    if constexpr (W == 16) {
        if (group_width(c) == 4 * W) return multiply_pixels<HALF, 4>(c, matrix, first, end, scratch);
        multiply_pixels<HALF, 1>(c, matrix, first, end, scratch);
    }
}

static void pointwise(const Convolution& c, const unsigned char* weights, int64_t first, int64_t end, unsigned char* scratch) {
    c.half ? pointwise_of<true>(c, weights, first, end, scratch) : pointwise_of<false>(c, weights, first, end, scratch);
    end_streams();
}

constexpr int ABREAST = 4;   // pixels whose sums the registers hold

template <int O>
static void few_of(const Convolution& c, const float* folded, int64_t first, int64_t end) {
    const float* x = static_cast<const float*>(c.x);
    for (int64_t p = first; p < end; p += ABREAST) {
        vf acc[ABREAST][O];
        for (int a = 0; a < ABREAST; a++)
            for (int o = 0; o < O; o++) acc[a][o] = splat(0);
        for (int64_t i = 0; i < c.in; i += W)
            for (int a = 0; a < ABREAST; a++)
                for (int o = 0; o < O; o++) acc[a][o] += load(x + (p + a < end ? p + a : p) * c.in + i) * load(folded + o * c.in + i);
        for (int a = 0; a < ABREAST && p + a < end; a++)
            for (int o = 0; o < O; o++) {
                float v = sum(acc[a][o]) + (c.bias ? c.bias[o] : 0);
                v = (v < 0 ? v * c.slope : v) * c.gain;
                static_cast<float*>(c.y)[(p + a) * O + o] = v > c.clamp ? c.clamp : v < -c.clamp ? -c.clamp : v;
            }
    }
}

static void few(const Convolution& c, const float* folded, int64_t first, int64_t end) {
    const auto one = c.out == 1 ? few_of<1> : c.out == 2 ? few_of<2> : c.out == 3 ? few_of<3> : few_of<FEW>;
    one(c, folded, first, end);
}

#define OMNI_TEXT(x) #x
#define OMNI_NAME(x) OMNI_TEXT(x)

#ifdef OMNI_INT16_PRODUCTS
#define OMNI_SET avx2
#else
#define OMNI_SET OMNI_ISA
#endif

static const WinogradKernels table = {OMNI_NAME(OMNI_SET), PRODUCTS, TILE, groups, weight_bytes, transform_floats, transform, tile_bytes,
                                      scratch_bytes, run, low_pass, pointwise_bytes, pointwise, few, tap_products, energy, matrix_step, unfold,
                                      tap_matrix};

}}  // namespace omni::OMNI_ISA
