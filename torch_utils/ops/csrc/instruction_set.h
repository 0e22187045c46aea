// Body of a file that compiles kernels for one instruction set of x86-64, or offers none on other machines. The file says
// which and how before it includes this: OMNI_ISA and OMNI_WIDTH (see simd.h), OMNI_TARGET, one of the target_<set>.h,
// OMNI_KERNELS, the header whose `table` they are, and OMNI_GETTER, the declaration of the function that returns it.
#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#include OMNI_TARGET
#include OMNI_KERNELS
#include "target_end.h"

namespace omni {
OMNI_GETTER { return &OMNI_ISA::table; }
}  // namespace omni

#else

namespace omni {
OMNI_GETTER { return nullptr; }
}  // namespace omni

#endif
