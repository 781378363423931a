// What the blender's kernels take, checked alike on every device.
#pragma once

#include <ATen/core/Tensor.h>

#include "blender.h"

namespace blendmask {

inline Options check_arguments(
    const at::Tensor& bases, const at::Tensor& boxes, const at::Tensor& attention, int64_t resolution,
    int64_t attention_size, double spatial_scale, int64_t sampling_ratio, bool nearest) {
  TORCH_CHECK_VALUE(
      bases.dim() == 4 && bases.size(1) > 0 && bases.size(2) > 0 && bases.size(3) > 0 && boxes.dim() == 2 &&
          boxes.size(1) == 5 && attention.dim() == 2 && attention.size(0) == boxes.size(0) &&
          attention.size(1) == bases.size(1) * attention_size * attention_size,
      "blend takes bases [B, K, h, w], boxes [N, 5] and attention [N, K·M·M], but got ", bases.sizes(), ", ",
      boxes.sizes(), " and ", attention.sizes(), " with an attention size M of ", attention_size);
  const auto type = bases.scalar_type();
  TORCH_CHECK_VALUE(
      (type == at::kFloat || type == at::kDouble) && boxes.scalar_type() == type && attention.scalar_type() == type,
      "blend takes float32 or float64 tensors of one type, but got ", type, ", ", boxes.scalar_type(), " and ",
      attention.scalar_type());
  TORCH_CHECK_VALUE(
      boxes.device() == bases.device() && attention.device() == bases.device(),
      "blend takes tensors of one device, but got ", bases.device(), ", ", boxes.device(), " and ", attention.device());
  TORCH_CHECK_VALUE(
      resolution > 0 && attention_size > 0 && spatial_scale > 0,
      "resolution, attention_size and spatial_scale must be above 0, not ", resolution, ", ", attention_size, " and ",
      spatial_scale);
  return {resolution, attention_size, spatial_scale, sampling_ratio, nearest};
}

inline void check_gradient(
    const at::Tensor& gradient, const at::Tensor& bases, const at::Tensor& boxes, int64_t resolution) {
  TORCH_CHECK_VALUE(
      gradient.dim() == 3 && gradient.size(0) == boxes.size(0) && gradient.size(1) == resolution &&
          gradient.size(2) == resolution && gradient.scalar_type() == bases.scalar_type() &&
          gradient.device() == bases.device(),
      "blend_backward takes a gradient [N, R, R] of the bases' type and device, but got ", gradient.scalar_type(), " ",
      gradient.sizes());
}

}  // namespace blendmask
