// The volume renderer on a GPU: what its kernels are given, where things lie in shared memory, lookup in the planes.
//
// One warp takes one ray. Sizes are macros, so that loops unroll; a kernel is compiled for every set of them that is used:
// OMNI_CHANNELS, OMNI_HIDDEN, OMNI_COLOURS, OMNI_ACTIVATION, OMNI_GRID (number type of the packed planes), OMNI_LAYERS (2
// where the depth axis is interpolated, else 1) and OMNI_WARPS (rays a block works on at a time).
#pragma once

#include "gpu.h"

namespace omni {

OMNI_DEVICE constexpr int up_to(int x, int step) { return (x + step - 1) / step * step; }

constexpr int C = up_to(OMNI_CHANNELS, 8), H = up_to(OMNI_HIDDEN, 16), O = up_to(OMNI_COLOURS, 8);   // padded with zeros
constexpr int CT = C / 8, HT = H / 8, OT = O / 8;          // tiles of eight columns
constexpr int ROW = C + 4;                                 // floats from one row of features to the next: no bank conflicts
constexpr int WARPS = OMNI_WARPS, THREADS = WARPS * LANES;
constexpr int LAYERS = OMNI_LAYERS;
constexpr int GROUP = C >= 24 ? 8 : C / 4;                 // lanes that look up one sample, four channels each at a time
constexpr int STEPS = (C + 4 * GROUP - 1) / (4 * GROUP);   // times they do so
constexpr bool LINEAR = OMNI_ACTIVATION == 0;
constexpr float EMPTY_DENSITY = -1000.0f;

#define OMNI_MATH OMNI_DEVICE
#include "math.h"

// Letters: N identities, R rays of all of them, S samples of a ray. Arrays are contiguous float32.
struct RenderParams {
    const void* grid;                                                     // [N or 1, 3, layers, height, width, C]
    const float *w1, *b1, *w2, *b2;                                       // [hidden, channels], [hidden], [1 + colours, hidden], ...
    const float *origins, *directions, *depths;                           // [R, 3], [R, 3], [R, coarse]; origins: points of a query
    const float *fine_noise, *coarse_density_noise, *fine_density_noise;  // [R, fine] or null, ...
    float *features, *depth, *opacity;                                    // [R, colours], [R], [R]; depth: density of a query
    float *sorted_depths, *sorted_density;                                // [R, S] written by the forward, read by the backward pass
    const float *features_grad, *depth_grad, *opacity_grad;
    float *grid_grad, *partial;                                           // as grid in float32; [blocks, Partial::SIZE]
    float *origins_grad, *directions_grad;                                // or both null
    i64 num_rays, rays_per_grid;
    int coarse, fine, layers, height, width, trilinear, white_back;
    int axes[9];                                                          // world axes along width, height, depth of each plane
    float scale, crop_limit;
};

// Hands out shared memory in pieces of 16 bytes.
struct Arena {
    float* next;
    OMNI_DEVICE float* floats(Arena& a, int num) {
        float* piece = a.next;
        a.next += up_to(num, 4);
        return piece;
    }
};

// The decoder in shared memory. Weights lie as the second factor of mma() is held: for each step of eight along the inner
// dimension and each tile of eight columns, a pair of numbers for every lane.
struct Decoder {
    float2 *first;                   // [CT, HT, 32] features -> hidden
    float2 *second;                  // [HT, OT, 32] hidden -> colours, where samples have colours of their own
    float *bias1, *density_row, *bias2;
    float density_bias;
};

// Inner index of lane pair (t, t + 4) where the first factor is a result of mma(), which holds columns 2t and 2t + 1.
OMNI_DEVICE int natural(int step, int t, int half) { return step * 8 + t + 4 * half; }
OMNI_DEVICE int paired(int step, int t, int half) { return step * 8 + 2 * t + half; }

// Fill fragments [steps, tiles, 32] of a matrix whose element (inner, column) is at(inner, column).
template <typename At, typename Inner>
OMNI_DEVICE void load_fragments(float2* to, int steps, int tiles, Inner inner, At at) {
    for (int i = threadIdx.x; i < steps * tiles * LANES; i += THREADS) {
        const int l = i % LANES, tile = i / LANES % tiles, step = i / LANES / tiles, column = tile * 8 + l / 4;
        to[i] = {at(inner(step, l % 4, 0), column), at(inner(step, l % 4, 1), column)};
    }
}

OMNI_DEVICE float weight1(const RenderParams& p, int hidden, int channel) {
    return hidden < OMNI_HIDDEN && channel < OMNI_CHANNELS ? p.w1[hidden * OMNI_CHANNELS + channel] : 0.0f;
}
OMNI_DEVICE float weight2(const RenderParams& p, int colour, int hidden) {
    return hidden < OMNI_HIDDEN && colour < OMNI_COLOURS ? p.w2[(1 + colour) * OMNI_HIDDEN + hidden] : 0.0f;
}

// All threads of the block; __syncthreads before use.
OMNI_DEVICE Decoder load_decoder(Arena& arena, const RenderParams& p, bool colours) {
    Decoder d;
    d.first = reinterpret_cast<float2*>(Arena::floats(arena, CT * HT * LANES * 2));
    d.second = nullptr;
    d.bias1 = Arena::floats(arena, H);
    d.density_row = Arena::floats(arena, H);
    d.bias2 = Arena::floats(arena, O);
    d.density_bias = p.b2[0];
    load_fragments(d.first, CT, HT, natural, [&](int k, int n) { return weight1(p, n, k); });
    if (colours) {
        d.second = reinterpret_cast<float2*>(Arena::floats(arena, HT * OT * LANES * 2));
        load_fragments(d.second, HT, OT, paired, [&](int k, int n) { return weight2(p, n, k); });
    }
    for (int i = threadIdx.x; i < H; i += THREADS) {
        d.bias1[i] = i < OMNI_HIDDEN ? p.b1[i] : 0.0f;
        d.density_row[i] = i < OMNI_HIDDEN ? p.w2[i] : 0.0f;
    }
    for (int i = threadIdx.x; i < O; i += THREADS) d.bias2[i] = i < OMNI_COLOURS ? p.b2[1 + i] : 0.0f;
    return d;
}

// Along one axis: cells below and above a point, their weights (0 outside the grid) and the weights' derivatives.
struct AxisCells {
    int cell[2];
    float weight[2], slope[2];
};

OMNI_DEVICE AxisCells axis_cells(float coordinate, int size) {
    AxisCells a;
    float at = ((coordinate + 1.0f) * float(size) - 1.0f) * 0.5f;         // cell centres are the integers
    at = fminf(fmaxf(at, -2.0f), float(size) + 1.0f);                     // held to what an int can hold
    const float below = floorf(at), part = at - below;
    for (int k = 0; k < 2; k++) {
        const int cell = int(below) + k;
        const bool inside = cell >= 0 && cell < size;
        a.cell[k] = inside ? cell : 0;
        a.weight[k] = inside ? (k ? part : 1.0f - part) : 0.0f;
        a.slope[k] = inside ? (k ? 1.0f : -1.0f) : 0.0f;
    }
    return a;
}

// Depth axis of a plane of one layer: its weight fades with |t| / 2, or is 1 where the lookup is bilinear.
OMNI_DEVICE AxisCells single_layer(float coordinate, bool trilinear) {
    const float at = coordinate * 0.5f, weight = 1.0f - fabsf(at);
    const bool inside = weight > 0.0f;
    AxisCells a;
    a.cell[0] = a.cell[1] = 0;
    a.weight[0] = trilinear ? (inside ? weight : 0.0f) : 1.0f;
    a.slope[0] = trilinear && inside ? (at >= 0.0f ? -1.0f : 1.0f) : 0.0f;
    a.weight[1] = a.slope[1] = 0.0f;
    return a;
}

OMNI_DEVICE float along(const float3& x, int axis) { return axis == 0 ? x.x : axis == 1 ? x.y : x.z; }

struct PlaneCells {
    AxisCells x, y, z;
};

OMNI_DEVICE PlaneCells plane_cells(const RenderParams& p, const float3& point, int plane) {
    const int* axes = p.axes + plane * 3;
    const float u = along(point, axes[0]) * p.scale, v = along(point, axes[1]) * p.scale, w = along(point, axes[2]) * p.scale;
    PlaneCells c;
    c.x = axis_cells(u, p.width), c.y = axis_cells(v, p.height);
    c.z = LAYERS == 2 ? axis_cells(w, p.layers) : single_layer(w, p.trilinear);
    return c;
}

// First channel of a cell, in numbers from the start of one identity's planes.
OMNI_DEVICE int cell_offset(const RenderParams& p, const PlaneCells& c, int plane, int k, int j, int l) {
    return (((plane * p.layers + c.z.cell[k]) * p.height + c.y.cell[j]) * p.width + c.x.cell[l]) * C;
}

OMNI_DEVICE i64 identity_numbers(const RenderParams& p) { return i64(3) * p.layers * p.height * p.width * C; }

typedef typename Number<OMNI_GRID>::stored Stored;

OMNI_DEVICE const Stored* grid_of(const RenderParams& p, i64 ray) {
    return static_cast<const Stored*>(p.grid) + ray / p.rays_per_grid * identity_numbers(p);
}

OMNI_DEVICE float4 load_four(const Stored* from) {
    if constexpr (OMNI_GRID == 0) {
        return __ldg(reinterpret_cast<const float4*>(from));
    } else {
        const uint2 two = __ldg(reinterpret_cast<const uint2*>(from));
        return {widen<OMNI_GRID>(u16(two.x)), widen<OMNI_GRID>(u16(two.x >> 16)), widen<OMNI_GRID>(u16(two.y)),
                widen<OMNI_GRID>(u16(two.y >> 16))};
    }
}

// Mean of the three planes at a point: this lane's channels, four at each of STEPS, into `row`.
OMNI_DEVICE void look_up(const RenderParams& p, const Stored* grid, const float3& point, float* row) {
    const int first = lane() % GROUP * 4;
    float4 sum[STEPS];
#pragma unroll
    for (int q = 0; q < STEPS; q++) sum[q] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 1
    for (int plane = 0; plane < 3; plane++) {
        const PlaneCells c = plane_cells(p, point, plane);
#pragma unroll
        for (int corner = 0; corner < 4 * LAYERS; corner++) {
            const int k = corner / 4, j = corner / 2 % 2, l = corner % 2;
            const float weight = c.z.weight[k] * c.y.weight[j] * (1.0f / 3) * c.x.weight[l];
            const Stored* cell = grid + cell_offset(p, c, plane, k, j, l) + first;
#pragma unroll
            for (int q = 0; q < STEPS; q++) {
                if (q * 4 * GROUP + first >= C) continue;
                const float4 v = load_four(cell + q * 4 * GROUP);
                sum[q].x += weight * v.x, sum[q].y += weight * v.y, sum[q].z += weight * v.z, sum[q].w += weight * v.w;
            }
        }
    }
#pragma unroll
    for (int q = 0; q < STEPS; q++)
        if (q * 4 * GROUP + first < C) *reinterpret_cast<float4*>(row + first + q * 4 * GROUP) = sum[q];
}

OMNI_DEVICE void clear_row(float* row) {
    for (int q = 0; q < STEPS; q++)
        if (q * 4 * GROUP + lane() % GROUP * 4 < C)
            *reinterpret_cast<float4*>(row + lane() % GROUP * 4 + q * 4 * GROUP) = {0.0f, 0.0f, 0.0f, 0.0f};
}

// A ray and its point at a depth. Product and sum are rounded apart, as in PyTorch: the crop must agree to the last bit.
struct RayLine {
    float3 origin, direction;
    OMNI_DEVICE float3 point(const RayLine& r, float depth) {
        return {__fadd_rn(r.origin.x, __fmul_rn(depth, r.direction.x)), __fadd_rn(r.origin.y, __fmul_rn(depth, r.direction.y)),
                __fadd_rn(r.origin.z, __fmul_rn(depth, r.direction.z))};
    }
};

OMNI_DEVICE RayLine load_ray(const RenderParams& p, i64 ray) {
    const float *o = p.origins + ray * 3, *d = p.directions + ray * 3;
    return {{o[0], o[1], o[2]}, {d[0], d[1], d[2]}};
}

OMNI_DEVICE bool in_crop(const RenderParams& p, const float3& x) {
    return fabsf(x.x) <= p.crop_limit && fabsf(x.z) <= p.crop_limit;
}

}  // namespace omni
