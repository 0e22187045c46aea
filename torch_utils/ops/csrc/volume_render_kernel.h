// The whole volume rendering of blocks of rays, forward. Included once per instruction set.
//
// The definition is training/volumetric_rendering/renderer.py; NeRF (2003.08934) equation 3 on interval mid-points.
// Colours without activation are linear in the hidden layer, so a ray composites hidden units and the second layer runs
// once a ray. Samples in the cropped region are not evaluated: the intervals beside them have no weight, unless the
// density on the other side is near 1000; a block with such a ray is done again with all its samples.
#pragma once

#include "plane_field.h"

namespace omni { namespace OMNI_ISA {

constexpr int TARGET_POINTS = 96;    // points a block evaluates at a time, so that its arrays stay in the fast caches

// One ray's samples in order of depth, `num` of them; arrays have room for a vector behind the last.
struct Ray {
    int num;
    float *depth, *density;
    int32_t* row;                    // row of the sample in the batch, -1 for a sample that was not evaluated
    float *alpha, *passed, *weight;  // of the num - 1 intervals: opacity, transmittance before it, their product
    float* slope;                    // derivative of alpha by the mean density, or null
    float* share;                    // [num] part of the sample in the composite: half the weights on its two sides
};

static Ray make_ray(Arena& arena, int num, bool gradients) {
    int64_t room = num + 2 * W;
    Ray r;
    r.num = num;
    r.depth = arena.floats(room);
    r.density = arena.floats(room);
    r.row = arena.ints(room);
    r.alpha = arena.floats(room);
    r.passed = arena.floats(room);
    r.weight = arena.floats(room);
    r.slope = gradients ? arena.floats(room) : nullptr;
    r.share = arena.floats(room);
    return r;
}

static void interval_weights(const Ray& r) {
    for (int i = 0; i < r.num - 1; i += W) {
        vf delta = load(r.depth + i + 1) - load(r.depth + i), slope;
        vf sigma = softplus((load(r.density + i + 1) + load(r.density + i)) * 0.5f - 1.0f, slope);
        vf passed = exp(-sigma * delta);
        store(r.alpha + i, 1.0f - passed);
        if (r.slope) store(r.slope + i, delta * passed * slope);
    }
    float passed = 1;
    for (int i = 0; i < r.num - 1; i++) {
        r.passed[i] = passed;
        r.weight[i] = r.alpha[i] * passed;
        passed *= 1 - r.alpha[i] + 1e-10f;
    }
}

// Depths [num] where the intervals of a coarse ray have weight; room: 3 * (r.num + 2) floats.
static void importance_depths(const Ray& r, const float* noise, int num, float* depths, float* room) {
    const int intervals = r.num - 1, last = intervals - 2;               // the outermost intervals are left out
    float *largest = room, *cdf = largest + r.num + 2;
    for (int i = 0; i <= intervals; i++) {
        float before = r.weight[i ? i - 1 : 0], after = r.weight[i < intervals ? i : intervals - 1];
        largest[i] = before > after ? before : after;
    }
    float total = 0;
    for (int i = 0; i < last; i++) total += (largest[i + 1] + largest[i + 2]) * 0.5f + 0.01f + 1e-5f;
    cdf[0] = 0;
    for (int i = 0; i < last; i++) cdf[i + 1] = cdf[i] + ((largest[i + 1] + largest[i + 2]) * 0.5f + 0.01f + 1e-5f) / total;
    int above = 0;
    for (int i = 0; i < num; i++) {
        float u = noise[i];
        if (i && u < noise[i - 1]) above = 0;
        while (above <= last && cdf[above] <= u) above++;
        int low = above > 0 ? above - 1 : 0, high = above < last ? above : last;
        float edge0 = (r.depth[low] + r.depth[low + 1]) * 0.5f, edge1 = (r.depth[high] + r.depth[high + 1]) * 0.5f;
        float width = cdf[high] - cdf[low];
        depths[i] = edge0 + (u - cdf[low]) / (width < 1e-5f ? 1 : width) * (edge1 - edge0);
    }
}

// Sort the samples of a ray by depth; quick where most of them are in order.
static void sort_samples(const Ray& r) {
    for (int i = 1; i < r.num; i++) {
        float depth = r.depth[i], density = r.density[i];
        int32_t row = r.row[i];
        int j = i;
        for (; j > 0 && r.depth[j - 1] > depth; j--) {
            r.depth[j] = r.depth[j - 1];
            r.density[j] = r.density[j - 1];
            r.row[j] = r.row[j - 1];
        }
        r.depth[j] = depth;
        r.density[j] = density;
        r.row[j] = row;
    }
}

static void sample_shares(const Ray& r) {
    r.share[0] = r.weight[0] * 0.5f;
    for (int i = 1; i < r.num - 1; i++) r.share[i] = (r.weight[i - 1] + r.weight[i]) * 0.5f;
    r.share[r.num - 1] = r.weight[r.num - 2] * 0.5f;
}

// x, rounded to float here: keeps a product and a sum from becoming one operation, which rounds another way.
OMNI_INLINE float rounded(float x) {
#if defined(__x86_64__)
    __asm__("" : "+x"(x));
#elif defined(__aarch64__)
    __asm__("" : "+w"(x));
#endif
    return x;
}

// Point `row` of the batch is `ray` at `depth`; false where that is in the cropped region.
OMNI_INLINE bool place_point(const Field& f, const Rays& rays, const Batch& b, int64_t ray, float depth, int row) {
    for (int a = 0; a < 3; a++) b.position[a][row] = rays.origins[ray * 3 + a] + rounded(depth * rays.directions[ray * 3 + a]);
    float x = b.position[0][row], z = b.position[2][row];
    return __builtin_fabsf(x) <= f.crop_limit && __builtin_fabsf(z) <= f.crop_limit;
}

// Everything a block of rays needs.
struct ForwardBlock {
    int rays;                        // how many at a time
    Batch batch;
    Ray coarse, sorted;
    float *depths, *densities;       // [rays, coarse + fine] as sampled
    int32_t* rows;
    float *room, *composite, *colours;
};

static ForwardBlock make_forward_block(Arena& arena, const Field& f, const Rays& r) {
    ForwardBlock block;
    const int most = r.coarse > r.fine ? r.coarse : r.fine, samples = r.coarse + r.fine;
    block.rays = most >= TARGET_POINTS ? 1 : TARGET_POINTS / most;
    block.batch = make_batch(arena, f, block.rays * samples, false, false);
    block.coarse = make_ray(arena, r.coarse, false);
    block.sorted = make_ray(arena, samples, false);
    block.depths = arena.floats(block.rays * samples + W);
    block.densities = arena.floats(block.rays * samples + W);
    block.rows = arena.ints(block.rays * samples + W);
    block.room = arena.floats(3 * (r.coarse + 2));
    block.composite = arena.floats(int64_t(block.rays) * (f.hidden > f.colours ? f.hidden : f.colours));
    block.colours = arena.floats(int64_t(block.rays) * f.colours);
    return block;
}

// Evaluate samples [begin, end) of each of `count` rays; `used` rows of the batch are taken, returns how many are then.
static int evaluate_pass(const Field& f, const Rays& rays, const float* grid, const ForwardBlock& block, int64_t first, int count,
                         int begin, int end, const float* noise, bool all, int used) {
    const int samples = rays.coarse + rays.fine, start = used;
    for (int i = 0; i < count; i++)
        for (int s = begin; s < end; s++) {
            int64_t at = int64_t(i) * samples + s;
            bool inside = place_point(f, rays, block.batch, first + i, block.depths[at], used);
            block.densities[at] = inside ? 0 : EMPTY_DENSITY;
            block.rows[at] = inside || all ? used++ : -1;
        }
    evaluate(f, grid, block.batch, start, used);
    for (int i = 0; i < count; i++)
        for (int s = begin; s < end; s++) {
            int64_t at = int64_t(i) * samples + s;
            if (block.densities[at] == EMPTY_DENSITY) continue;
            float extra = noise ? noise[(first + i) * (end - begin) + s - begin] : 0;
            block.densities[at] = block.batch.density[block.rows[at]] + extra;
        }
    return used;
}

template <int Q>
OMNI_INLINE void composite_columns(const Ray& r, const float* values, int width, float* out) {
    vf sums[Q];
    for (int q = 0; q < Q; q++) sums[q] = splat(0);
    for (int s = 0; s < r.num; s++) {
        if (r.share[s] == 0) continue;
        const float* value = values + int64_t(r.row[s]) * width;
        for (int q = 0; q < Q; q++) sums[q] += load(value + q * W) * r.share[s];
    }
    for (int q = 0; q < Q; q++) store(out + q * W, sums[q]);
}

// Sum of the samples' hidden units (or colours) by their shares; false if one that counts was not evaluated.
static bool composite(const Ray& r, const float* values, int width, float* out) {
    for (int s = 0; s < r.num; s++)
        if (r.share[s] != 0 && r.row[s] < 0) return false;
    int k = 0;
    for (; k + 4 * W <= width; k += 4 * W) composite_columns<4>(r, values + k, width, out + k);
    for (; k < width; k += W) composite_columns<1>(r, values + k, width, out + k);
    return true;
}

static void copy(float* to, const float* from, int num) {
    for (int i = 0; i < num; i++) to[i] = from[i];
}

// March ray `i` of the block, whose samples are complete; false if it needs samples that were not evaluated.
static bool march(const Field& f, const Rays& rays, const Outputs& out, const ForwardBlock& block, int64_t ray, int i) {
    const int samples = rays.coarse + rays.fine;
    const Ray& r = block.sorted;
    copy(r.depth, block.depths + int64_t(i) * samples, samples);
    copy(r.density, block.densities + int64_t(i) * samples, samples);
    for (int s = 0; s < samples; s++) r.row[s] = block.rows[int64_t(i) * samples + s];
    sort_samples(r);
    interval_weights(r);
    sample_shares(r);
    const int width = block.batch.colour ? f.colours : f.hidden;
    float* sums = block.composite + int64_t(i) * width;
    if (!composite(r, block.batch.colour ? block.batch.colour : block.batch.hidden, width, sums)) return false;
    float total = 0, depth = 0;
    for (int s = 0; s < samples - 1; s++) {
        total += r.weight[s];
        depth += r.weight[s] * ((r.depth[s] + r.depth[s + 1]) * 0.5f);
    }
    out.opacity[ray] = total;
    out.depth[ray] = depth / total;
    copy(out.sorted_depths + ray * samples, r.depth, samples);
    copy(out.sorted_density + ray * samples, r.density, samples);
    return true;
}

static bool forward_block(const Field& f, const Rays& rays, const Outputs& out, const ForwardBlock& block, const float* grid,
                          int64_t first, int count, bool all) {
    const int samples = rays.coarse + rays.fine;
    for (int i = 0; i < count; i++)
        copy(block.depths + int64_t(i) * samples, rays.depths + (first + i) * rays.coarse, rays.coarse);
    int used = evaluate_pass(f, rays, grid, block, first, count, 0, rays.coarse, rays.coarse_density_noise, all, 0);
    if (rays.fine) {
        for (int i = 0; i < count; i++) {
            float* depths = block.depths + int64_t(i) * samples;
            copy(block.coarse.depth, depths, rays.coarse);
            copy(block.coarse.density, block.densities + int64_t(i) * samples, rays.coarse);
            interval_weights(block.coarse);
            const float* noise = rays.fine_noise + (first + i) * rays.fine;
            importance_depths(block.coarse, noise, rays.fine, depths + rays.coarse, block.room);
        }
        evaluate_pass(f, rays, grid, block, first, count, rays.coarse, samples, rays.fine_density_noise, all, used);
    }
    for (int i = 0; i < count; i++)
        if (!march(f, rays, out, block, first + i, i)) return false;
    const float* colours = block.composite;
    if (!block.batch.colour) {
        matmul<false>(count, f.colours, f.hidden, block.composite, f.hidden, 1, f.w2, f.colours, block.colours, f.colours);
        colours = block.colours;
    }
    for (int i = 0; i < count; i++) {
        float total = out.opacity[first + i], white = rays.white_back ? 1 - total : 0;
        float bias = block.batch.colour ? 0 : total;                     // the second layer's bias came with every sample
        for (int k = 0; k < f.colours_used; k++)
            out.features[(first + i) * f.colours_used + k] = colours[int64_t(i) * f.colours + k] + bias * f.b2[k] + white;
    }
    return true;
}

static const float* grid_of(const Field& f, int64_t number) {
    return f.grid + (number - f.first_grid) * f.grid_step;
}

static int64_t forward_scratch(const Field& f, const Rays& rays) {
    Arena arena = {nullptr, 0};
    make_forward_block(arena, f, rays);
    return arena.used;
}

static void forward(const Field& f, const Rays& rays, const Outputs& out, int64_t first, int64_t end, float* scratch) {
    Arena arena = {scratch, 0};
    ForwardBlock block = make_forward_block(arena, f, rays);
    while (first < end) {
        int64_t image = first / rays.per_grid, left = (image + 1) * rays.per_grid;
        left = (left < end ? left : end) - first;
        int count = int(left < block.rays ? left : block.rays);
        const float* grid = grid_of(f, image);
        if (!forward_block(f, rays, out, block, grid, first, count, false))
            forward_block(f, rays, out, block, grid, first, count, true);
        first += count;
    }
}

static int64_t query_scratch(const Field& f) {
    Arena arena = {nullptr, 0};
    make_batch(arena, f, TARGET_POINTS, false, false);
    arena.floats(int64_t(TARGET_POINTS) * f.colours);
    return arena.used;
}

static void query(const Field& f, const float* points, int64_t per_grid, float* density, float* features, int64_t first,
                  int64_t end, float* scratch) {
    Arena arena = {scratch, 0};
    Batch b = make_batch(arena, f, TARGET_POINTS, false, false);
    if (!b.colour) b.colour = arena.floats(int64_t(TARGET_POINTS) * f.colours);
    if (!features) b.colour = nullptr;
    while (first < end) {
        int64_t image = first / per_grid, left = (image + 1) * per_grid;
        left = (left < end ? left : end) - first;
        int count = int(left < TARGET_POINTS ? left : TARGET_POINTS);
        for (int i = 0; i < count; i++)
            for (int a = 0; a < 3; a++) b.position[a][i] = points[(first + i) * 3 + a];
        evaluate(f, grid_of(f, image), b, 0, count);
        copy(density + first, b.density, count);
        for (int i = 0; features && i < count; i++)
            copy(features + (first + i) * f.colours_used, b.colour + int64_t(i) * f.colours, f.colours_used);
        first += count;
    }
}

}}  // namespace omni::OMNI_ISA
