// The renderer with AVX-512.
#include "volume_render.h"
#define OMNI_ISA avx512
#define OMNI_WIDTH 16
#define OMNI_TARGET "target_avx512.h"
#define OMNI_KERNELS "volume_render_isa.h"
#define OMNI_GETTER const Kernels* kernels_avx512()
#include "instruction_set.h"
