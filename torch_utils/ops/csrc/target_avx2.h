// Functions from here to target_end.h are compiled for avx,avx2,fma.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx,avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx,avx2,fma")
#endif
