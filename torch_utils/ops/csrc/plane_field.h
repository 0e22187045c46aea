// The field at a batch of points: lookup in three grids and the first layer of the decoder, forward and backward.
// Included once per instruction set, after simd.h.
#pragma once

#include "simd.h"
#include "volume_render.h"

namespace omni { namespace OMNI_ISA {

constexpr int PREFETCH = 3;          // points ahead
constexpr float EMPTY_DENSITY = -1000.0f;

OMNI_INLINE int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

// Hands out pieces of the scratch memory; with a null start it only counts.
struct Arena {
    float* start;
    int64_t used;

    float* floats(int64_t num) {
        float* piece = start ? start + used : nullptr;
        used += round_up(num, 16);
        return piece;
    }
    int32_t* ints(int64_t num) { return reinterpret_cast<int32_t*>(floats(num)); }
};

// Points and everything computed of them; row i of each array belongs to point i.
struct Batch {
    int capacity;                  // room for a vector that begins at the last point, and a multiple of 16
    int corners;                   // cells that weigh in, of all three planes
    float* position[3];            // [capacity] each, world units
    int32_t* offset;               // [corners, capacity] first channel of the cell, in floats from the grid's start
    float* weight;                 // [corners, capacity]
    float* slope[3];               // [corners, capacity] derivative of the weight by the position, or null
    float *features, *hidden;      // [capacity, C], [capacity, H]
    float *sigmoid;                // [capacity, H] derivative of the hidden layer's softplus, or null
    float *colour;                 // [capacity, O], or null where the colours are composited as hidden units
    float *density;                // [capacity]
};

// Whether the depth of the planes is interpolated.
OMNI_INLINE bool interpolates_depth(const Field& f) { return f.trilinear && f.depth > 1; }

static Batch make_batch(Arena& arena, const Field& f, int capacity, bool slopes, bool gradients) {
    Batch b;
    b.capacity = int(round_up(capacity + W, 16));                        // vectors may begin at any point
    b.corners = interpolates_depth(f) ? 24 : 12;
    int64_t table = int64_t(b.corners) * b.capacity;
    for (float*& p : b.position) p = arena.floats(b.capacity);
    b.offset = arena.ints(table);
    b.weight = arena.floats(table);
    for (float*& p : b.slope) p = slopes ? arena.floats(table) : nullptr;
    b.features = arena.floats(int64_t(b.capacity) * f.channels);
    b.hidden = arena.floats(int64_t(b.capacity) * f.hidden);
    b.sigmoid = gradients ? arena.floats(int64_t(b.capacity) * f.hidden) : nullptr;
    b.colour = f.activation == ACTIVATION_NONE ? nullptr : arena.floats(int64_t(b.capacity) * f.colours);
    b.density = arena.floats(b.capacity);
    return b;
}

// Along one axis: cells below and above a point, their weights (0 outside the grid) and the weights' derivatives.
struct AxisCells {
    vi cell[2];
    vf weight[2], slope[2];
};

// Cells outside of [first, end) have no weight.
OMNI_INLINE AxisCells axis_cells(vf coordinate, int size, int first, int end) {
    AxisCells a;
    vf at = ((coordinate + 1.0f) * float(size) - 1.0f) * 0.5f;           // cell centres are the integers
    at = min(max(at, splat(-2.0f)), splat(float(size) + 1.0f));          // held to what an int can hold
    vi below = floor_int(at);
    vf part = at - __builtin_convertvector(below, vf);
    for (int k = 0; k < 2; k++) {
        vi cell = below + k;
        vi inside = (vi)(cell >= first) & (vi)(cell < end);
        a.cell[k] = cell & inside;
        a.weight[k] = where(inside, k ? part : 1.0f - part);
        a.slope[k] = where(inside, splat(k ? 1.0f : -1.0f));
    }
    return a;
}

// Depth axis of a plane of one layer: its weight fades with |t| / 2, or is 1 where the lookup is bilinear.
OMNI_INLINE AxisCells single_layer(vf coordinate, bool trilinear) {
    AxisCells a;
    vf at = coordinate * 0.5f;
    vf weight = 1.0f - abs(at);
    vi inside = (vi)(weight > splat(0));
    a.cell[0] = vi{};
    a.weight[0] = trilinear ? where(inside, weight) : splat(1);
    a.slope[0] = trilinear ? where(inside, at >= splat(0) ? splat(-1) : splat(1)) : splat(0);
    return a;
}

OMNI_INLINE AxisCells axis_cells(vf coordinate, int size) { return axis_cells(coordinate, size, 0, size); }

// Fill offset, weight and slope of points [begin, end), of planes [plane, end_plane) and their rows [row, end_row).
static void find_corners(const Field& f, const Batch& b, int begin, int end, int plane, int end_plane, int row, int end_row) {
    const int layers = interpolates_depth(f) ? 2 : 1, first_plane = plane;
    for (int i = begin; i < end; i += W) {
        vf position[3];
        for (int a = 0; a < 3; a++) position[a] = load(b.position[a] + i) * f.scale;
        for (plane = first_plane; plane < end_plane; plane++) {
            const int* axes = f.axes[plane];
            AxisCells x = axis_cells(position[axes[0]], f.width), y = axis_cells(position[axes[1]], f.height, row, end_row);
            AxisCells z = layers == 2 ? axis_cells(position[axes[2]], f.depth) : single_layer(position[axes[2]], f.trilinear);
            int64_t at = int64_t(plane - first_plane) * 4 * layers * b.capacity + i;
            for (int k = 0; k < layers; k++)
                for (int j = 0; j < 2; j++)
                    for (int l = 0; l < 2; l++, at += b.capacity) {
                        vi cell = z.cell[k] * f.layer_step + y.cell[j] * f.row_step + x.cell[l] * f.column_step;
                        vf zy = z.weight[k] * y.weight[j] * (1.0f / 3);
                        store(b.offset + at, cell + plane * f.plane_step);
                        store(b.weight + at, zy * x.weight[l]);
                        if (!b.slope[0]) continue;
                        float step = 0.5f * f.scale / 3;
                        store(b.slope[axes[0]] + at, z.weight[k] * y.weight[j] * x.slope[l] * (step * f.width));
                        store(b.slope[axes[1]] + at, z.weight[k] * y.slope[j] * x.weight[l] * (step * f.height));
                        store(b.slope[axes[2]] + at, z.slope[k] * y.weight[j] * x.weight[l] * (step * f.depth));
                    }
        }
    }
}

static void find_corners(const Field& f, const Batch& b, int begin, int end) {
    find_corners(f, b, begin, end, 0, 3, 0, f.height);
}

// Ask for the cells of a point that comes up soon: lookups in large grids wait for memory more than they compute.
template <int Q, int WRITE>
OMNI_INLINE void prefetch_cells(const float* grid, const Batch& b, int point, int column) {
    for (int k = 0; k < b.corners; k++)
        for (int q = 0; q < Q * W; q += 16)
            __builtin_prefetch(grid + b.offset[k * b.capacity + point] + column + q, WRITE);
}

template <int Q>
OMNI_INLINE void gather_columns(const float* grid, const Batch& b, int begin, int end, int stride, int column) {
    for (int i = begin; i < end; i++) {
        if (i + PREFETCH < end) prefetch_cells<Q, 0>(grid, b, i + PREFETCH, column);
        vf sum[Q];
        for (int q = 0; q < Q; q++) sum[q] = splat(0);
        for (int k = 0; k < b.corners; k++) {
            const float* cell = grid + b.offset[k * b.capacity + i] + column;
            vf weight = splat(b.weight[k * b.capacity + i]);
            for (int q = 0; q < Q; q++) sum[q] += weight * load(cell + q * W);
        }
        for (int q = 0; q < Q; q++) store(b.features + int64_t(i) * stride + column + q * W, sum[q]);
    }
}

static void gather(const float* grid, const Batch& b, int begin, int end, int channels) {
    int column = 0;
    for (; column + 4 * W <= channels; column += 4 * W) gather_columns<4>(grid, b, begin, end, channels, column);
    for (; column + 2 * W <= channels; column += 2 * W) gather_columns<2>(grid, b, begin, end, channels, column);
    for (; column < channels; column += W) gather_columns<1>(grid, b, begin, end, channels, column);
}

OMNI_INLINE vf activate(vf x, int activation) {
    if (activation == ACTIVATION_SIGMOID) return sigmoid(x) * 1.002f - 0.001f;
    if (activation == ACTIVATION_LRELU) return (x > splat(0) ? x : x * 0.2f) * 1.41421356f;
    return x;
}

// Derivative of activate() told by its result.
OMNI_INLINE vf activation_slope(vf y, int activation) {
    if (activation == ACTIVATION_SIGMOID) {
        vf s = (y + 0.001f) * (1 / 1.002f);
        return s * (1.0f - s) * 1.002f;
    }
    if (activation == ACTIVATION_LRELU) return y > splat(0) ? splat(1.41421356f) : splat(0.2f * 1.41421356f);
    return splat(1);
}

static void decode_colours(const Field& f, const Batch& b, int begin, int end) {
    float* colour = b.colour + int64_t(begin) * f.colours;
    matmul<false>(end - begin, f.colours, f.hidden, b.hidden + int64_t(begin) * f.hidden, f.hidden, 1, f.w2, f.colours, colour,
                  f.colours, f.b2);
    for (int64_t i = 0; i < int64_t(end - begin) * f.colours; i += W) store(colour + i, activate(load(colour + i), f.activation));
}

// Softplus of the hidden units of points [begin, end), its derivative where SLOPE, and their density.
template <bool SLOPE>
static void activate_hidden(const Field& f, const Batch& b, int begin, int end) {
    const int hidden = f.hidden;
    const float *row = f.density_row, bias = f.density_bias;
    float *h = b.hidden + int64_t(begin) * hidden, *sigmoid = SLOPE ? b.sigmoid + int64_t(begin) * hidden : nullptr;
    for (int i = begin; i < end; i++, h += hidden, sigmoid += SLOPE ? hidden : 0) {
        vf density = splat(0), slope;
        for (int k = 0; k < hidden; k += W) {
            vf value = SLOPE ? softplus(load(h + k), slope) : softplus(load(h + k));
            store(h + k, value);
            if (SLOPE) store(sigmoid + k, slope);
            density += value * load(row + k);
        }
        b.density[i] = sum(density) + bias;
    }
}

// Features, hidden units, density and (unless they are composited as hidden units) colours of points [begin, end).
static void evaluate(const Field& f, const float* grid, const Batch& b, int begin, int end) {
    find_corners(f, b, begin, end);
    gather(grid, b, begin, end, f.channels);
    matmul<false>(end - begin, f.hidden, f.channels, b.features + int64_t(begin) * f.channels, f.channels, 1, f.w1, f.hidden,
                  b.hidden + int64_t(begin) * f.hidden, f.hidden, f.b1);
    if (b.sigmoid) activate_hidden<true>(f, b, begin, end);
    else activate_hidden<false>(f, b, begin, end);
    if (b.colour) decode_colours(f, b, begin, end);
}

// grid += weight * gradient of the features, for the points [0, end).
template <int Q>
OMNI_INLINE void scatter_columns(float* grid, const Batch& b, int end, const float* gradient, int stride, int column) {
    for (int i = 0; i < end; i++) {
        if (i + PREFETCH < end) prefetch_cells<Q, 1>(grid, b, i + PREFETCH, column);
        vf g[Q];
        for (int q = 0; q < Q; q++) g[q] = load(gradient + int64_t(i) * stride + column + q * W);
        for (int k = 0; k < b.corners; k++) {
            float weight = b.weight[k * b.capacity + i];
            if (weight == 0) continue;                                   // cells outside all point to the first one
            float* cell = grid + b.offset[k * b.capacity + i] + column;
            for (int q = 0; q < Q; q++) store(cell + q * W, load(cell + q * W) + g[q] * weight);
        }
    }
}

// The same for channels [column, end_column) alone.
static void scatter(float* grid, const Batch& b, int end, const float* gradient, int channels, int column, int end_column) {
    for (; column + 4 * W <= end_column; column += 4 * W) scatter_columns<4>(grid, b, end, gradient, channels, column);
    for (; column + 2 * W <= end_column; column += 2 * W) scatter_columns<2>(grid, b, end, gradient, channels, column);
    for (; column < end_column; column += W) scatter_columns<1>(grid, b, end, gradient, channels, column);
}

// A batch that has room for what scatter_slot needs and no more.
static Batch make_slot_batch(Arena& arena, const Field& f, int points) {
    Batch b = {};
    b.capacity = int(round_up(points + W, 16));
    b.corners = interpolates_depth(f) ? 8 : 4;
    b.offset = arena.ints(int64_t(b.corners) * b.capacity);
    b.weight = arena.floats(int64_t(b.corners) * b.capacity);
    return b;
}

static int64_t scatter_scratch(const Field& f, int points) {
    Arena arena = {nullptr, 0};
    make_slot_batch(arena, f, points);
    return arena.used;
}

static void scatter_slot(const Field& f, const Slot& slot, int plane, int row, int end_row, int column, int end_column, float* grid,
                         float* scratch) {
    Arena arena = {scratch, 0};
    Batch b = make_slot_batch(arena, f, slot.points);
    for (int a = 0; a < 3; a++) b.position[a] = slot.position[a];
    find_corners(f, b, 0, slot.points, plane, plane + 1, row, end_row);
    scatter(grid, b, slot.points, slot.gradient, f.channels, column, end_column);
}

// Gradient by the position of one point, given that by its features.
OMNI_INLINE void position_gradient(const Field& f, const float* grid, const Batch& b, int point, const float* gradient,
                                   float out[3]) {
    vf total[3] = {splat(0), splat(0), splat(0)};
    for (int column = 0; column < f.channels; column += W) {
        vf sums[3] = {splat(0), splat(0), splat(0)};
        for (int k = 0; k < b.corners; k++) {
            int64_t at = int64_t(k) * b.capacity + point;
            vf cell = load(grid + b.offset[at] + column);
            for (int a = 0; a < 3; a++) sums[a] += cell * b.slope[a][at];
        }
        vf g = load(gradient + int64_t(point) * f.channels + column);
        for (int a = 0; a < 3; a++) total[a] += g * sums[a];
    }
    for (int a = 0; a < 3; a++) out[a] = sum(total[a]);
}

}}  // namespace omni::OMNI_ISA
