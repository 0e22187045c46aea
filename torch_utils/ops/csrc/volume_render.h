// What the host side and the kernels of every instruction set agree on. Plain data; no torch here.
//
// Letters: G grids, R rays (of all grids, those of one grid together), S samples of a ray, C channels, H hidden units,
// O colours. C, H and O are padded with zeros to a multiple of 16, so that no loop has a tail.
#pragma once

#include <cstdint>

namespace omni {

enum Activation { ACTIVATION_NONE = 0, ACTIVATION_SIGMOID = 1, ACTIVATION_LRELU = 2 };

struct Field {
    const float* grid;             // of some of the identities: cells of C numbers each
    int64_t first_grid;            // number of the first of these
    int64_t grid_step;             // numbers from one identity's grid to the next one's
    int plane_step, layer_step, row_step, column_step;             // and from cell to cell within it
    int channels, hidden, colours, colours_used;    // C, H, O, and O before padding
    int depth, height, width;      // cells of a plane
    int axes[3][3];                // world axis along width, height and depth of each plane
    bool trilinear;                // else the depth axis is ignored and has one layer
    float scale;                   // world units -> grid coordinates in [-1, 1]
    float crop_limit;              // samples with |x| or |z| beyond it are empty
    int activation;
    const float *w1, *b1;          // [C, H], [H] first layer
    const float *density_row;      // [H]
    float density_bias;
    const float *w2, *b2;          // [H, O], [O] colours of the second layer
    const float *w1t, *w2t;        // [H, C], [O, H] the same matrices transposed, for the backward pass
};

struct Rays {
    int64_t per_grid;              // rays of one grid
    int coarse, fine;              // samples of the two passes
    bool white_back;
    const float *origins, *directions;                             // [R, 3]
    const float *depths;                                           // [R, coarse]
    const float *fine_noise;                                       // [R, fine]
    const float *coarse_density_noise, *fine_density_noise;        // [R, coarse], [R, fine] or null
};

struct Outputs {
    float *features, *depth, *opacity;                             // [R, colours_used], [R], [R]
    float *sorted_depths, *sorted_density;                         // [R, coarse + fine]: what the backward pass needs
};

struct SavedSamples {
    const float *sorted_depths, *sorted_density;
    const float *features_grad, *depth_grad, *opacity_grad;        // [R, colours_used], [R], [R]
};

// Points of one block of rays and the gradients of their features, kept until a grid takes them (Kernels::scatter).
struct Slot {
    int points;                    // how many
    float* position[3];            // [slot_points] each, world units
    float* gradient;               // [slot_points, C]
};

// Sums of one worker; `grid` is that of the rays it is given, the others belong to the worker alone.
struct Gradients {
    float *grid;                   // laid out as Field::grid, or null: the blocks' slots take what it would
    Slot *slots;                   // of the blocks in turn, where there is no grid
    float *w1, *b1, *density_row, *density_bias, *w2, *b2;
    float *origins, *directions;   // [R, 3] or both null
    bool decoder;                  // whether w1, b1, ..., b2 are wanted; without, what stands there means nothing
};

// The same functions for one instruction set. `scratch` holds scratch_floats() floats and starts as zeros.
struct Kernels {
    const char* name;
    int64_t (*forward_scratch)(const Field&, const Rays&);
    void (*forward)(const Field&, const Rays&, const Outputs&, int64_t first_ray, int64_t end_ray, float* scratch);
    int64_t (*backward_scratch)(const Field&, const Rays&);
    void (*backward)(const Field&, const Rays&, const SavedSamples&, const Gradients&, int64_t first_ray, int64_t end_ray,
                     float* scratch);                              // rays of one grid only
    int (*block_rays)(const Field&, const Rays&);                  // that backward() takes at a time, each block with a slot
    int (*slot_points)(const Field&, const Rays&);                 // room that a slot needs
    int64_t (*scatter_scratch)(const Field&, int points);
    // Add to `grid` what points of a slot mean to channels [column, end_column), multiples of 16, of the cells of one plane in
    // rows [row, end_row).
    void (*scatter)(const Field&, const Slot&, int plane, int row, int end_row, int column, int end_column, float* grid,
                    float* scratch);
    int64_t (*query_scratch)(const Field&);
    void (*query)(const Field&, const float* points, int64_t per_grid, float* density, float* features, int64_t first,
                  int64_t end, float* scratch);                    // points [G * per_grid, 3]; features may be null
};

// Null where the compiler or the machine's architecture has no such instruction set.
const Kernels* kernels_baseline();
const Kernels* kernels_avx2();
const Kernels* kernels_avx512();

}  // namespace omni
