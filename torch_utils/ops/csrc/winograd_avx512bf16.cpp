// 3x3 convolutions for x86-64 with avx,avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16.
#include <cstdint>
#include "winograd.h"

#if defined(__x86_64__)
#include <immintrin.h>
#define OMNI_HALF_PRODUCTS

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx,avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx,avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")
#endif

#define OMNI_ISA avx512bf16
#define OMNI_WIDTH 16
#include "winograd_kernel.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace omni {
const WinogradKernels* winograd_avx512bf16() { return &avx512bf16::table; }
}  // namespace omni

#else

namespace omni {
const WinogradKernels* winograd_avx512bf16() { return nullptr; }
}  // namespace omni

#endif
