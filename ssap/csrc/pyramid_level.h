// What the network says at one level of the pyramid.
#pragma once

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

struct PyramidLevel {
  int64_t height, width;
  int64_t window;           // the side of the affinity's window
  int64_t num_classes;
  const float* affinities;  // [window² - 1, height, width]
  const float* semantics;   // [num_classes, height, width]

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
