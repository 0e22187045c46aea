// What the kernels need of a GPU, in one place: NVRTC's builtins and PTX here, and for g++ the same names from a header
// that runs the kernels on the CPU, thread by thread (tests/cuda_emulation.h, where OMNI_EMULATE is defined).
#pragma once

#if defined(OMNI_EMULATE)
#include "cuda_emulation.h"
#else

#define OMNI_DEVICE static __device__ __forceinline__
#define OMNI_KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads, 1)
#define OMNI_PARAMS(type, name) const __grid_constant__ type name
#define OMNI_SHARED(name) extern __shared__ float4 name[]
#define OMNI_SHARED_USED(floats)

typedef unsigned int u32;
typedef unsigned short u16;
typedef long long i64;

namespace omni {

constexpr u32 ALL = 0xffffffffu;

OMNI_DEVICE float shuffle_xor(float x, int mask) { return __shfl_xor_sync(ALL, x, mask); }
OMNI_DEVICE float shuffle_up(float x, int by) { return __shfl_up_sync(ALL, x, by); }
OMNI_DEVICE float shuffle(float x, int lane) { return __shfl_sync(ALL, x, lane); }
OMNI_DEVICE bool warp_any(bool x) { return __any_sync(ALL, x); }
OMNI_DEVICE float bits_to_float(u32 x) { return __uint_as_float(x); }
OMNI_DEVICE float exp2_approximate(float x) { float y; asm("ex2.approx.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }

// x to the nearest number with the ten mantissa bits of tf32.
OMNI_DEVICE float to_tf32(float x) { u32 y; asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x)); return __uint_as_float(y); }

// d [16, 8] += a [16, 8] b [8, 8] of one warp, factors cut to tf32. With g = lane / 4 and t = lane % 4 a lane holds
// a = (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4); b = (t, g), (t + 4, g); d = (g, 2t), (g, 2t + 1), and both for g + 8.
OMNI_DEVICE void mma(float* d, const float* a, const float* b) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
                   "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
}

// The same with factors in two parts, high + low: the precision of float32 but for the product of the low parts.
OMNI_DEVICE void mma_split(float* d, const float* a_high, const float* a_low, const float* b_high, const float* b_low) {
    mma(d, a_low, b_high);
    mma(d, a_high, b_low);
    mma(d, a_high, b_high);
}

// Four neighbours in memory += v, at once where the machine has the instruction (Hopper and later).
OMNI_DEVICE void add_to_global(float* p, float4 v) {
#if __CUDA_ARCH__ >= 900
    asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" :: "l"(p), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w) : "memory");
#else
    atomicAdd(p, v.x), atomicAdd(p + 1, v.y), atomicAdd(p + 2, v.z), atomicAdd(p + 3, v.w);
#endif
}

OMNI_DEVICE float half_to_float(u16 x) { float y; asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x)); return y; }
OMNI_DEVICE u16 float_to_half(float x) { u16 y; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x)); return y; }
OMNI_DEVICE u16 float_to_bfloat16(float x) { u16 y; asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x)); return y; }

}  // namespace omni
#endif

namespace omni {

constexpr int LANES = 32;

OMNI_DEVICE int lane() { return threadIdx.x % LANES; }
OMNI_DEVICE int warp() { return threadIdx.x / LANES; }

OMNI_DEVICE float warp_sum(float x) {
    for (int mask = 16; mask; mask /= 2) x += shuffle_xor(x, mask);
    return x;
}

// What the image operators store: 0 float32, 1 float16, 2 bfloat16; `value` and `store` compute in float32.
template <int TYPE> struct Number { typedef u16 stored; };
template <> struct Number<0> { typedef float stored; };

template <int TYPE>
OMNI_DEVICE float widen(typename Number<TYPE>::stored x) {
    if constexpr (TYPE == 0) return x;
    else if constexpr (TYPE == 1) return half_to_float(x);
    else return bits_to_float(u32(x) << 16);
}

template <int TYPE>
OMNI_DEVICE typename Number<TYPE>::stored narrow(float x) {
    if constexpr (TYPE == 0) return x;
    else if constexpr (TYPE == 1) return float_to_half(x);
    else return float_to_bfloat16(x);
}

// `count` numbers that lie together and are read and written at once; the address is a multiple of their size.
template <int TYPE, int COUNT>
struct alignas(sizeof(typename Number<TYPE>::stored) * COUNT) Pack {
    typename Number<TYPE>::stored at[COUNT];
};

}  // namespace omni
