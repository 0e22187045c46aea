// The operators as one unit: reading PyTorch's headers takes far longer than compiling what each of these has to say.
#include "activation.cpp"
#include "few_pixels.cpp"
#include "upfirdn2d.cpp"
#include "volume_render.cpp"
#include "winograd.cpp"
