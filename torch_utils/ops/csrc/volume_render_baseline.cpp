// The renderer for what every machine of the architecture has: SSE2, NEON.
#define OMNI_ISA baseline
#define OMNI_WIDTH 4
#include "volume_render_isa.h"

namespace omni {
const Kernels* kernels_baseline() { return &baseline::table; }
}  // namespace omni
