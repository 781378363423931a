// The cost of a pair of pixels, shared by C++ and CUDA.
#pragma once

#include <cstdint>
#include <cstring>

#include "projects/csrc/exp_minus.h"
#include "projects/csrc/host_device.h"

namespace ssap {

// Affinities are kept this far from 0 and 1.
constexpr float kMargin = 1e-4f;

// The natural logarithm of a number of 0 or more, to 3e-7 of its value, and about -88 of 0. Of x = 2^n · m, m between
// sqrt(1/2) and sqrt(2), it is n · log(2) + 2 · artanh((m - 1) / (m + 1)). Compilers make vector instructions of it,
// unlike of std::log.
HOST_DEVICE float log_of(float x) {
  constexpr int32_t kHalfRoot = 0x3f3504f3;  // the bits of sqrt(1/2)
  int32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  const int32_t n = (bits - kHalfRoot) >> 23;
  bits -= int32_t(uint32_t(n) << 23);
  float m;
  std::memcpy(&m, &bits, sizeof(m));
  const float t = (m - 1) / (m + 1), square = t * t;
  float series = 2.0f / 7;
  series = series * square + 2.0f / 5;
  series = series * square + 2.0f / 3;
  series = series * square + 2.0f;
  return float(n) * 0x1.62e43p-1f + series * t;
}

// The part of one class, of probability p, in a distribution's entropy. None of a class of probability 0.
HOST_DEVICE float entropy_of(float p) { return -p * log_of(p); }

// To a multiple of 2^-16: sums of such costs are exact in double precision, and so don't depend on their order.
HOST_DEVICE float rounded_cost(float cost) {
  constexpr float kRound = 0x1.8p7f;  // what is added to it keeps 16 binary digits after the point
  return (cost + kRound) - kRound;
}

// affinity · exp(-divergence), kept kMargin away from 0 and 1 (Section 3.3).
HOST_DEVICE float refined_affinity(float affinity, float divergence) {
  const float refined = affinity * projects::exp_minus(divergence);
  const float low = refined < kMargin ? kMargin : refined;
  return low > 1 - kMargin ? 1 - kMargin : low;
}

// The cost log(a / (1 - a)) of cutting a pair of a refined affinity: more than 0 where it is rather in one instance.
HOST_DEVICE float edge_cost(float refined) { return rounded_cost(log_of(refined / (1 - refined))); }

}  // namespace ssap
