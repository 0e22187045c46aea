// Marching and importance sampling of one ray by one warp (NeRF 2003.08934, equation 3 and section 5.2). The definition is
// training/volumetric_rendering; products and sums along the ray are scans here.
#pragma once

#include "decoder.h"

namespace omni {

// One ray's samples in shared memory, each array for S of them.
struct RaySamples {
    float *depth, *density;          // in order of depth
    float *alpha, *passed, *weight;  // of the S - 1 intervals: opacity, transmittance before it, their product
    float *slope;                    // derivative of alpha by the mean density, or null
};

OMNI_DEVICE float exact_softplus(float x) { return positive_part(x) + log1pf(expf(-fabsf(x))); }

// Product of x over the lanes up to this one.
OMNI_DEVICE float scan_product(float x) {
    for (int by = 1; by < LANES; by *= 2) {
        const float before = shuffle_up(x, by);
        if (lane() >= by) x *= before;
    }
    return x;
}

OMNI_DEVICE float scan_sum(float x) {
    for (int by = 1; by < LANES; by *= 2) {
        const float before = shuffle_up(x, by);
        if (lane() >= by) x += before;
    }
    return x;
}

OMNI_DEVICE void interval_weights(const RaySamples& r, int num) {
    float carry = 1.0f;
    for (int base = 0; base < num - 1; base += LANES) {
        const int i = base + lane();
        float factor = 1.0f, alpha = 0.0f;
        if (i < num - 1) {
            const float delta = r.depth[i + 1] - r.depth[i], mean = (r.density[i + 1] + r.density[i]) * 0.5f - 1.0f;
            const float passed = expf(-exact_softplus(mean) * delta);
            alpha = 1.0f - passed;
            factor = 1.0f - alpha + 1e-10f;
            r.alpha[i] = alpha;
            if (r.slope) r.slope[i] = delta * passed * sigmoid_from(mean, expf(-fabsf(mean)));
        }
        const float scanned = scan_product(factor), before = shuffle_up(scanned, 1);
        const float passed = carry * (lane() ? before : 1.0f);
        if (i < num - 1) {
            if (r.passed) r.passed[i] = passed;
            r.weight[i] = alpha * passed;
        }
        carry *= shuffle(scanned, LANES - 1);
    }
    __syncwarp();
}

// Part of a sample in the composite: half the weights on its two sides.
OMNI_DEVICE float sample_share(const RaySamples& r, int s, int num) {
    return ((s ? r.weight[s - 1] : 0.0f) + (s < num - 1 ? r.weight[s] : 0.0f)) * 0.5f;
}

// Depths [fine] where the intervals of a coarse ray of `num` samples have weight; cdf: room for num floats.
OMNI_DEVICE void importance_depths(const RaySamples& r, int num, const float* noise, int fine, float* depths, float* cdf) {
    const int last = num - 3;                                             // the outermost intervals are left out
    float total = 0.0f;
    for (int base = 0; base < last; base += LANES) {
        const int i = base + lane();
        float w = 0.0f;
        if (i < last)
            w = (fmaxf(r.weight[i], r.weight[i + 1]) + fmaxf(r.weight[i + 1], r.weight[i + 2])) * 0.5f + 0.01f + 1e-5f;
        w = scan_sum(w) + total;
        if (i < last) cdf[i + 1] = w;
        total = shuffle(w, LANES - 1);
    }
    __syncwarp();
    for (int i = lane(); i <= last; i += LANES) cdf[i] = i ? cdf[i] / total : 0.0f;
    __syncwarp();
    for (int i = lane(); i < fine; i += LANES) {
        const float u = noise[i];
        int above = 0, end = last + 1;                                    // the first edge beyond u
        while (above < end) {
            const int middle = (above + end) / 2;
            if (cdf[middle] <= u) above = middle + 1;
            else end = middle;
        }
        const int low = above > 0 ? above - 1 : 0, high = above < last ? above : last;
        const float edge0 = (r.depth[low] + r.depth[low + 1]) * 0.5f, edge1 = (r.depth[high] + r.depth[high + 1]) * 0.5f;
        const float width = cdf[high] - cdf[low];
        depths[i] = edge0 + (u - cdf[low]) / (width < 1e-5f ? 1.0f : width) * (edge1 - edge0);
    }
    __syncwarp();
}

// Samples in order of depth: depth and density into r, place[i] where sample i went. Each counts those before it.
OMNI_DEVICE void sort_samples(const RaySamples& r, const float* depth, const float* density, int* place, int num) {
    for (int i = lane(); i < num; i += LANES) r.depth[i] = depth[i], r.density[i] = density[i];   // if some are NaN
    __syncwarp();
    for (int i = lane(); i < num; i += LANES) {
        const float own = depth[i];
        int before = 0;
        for (int j = 0; j < num; j++) before += depth[j] < own || (depth[j] == own && j < i);
        r.depth[before] = own;
        r.density[before] = density[i];
        place[i] = before;
    }
    __syncwarp();
}

// Sums over the intervals: of the weights into x, of weight times middle depth into y; in all lanes.
OMNI_DEVICE float2 opacity_and_depth(const RaySamples& r, int num) {
    float2 sum = {0.0f, 0.0f};
    for (int i = lane(); i < num - 1; i += LANES) {
        sum.x += r.weight[i];
        sum.y += r.weight[i] * ((r.depth[i] + r.depth[i + 1]) * 0.5f);
    }
    return {warp_sum(sum.x), warp_sum(sum.y)};
}

}  // namespace omni
