// The whole volume rendering of rays, forward; one ray a warp. The definition is training/volumetric_rendering/renderer.py.
//
// Looked-up features of all samples of a ray stay in shared memory: the first layer runs once for the densities, and once
// more when the weights are known. Colours without activation are linear in the hidden layer, so a ray composites hidden
// units and the second layer runs once a ray. Samples in the cropped region are looked up only if they have weight (which
// takes a density near 1000 beside them).
#include "shared/marching.h"

namespace omni {

// What one warp keeps in shared memory.
struct ForwardRay {
    float *features;                 // [S to 16, ROW]
    float *depth, *density;          // [S] as sampled
    float *share;                    // [S to 16] of the samples as sampled
    int *place;                      // [S] in order of depth
    float *column;                   // [H or O] composite
    RaySamples sorted;
};

OMNI_DEVICE ForwardRay make_forward_ray(Arena& arena, int samples) {
    const int rows = up_to(samples, 16);
    ForwardRay r;
    r.features = Arena::floats(arena, rows * ROW);
    r.depth = Arena::floats(arena, rows);
    r.density = Arena::floats(arena, rows);
    r.share = Arena::floats(arena, rows);
    r.place = reinterpret_cast<int*>(Arena::floats(arena, rows));
    r.column = Arena::floats(arena, H > O ? H : O);
    r.sorted.depth = Arena::floats(arena, rows);
    r.sorted.density = Arena::floats(arena, rows);
    r.sorted.alpha = Arena::floats(arena, rows);
    r.sorted.weight = Arena::floats(arena, rows);
    r.sorted.passed = r.sorted.slope = nullptr;
    return r;
}

// Features of samples [begin, end); of those in the cropped region zeros, unless `all`.
OMNI_DEVICE void look_up_samples(const RenderParams& p, const ForwardRay& r, const RayLine& line, const Stored* grid, int begin,
                                 int end, bool all) {
    for (int base = begin; base < end; base += LANES / GROUP) {
        const int s = base + lane() / GROUP;
        if (s >= end) continue;
        const float3 x = RayLine::point(line, r.depth[s]);
        if (all || in_crop(p, x)) look_up(p, grid, x, r.features + s * ROW);
        else clear_row(r.features + s * ROW);
    }
    __syncwarp();
}

// Features and density of samples [begin, end), whose depths are there.
OMNI_DEVICE void evaluate(const RenderParams& p, const Decoder& d, const ForwardRay& r, const RayLine& line, const Stored* grid,
                          int begin, int end, const float* noise) {
    look_up_samples(p, r, line, grid, begin, end, false);
    for (int row = begin; row < end; row += 16) {
        // The last rows may belong to nobody; whatever they hold, it stays in their own results.
        float hidden[HT][4];
        const int first = row + 16 <= up_to(p.coarse + p.fine, 16) ? row : up_to(p.coarse + p.fine, 16) - 16;
        first_layer(hidden, d, r.features + first * ROW);
        softplus_tiles(hidden);
        const float2 density = row_products<HT>(hidden, d.density_row);
        for (int k = 0; k < 2; k++) {
            const int s = first + lane() / 4 + 8 * k;
            if (lane() % 4 || s < row || s >= end) continue;
            const bool inside = in_crop(p, RayLine::point(line, r.depth[s]));
            const float value = (k ? density.y : density.x) + d.density_bias + (noise ? noise[s - begin] : 0.0f);
            r.density[s] = inside ? value : EMPTY_DENSITY;
        }
    }
    __syncwarp();
}

// Share of every sample, as sampled, and whether all that have one were looked up.
OMNI_DEVICE bool shares(const RenderParams& p, const ForwardRay& r, const RayLine& line, int num) {
    bool missing = false;
    for (int s = lane(); s < up_to(num, 16); s += LANES) {
        const float share = s < num ? sample_share(r.sorted, r.place[s], num) : 0.0f;
        r.share[s] = share;
        missing |= s < num && share != 0.0f && !in_crop(p, RayLine::point(line, r.depth[s]));
    }
    __syncwarp();
    return warp_any(missing);
}

// Sum by shares of the samples' hidden units (or colours) into r.column.
OMNI_DEVICE void composite(const Decoder& d, const ForwardRay& r, int num) {
    constexpr int TILES = LINEAR ? HT : OT;
    float2 columns[TILES];
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) columns[tile] = {0.0f, 0.0f};
    for (int row = 0; row < num; row += 16) {
        const float low = r.share[row + lane() / 4], high = r.share[row + lane() / 4 + 8];
        if (!warp_any(low != 0.0f || high != 0.0f)) continue;
        float hidden[HT][4];
        first_layer(hidden, d, r.features + row * ROW);
        softplus_tiles(hidden);
        if constexpr (LINEAR) {
            add_rows<TILES>(columns, hidden, low, high);
        } else {
            float colour[OT][4];
            second_layer(colour, d, hidden);
            add_rows<TILES>(columns, colour, low, high);
        }
    }
    store_columns<TILES>(r.column, columns);
    __syncwarp();
}

