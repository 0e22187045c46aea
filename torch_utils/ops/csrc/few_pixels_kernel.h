// Convolutions of 3x3 taps of images of few pixels, for one instruction set: the weights are read once, as they lie.
#include "simd.h"
#include "winograd.h"

namespace omni { namespace OMNI_ISA {

// TAPS taps from `weight` on, to as many rows of z. With more at a time their sums would not stay in registers.
template <int TAPS>
OMNI_INLINE void some_taps(const float* x, int64_t pixels, int64_t in, const float* weight, float* z) {
    constexpr int ABREAST = W < 8 ? 2 : PIXELS_ABREAST / W;
    for (int64_t p = 0; p < pixels; p += ABREAST * W) {
        const float* block = x + p / PIXELS_ABREAST * PIXELS_ABREAST * in + p % PIXELS_ABREAST;
        vf acc[TAPS][ABREAST];
        for (int t = 0; t < TAPS; t++)
            for (int k = 0; k < ABREAST; k++) acc[t][k] = splat(0);
        for (int64_t i = 0; i < in; i++) {
            vf value[ABREAST];
            for (int k = 0; k < ABREAST; k++) value[k] = load(block + i * PIXELS_ABREAST + k * W);
            for (int t = 0; t < TAPS; t++)
                for (int k = 0; k < ABREAST; k++) acc[t][k] += value[k] * weight[9 * i + t];
        }
        for (int t = 0; t < TAPS; t++)
            for (int k = 0; k < ABREAST; k++) store(z + t * pixels + p + k * W, acc[t][k]);
    }
}

static void tap_products(const float* x, int64_t pixels, int64_t in, const float* weight, float* z) {
    if (W == 16) {
        some_taps<9>(x, pixels, in, weight, z);
    } else {
        some_taps<5>(x, pixels, in, weight, z);
        some_taps<4>(x, pixels, in, weight + 5, z + 5 * pixels);
    }
}

static float energy(int64_t in, const float* weight, const float* factors) {
    vf even = splat(0), odd = splat(0);
    int64_t k = 0;
    for (; k + 2 * W <= 9 * in; k += 2 * W) {
        const vf a = load(weight + k), b = load(weight + k + W);
        even += a * a * load(factors + k);
        odd += b * b * load(factors + k + W);
    }
    float rest = sum(even + odd);
    for (; k < 9 * in; k++) rest += weight[k] * weight[k] * factors[k];
    return rest;
}

}}  // namespace omni::OMNI_ISA
