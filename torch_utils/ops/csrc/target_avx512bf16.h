// Functions from here to target_end.h are compiled for avx,avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx,avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx,avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")
#endif
