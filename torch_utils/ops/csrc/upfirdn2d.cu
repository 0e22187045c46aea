// Pad, upsample by zero insertion, filter and keep every `down`-th pixel. A thread makes OMNI_COUNT numbers that lie together:
// channels of a pixel where these do (channels-last), else one.
//
// OMNI_UP_X, OMNI_UP_Y, OMNI_DOWN_X, OMNI_DOWN_Y and the filter's OMNI_TAPS_X, OMNI_TAPS_Y are macros: the taps that meet a
// pixel are known when the kernel is compiled, but for a phase.
#include "shared/gpu.h"

namespace omni {

struct UpFirDnParams {
    const void* x;
    const float* f;                  // [OMNI_TAPS_Y, OMNI_TAPS_X], correlated
    void* out;
    i64 size;                        // threads' numbers: N * out_height * out_width * channels / OMNI_COUNT
    i64 image, row, pixel, channel;  // steps in x: of images, rows, pixels and channels
    i64 out_image, out_row, out_pixel, out_channel;
    int channels, height, width, out_height, out_width, pad_x, pad_y;   // padding before the first pixel
    int channels_last;               // the order in which threads take numbers
};

typedef Number<OMNI_TYPE>::stored Stored;
typedef Pack<OMNI_TYPE, OMNI_COUNT> Numbers;

struct Place { int image, y, x, channel; };

OMNI_DEVICE Place place_of(const UpFirDnParams& p, OMNI_INDEX i) {   // 32 bits where they suffice
    const int groups = p.channels / OMNI_COUNT;
    Place at;
    if (p.channels_last) {
        at.channel = int(i % groups) * OMNI_COUNT, i /= groups;
        at.x = int(i % p.out_width), i /= p.out_width;
        at.y = int(i % p.out_height), at.image = int(i / p.out_height);
    } else {
        at.x = int(i % p.out_width), i /= p.out_width;
        at.y = int(i % p.out_height), i /= p.out_height;
        at.channel = int(i % groups) * OMNI_COUNT, at.image = int(i / groups);
    }
    return at;
}

// First tap that meets a pixel of the input at upsampled position `at`; the others follow every `up` taps.
OMNI_DEVICE int first_tap(int at, int up) {
    const int rest = at % up;                              // of the sign of `at`
    return rest > 0 ? up - rest : -rest;
}

OMNI_DEVICE void filter_one(const UpFirDnParams& p, i64 number) {
    const Place at = place_of(p, OMNI_INDEX(number));
    const int top = at.y * OMNI_DOWN_Y - p.pad_y, left = at.x * OMNI_DOWN_X - p.pad_x;
    const int first_y = first_tap(top, OMNI_UP_Y), first_x = first_tap(left, OMNI_UP_X);
    const Stored* x = static_cast<const Stored*>(p.x) + at.image * p.image + at.channel * p.channel;
    float sum[OMNI_COUNT];
#pragma unroll
    for (int k = 0; k < OMNI_COUNT; k++) sum[k] = 0.0f;
#pragma unroll
    for (int i = 0; i < (OMNI_TAPS_Y + OMNI_UP_Y - 1) / OMNI_UP_Y; i++) {
        const int tap_y = first_y + i * OMNI_UP_Y, y = (top + tap_y) / OMNI_UP_Y;
        if (tap_y >= OMNI_TAPS_Y || top + tap_y < 0 || y >= p.height) continue;
#pragma unroll
        for (int j = 0; j < (OMNI_TAPS_X + OMNI_UP_X - 1) / OMNI_UP_X; j++) {
            const int tap_x = first_x + j * OMNI_UP_X, column = (left + tap_x) / OMNI_UP_X;
            if (tap_x >= OMNI_TAPS_X || left + tap_x < 0 || column >= p.width) continue;
            const float tap = __ldg(p.f + tap_y * OMNI_TAPS_X + tap_x);
            const Numbers v = *reinterpret_cast<const Numbers*>(x + y * p.row + column * p.pixel);
#pragma unroll
            for (int k = 0; k < OMNI_COUNT; k++) sum[k] += tap * widen<OMNI_TYPE>(v.at[k]);
        }
    }
    Numbers out;
#pragma unroll
    for (int k = 0; k < OMNI_COUNT; k++) out.at[k] = narrow<OMNI_TYPE>(sum[k]);
    Stored* to = static_cast<Stored*>(p.out) + at.image * p.out_image + at.y * p.out_row + at.x * p.out_pixel + at.channel * p.out_channel;
    *reinterpret_cast<Numbers*>(to) = out;
}

}  // namespace omni

OMNI_KERNEL(256) upfirdn2d(OMNI_PARAMS(omni::UpFirDnParams, p)) {
    for (i64 i = i64(blockIdx.x) * 256 + threadIdx.x; i < p.size; i += i64(gridDim.x) * 256) omni::filter_one(p, i);
}
