// 3x3 convolutions for x86-64 with avx,avx2,fma,avx512f,avx512bw,avx512dq,avx512vl.
#include <cstdint>
#include "winograd.h"

#if defined(__x86_64__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx,avx2,fma,avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx,avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")
#endif

#define OMNI_ISA avx512
#define OMNI_WIDTH 16
#include "winograd_kernel.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace omni {
const WinogradKernels* winograd_avx512() { return &avx512::table; }
}  // namespace omni

#else

namespace omni {
const WinogradKernels* winograd_avx512() { return nullptr; }
}  // namespace omni

#endif
