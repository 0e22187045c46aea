// What the host side and the kernels of every instruction set agree on for convolutions of 3x3 taps, or one. Plain data; no torch here.
//
// Letters: I, O channels in and out, both multiples of 16, or O at most FEW for one tap. All images are channels-last.
//
// A layer that doubles the size is a transposed convolution with stride 2 and then a low-pass filter. The former is four
// convolutions, its phases: row 2 j of its result comes from rows j - 1 and j of the input by taps 2 and 0, row 2 j + 1 from
// row j by tap 1, and so do columns. Their results stand interleaved in a ring of rows, from which the filter makes the image.
#pragma once

#include <cstdint>

namespace omni {

enum class Products { FLOAT32, BFLOAT16, INT16 };   // what is multiplied; sums are float, or int32 for INT16

constexpr int FEW = 4;
constexpr int64_t PIXELS_ABREAST = 16;   // of images of few pixels
constexpr int PRODUCT_ROWS = 6;    // tiles whose products are taken together: a block has a multiple of them

// One convolution of the input: the taps of the weight it has in each direction, all 3, or those of a phase (y, x).
struct Phase {
    int rows, columns;             // 3, or 1 of a single tap; of a phase 2 where y, x is 0 and 1 where it is 1
    int y, x;
};

// Images and rows of the input that are convolved now.
struct Strip {
    int64_t first_image, images;
    int64_t first_row, rows;
    bool last;                     // of its images: they end with a row 2 h of the transposed convolution
};

struct Convolution {
    int64_t n, h, w;               // images and their size; the result has h * up rows
    int64_t in, out;               // I, O
    int64_t up;                    // 1 or 2
    const void* x;                 // [n, h, w, I]
    bool half;                     // x and y are bfloat16, else float
    const float* weight;           // [O, I, taps], or [I, O, taps] turned by 180 degrees: the gradient's convolution
    int64_t taps;                  // 9 or 1
    bool turned;
    float* energy;                 // [I, O] set by transform(): sums of squares over the taps
    const float *in_scale;         // [n, I] factors of the input, or null
    const float *filter;           // [4, 4] low-pass filter that is correlated with the transposed convolution; up is 2
    const float *column_taps, *row_taps;   // [4] whose product it is, or null
    float *between;                // a row of zeros, then [images of a strip, ring, 2 w + 3, O]; row r stands at r % ring
    int64_t ring;
    const float *out_scale;        // [n, O] factors of the result, or null
    const float *noise;            // [n or 1, h * up, w * up] added to all channels, or null
    bool noise_each;               // noise has n images
    const float *bias;             // [O], or null
    float slope, gain, clamp;      // v < 0 becomes slope * v; then times gain; then held to +-clamp
    void* y;                       // [n, h * up, w * up, O]
    bool streams;                  // y goes past the caches; its lines are aligned
    int64_t block;                 // tiles a worker takes at a time, a multiple of PRODUCT_ROWS
};

// One instruction set and one way to tile.
struct WinogradKernels {
    const char* name;
    Products products;
    int tile;                      // side of a tile of the result
    int64_t (*groups)(const Convolution&);                    // of output channels
    int64_t (*weight_bytes)(const Convolution&, Phase);       // of the transformed weights
    int64_t (*transform_floats)(const Convolution&);          // of room for transform()
    // The weights of one group, for the phases [count], each to its place in weights [count].
    void (*transform)(const Convolution&, const Phase*, int count, unsigned char* const* weights, int64_t group, float* room);
    int64_t (*tile_bytes)(const Convolution&);                // that a tile of a block takes
    int64_t (*scratch_bytes)(const Convolution&);
    // Tiles [first, end) of the strip's, counted along rows, then columns, then images.
    void (*run)(const Convolution&, const Strip&, Phase, const unsigned char* weights, int64_t first, int64_t end, unsigned char* scratch);
    // Rows [first, end) of an image's result from `between`.
    void (*low_pass)(const Convolution&, const Strip&, int64_t image, int64_t first, int64_t end);
    // One tap, of pixels [first, end) of all images.
    int64_t (*pointwise_bytes)(const Convolution&);           // of scratch
    void (*pointwise)(const Convolution&, const unsigned char* weights, int64_t first, int64_t end, unsigned char* scratch);
    // Pixels [first, end) of one image's by `folded` [O, I], one tap times in_scale, where O is at most FEW and all is float; bias and
    // activation follow.
    void (*few)(const Convolution&, const float* folded, int64_t first, int64_t end);
    // For images of few pixels, in float: what each tap of one output channel's weight [I, 9] makes of each pixel of x
    // [pixels / 16, I, 16], z [9, pixels]; and the sum of its squares times factors [I, 9].
    void (*tap_products)(const float* x, int64_t pixels, int64_t in, const float* weight, float* z);
    float (*energy)(int64_t in, const float* weight, const float* factors);
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
const WinogradKernels* winograd_avx2_int16();
const WinogradKernels* winograd_avx512();
const WinogradKernels* winograd_avx512bf16();

// The best of this machine, or what OMNIHEAD_ISA names; null where there is none with such products.
const WinogradKernels* winograd_kernels(Products);

}  // namespace omni
