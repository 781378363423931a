// The blender on the CPU. Crops and enlarged attention are made for a few detections at a time, for the gradients again.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "blender.h"
#include "blender_arguments.h"
#include "interpolation.h"

namespace blendmask {
namespace {

// Detections whose crops are in memory at once while gradients are computed.
constexpr int64_t kBatch = 32;

// Samples whose softmax is computed at once.
constexpr int64_t kStrip = 64;

template <typename T>
struct Inputs {
  Options options;
  int64_t samples;  // R·R
  int64_t images, num_bases, height, width;
  const T *bases, *boxes, *attention;
  Interpolation<T> enlarging;  // of the attention, along either side

  Inputs(const Options& o, const at::Tensor& all_bases, const at::Tensor& all_boxes, const at::Tensor& all_attention)
      : options(o),
        samples(o.resolution * o.resolution),
        images(all_bases.size(0)),
        num_bases(all_bases.size(1)),
        height(all_bases.size(2)),
        width(all_bases.size(3)),
        bases(all_bases.const_data_ptr<T>()),
        boxes(all_boxes.const_data_ptr<T>()),
        attention(all_attention.const_data_ptr<T>()) {
    enlarging.fill(o.resolution, 1, [&](int64_t sample, int64_t) { return attention_taps<T>(sample, o); });
    for (int64_t n = 0; n < all_boxes.size(0); ++n)
      TORCH_CHECK_INDEX(
          boxes[5 * n] >= 0 && boxes[5 * n] < images, "Box ", n, " is of image ", boxes[5 * n], ", but there are ",
          images);
  }

  int64_t image(int64_t n) const { return int64_t(boxes[5 * n]); }
  const T* base(int64_t image, int64_t k) const { return bases + (image * num_bases + k) * height * width; }
  const T* attention_of(int64_t n, int64_t k) const {
    return attention + (n * num_bases + k) * options.attention_size * options.attention_size;
  }
};

// Softmax over `count` planes of `size` numbers, in place.
template <typename T>
void softmax(T* planes, int64_t count, int64_t size) {
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
      // In a loop of its own: compilers make no vector instructions of the choice and the exponential together.
      for (int64_t i = 0; i < length; ++i) terms[i] = softmax_distance(largest[i], terms[i]);
      for (int64_t i = 0; i < length; ++i) {
        terms[i] = softmax_term(terms[i]);
        sum[i] += terms[i];
      }
    }
    for (int64_t i = 0; i < length; ++i) sum[i] = 1 / sum[i];
    for (int64_t k = 0; k < count; ++k)
      for (int64_t i = 0; i < length; ++i) strip[k * size + i] *= sum[i];
  }
}

// What one thread needs for one detection after the other.
template <typename T>
struct Workspace {
  std::vector<T> shares;  // [K, R, R], softmax of the enlarged attention
  std::vector<T> mask;    // [R, R]
  Lines<T> lines;
};

// The crops of one detection after the other, which `differentiate` turns into the gradient by them.
template <typename T>
class Crops {
 public:
  // Also makes what the crops weigh, work.shares.
  void make(const Inputs<T>& in, int64_t n, Workspace<T>& work) {
    image_ = in.image(n);
    const T* box = in.boxes + 5 * n;
    cut(in, box[1], box[3], in.width, columns_);
    cut(in, box[2], box[4], in.height, rows_);
    crops_.resize(in.num_bases * in.samples), work.shares.resize(in.num_bases * in.samples);
    for (int64_t k = 0; k < in.num_bases; ++k) {
      const Plane<const T> base{in.base(image_, k), in.height, in.width};
      resample(rows_, columns_, base, work.lines, &crops_[k * in.samples]);
      const Plane<const T> attention{in.attention_of(n, k), in.options.attention_size, in.options.attention_size};
      resample(in.enlarging, in.enlarging, attention, work.lines, &work.shares[k * in.samples]);
    }
    softmax(work.shares.data(), in.num_bases, in.samples);
  }

  // mask: [R, R].
  void blend(const Inputs<T>& in, const Workspace<T>& work, T* mask) const {
    std::fill_n(mask, in.samples, T(0));
    for (int64_t k = 0; k < in.num_bases; ++k) {
      const T *crop = &crops_[k * in.samples], *share = &work.shares[k * in.samples];
      for (int64_t i = 0; i < in.samples; ++i) mask[i] += share[i] * crop[i];
    }
  }

