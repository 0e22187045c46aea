// Convolutions with AVX2, in products of 16-bit integers.
#include "winograd.h"
#define OMNI_INT16_PRODUCTS
#define OMNI_ISA avx2_int16
#define OMNI_WIDTH 8
#define OMNI_TARGET "target_avx2.h"
#define OMNI_KERNELS "winograd_kernel.h"
#define OMNI_GETTER const WinogradKernels* winograd_avx2_int16()
#include "instruction_set.h"
