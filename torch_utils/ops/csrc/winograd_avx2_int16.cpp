// 3x3 convolutions in products of 16-bit integers, for x86-64 with avx,avx2,fma.
#include <cstdint>
#include "winograd.h"

#if defined(__x86_64__)
#include <immintrin.h>
#define OMNI_INT16_PRODUCTS

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx,avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx,avx2,fma")
#endif

#define OMNI_ISA avx2_int16
#define OMNI_WIDTH 8
#include "winograd_kernel.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace omni {
const WinogradKernels* winograd_avx2_int16() { return &avx2_int16::table; }
}  // namespace omni

#else

namespace omni {
const WinogradKernels* winograd_avx2_int16() { return nullptr; }
}  // namespace omni

#endif
