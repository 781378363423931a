// What the network says at one level of the pyramid.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <cstdlib>
#include <vector>

namespace ssap {

// A neighbour in the window, after the pixel in raster order; and the affinity's channels of the pair, the pixel's and
// the neighbour's.
struct Offset {
  int64_t dy, dx;
  int64_t channel, reverse;
};

// A map of several channels: a plane for each (contiguous), or all of a pixel's together (channels last), as a CPU's
// convolutions leave it.
struct Channels {
  at::Tensor map;
  const float* data;
  int64_t channel_stride, pixel_stride;

  // Of a tensor [channels, height, width], which is copied where it has neither layout.
  explicit Channels(const at::Tensor& given) {
    const bool last = given.permute({1, 2, 0}).is_contiguous();
    map = last ? given : given.contiguous();
    data = map.const_data_ptr<float>();
    channel_stride = last ? 1 : map.size(1) * map.size(2);
    pixel_stride = last ? map.size(0) : 1;
  }

  const float* plane(int64_t channel) const { return data + channel * channel_stride; }
};

struct PyramidLevel {
  int64_t height, width;
  int64_t window;       // the side of the affinity's window
  int64_t num_classes;
  Channels affinities;  // [window² - 1, height, width]
  Channels semantics;   // [num_classes, height, width]

  int64_t size() const { return height * width; }

  // Every pair of neighbours once.
  std::vector<Offset> offsets() const {
    std::vector<Offset> offsets;
    const int64_t center = window * window / 2, radius = window / 2;
    for (int64_t i = center + 1; i < window * window; ++i)
      offsets.push_back({i / window - radius, i % window - radius, i - 1, 2 * center - i});
    return offsets;
  }

  // The columns at which a neighbour `dx` further is in the image.
  int64_t first_column(int64_t dx) const { return dx < 0 ? -dx : 0; }
  int64_t end_column(int64_t dx) const { return dx > 0 ? width - dx : width; }
};

}  // namespace ssap
