// Pasting masks on the GPU: the blocks of each mask go through the pixels that its box reaches.
#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>

#include "mask_pasting.h"
#include "mask_pasting_arguments.h"

namespace blendmask {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kBlocksPerMask = 64;
constexpr int64_t kMostMasks = 65535;  // in one launch; blocks go on with further masks

__device__ float sample(const float* mask, int64_t size, const Taps<float>& row, const Taps<float>& column) {
  const auto line = [&](int64_t y) {
    return column.low_weight * mask[y * size + column.low] + column.high_weight * mask[y * size + column.high];
  };
  return row.low_weight * line(row.low) + row.high_weight * line(row.high);
}

__global__ void paste(
    const float* masks, const float* boxes, int64_t count, int64_t size, int64_t height, int64_t width, float threshold,
    bool* pasted) {
  for (int64_t n = blockIdx.y; n < count; n += gridDim.y) {
    const float* box = boxes + 4 * n;
    const PastedSide columns = paste_side(box[0], box[2], width), rows = paste_side(box[1], box[3], height);
    const int64_t reached_width = columns.last - columns.first, area = reached_width * (rows.last - rows.first);
    for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < area; i += int64_t(gridDim.x) * blockDim.x) {
      const int64_t y = rows.first + i / reached_width, x = columns.first + i % reached_width;
      const float value =
          sample(masks + n * size * size, size, paste_taps(rows, y, size), paste_taps(columns, x, size));
      pasted[(n * height + y) * width + x] = value >= threshold;
    }
  }
}

at::Tensor paste_masks(
    const at::Tensor& masks, const at::Tensor& boxes, int64_t height, int64_t width, double threshold) {
  check_arguments(masks, boxes, height, width, threshold);
  const c10::cuda::CUDAGuard guard(masks.device());
  const at::Tensor m = masks.contiguous(), b = boxes.contiguous();
  const int64_t count = m.size(0);
  const at::Tensor pasted = at::zeros({count, height, width}, m.options().dtype(at::kBool));
  if (pasted.numel() == 0) return pasted;
  const dim3 grid(
      unsigned(std::min((height * width + kThreads - 1) / kThreads, kBlocksPerMask)),
      unsigned(std::min(count, kMostMasks)));
  paste<<<grid, kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
      m.const_data_ptr<float>(), b.const_data_ptr<float>(), count, m.size(1), height, width, float(threshold),
      pasted.mutable_data_ptr<bool>());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return pasted;
}

}  // namespace

TORCH_LIBRARY_IMPL(blendmask, CUDA, m) { m.impl("paste_masks", &paste_masks); }

}  // namespace blendmask
