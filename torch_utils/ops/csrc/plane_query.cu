// Density and colours of the field at points, sixteen to a warp; features null: densities alone.
#include "shared/decoder.h"

namespace omni {

OMNI_DEVICE float3 point_at(const RenderParams& p, i64 i) {
    return {p.origins[i * 3], p.origins[i * 3 + 1], p.origins[i * 3 + 2]};
}

OMNI_DEVICE void query_points(const RenderParams& p, const Decoder& d, float* rows, i64 first) {
    const int count = p.num_rays - first < 16 ? int(p.num_rays - first) : 16;
    for (int base = 0; base < count; base += LANES / GROUP) {
        const int s = base + lane() / GROUP;
        if (s < count) look_up(p, grid_of(p, first + s), point_at(p, first + s), rows + s * ROW);
    }
    __syncwarp();
    float hidden[HT][4];
    first_layer(hidden, d, rows);
    softplus_tiles(hidden);
    const float2 density = row_products<HT>(hidden, d.density_row);
    const int g = lane() / 4, t = lane() % 4;
    if (t == 0 && g < count) p.depth[first + g] = density.x + d.density_bias;
    if (t == 0 && g + 8 < count) p.depth[first + g + 8] = density.y + d.density_bias;
    if (p.features) {
        float colour[OT][4];
        second_layer(colour, d, hidden);
        for (int tile = 0; tile < OT; tile++)
            for (int i = 0; i < 4; i++) {
                const int row = g + i / 2 * 8, o = tile * 8 + 2 * t + i % 2;
                if (row < count && o < OMNI_COLOURS) p.features[(first + row) * OMNI_COLOURS + o] = colour[tile][i];
            }
    }
    __syncwarp();
}

}  // namespace omni

OMNI_KERNEL(omni::THREADS) plane_query(OMNI_PARAMS(omni::RenderParams, p)) {
    using namespace omni;
    OMNI_SHARED(shared);
    Arena arena = {reinterpret_cast<float*>(shared)};
    const Decoder decoder = load_decoder(arena, p, true);
    float* rows = arena.next + warp() * 16 * ROW;
    OMNI_SHARED_USED(arena.next + WARPS * 16 * ROW - reinterpret_cast<float*>(shared));
    for (int i = lane(); i < 16 * ROW; i += LANES) rows[i] = 0.0f;
    __syncthreads();
    for (i64 i = i64(blockIdx.x) * WARPS + warp(); i * 16 < p.num_rays; i += i64(gridDim.x) * WARPS)
        query_points(p, decoder, rows, i * 16);
}
