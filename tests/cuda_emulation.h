// Runs a CUDA kernel on the CPU: the names that csrc/shared/gpu.h gives the kernels, for g++. For tests of the kernels' logic.
//
// Every thread of a block is a fibre with a stack of its own; they take turns, and wait for one another in the functions of
// a warp and at __syncthreads. Blocks run one after the other. Arithmetic is the CPU's; factors of mma() are cut to tf32 as
// the tensor cores cut them.
#pragma once

#include <math.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

typedef unsigned int u32;
typedef unsigned short u16;
typedef long long i64;

struct uint2 { u32 x, y; };
struct alignas(8) float2 { float x, y; };
struct float3 { float x, y, z; };
struct alignas(16) float4 { float x, y, z, w; };
struct dim3 { int x, y, z; };

#define OMNI_DEVICE static inline
#define OMNI_KERNEL(...) extern "C" void
#define OMNI_PARAMS(type, name) const type& name
#define OMNI_SHARED(name) float4* name = emulation::block.shared
#define OMNI_SHARED_USED(floats) emulation::check_shared(floats)

namespace emulation {

struct Lane { float in[16], out[4]; };

// What the lanes of a warp hand to one another; two of them take turns, so that none is overwritten while it is read.
struct Exchange { Lane lane[32]; };

struct Place { jmp_buf registers; };

struct Warp {
    int arrived = 0;
    long round = 0;
    Exchange exchange[2];
};

constexpr int MOST_THREADS = 256, STACK = 256 << 10;

struct Block {
    int threads = 0, alive = 0, current = 0, arrived = 0;
    long round = 0;
    i64 shared_floats = 0;
    float4* shared = nullptr;
    Warp warps[MOST_THREADS / 32];
    Place places[MOST_THREADS];
    bool done[MOST_THREADS], started[MOST_THREADS];
    char* stacks = nullptr;
    void (*body)(const void*) = nullptr;
    const void* params = nullptr;
    jmp_buf finished;
};

static Block block;

struct Index { int x, y, z; };
static Index thread_index, block_index, grid_size;

static void fail(const char* what) {
    fprintf(stderr, "emulation: %s\n", what);
    abort();
}

static void check_shared(i64 floats) {
    if (floats > block.shared_floats) fail("the kernel uses more shared memory than it was given");
}

static void fibre();

// Continue the next thread that is not done, or start it.
[[noreturn]] static void give_way() {
    do block.current = (block.current + 1) % block.threads;
    while (block.done[block.current]);
    thread_index = {block.current, 0, 0};
    if (block.started[block.current]) _longjmp(block.places[block.current].registers, 1);
    block.started[block.current] = 1;
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = block.stacks + i64(block.current) * STACK;
    context.uc_stack.ss_size = STACK;
    context.uc_link = nullptr;
    makecontext(&context, fibre, 0);
    setcontext(&context);
    abort();
}

static void fibre() {
    block.body(block.params);
    block.done[block.current] = 1;
    if (--block.alive == 0) _longjmp(block.finished, 1);
    give_way();
}

static void yield() {
    if (_setjmp(block.places[block.current].registers) == 0) give_way();
}

// All lanes of a warp give `in`; the last to come runs `work` on them; each gets its own lane with `out` filled.
template <typename Work>
static const Lane& exchange(const Lane& own, const Work& work) {
    Warp& w = block.warps[block.current / 32];
    const long round = w.round;
    Exchange& e = w.exchange[round % 2];
    e.lane[block.current % 32] = own;
    if (++w.arrived == 32) {
        work(e.lane);
        w.arrived = 0;
        w.round++;
    } else {
        while (w.round == round) yield();
    }
    return e.lane[block.current % 32];
}

static void barrier() {
    const long round = block.round;
    if (++block.arrived == block.threads) {
        block.arrived = 0;
        block.round++;
    } else {
        while (block.round == round) yield();
    }
}

static void run_block(int threads) {
    block.alive = threads;
    block.arrived = 0;
    for (Warp& w : block.warps) w.arrived = 0;
    for (int i = 0; i < threads; i++) block.done[i] = block.started[i] = false;
    block.current = threads - 1;   // thread 0 follows
    if (_setjmp(block.finished) == 0) give_way();
}

// Calls body(params) once for every thread of every block.
static void run(dim3 grid, int threads, i64 shared_bytes, void (*body)(const void*), const void* params) {
    if (threads > MOST_THREADS || threads % 32) fail("blocks of up to 256 threads, whole warps");
    const size_t bytes = (shared_bytes + 15) / 16 * 16 + 16;
    block.shared = static_cast<float4*>(aligned_alloc(16, bytes));
    if (!block.stacks) block.stacks = static_cast<char*>(malloc(i64(MOST_THREADS) * STACK));
    if (!block.shared || !block.stacks) fail("not enough memory");
    block.threads = threads;
    block.shared_floats = shared_bytes / 4;
    block.body = body;
    block.params = params;
    grid_size = {grid.x, grid.y, grid.z};
    for (int z = 0; z < grid.z; z++)
        for (int y = 0; y < grid.y; y++)
            for (int x = 0; x < grid.x; x++) {
                // What a kernel reads before it has written it must not help it: these are NaN.
                memset(static_cast<void*>(block.shared), 0xff, bytes);
                block_index = {x, y, z};
                run_block(threads);
            }
    free(block.shared);
}

}  // namespace emulation

