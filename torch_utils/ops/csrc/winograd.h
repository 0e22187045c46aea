// What the host side and the kernels of every instruction set agree on for 3x3 convolutions. Plain data; no torch here.
//
// Letters: I, O channels in and out, both multiples of 16; P phases: 1, or 4 where the result has twice the size and phase
// (py, px) gives its pixels (2 y + py, 2 x + px). All images are channels-last.
#pragma once

#include <cstdint>

namespace omni {

struct Convolution {
    int64_t n, h, w;               // images and their size; the result has h * up rows
    int64_t in, out;               // I, O
    int64_t up;                    // 1 or 2
    const void* x;                 // [n, h, w, I]
    bool half;                     // x and y are bfloat16, else float
    const float* weight;           // [O, I, 3, 3], or [I, O, 3, 3] turned by 180 degrees: the gradient's convolution
    bool turned;
    const float* phases;           // [P, 9, 9] the taps of each phase from those of the weight
    float* energy;                 // [I, O] set by transform(): sums of squares over the taps
    const float *in_scale;         // [n, I] factors of the input, or null
    const float *out_scale;        // [n, O] factors of the result, or null
    const float *noise;            // [n or 1, h * up, w * up] added to all channels, or null
    bool noise_each;               // noise has n images
    const float *bias;             // [O], or null
    float slope, gain, clamp;      // v < 0 becomes slope * v; then times gain; then held to +-clamp
    void* y;                       // [n, h * up, w * up, O]
    int64_t tiles_high, tiles_wide;
    int64_t block;                 // tiles a worker takes at a time, a multiple of 6
};

// One instruction set and one way to tile. `half_products`: products of bfloat16, sums in float.
struct WinogradKernels {
    const char* name;
    bool half_products;
    int tile;                      // side of a tile of the result
    int64_t (*transformed_floats)(const Convolution&);
    // Weights of channels [first, end) of the I (multiples of 16) in the layout of the products.
    void (*transform)(const Convolution&, float* transformed, int64_t first, int64_t end);
    int64_t (*scratch_floats)(const Convolution&);
    void (*run)(const Convolution&, const float* transformed, int64_t first_tile, int64_t end_tile, float* scratch);
    // For the weight's gradient. Numbers from one of a block's matrices to the next; tiles [first, end) of x, transformed as the
    // input or, if x is the gradient of a result, by the transpose of what makes results of products, into a block's matrices
    // [tiles, I] of bfloat16 or float; [9, matrices]: what each tap becomes.
    int64_t (*matrix_step)(const Convolution&);
    void (*unfold)(const Convolution&, bool gradient, int64_t block_start, int64_t first_tile, int64_t end_tile, void* target);
    void (*tap_matrix)(float* out);
};

// Null where the compiler or the machine's architecture has no such instruction set.
const WinogradKernels* winograd_baseline();
const WinogradKernels* winograd_avx2();
const WinogradKernels* winograd_avx512();
const WinogradKernels* winograd_avx512bf16();

}  // namespace omni
