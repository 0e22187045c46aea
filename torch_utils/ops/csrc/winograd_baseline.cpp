// 3x3 convolutions for what every machine of the architecture has: SSE2, NEON.
#include "winograd.h"

#define OMNI_ISA baseline
#define OMNI_WIDTH 4
#include "winograd_kernel.h"

namespace omni {
const WinogradKernels* winograd_baseline() { return &baseline::table; }
}  // namespace omni