#define threadIdx emulation::thread_index
#define blockIdx emulation::block_index
#define gridDim emulation::grid_size

static inline void __syncthreads() { emulation::barrier(); }
static inline void __syncwarp() { emulation::exchange({}, [](emulation::Lane*) {}); }
template <typename T> static inline T __ldg(const T* p) { return *p; }
static inline float __fadd_rn(float a, float b) { volatile float r = a + b; return r; }
static inline float __fmul_rn(float a, float b) { volatile float r = a * b; return r; }

namespace omni {

template <typename From>
static inline float shuffled(float x, const From& from) {
    emulation::Lane own;
    own.in[0] = x;
    return emulation::exchange(own, [&](emulation::Lane* lane) {
        for (int i = 0; i < 32; i++) lane[i].out[0] = lane[from(i)].in[0];
    }).out[0];
}

static inline float shuffle_xor(float x, int mask) { return shuffled(x, [=](int i) { return i ^ mask; }); }
static inline float shuffle_up(float x, int by) { return shuffled(x, [=](int i) { return i < by ? i : i - by; }); }
static inline float shuffle(float x, int from) { return shuffled(x, [=](int) { return from; }); }

static inline bool warp_any(bool x) {
    emulation::Lane own;
    own.in[0] = x;
    return emulation::exchange(own, [](emulation::Lane* lane) {
        bool any = false;
        for (int i = 0; i < 32; i++) any |= lane[i].in[0] != 0;
        for (int i = 0; i < 32; i++) lane[i].out[0] = any;
    }).out[0] != 0;
}

static inline float bits_to_float(u32 x) { float y; memcpy(&y, &x, 4); return y; }
static inline u32 float_to_bits(float x) { u32 y; memcpy(&y, &x, 4); return y; }
static inline float exp2_approximate(float x) { return exp2f(x); }
static inline float cut_to_tf32(float x) { return bits_to_float(float_to_bits(x) & 0xffffe000u); }
static inline float to_tf32(float x) { return isfinite(x) ? bits_to_float((float_to_bits(x) + 0x1000u) & 0xffffe000u) : x; }

static inline void mma_split(float* d, const float* a_high, const float* a_low, const float* b_high, const float* b_low) {
    emulation::Lane own;
    for (int i = 0; i < 4; i++) own.in[i] = cut_to_tf32(a_high[i]), own.in[4 + i] = cut_to_tf32(a_low[i]);
    for (int i = 0; i < 2; i++) own.in[8 + i] = cut_to_tf32(b_high[i]), own.in[10 + i] = cut_to_tf32(b_low[i]);
    const emulation::Lane& result = emulation::exchange(own, [](emulation::Lane* lane) {
        float a[2][16][8], b[2][8][8];
        for (int l = 0; l < 32; l++)
            for (int part = 0; part < 2; part++) {
                for (int i = 0; i < 4; i++) a[part][l / 4 + i % 2 * 8][l % 4 + i / 2 * 4] = lane[l].in[part * 4 + i];
                for (int i = 0; i < 2; i++) b[part][l % 4 + 4 * i][l / 4] = lane[l].in[8 + part * 2 + i];
            }
        for (int l = 0; l < 32; l++)
            for (int i = 0; i < 4; i++) {
                const int row = l / 4 + i / 2 * 8, column = l % 4 * 2 + i % 2;
                float sum = 0;
                for (int k = 0; k < 8; k++)
                    sum += a[1][row][k] * b[0][k][column] + a[0][row][k] * b[1][k][column] + a[0][row][k] * b[0][k][column];
                lane[l].out[i] = sum;
            }
    });
    for (int i = 0; i < 4; i++) d[i] += result.out[i];
}

static inline void add_to_global(float* p, float4 v) { p[0] += v.x, p[1] += v.y, p[2] += v.z, p[3] += v.w; }

static inline float half_to_float(u16 x) { _Float16 h; memcpy(&h, &x, 2); return float(h); }
static inline u16 float_to_half(float x) { const _Float16 h = _Float16(x); u16 y; memcpy(&y, &h, 2); return y; }
static inline u16 float_to_bfloat16(float x) {
    const u32 bits = float_to_bits(x);
    return x != x ? 0x7fff : u16((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

}  // namespace omni
