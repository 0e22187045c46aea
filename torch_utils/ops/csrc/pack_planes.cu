// Planes as the networks make them, [N * 3, channels, cells], and as the renderer reads them, [N * 3, cells, C] with C a
// multiple of eight, padded with zeros. Blocks of 32 x 8 threads exchange 32 x 32 numbers through shared memory.
#include "shared/gpu.h"

namespace omni {

struct PackParams {
    const void* from;
    void* to;
    i64 cells;
    int channels, wide;              // C before and after padding
};

typedef Number<OMNI_PLANAR>::stored Planar;
typedef Number<OMNI_PACKED>::stored Packed;

constexpr int TILE = 32, PACK_ROWS = 8, STRIDE = TILE + 1;

}  // namespace omni

// Grid: (cells / 32, C / 32, N * 3), each rounded up.
OMNI_KERNEL(256) pack_planes(OMNI_PARAMS(omni::PackParams, p)) {
    using namespace omni;
    OMNI_SHARED(shared);
    float* tile = reinterpret_cast<float*>(shared);
    OMNI_SHARED_USED(TILE * STRIDE);
    const i64 cell = i64(blockIdx.x) * TILE;
    const int channel = blockIdx.y * TILE, x = lane(), y = warp();
    const Planar* from = static_cast<const Planar*>(p.from) + i64(blockIdx.z) * p.channels * p.cells;
    Packed* to = static_cast<Packed*>(p.to) + i64(blockIdx.z) * p.wide * p.cells;
    for (int i = y; i < TILE; i += PACK_ROWS)
        if (cell + x < p.cells)
            tile[i * STRIDE + x] = channel + i < p.channels ? widen<OMNI_PLANAR>(from[i64(channel + i) * p.cells + cell + x]) : 0.0f;
    __syncthreads();
    for (int i = y; i < TILE; i += PACK_ROWS)
        if (cell + i < p.cells && channel + x < p.wide) to[(cell + i) * p.wide + channel + x] = narrow<OMNI_PACKED>(tile[x * STRIDE + i]);
}

OMNI_KERNEL(256) unpack_planes(OMNI_PARAMS(omni::PackParams, p)) {
    using namespace omni;
    OMNI_SHARED(shared);
    float* tile = reinterpret_cast<float*>(shared);
    OMNI_SHARED_USED(TILE * STRIDE);
    const i64 cell = i64(blockIdx.x) * TILE;
    const int channel = blockIdx.y * TILE, x = lane(), y = warp();
    const Packed* from = static_cast<const Packed*>(p.from) + i64(blockIdx.z) * p.wide * p.cells;
    Planar* to = static_cast<Planar*>(p.to) + i64(blockIdx.z) * p.channels * p.cells;
    for (int i = y; i < TILE; i += PACK_ROWS)
        if (cell + i < p.cells && channel + x < p.wide) tile[i * STRIDE + x] = widen<OMNI_PACKED>(from[(cell + i) * p.wide + channel + x]);
    __syncthreads();
    for (int i = y; i < TILE; i += PACK_ROWS)
        if (cell + x < p.cells && channel + i < p.channels)
            to[i64(channel + i) * p.cells + cell + x] = narrow<OMNI_PLANAR>(tile[x * STRIDE + i]);
}
