// The op aggmask::mask_intersections on the CPU.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <cstdint>

#include "packed_masks.h"

namespace aggmask {
namespace {

// The numbers of pixels, int32 [N, N], that every two masks of the same class share; 0 for two of different ones.
at::Tensor mask_intersections(const at::Tensor& masks, const at::Tensor& classes) {
  TORCH_CHECK_VALUE(
      masks.dim() == 3 && masks.scalar_type() == at::kBool && classes.dim() == 1 && classes.size(0) == masks.size(0) &&
          classes.scalar_type() == at::kLong,
      "mask_intersections takes masks bool [N, H, W] and classes int64 [N], but got ", masks.scalar_type(), " ",
      masks.sizes(), " and ", classes.scalar_type(), " ", classes.sizes());
  const at::Tensor m = masks.contiguous(), c = classes.contiguous();
  const int64_t count = m.size(0), pixels = m.size(1) * m.size(2);
  const bool* mask = m.const_data_ptr<bool>();
  const int64_t* category = c.const_data_ptr<int64_t>();

  PackedMasks packed(count, m.size(1), m.size(2));
  at::parallel_for(0, count, 1, [&](int64_t first, int64_t last) {
    for (int64_t n = first; n < last; ++n) packed.pack(n, mask + n * pixels);
  });

  at::Tensor intersections = at::zeros({count, count}, c.options().dtype(at::kInt));
  int32_t* shared = intersections.mutable_data_ptr<int32_t>();
  const auto intersect = [&](int64_t i) {
    for (int64_t j = 0; j <= i; ++j)
      if (category[i] == category[j])
        shared[i * count + j] = shared[j * count + i] = int32_t(packed.intersection(i, j));
  };
  // A short row and a long one at a time: the threads' shares are alike.
  at::parallel_for(0, (count + 1) / 2, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      intersect(i);
      if (i != count - 1 - i) intersect(count - 1 - i);
    }
  });
  return intersections;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(aggmask, m) { m.def("mask_intersections(Tensor masks, Tensor classes) -> Tensor"); }

TORCH_LIBRARY_IMPL(aggmask, CPU, m) { m.impl("mask_intersections", &mask_intersections); }

}  // namespace aggmask
