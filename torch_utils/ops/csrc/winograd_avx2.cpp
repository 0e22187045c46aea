// Convolutions with AVX2.
#include "winograd.h"
#define OMNI_ISA avx2
#define OMNI_WIDTH 8
#define OMNI_TARGET "target_avx2.h"
#define OMNI_KERNELS "winograd_kernel.h"
#define OMNI_GETTER const WinogradKernels* winograd_avx2()
#include "instruction_set.h"
