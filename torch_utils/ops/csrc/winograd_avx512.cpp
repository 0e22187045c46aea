// Convolutions with AVX-512.
#include "winograd.h"
#define OMNI_ISA avx512
#define OMNI_WIDTH 16
#define OMNI_TARGET "target_avx512.h"
#define OMNI_KERNELS "winograd_kernel.h"
#define OMNI_GETTER const WinogradKernels* winograd_avx512()
#include "instruction_set.h"
