// Linear interpolation along a line of samples.
#pragma once

#include <cstdint>

namespace blendmask {

// The two samples that a value is interpolated from, and what they weigh: 0 and 0 where the value is 0.
template <typename T>
struct Taps {
  int64_t low, high;
  T low_weight, high_weight;
};

}  // namespace blendmask
