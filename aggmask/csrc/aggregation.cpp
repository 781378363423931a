// The op aggmask::aggregate and its backward on the CPU.
#include "aggregation.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <cstdint>
#include <tuple>

namespace aggmask {
namespace {

constexpr int64_t num_weights(int64_t inputs) {
  return kHidden * (9 * inputs + 1) + kHidden * (9 * kHidden + 1) + 9 * kHidden + 1;
}

void check_indices(const at::Tensor& indices, int64_t count, const char* what) {
  const int64_t* index = indices.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < indices.numel(); ++i)
    TORCH_CHECK_INDEX(0 <= index[i] && index[i] < count, what, " ", index[i], " is asked for, of ", count);
}

// The tensors, which are contiguous, as what they are.
Instances instances_of(
    const at::Tensor& maps, const at::Tensor& context, const at::Tensor& weights, const at::Tensor& neighbours,
    const at::Tensor& images) {
  TORCH_CHECK_VALUE(
      maps.dim() == 3 && context.dim() == 4 && weights.dim() == 2 && neighbours.dim() == 2 && images.dim() == 1 &&
          maps.size(1) == context.size(2) && maps.size(2) == context.size(3) && weights.size(0) == images.size(0) &&
          neighbours.size(0) == images.size(0) && weights.size(1) == num_weights(neighbours.size(1) + context.size(1)),
      "aggregate takes maps [U, H, W], context [B, C, H, W], weights [P, as many as N + C inputs need], "
      "neighbours [P, N] and image_index [P], but got ", maps.sizes(), ", ", context.sizes(), ", ", weights.sizes(),
      ", ", neighbours.sizes(), " and ", images.sizes());
  for (const at::Tensor& x : {maps, context, weights})
    TORCH_CHECK_VALUE(x.scalar_type() == at::kFloat, "aggregate takes float32, but got ", x.scalar_type());
  for (const at::Tensor& x : {neighbours, images})
    TORCH_CHECK_VALUE(x.scalar_type() == at::kLong, "aggregate takes indices as int64, but got ", x.scalar_type());
  check_indices(neighbours, maps.size(0), "map");
  check_indices(images, context.size(0), "image");
  return {
      maps.const_data_ptr<float>(), context.const_data_ptr<float>(), weights.const_data_ptr<float>(),
      neighbours.const_data_ptr<int64_t>(), images.const_data_ptr<int64_t>(), images.size(0), neighbours.size(1),
      context.size(1), weights.size(1), maps.size(1), maps.size(2)};
}

at::Tensor aggregate(
    const at::Tensor& maps, const at::Tensor& context, const at::Tensor& weights, const at::Tensor& neighbours,
    const at::Tensor& image_index) {
  const at::Tensor m = maps.contiguous(), c = context.contiguous(), w = weights.contiguous();
  const at::Tensor n = neighbours.contiguous(), i = image_index.contiguous();
  const Instances instances = instances_of(m, c, w, n, i);
  at::Tensor masks = at::empty({instances.count, instances.height, instances.width}, m.options());
  float* mask = masks.mutable_data_ptr<float>();
  // Band after band: the context stays where it is from instance to instance.
  at::parallel_for(0, instances.bands() * instances.count, 1, [&](int64_t first, int64_t last) {
    BandAggregation aggregation(instances);
    for (int64_t task = first; task < last; ++task) {
      const int64_t p = task % instances.count;
      if (task == first || p == 0) aggregation.move_to(instances.band(task / instances.count));
      aggregation.forward(p, mask + p * instances.area());
    }
  });
  return masks;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> aggregate_backward(
    const at::Tensor& grad, const at::Tensor& maps, const at::Tensor& context, const at::Tensor& weights,
    const at::Tensor& neighbours, const at::Tensor& image_index) {
  const at::Tensor m = maps.contiguous(), c = context.contiguous(), w = weights.contiguous();
  const at::Tensor n = neighbours.contiguous(), i = image_index.contiguous(), g = grad.contiguous();
  const Instances instances = instances_of(m, c, w, n, i);
  TORCH_CHECK_VALUE(
      g.dim() == 3 && g.size(0) == instances.count && g.size(1) == instances.height && g.size(2) == instances.width &&
          g.scalar_type() == at::kFloat,
      "aggregate_backward takes a float32 gradient [P, H, W], but got ", g.scalar_type(), " ", g.sizes());
  at::Tensor grad_maps = at::zeros_like(m), grad_context = at::zeros_like(c);
  at::Tensor shares = at::empty({instances.bands(), instances.count, instances.num_weights}, w.options());
  const float* mask = g.const_data_ptr<float>();
  float *map = grad_maps.mutable_data_ptr<float>(), *ctx = grad_context.mutable_data_ptr<float>();
  float* share = shares.mutable_data_ptr<float>();
  // A band's rows are one thread's alone, so that all sums are the same in every run.
  at::parallel_for(0, instances.bands(), 1, [&](int64_t first, int64_t last) {
    BandAggregation aggregation(instances);
    for (int64_t b = first; b < last; ++b) {
      aggregation.move_to(instances.band(b));
      for (int64_t p = 0; p < instances.count; ++p)
        aggregation.backward(
            p, mask + p * instances.area(), map, ctx, share + (b * instances.count + p) * instances.num_weights);
    }
  });
  return {grad_maps, grad_context, shares.sum(0)};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(aggmask, m) {
  m.def("aggregate(Tensor maps, Tensor context, Tensor weights, Tensor neighbours, Tensor image_index) -> Tensor");
  m.def(
      "aggregate_backward(Tensor grad, Tensor maps, Tensor context, Tensor weights, Tensor neighbours, "
      "Tensor image_index) -> (Tensor grad_maps, Tensor grad_context, Tensor grad_weights)");
}

TORCH_LIBRARY_IMPL(aggmask, CPU, m) {
  m.impl("aggregate", &aggregate);
  m.impl("aggregate_backward", &aggregate_backward);
}

}  // namespace aggmask
