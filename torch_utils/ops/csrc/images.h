// Numbers of images in memory, float or bfloat16 (as uint16_t), and loops over them compiled for several instruction sets.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define OMNI_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define OMNI_CLONES
#endif

namespace omni {

inline float widen(float x) { return x; }
inline float widen(uint16_t x) {
    const uint32_t bits = uint32_t(x) << 16;
    float out;
    std::memcpy(&out, &bits, 4);
    return out;
}
inline void narrow(float x, float& out) { out = x; }
inline void narrow(float x, uint16_t& out) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    // Round to nearest even; NaN keeps its upper bits and stays NaN.
    out = uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

}  // namespace omni
