// A band of an image's rows, and maps on it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "row_kernels.h"

namespace aggmask {

// Rows first..last − 1.
struct Rows {
  int64_t first, last;
};

struct Band {
  int64_t first, last, height;  // the band's rows, of the image's

  // The band's rows and `margin` more on either side, as far as they are in the image.
  Rows with(int64_t margin) const { return {std::max<int64_t>(0, first - margin), std::min(height, last + margin)}; }
};

// Maps on a band, 0 around the image.
class Planes {
 public:
  static constexpr int64_t kMargin = 4;  // rows on either side of the band

  Planes(int64_t channels, int64_t rows, int64_t width)
      : rows_(rows + 2 * kMargin),
        width_(width),
        stride_((width + kColumns - 1) / kColumns * kColumns + 2 * kPadding),
        values_(channels * rows_ * stride_) {}

  void move_to(const Band& band) {
    top_ = band.first - kMargin;
    std::fill(values_.begin(), values_.end(), 0.0f);
  }

  float* row(int64_t channel, int64_t y) { return &values_[place(channel, y)]; }
  const float* row(int64_t channel, int64_t y) const { return &values_[place(channel, y)]; }

  // Copies the rows of an image's map into a channel.
  void load(int64_t channel, const float* map, Rows rows) {
    for (int64_t y = rows.first; y < rows.last; ++y) std::copy_n(map + y * width_, width_, row(channel, y));
  }

 private:
  static constexpr int64_t kPadding = 8;  // columns on either side

  int64_t place(int64_t channel, int64_t y) const { return (channel * rows_ + y - top_) * stride_ + kPadding; }

  int64_t rows_, width_, stride_, top_ = 0;
  std::vector<float> values_;
};

}  // namespace aggmask
