// Filters of 4x4 taps that are the product of one along y and one along x, as low-pass filters of networks are.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace omni {

constexpr int64_t SEPARABLE = 4;

struct Taps { float y[SEPARABLE], x[SEPARABLE]; };

// Whether p [4, 4] is such a product, but for rounding, which `taps` then are.
inline bool factorise(const float* p, Taps& taps) {
    float total = 0, most = 0;
    taps = Taps{};
    for (int i = 0; i < SEPARABLE; ++i)
        for (int j = 0; j < SEPARABLE; ++j) {
            const float t = p[i * SEPARABLE + j];
            taps.y[i] += t, taps.x[j] += t, total += t, most = std::max(most, std::abs(t));
        }
    if (most == 0 || std::abs(total) < most) return false;
    float error = 0;
    for (int i = 0; i < SEPARABLE; ++i) taps.y[i] /= total;
    for (int i = 0; i < SEPARABLE; ++i)
        for (int j = 0; j < SEPARABLE; ++j) error = std::max(error, std::abs(taps.y[i] * taps.x[j] - p[i * SEPARABLE + j]));
    return error <= 1e-6f * most;
}

}  // namespace omni