  // gradient: by the mask [R, R]. Adds the gradient by the attention [K, M, M].
  void differentiate(const Inputs<T>& in, const T* gradient, Workspace<T>& work, T* by_attention) {
    const int64_t side = in.options.attention_size;
    work.mask.resize(in.samples);
    T* const mask = work.mask.data();
    blend(in, work, mask);
    for (int64_t k = 0; k < in.num_bases; ++k) {
      T *crop = &crops_[k * in.samples], *share = &work.shares[k * in.samples];
      for (int64_t i = 0; i < in.samples; ++i) {
        const T by_crop = gradient[i] * share[i];
        share[i] = by_crop * (crop[i] - mask[i]);  // by the enlarged attention
        crop[i] = by_crop;
      }
      const Plane<T> attention{by_attention + k * side * side, side, side};
      add_resample_gradient(in.enlarging, in.enlarging, share, work.lines, attention);
    }
  }

  // After `differentiate`: adds the gradient by the k-th base [h, w] of the detection's image.
  void add_base_gradient(const Inputs<T>& in, int64_t k, Lines<T>& lines, T* base) const {
    add_resample_gradient(rows_, columns_, &crops_[k * in.samples], lines, Plane<T>{base, in.height, in.width});
  }

  int64_t image() const { return image_; }

 private:
  static void cut(const Inputs<T>& in, T first, T last, int64_t size, Interpolation<T>& table) {
    const Side<T> side = cut_side(first, last, in.options);
    table.fill(in.options.resolution, side.points, [&](int64_t sample, int64_t point) {
      return crop_taps(side, sample, point, size);
    });
  }

  int64_t image_ = 0;
  Interpolation<T> rows_, columns_;
  std::vector<T> crops_;  // [K, R, R]
};

template <typename T>
at::Tensor blend_as(
    const Options& options, const at::Tensor& bases, const at::Tensor& boxes, const at::Tensor& attention) {
  const Inputs<T> in(options, bases, boxes, attention);
  at::Tensor masks = at::empty({boxes.size(0), options.resolution, options.resolution}, bases.options());
  T* mask = masks.mutable_data_ptr<T>();
  at::parallel_for(0, boxes.size(0), 1, [&](int64_t first, int64_t last) {
    Crops<T> crops;
    Workspace<T> work;
    for (int64_t n = first; n < last; ++n) {
      crops.make(in, n, work);
      crops.blend(in, work, mask + n * in.samples);
    }
  });
  return masks;
}

template <typename T>
std::tuple<at::Tensor, at::Tensor> blend_backward_as(
    const Options& options, const at::Tensor& gradient, const at::Tensor& bases, const at::Tensor& boxes,
    const at::Tensor& attention) {
  const Inputs<T> in(options, bases, boxes, attention);
  at::Tensor by_bases = at::zeros(bases.sizes(), bases.options());
  at::Tensor by_attention = at::zeros(attention.sizes(), bases.options());
  T *by_base = by_bases.mutable_data_ptr<T>(), *by_cells = by_attention.mutable_data_ptr<T>();
  const T* by_mask = gradient.const_data_ptr<T>();
  const int64_t detections = boxes.size(0);
  std::vector<Crops<T>> batch(std::min(kBatch, detections));
  for (int64_t start = 0; start < detections; start += kBatch) {
    const int64_t count = std::min(kBatch, detections - start);
    at::parallel_for(0, count, 1, [&](int64_t first, int64_t last) {
      Workspace<T> work;
      for (int64_t i = first; i < last; ++i) {
        const int64_t n = start + i;
        batch[i].make(in, n, work);
        batch[i].differentiate(in, by_mask + n * in.samples, work, by_cells + n * attention.size(1));
      }
    });
    // No two threads add to the same base, and to each the detections are added in their order.
    at::parallel_for(0, in.images * in.num_bases, 1, [&](int64_t first, int64_t last) {
      Lines<T> lines;
      for (int64_t plane = first; plane < last; ++plane)
        for (int64_t i = 0; i < count; ++i)
          if (batch[i].image() == plane / in.num_bases)
            batch[i].add_base_gradient(in, plane % in.num_bases, lines, by_base + plane * in.height * in.width);
    });
  }
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
