// The blender on the GPU: a thread a sample of a mask. Nothing is stored but the result: the gradients compute crops
// and softmax again. They are added up in no fixed order.
#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/macros/Macros.h>
#include <torch/library.h>

#include <algorithm>

#include "blender.h"
#include "blender_arguments.h"

namespace blendmask {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 1 << 20;  // threads go on with further samples

template <typename T>
struct Inputs {
  Options options;
  int64_t images, num_bases, height, width, detections;
  const T *bases, *boxes, *attention;
};

// What one sample of a mask is made from.
template <typename T>
class Sample {
 public:
  __device__ Sample(const Inputs<T>& in, int64_t index) : in_(in) {
    const int64_t size = in.options.resolution;
    n_ = index / (size * size), row_ = index / size % size, column_ = index % size;
    const T* box = in.boxes + 5 * n_;
    CUDA_KERNEL_ASSERT(box[0] >= 0 && box[0] < in.images);
    image_ = int64_t(box[0]);
    columns_ = cut_side(box[1], box[3], in.options), rows_ = cut_side(box[2], box[4], in.options);
    attention_column_ = attention_taps<T>(column_, in.options), attention_row_ = attention_taps<T>(row_, in.options);
    largest_ = logit(0);
    for (int64_t k = 1; k < in.num_bases; ++k) {
      const T other = logit(k);
      largest_ = other > largest_ ? other : largest_;
    }
    T sum = 0, value = 0;
    for (int64_t k = 0; k < in.num_bases; ++k) {
      const T weight = term(k);
      sum += weight, value += weight * crop(k);
    }
    sum_ = sum, value_ = value / sum;
  }

  __device__ T value() const { return value_; }

  // Adds the sample's part in the gradients, given that by its value.
  __device__ void add_gradients(T gradient, T* by_bases, T* by_attention) const {
    for (int64_t k = 0; k < in_.num_bases; ++k) {
      const T by_crop = gradient * term(k) / sum_, by_logit = by_crop * (crop(k) - value_);
      for_crop([&](int64_t cell, T weight) { atomicAdd(by_bases + base(k) + cell, weight * by_crop); });
      for_attention([&](int64_t cell, T weight) { atomicAdd(by_attention + logits(k) + cell, weight * by_logit); });
    }
  }

 private:
  __device__ int64_t base(int64_t k) const { return (image_ * in_.num_bases + k) * in_.height * in_.width; }

  __device__ int64_t logits(int64_t k) const {
    return (n_ * in_.num_bases + k) * in_.options.attention_size * in_.options.attention_size;
  }

  __device__ T crop(int64_t k) const {
    T value = 0;
    for_crop([&](int64_t cell, T weight) { value += weight * in_.bases[base(k) + cell]; });
    return value;
  }

  __device__ T logit(int64_t k) const {
    T value = 0;
    for_attention([&](int64_t cell, T weight) { value += weight * in_.attention[logits(k) + cell]; });
    return value;
  }

  __device__ T term(int64_t k) const { return softmax_term(softmax_distance(largest_, logit(k))); }

  // Calls visit(cell, weight) for all that the sample's crop of a base is interpolated from.
  template <typename Visit>
  __device__ void for_crop(Visit visit) const {
    for (int64_t i = 0; i < rows_.points; ++i) {
      const Taps<T> row = crop_taps(rows_, row_, i, in_.height);
      for (int64_t j = 0; j < columns_.points; ++j)
        for_square(row, crop_taps(columns_, column_, j, in_.width), in_.width, visit);
    }
  }

  template <typename Visit>
  __device__ void for_attention(Visit visit) const {
    for_square(attention_row_, attention_column_, in_.options.attention_size, visit);
  }

  template <typename Visit>
  __device__ static void for_square(const Taps<T>& row, const Taps<T>& column, int64_t width, Visit visit) {
    const auto visit_line = [&](int64_t line, T weight) {
      if (weight == 0) return;
      if (column.low_weight != 0) visit(line * width + column.low, weight * column.low_weight);
      if (column.high_weight != 0) visit(line * width + column.high, weight * column.high_weight);
    };
    visit_line(row.low, row.low_weight);
    visit_line(row.high, row.high_weight);
  }

