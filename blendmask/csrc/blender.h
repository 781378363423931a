// The blender's rules for one sample of a mask, shared by the CPU and the CUDA kernels.
#pragma once

#include <cmath>
#include <cstdint>

#include "projects/csrc/exp_minus.h"
#include "projects/csrc/host_device.h"
#include "taps.h"

namespace blendmask {

struct Options {
  int64_t resolution, attention_size;
  double spatial_scale;
  int64_t sampling_ratio;
  bool nearest;
};

// One side of a box in the bases, cut into bins, one a sample of the mask. A sample is the mean of the bases at so many
// points along each side of its bin.
template <typename T>
struct Side {
  T start, bin;
  int64_t points;
};

// The side from `first` to `last`, in pixels of the image, as ROIAlign (aligned) cuts it. It has no points where the
// box isn't finite, and where as many points are asked for as a bin has pixels and the bin is empty or turned round.
template <typename T>
HOST_DEVICE Side<T> cut_side(T first, T last, const Options& options) {
  constexpr T kMostPoints = 4096;  // to a bin of as many pixels
  const T scale = T(options.spatial_scale), half = T(0.5);
  const T start = first * scale - half, length = last * scale - half - start;
  const T bin = length / T(options.resolution);
  if (!std::isfinite(start) || !std::isfinite(length)) return {0, 0, 0};
  if (options.sampling_ratio > 0) return {start, bin, options.sampling_ratio};
  const T pixels = std::ceil(bin);
  return {start, bin, int64_t(pixels < 0 ? 0 : pixels > kMostPoints ? kMostPoints : pixels)};
}

// Where a point of a sample lies in one of the `size` lines of the bases, and its share in the mean along this side.
// Less than a pixel outside the bases are as at their border; farther out they are 0.
template <typename T>
HOST_DEVICE Taps<T> crop_taps(const Side<T>& side, int64_t sample, int64_t point, int64_t size) {
  const T position = side.start + T(sample) * side.bin + (T(point) + T(0.5)) * side.bin / T(side.points);
  if (!(position >= -1 && position <= T(size))) return {0, 0, 0, 0};
  const T inside = position > 0 ? position : 0, share = T(1) / T(side.points);
  const int64_t low = int64_t(inside);
  if (low >= size - 1) return {size - 1, size - 1, share, 0};
  return {low, low + 1, (1 - (inside - T(low))) * share, (inside - T(low)) * share};
}

// Where a sample of the mask lies along the attention.
template <typename T>
HOST_DEVICE Taps<T> attention_taps(int64_t sample, const Options& options) {
  const int64_t size = options.attention_size, last = size - 1;
  if (options.nearest) {
    // In single precision, and the product rounded down, as PyTorch decides it.
    const int64_t nearest = int64_t(float(sample) * (float(size) / float(options.resolution)));
    return {nearest < last ? nearest : last, 0, 1, 0};
  }
  const T position = (T(sample) + T(0.5)) * (T(size) / T(options.resolution)) - T(0.5);
  const T inside = position > 0 ? position : 0;
  const int64_t low = int64_t(inside) < last ? int64_t(inside) : last;
  return {low, low < last ? low + 1 : last, 1 - (inside - T(low)), inside - T(low)};
}

// How far a logit is below the largest one. What weighs less than exp(-80) of that makes no difference.
template <typename T>
HOST_DEVICE T softmax_distance(T largest, T logit) {
  const T distance = largest - logit;
  return distance > 80 ? 80 : distance;  // a NaN stays
}

// exp(-distance)
HOST_DEVICE float softmax_term(float distance) { return projects::exp_minus(distance); }
HOST_DEVICE double softmax_term(double distance) { return std::exp(-distance); }

}  // namespace blendmask
