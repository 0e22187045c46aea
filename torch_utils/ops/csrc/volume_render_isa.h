// Body of every volume_render_<isa>.cpp: the kernels of one instruction set as a table.
#include "volume_render_backward.h"

namespace omni { namespace OMNI_ISA {

#define OMNI_TEXT(x) #x
#define OMNI_NAME(x) OMNI_TEXT(x)

static const Kernels table = {OMNI_NAME(OMNI_ISA), forward_scratch, forward, backward_scratch, backward, block_rays, slot_points,
                              scatter_scratch, scatter_slot, query_scratch, query};

}}  // namespace omni::OMNI_ISA
