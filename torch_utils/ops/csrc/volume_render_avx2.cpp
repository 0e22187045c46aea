// The renderer with AVX2.
#include "volume_render.h"
#define OMNI_ISA avx2
#define OMNI_WIDTH 8
#define OMNI_TARGET "target_avx2.h"
#define OMNI_KERNELS "volume_render_isa.h"
#define OMNI_GETTER const Kernels* kernels_avx2()
#include "instruction_set.h"