  const Inputs<T>& in_;
  int64_t n_, row_, column_, image_;
  Side<T> rows_, columns_;
  Taps<T> attention_row_, attention_column_;
  T largest_, sum_, value_;
};

template <typename T>
__global__ void blend_samples(Inputs<T> in, T* masks) {
  const int64_t count = in.detections * in.options.resolution * in.options.resolution;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += int64_t(gridDim.x) * blockDim.x)
    masks[i] = Sample<T>(in, i).value();
}

template <typename T>
__global__ void differentiate_samples(Inputs<T> in, const T* gradient, T* by_bases, T* by_attention) {
  const int64_t count = in.detections * in.options.resolution * in.options.resolution;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += int64_t(gridDim.x) * blockDim.x)
    Sample<T>(in, i).add_gradients(gradient[i], by_bases, by_attention);
}

unsigned blocks(int64_t count) { return unsigned(std::min((count + kThreads - 1) / kThreads, kMostBlocks)); }

// The tensors are contiguous.
template <typename T>
Inputs<T> inputs(
    const Options& options, const at::Tensor& bases, const at::Tensor& boxes, const at::Tensor& attention) {
  return {
      options,
      bases.size(0),
      bases.size(1),
      bases.size(2),
      bases.size(3),
      boxes.size(0),
      bases.const_data_ptr<T>(),
      boxes.const_data_ptr<T>(),
      attention.const_data_ptr<T>()};
}

template <typename T>
at::Tensor blend_as(
    const Options& options, const at::Tensor& bases, const at::Tensor& boxes, const at::Tensor& attention) {
  const at::Tensor masks = at::empty({boxes.size(0), options.resolution, options.resolution}, bases.options());
  if (masks.numel() == 0) return masks;
  blend_samples<<<blocks(masks.numel()), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
      inputs<T>(options, bases, boxes, attention), masks.mutable_data_ptr<T>());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return masks;
}

template <typename T>
std::tuple<at::Tensor, at::Tensor> blend_backward_as(
    const Options& options, const at::Tensor& gradient, const at::Tensor& bases, const at::Tensor& boxes,
    const at::Tensor& attention) {
  const at::Tensor by_bases = at::zeros(bases.sizes(), bases.options());
  const at::Tensor by_attention = at::zeros(attention.sizes(), bases.options());
  if (gradient.numel() == 0) return {by_bases, by_attention};
  differentiate_samples<<<blocks(gradient.numel()), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
      inputs<T>(options, bases, boxes, attention), gradient.const_data_ptr<T>(), by_bases.mutable_data_ptr<T>(),
      by_attention.mutable_data_ptr<T>());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return {by_bases, by_attention};
}

at::Tensor blend(
    const at::Tensor& bases, const at::Tensor& boxes, const at::Tensor& attention, int64_t resolution,
    int64_t attention_size, double spatial_scale, int64_t sampling_ratio, bool nearest) {
  const Options options = check_arguments(
      bases, boxes, attention, resolution, attention_size, spatial_scale, sampling_ratio, nearest);
  const c10::cuda::CUDAGuard guard(bases.device());
  const auto run = bases.scalar_type() == at::kDouble ? blend_as<double> : blend_as<float>;
  return run(options, bases.contiguous(), boxes.contiguous(), attention.contiguous());
}

std::tuple<at::Tensor, at::Tensor> blend_backward(
    const at::Tensor& gradient, const at::Tensor& bases, const at::Tensor& boxes, const at::Tensor& attention,
    int64_t resolution, int64_t attention_size, double spatial_scale, int64_t sampling_ratio, bool nearest) {
  const Options options = check_arguments(
      bases, boxes, attention, resolution, attention_size, spatial_scale, sampling_ratio, nearest);
  check_gradient(gradient, bases, boxes, resolution);
  at::globalContext().alertNotDeterministic("blendmask::blend_backward on CUDA");
  const c10::cuda::CUDAGuard guard(bases.device());
  const auto run = bases.scalar_type() == at::kDouble ? blend_backward_as<double> : blend_backward_as<float>;
  return run(options, gradient.contiguous(), bases.contiguous(), boxes.contiguous(), attention.contiguous());
}

}  // namespace

TORCH_LIBRARY_IMPL(blendmask, CUDA, m) {
  m.impl("blend", &blend);
  m.impl("blend_backward", &blend_backward);
}

}  // namespace blendmask
