// The blender on the CPU. Crops and enlarged attention exist for one detection at a time in every thread; the gradients
// make them again.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "blender.h"
#include "blender_arguments.h"
#include "interpolation.h"

namespace blendmask {
namespace {

// Samples whose softmax is computed at once.
constexpr int64_t kStrip = 64;

template <typename T>
struct Inputs {
  Options options;
  int64_t samples;  // R·R
  int64_t detections, images, num_bases, height, width;
  const T *bases, *boxes, *attention;
  Interpolation<T> enlarging;  // of the attention, along either side

  Inputs(const Options& o, const at::Tensor& all_bases, const at::Tensor& all_boxes, const at::Tensor& all_attention)
      : options(o),
        samples(o.resolution * o.resolution),
        detections(all_boxes.size(0)),
        images(all_bases.size(0)),
        num_bases(all_bases.size(1)),
        height(all_bases.size(2)),
        width(all_bases.size(3)),
        bases(all_bases.const_data_ptr<T>()),
        boxes(all_boxes.const_data_ptr<T>()),
        attention(all_attention.const_data_ptr<T>()) {
    enlarging.fill(o.resolution, 1, [&](int64_t sample, int64_t) { return attention_taps<T>(sample, o); });
    for (int64_t n = 0; n < detections; ++n)
      TORCH_CHECK_INDEX(
          boxes[5 * n] >= 0 && boxes[5 * n] < images, "Box ", n, " is of image ", boxes[5 * n], ", but there are ",
          images);
  }

  int64_t image(int64_t n) const { return int64_t(boxes[5 * n]); }

  Plane<const T> base(int64_t image, int64_t k) const {
    return {bases + (image * num_bases + k) * height * width, height, width};
  }

  Plane<const T> attention_of(int64_t n, int64_t k) const {
    const int64_t side = options.attention_size;
    return {attention + (n * num_bases + k) * side * side, side, side};
  }
};

// Makes exponentials of logits, exp(logit − above), given numbers that are no less than the logits but for rounding.
template <typename T>
void to_terms(T* logits, const T* above, int64_t size) {
  // Two loops: compilers make no vector instructions of the choice and the exponential together.
  for (int64_t i = 0; i < size; ++i) logits[i] = softmax_distance(above[i], logits[i]);
  for (int64_t i = 0; i < size; ++i) logits[i] = softmax_term(logits[i]);
}

// Softmax over `count` planes of `size` logits, in place. log_sums: [size], where it isn't null, gets the logarithm of
// the sum of their exponentials.
template <typename T>
void softmax(T* planes, int64_t count, int64_t size, T* log_sums) {
  T largest[kStrip], sum[kStrip];
  for (int64_t first = 0; first < size; first += kStrip) {
    const int64_t length = std::min(kStrip, size - first);
    T* const strip = planes + first;
    std::copy_n(strip, length, largest);
    for (int64_t k = 1; k < count; ++k)
      for (int64_t i = 0; i < length; ++i) {
        const T logit = strip[k * size + i];
        largest[i] = logit > largest[i] ? logit : largest[i];
      }
    std::fill_n(sum, length, T(0));
    for (int64_t k = 0; k < count; ++k) {
      T* const terms = strip + k * size;
      to_terms(terms, largest, length);
      for (int64_t i = 0; i < length; ++i) sum[i] += terms[i];
    }
    if (log_sums)
      for (int64_t i = 0; i < length; ++i) log_sums[first + i] = largest[i] + std::log(sum[i]);
    for (int64_t i = 0; i < length; ++i) sum[i] = 1 / sum[i];
    for (int64_t k = 0; k < count; ++k)
      for (int64_t i = 0; i < length; ++i) strip[k * size + i] *= sum[i];
  }
}

// How one detection's bases are cropped.
template <typename T>
struct Window {
  Interpolation<T> rows, columns;

  void place(const Inputs<T>& in, int64_t n) {
    const T* box = in.boxes + 5 * n;
    cut(in, box[1], box[3], in.width, columns);
    cut(in, box[2], box[4], in.height, rows);
  }

 private:
  static void cut(const Inputs<T>& in, T first, T last, int64_t size, Interpolation<T>& table) {
    const Side<T> side = cut_side(first, last, in.options);
    table.fill(in.options.resolution, side.points, [&](int64_t sample, int64_t point) {
      return crop_taps(side, sample, point, size);
    });
  }
};

// The blending of one detection after the other.
template <typename T>
class Blender {
 public:
  explicit Blender(const Inputs<T>& in)
      : in_(in), crops_(in.num_bases * in.samples), shares_(in.num_bases * in.samples) {}

  // mask: [R, R]. log_sums: [R, R] or null, see `softmax`.
  void blend(int64_t n, T* mask, T* log_sums) {
    window_.place(in_, n);
    for (int64_t k = 0; k < in_.num_bases; ++k) {
      resample(window_.rows, window_.columns, in_.base(in_.image(n), k), lines_, crop(k));
      resample(in_.enlarging, in_.enlarging, in_.attention_of(n, k), lines_, share(k));
    }
    softmax(shares_.data(), in_.num_bases, in_.samples, log_sums);
    std::fill_n(mask, in_.samples, T(0));
    for (int64_t k = 0; k < in_.num_bases; ++k)
      for (int64_t i = 0; i < in_.samples; ++i) mask[i] += share(k)[i] * crop(k)[i];
  }

  // After `blend`, given the gradient by its mask: adds that by the attention [K, M, M].
  void add_attention_gradient(const T* gradient, const T* mask, T* by_attention) {
    const int64_t side = in_.options.attention_size;
    for (int64_t k = 0; k < in_.num_bases; ++k, by_attention += side * side) {
      T *weight = share(k), *value = crop(k);
      for (int64_t i = 0; i < in_.samples; ++i) weight[i] *= gradient[i] * (value[i] - mask[i]);
      add_resample_gradient(in_.enlarging, in_.enlarging, weight, lines_, Plane<T>{by_attention, side, side});
    }
  }