OMNI_DEVICE void store_ray(const RenderParams& p, const Decoder& d, const ForwardRay& r, i64 ray, int num) {
    const float2 sums = opacity_and_depth(r.sorted, num);
    const float white = p.white_back ? 1.0f - sums.x : 0.0f;
    for (int o = lane(); o < OMNI_COLOURS; o += LANES) {
        float value = LINEAR ? d.bias2[o] * sums.x : r.column[o];         // the second layer's bias came with every sample
        if (LINEAR)
            for (int h = 0; h < OMNI_HIDDEN; h++) value += __ldg(p.w2 + (1 + o) * OMNI_HIDDEN + h) * r.column[h];
        p.features[ray * OMNI_COLOURS + o] = value + white;
    }
    if (lane() == 0) {
        p.opacity[ray] = sums.x;
        p.depth[ray] = sums.y / sums.x;
    }
    for (int s = lane(); s < num; s += LANES) {
        p.sorted_depths[ray * num + s] = r.sorted.depth[s];
        p.sorted_density[ray * num + s] = r.sorted.density[s];
    }
}

OMNI_DEVICE void render_ray(const RenderParams& p, const Decoder& d, const ForwardRay& r, i64 ray) {
    const int num = p.coarse + p.fine;
    const RayLine line = load_ray(p, ray);
    const Stored* grid = grid_of(p, ray);
    for (int s = lane(); s < p.coarse; s += LANES) r.depth[s] = p.depths[ray * p.coarse + s];
    __syncwarp();
    evaluate(p, d, r, line, grid, 0, p.coarse, p.coarse_density_noise ? p.coarse_density_noise + ray * p.coarse : nullptr);
    if (p.fine) {
        RaySamples coarse = r.sorted;
        coarse.depth = r.depth, coarse.density = r.density;
        interval_weights(coarse, p.coarse);
        importance_depths(coarse, p.coarse, p.fine_noise + ray * p.fine, p.fine, r.depth + p.coarse, r.sorted.depth);
        evaluate(p, d, r, line, grid, p.coarse, num, p.fine_density_noise ? p.fine_density_noise + ray * p.fine : nullptr);
    }
    sort_samples(r.sorted, r.depth, r.density, r.place, num);
    interval_weights(r.sorted, num);
    if (shares(p, r, line, num)) look_up_samples(p, r, line, grid, 0, num, true);
    composite(d, r, num);
    store_ray(p, d, r, ray, num);
    __syncwarp();
}

}  // namespace omni

OMNI_KERNEL(omni::THREADS) volume_render_forward(OMNI_PARAMS(omni::RenderParams, p)) {
    using namespace omni;
    OMNI_SHARED(shared);
    Arena arena = {reinterpret_cast<float*>(shared)};
    const Decoder decoder = load_decoder(arena, p, !LINEAR);
    ForwardRay ray;
    for (int i = 0; i < WARPS; i++) {
        const ForwardRay own = make_forward_ray(arena, p.coarse + p.fine);
        if (i == warp()) ray = own;
    }
    OMNI_SHARED_USED(arena.next - reinterpret_cast<float*>(shared));
    // Rows behind the last sample take part in products; they must be numbers.
    for (int i = (p.coarse + p.fine) * ROW + lane(); i < up_to(p.coarse + p.fine, 16) * ROW; i += LANES) ray.features[i] = 0.0f;
    __syncthreads();
    for (i64 i = i64(blockIdx.x) * WARPS + warp(); i < p.num_rays; i += i64(gridDim.x) * WARPS) render_ray(p, decoder, ray, i);
}
