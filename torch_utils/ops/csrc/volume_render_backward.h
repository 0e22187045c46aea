// Gradients of the volume rendering of blocks of rays. Included once per instruction set.
//
// The forward pass left the sorted depths and densities; everything else is computed again, all samples of a block at
// once. Depths are constants: no gradient passes through the choice of samples.
#pragma once

#include "volume_render_kernel.h"

namespace omni { namespace OMNI_ISA {

struct BackwardBlock {
    int rays;
    Batch batch;
    Ray* ray;                        // [rays], on the caller's stack
    int32_t* ray_of;                 // [capacity] ray and sample of every row
    float *share, *density_grad;     // [capacity] of every row
    float *colour_dot;               // [coarse + fine] colour of a sample times the gradient of the ray's colour
    float *features_grad;            // [rays, O] gradient of the rays' colours
    float *hidden_grad;              // [rays, H] that gradient by the hidden units, where colours have no activation
    float *composite;                // [rays, H] composited hidden units
    float *rows_grad;                // [capacity, H] gradient of the hidden units, where colours have an activation
    float *point_grad;               // [capacity, C] gradient of the looked-up features
};

constexpr int MAX_BLOCK_RAYS = 16;

// Derivatives of a weight by the density of a sample that are nothing: beside others float32 does not see them, and where there
// are no others the sum of a million of them is far below the epsilon of Adam (1e-8), which would be all that moves.
constexpr float NO_SLOPE = 1e-16f;

static BackwardBlock make_backward_block(Arena& arena, const Field& f, const Rays& r, bool positions, Ray* ray) {
    BackwardBlock block;
    const int samples = r.coarse + r.fine;
    block.rays = samples >= TARGET_POINTS ? 1 : TARGET_POINTS / samples;
    if (block.rays > MAX_BLOCK_RAYS) block.rays = MAX_BLOCK_RAYS;
    block.batch = make_batch(arena, f, block.rays * samples, positions, true);
    block.ray = ray;
    for (int i = 0; i < block.rays; i++) ray[i] = make_ray(arena, samples, true);
    const int64_t rows = block.batch.capacity;
    block.ray_of = arena.ints(rows);
    block.share = arena.floats(rows);
    block.density_grad = arena.floats(rows);
    block.colour_dot = arena.floats(samples);
    block.features_grad = arena.floats(int64_t(block.rays) * f.colours);
    block.hidden_grad = arena.floats(int64_t(block.rays) * f.hidden);
    block.composite = arena.floats(int64_t(block.rays) * f.hidden);
    block.rows_grad = f.activation != ACTIVATION_NONE ? arena.floats(rows * f.hidden) : nullptr;
    block.point_grad = arena.floats(rows * f.channels);
    return block;
}

static int block_rays(const Field& f, const Rays& r) {
    Arena arena = {nullptr, 0};
    Ray ray[MAX_BLOCK_RAYS];
    return make_backward_block(arena, f, r, false, ray).rays;
}

static int slot_points(const Field& f, const Rays& r) {
    Arena arena = {nullptr, 0};
    Ray ray[MAX_BLOCK_RAYS];
    return make_backward_block(arena, f, r, false, ray).batch.capacity;
}

// Whether the density of a sample changes the weights of the intervals beside it. Deep in empty space it does not.
static bool has_slope(const Ray& r, int s) {
    const float before = s > 0 ? r.passed[s - 1] * r.slope[s - 1] : 0, behind = s < r.num - 1 ? r.passed[s] * r.slope[s] : 0;
    return !(before < NO_SLOPE && behind < NO_SLOPE);
}

// Weights of the rays of the block, and a row of the batch for every sample that can have a gradient. Returns the rows.
static int prepare_rays(const Field& f, const Rays& rays, const SavedSamples& saved, const BackwardBlock& block, int64_t first,
                        int count) {
    const int samples = rays.coarse + rays.fine;
    int used = 0;
    for (int i = 0; i < count; i++) {
        const Ray& r = block.ray[i];
        copy(r.depth, saved.sorted_depths + (first + i) * samples, samples);
        copy(r.density, saved.sorted_density + (first + i) * samples, samples);
        interval_weights(r);
        sample_shares(r);
        for (int s = 0; s < samples; s++) {
            bool inside = place_point(f, rays, block.batch, first + i, r.depth[s], used);
            r.row[s] = -1;
            if (r.share[s] == 0 && !(inside && has_slope(r, s))) continue;
            block.ray_of[used] = i;
            block.share[used] = r.share[s];
            r.row[s] = used++;
        }
        float* grad = block.features_grad + int64_t(i) * f.colours;
        copy(grad, saved.features_grad + (first + i) * f.colours_used, f.colours_used);
    }
    return used;
}

OMNI_INLINE float dot(const float* a, const float* b, int num) {
    vf total = splat(0);
    for (int k = 0; k < num; k += W) total += load(a + k) * load(b + k);
    return sum(total);
}

// Gradient by the densities of one ray's samples, into density_grad of their rows.
static void density_gradient(const Field& f, const Rays& rays, const SavedSamples& saved, const BackwardBlock& block, int64_t ray,
                             int i) {
    const Ray& r = block.ray[i];
    const float* features_grad = block.features_grad + int64_t(i) * f.colours;
    const float* hidden_grad = block.hidden_grad + int64_t(i) * f.hidden;
    const float bias_dot = dot(features_grad, f.b2, f.colours);
    float total = 0, depth = 0, constant = saved.opacity_grad[ray];
    for (int s = 0; s < r.num; s++) {
        const int64_t row = r.row[s];
        if (row < 0) block.colour_dot[s] = 0;
        else if (block.batch.colour) block.colour_dot[s] = dot(block.batch.colour + row * f.colours, features_grad, f.colours);
        else block.colour_dot[s] = dot(block.batch.hidden + row * f.hidden, hidden_grad, f.hidden) + bias_dot;
        if (row >= 0) block.density_grad[row] = 0;
        if (s == r.num - 1) continue;
        total += r.weight[s];
        depth += r.weight[s] * ((r.depth[s] + r.depth[s + 1]) * 0.5f);
    }
    if (rays.white_back)
        for (int k = 0; k < f.colours_used; k++) constant -= features_grad[k];
    // A ray without weight has a depth that depends on nothing.
    const float by_depth = total > 0 ? saved.depth_grad[ray] / total : 0, mean_depth = total > 0 ? depth / total : 0;
    float behind = 0;                // sum over the intervals behind this one, as seen from its far end
    for (int s = r.num - 2; s >= 0; s--) {
        float weight_grad = (block.colour_dot[s] + block.colour_dot[s + 1]) * 0.5f + constant;
        weight_grad += by_depth * ((r.depth[s] + r.depth[s + 1]) * 0.5f - mean_depth);
        float mean_grad = r.passed[s] * (weight_grad - behind) * r.slope[s];
        behind = weight_grad * r.alpha[s] + (1 - r.alpha[s] + 1e-10f) * behind;
        for (int side = 0; side < 2; side++)
            if (r.row[s + side] >= 0 && r.density[s + side] != EMPTY_DENSITY)
                block.density_grad[r.row[s + side]] += 0.5f * mean_grad;
    }
}

// Second layer, colours with an activation: from the gradient of the colours to that of the hidden units of every row.
static void colour_gradient(const Field& f, const BackwardBlock& block, const Gradients& out, int rows) {
    const Batch& b = block.batch;
    for (int64_t i = 0; i < rows; i++) {
        const float* grad = block.features_grad + int64_t(block.ray_of[i]) * f.colours;
        for (int k = 0; k < f.colours; k += W) {
            float* colour = b.colour + i * f.colours + k;
            vf g = load(grad + k) * block.share[i] * activation_slope(load(colour), f.activation);
            store(colour, g);
            store(out.b2 + k, load(out.b2 + k) + g);
        }
    }
    if (out.decoder) matmul<true>(f.hidden, f.colours, rows, b.hidden, 1, f.hidden, b.colour, f.colours, out.w2, f.colours);
    matmul<false>(rows, f.hidden, f.colours, b.colour, f.colours, 1, f.w2t, f.hidden, block.rows_grad, f.hidden);
}

// The same for colours without activation, where a ray has one gradient and its samples their shares of it.
static void composite_gradient(const Field& f, const BackwardBlock& block, const Gradients& out, int count) {
    for (int i = 0; i < count; i++) {
        const Ray& r = block.ray[i];
        composite(r, block.batch.hidden, f.hidden, block.composite + int64_t(i) * f.hidden);
        float total = 0;
        for (int s = 0; s < r.num; s++) total += r.share[s];
        const float* grad = block.features_grad + int64_t(i) * f.colours;
        for (int k = 0; k < f.colours; k += W) store(out.b2 + k, load(out.b2 + k) + load(grad + k) * total);
    }
    matmul<true>(f.hidden, f.colours, count, block.composite, 1, f.hidden, block.features_grad, f.colours, out.w2, f.colours);
}

// Hidden layer: its gradient before the softplus replaces the derivative in `sigmoid`.
static void hidden_gradient(const Field& f, const BackwardBlock& block, const Gradients& out, int rows) {
    const int hidden = f.hidden;
    const float *values = block.batch.hidden, *density_grad = block.density_grad, *share = block.share;
    for (int k = 0; k < hidden; k += W) {
        const vf by_density = load(f.density_row + k);
        vf bias = load(out.b1 + k), density_row = load(out.density_row + k);
        for (int64_t i = 0; i < rows; i++) {
            vf by_colour = block.rows_grad ? load(block.rows_grad + i * hidden + k)
                                           : load(block.hidden_grad + int64_t(block.ray_of[i]) * hidden + k) * share[i];
            float* slope = block.batch.sigmoid + i * hidden + k;
            vf g = (by_colour + by_density * density_grad[i]) * load(slope);
            store(slope, g);
            bias += g;
            density_row += load(values + i * hidden + k) * density_grad[i];
        }
        store(out.b1 + k, bias);
        store(out.density_row + k, density_row);
    }
    for (int i = 0; i < rows; i++) *out.density_bias += density_grad[i];
}

static void ray_gradient(const Field& f, const float* grid, const BackwardBlock& block, const Gradients& out, int64_t ray,
                         int i) {
    const Ray& r = block.ray[i];
    float origin[3] = {0, 0, 0}, direction[3] = {0, 0, 0}, grad[3];
    for (int s = 0; s < r.num; s++) {
        if (r.row[s] < 0) continue;
        position_gradient(f, grid, block.batch, r.row[s], block.point_grad, grad);
        for (int a = 0; a < 3; a++) {
            origin[a] += grad[a];
            direction[a] += grad[a] * r.depth[s];
        }
    }
    copy(out.origins + ray * 3, origin, 3);
    copy(out.directions + ray * 3, direction, 3);
}

// Returns the number of points of the block.
static int backward_block(const Field& f, const Rays& rays, const SavedSamples& saved, const Gradients& out, const float* grid,
                           const BackwardBlock& block, int64_t first, int count) {
    const Batch& b = block.batch;
    const int rows = prepare_rays(f, rays, saved, block, first, count);
    evaluate(f, grid, b, 0, rows);
    matmul<false>(count, f.hidden, f.colours, block.features_grad, f.colours, 1, f.w2t, f.hidden, block.hidden_grad, f.hidden);
    for (int i = 0; i < count; i++) density_gradient(f, rays, saved, block, first + i, i);
    if (b.colour) colour_gradient(f, block, out, rows);
    else if (out.decoder) composite_gradient(f, block, out, count);
    hidden_gradient(f, block, out, rows);
    if (out.decoder) matmul<true>(f.channels, f.hidden, rows, b.features, 1, f.channels, b.sigmoid, f.hidden, out.w1, f.hidden);
    matmul<false>(rows, f.channels, f.hidden, b.sigmoid, f.hidden, 1, f.w1t, f.channels, block.point_grad, f.channels);
    if (out.grid) scatter(out.grid, b, rows, block.point_grad, f.channels, 0, f.channels);
    if (out.origins)
        for (int i = 0; i < count; i++) ray_gradient(f, grid, block, out, first + i, i);
    return rows;
}

static int64_t backward_scratch(const Field& f, const Rays& rays) {
    Arena arena = {nullptr, 0};
    Ray ray[MAX_BLOCK_RAYS];
    make_backward_block(arena, f, rays, true, ray);
    return arena.used;
}

static void backward(const Field& f, const Rays& rays, const SavedSamples& saved, const Gradients& out, int64_t first,
                     int64_t end, float* scratch) {
    Arena arena = {scratch, 0};
    Ray ray[MAX_BLOCK_RAYS];
    BackwardBlock block = make_backward_block(arena, f, rays, out.origins != nullptr, ray);
    const float* grid = grid_of(f, first / rays.per_grid);
    for (Slot* slot = out.slots; first < end; first += block.rays) {
        int count = int(end - first < block.rays ? end - first : block.rays);
        if (out.grid) {
            backward_block(f, rays, saved, out, grid, block, first, count);
            continue;
        }
        for (int a = 0; a < 3; a++) block.batch.position[a] = slot->position[a];
        block.point_grad = slot->gradient;
        slot++->points = backward_block(f, rays, saved, out, grid, block, first, count);
    }
}

}}  // namespace omni::OMNI_ISA
