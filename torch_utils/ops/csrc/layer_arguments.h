// Arguments of a StyleGAN2 layer, as operators take them.
#pragma once

#include <ATen/ATen.h>

#include <optional>

#include "low_pass.h"

namespace omni {

using Optional = std::optional<at::Tensor>;

inline const float* checked(const Optional& t, const char* name, at::IntArrayRef shape) {
    if (!t) return nullptr;
    TORCH_CHECK(t->scalar_type() == at::kFloat && t->is_contiguous() && t->sizes() == shape, name, " must be float32 of shape ", shape);
    return t->const_data_ptr<float>();
}

// A low-pass filter as it meets the rows and columns of the transposed convolution, times 4, for three of four values were zeros;
// undefined without one.
inline at::Tensor turned_filter(const Optional& filter) {
    if (!filter) return {};
    TORCH_CHECK(filter->sizes() == at::IntArrayRef({SEPARABLE, SEPARABLE}), "a low-pass filter of 4x4 taps is needed");
    return filter->to(at::kFloat).flip({0, 1}).mul(4).contiguous();
}

}  // namespace omni
