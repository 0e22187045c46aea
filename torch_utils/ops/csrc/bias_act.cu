// activation(x + b) * gain, held to +-clamp; its derivative by x times a gradient; and the derivative of that by x.
//
// OMNI_ORDER 0, 1, 2 says which of the three; OMNI_ACT is the position in ACTIVATIONS of bias_act.py; OMNI_TYPE the number
// type; OMNI_COUNT numbers are read at once. Memory is gone through in its own order, whatever the layout of the tensor.
#include "shared/gpu.h"

namespace omni {

#define OMNI_MATH OMNI_DEVICE
#include "shared/math.h"

struct BiasActParams {
    const void *x, *b, *dy, *ddx;    // b or null; dy from order 1 on, ddx at order 2
    void* out;
    i64 size;
    i64 stride;                      // in memory from one channel to the next
    int channels;
    float gain, clamp;
};

typedef Number<OMNI_TYPE>::stored Stored;
typedef OMNI_INDEX Index;            // 32 bits where they suffice: divisions are what this kernel computes most
typedef Pack<OMNI_TYPE, OMNI_COUNT> Numbers;

enum { LINEAR, RELU, LRELU, TANH, SIGMOID, ELU, SELU, SOFTPLUS, SWISH };

// Function and derivatives at one place.
struct Taylor { float value, slope, curve; };

OMNI_DEVICE Taylor exponential_unit(float x, float scale, float alpha) {
    const float e = scale * alpha * expf(x);
    return x > 0.0f ? Taylor{scale * x, scale, 0.0f} : Taylor{scale * alpha * expm1f(x), e, e};
}

OMNI_DEVICE Taylor activation(float x) {
    constexpr int ACT = OMNI_ACT;
    if (ACT == RELU) return {x < 0.0f ? 0.0f : x, x > 0.0f ? 1.0f : 0.0f, 0.0f};
    if (ACT == LRELU) return {x < 0.0f ? 0.2f * x : x, x > 0.0f ? 1.0f : 0.2f, 0.0f};
    if (ACT == TANH) {
        const float t = tanhf(x), slope = 1.0f - t * t;
        return {t, slope, -2.0f * t * slope};
    }
    if (ACT == ELU) return exponential_unit(x, 1.0f, 1.0f);
    if (ACT == SELU) return exponential_unit(x, 1.0507009873554805f, 1.6732632423543772f);
    if (ACT == SIGMOID || ACT == SOFTPLUS || ACT == SWISH) {
        const float e = expf(-fabsf(x)), s = (x >= 0.0f ? 1.0f : e) / (1.0f + e), slope = s * (1.0f - s);
        if (ACT == SIGMOID) return {s, slope, slope * (1.0f - 2.0f * s)};
        if (ACT == SOFTPLUS) return {(x < 0.0f ? 0.0f : x) + log1p_unit(e), s, slope};
        return {x * s, s + x * slope, slope * (2.0f + x * (1.0f - 2.0f * s))};
    }
    return {x, 1.0f, 0.0f};
}

OMNI_DEVICE Numbers load_numbers(const void* from, Index at) { return *reinterpret_cast<const Numbers*>(static_cast<const Stored*>(from) + at); }

OMNI_DEVICE void run(const BiasActParams& p, Index at) {
    const Numbers x = load_numbers(p.x, at);
    Numbers dy = {}, ddx = {}, out;
    if (OMNI_ORDER > 0) dy = load_numbers(p.dy, at);
    if (OMNI_ORDER > 1) ddx = load_numbers(p.ddx, at);
    const Index stride = Index(p.stride);
    Index step = at % stride;
    int channel = int(at / stride % Index(p.channels));
#pragma unroll
    for (int i = 0; i < OMNI_COUNT; i++) {
        const float bias = p.b ? widen<OMNI_TYPE>(static_cast<const Stored*>(p.b)[channel]) : 0.0f;
        if (++step == stride) step = 0, channel = channel + 1 == p.channels ? 0 : channel + 1;
        const Taylor f = activation(widen<OMNI_TYPE>(x.at[i]) + bias);
        const float y = f.value * p.gain;
        const bool held = y > p.clamp || y < -p.clamp;     // a NaN is not
        float value = y > p.clamp ? p.clamp : y < -p.clamp ? -p.clamp : y;
        if (OMNI_ORDER > 0) {
            value = held ? 0.0f : widen<OMNI_TYPE>(dy.at[i]) * p.gain * (OMNI_ORDER > 1 ? f.curve : f.slope);
            if (OMNI_ORDER > 1) value *= widen<OMNI_TYPE>(ddx.at[i]);
        }
        out.at[i] = narrow<OMNI_TYPE>(value);
    }
    *reinterpret_cast<Numbers*>(static_cast<Stored*>(p.out) + at) = out;
}

}  // namespace omni

OMNI_KERNEL(256) bias_act(OMNI_PARAMS(omni::BiasActParams, p)) {
    for (i64 i = i64(blockIdx.x) * 256 + threadIdx.x; i * OMNI_COUNT < p.size; i += i64(gridDim.x) * 256) omni::run(p, omni::Index(i * OMNI_COUNT));
}
