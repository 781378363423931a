// What the clustering's kernels take, checked alike on every device.
#pragma once

#include <ATen/core/Tensor.h>

namespace spatial_embeddings {

inline void check_arguments(
    const at::Tensor& embeddings, const at::Tensor& bandwidth, const at::Tensor& seeds, int64_t min_pixels) {
  TORCH_CHECK_VALUE(
      embeddings.dim() == 3 && bandwidth.dim() == 3 && seeds.dim() == 3 && embeddings.size(0) == 2 &&
          (bandwidth.size(0) == 1 || bandwidth.size(0) == 2) &&
          embeddings.sizes().slice(1) == seeds.sizes().slice(1) && bandwidth.sizes().slice(1) == seeds.sizes().slice(1),
      "cluster takes embeddings [2, H, W], bandwidth [1 or 2, H, W] and seeds [C, H, W], but got ", embeddings.sizes(),
      ", ", bandwidth.sizes(), " and ", seeds.sizes());
  TORCH_CHECK_VALUE(
      embeddings.device() == seeds.device() && bandwidth.device() == seeds.device(),
      "cluster takes tensors of one device, but got ", embeddings.device(), ", ", bandwidth.device(), " and ",
      seeds.device());
  TORCH_CHECK_VALUE(min_pixels >= 0, "min_pixels must be 0 or more, not ", min_pixels);
}

}  // namespace spatial_embeddings