 private:
  T* crop(int64_t k) { return &crops_[k * in_.samples]; }
  T* share(int64_t k) { return &shares_[k * in_.samples]; }

  const Inputs<T>& in_;
  Window<T> window_;
  std::vector<T> crops_, shares_;  // [K, R, R]: of the bases, and what they weigh
  Lines<T> lines_;
};

// Adds the gradient by the k-th base [h, w] of an image, given that by all masks. log_sums: [N, R, R], of the detections'
// enlarged attention.
template <typename T>
void add_base_gradient(const Inputs<T>& in, int64_t image, int64_t k, const T* by_masks, const T* log_sums, T* by_base) {
  Window<T> window;
  Lines<T> lines;
  std::vector<T> by_crop(in.samples);
  for (int64_t n = 0; n < in.detections; ++n) {
    if (in.image(n) != image) continue;
    window.place(in, n);
    resample(in.enlarging, in.enlarging, in.attention_of(n, k), lines, by_crop.data());
    to_terms(by_crop.data(), log_sums + n * in.samples, in.samples);
    for (int64_t i = 0; i < in.samples; ++i) by_crop[i] *= by_masks[n * in.samples + i];
    add_resample_gradient(window.rows, window.columns, by_crop.data(), lines, Plane<T>{by_base, in.height, in.width});
  }
}

template <typename T>
at::Tensor blend_as(
    const Options& options, const at::Tensor& bases, const at::Tensor& boxes, const at::Tensor& attention) {
  const Inputs<T> in(options, bases, boxes, attention);
  at::Tensor masks = at::empty({in.detections, options.resolution, options.resolution}, bases.options());
  T* mask = masks.mutable_data_ptr<T>();
  at::parallel_for(0, in.detections, 1, [&](int64_t first, int64_t last) {
    Blender<T> blender(in);
    for (int64_t n = first; n < last; ++n) blender.blend(n, mask + n * in.samples, nullptr);
  });
  return masks;
}

template <typename T>
std::tuple<at::Tensor, at::Tensor> blend_backward_as(
    const Options& options, const at::Tensor& gradient, const at::Tensor& bases, const at::Tensor& boxes,
    const at::Tensor& attention) {
  const Inputs<T> in(options, bases, boxes, attention);
  const T* by_masks = gradient.const_data_ptr<T>();
  at::Tensor by_attention = at::zeros(attention.sizes(), bases.options());
  T* by_logits = by_attention.mutable_data_ptr<T>();
  std::vector<T> log_sums(in.detections * in.samples);
  at::parallel_for(0, in.detections, 1, [&](int64_t first, int64_t last) {
    Blender<T> blender(in);
    std::vector<T> mask(in.samples);
    for (int64_t n = first; n < last; ++n) {
      blender.blend(n, mask.data(), &log_sums[n * in.samples]);
      blender.add_attention_gradient(by_masks + n * in.samples, mask.data(), by_logits + n * attention.size(1));
    }
  });

  at::Tensor by_bases = at::zeros(bases.sizes(), bases.options());
  T* by_base = by_bases.mutable_data_ptr<T>();
  // A thread has bases to itself, and adds the detections in their order: the sums are the same in every run.
  at::parallel_for(0, in.images * in.num_bases, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i)
      add_base_gradient(
          in, i / in.num_bases, i % in.num_bases, by_masks, log_sums.data(), by_base + i * in.height * in.width);
  });
  return {by_bases, by_attention};
}

at::Tensor blend(
    const at::Tensor& bases, const at::Tensor& boxes, const at::Tensor& attention, int64_t resolution,
    int64_t attention_size, double spatial_scale, int64_t sampling_ratio, bool nearest) {
  const Options options = check_arguments(
      bases, boxes, attention, resolution, attention_size, spatial_scale, sampling_ratio, nearest);
  const auto run = bases.scalar_type() == at::kDouble ? blend_as<double> : blend_as<float>;
  return run(options, bases.contiguous(), boxes.contiguous(), attention.contiguous());
}

std::tuple<at::Tensor, at::Tensor> blend_backward(
    const at::Tensor& gradient, const at::Tensor& bases, const at::Tensor& boxes, const at::Tensor& attention,
    int64_t resolution, int64_t attention_size, double spatial_scale, int64_t sampling_ratio, bool nearest) {
  const Options options = check_arguments(
      bases, boxes, attention, resolution, attention_size, spatial_scale, sampling_ratio, nearest);
  check_gradient(gradient, bases, boxes, resolution);
  const auto run = bases.scalar_type() == at::kDouble ? blend_backward_as<double> : blend_backward_as<float>;
  return run(options, gradient.contiguous(), bases.contiguous(), boxes.contiguous(), attention.contiguous());
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(blendmask, m) {
  m.def(
      "blend(Tensor bases, Tensor boxes, Tensor attention, int resolution, int attention_size, float spatial_scale, "
      "int sampling_ratio, bool nearest) -> Tensor");
  m.def(
      "blend_backward(Tensor gradient, Tensor bases, Tensor boxes, Tensor attention, int resolution, "
      "int attention_size, float spatial_scale, int sampling_ratio, bool nearest) -> "
      "(Tensor by_bases, Tensor by_attention)");
}

TORCH_LIBRARY_IMPL(blendmask, CPU, m) {
  m.impl("blend", &blend);
  m.impl("blend_backward", &blend_backward);
}

}  // namespace blendmask
