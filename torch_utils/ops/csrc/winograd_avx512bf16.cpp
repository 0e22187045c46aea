// Convolutions with AVX-512, in products of bfloat16.
#include "winograd.h"
#define OMNI_HALF_PRODUCTS
#define OMNI_ISA avx512bf16
#define OMNI_WIDTH 16
#define OMNI_TARGET "target_avx512bf16.h"
#define OMNI_KERNELS "winograd_kernel.h"
#define OMNI_GETTER const WinogradKernels* winograd_avx512bf16()
#include "instruction_set.h"
