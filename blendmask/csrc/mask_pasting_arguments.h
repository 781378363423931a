// What the pasting's kernels take, checked alike on every device.
#pragma once

#include <ATen/core/Tensor.h>

namespace blendmask {

inline void check_arguments(
    const at::Tensor& masks, const at::Tensor& boxes, int64_t height, int64_t width, double threshold) {
  TORCH_CHECK_VALUE(
      masks.dim() == 3 && masks.size(1) == masks.size(2) && boxes.dim() == 2 && boxes.size(0) == masks.size(0) &&
          boxes.size(1) == 4 && (masks.size(1) > 0 || masks.size(0) == 0),
      "paste_masks takes masks [N, M, M] and boxes [N, 4], but got ", masks.sizes(), " and ", boxes.sizes());
  TORCH_CHECK_VALUE(
      masks.scalar_type() == at::kFloat && boxes.scalar_type() == at::kFloat && masks.device() == boxes.device(),
      "paste_masks takes float32 tensors of one device, but got ", masks.scalar_type(), " on ", masks.device(), " and ",
      boxes.scalar_type(), " on ", boxes.device());
  TORCH_CHECK_VALUE(
      height >= 0 && width >= 0 && threshold > 0, "height and width must be 0 or more and threshold above 0, not ",
      height, ", ", width, " and ", threshold);
}

}  // namespace blendmask
