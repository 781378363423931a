// An exponential function for loops over many elements, in C++ and in CUDA kernels alike.
#pragma once

#include <cstdint>
#include <cstring>

#include "host_device.h"

namespace projects {

// exp(-distance) for a distance of 0 to 80, to 2e-7 of its value, as 2^n · exp(r) with integer n and
// |r| <= log(2) / 2. Compilers make vector instructions of it, unlike of std::exp.
HOST_DEVICE float exp_minus(float distance) {
  constexpr float kRound = 0x1.8p23f;  // what is added to it keeps no digit after the point
  const float shifted = kRound - distance * 0x1.715476p0f;
  const float n = shifted - kRound;
  const float r = -distance - n * 0x1.62e4p-1f - n * 0x1.7f7d1cp-20f;  // log(2) in two parts, n · the first is exact
  float power = 1.0f / 5040;
  power = power * r + 1.0f / 720;
  power = power * r + 1.0f / 120;
  power = power * r + 1.0f / 24;
  power = power * r + 1.0f / 6;
  power = power * r + 1.0f / 2;
  power = power * r + 1.0f;
  power = power * r + 1.0f;
  uint32_t exponent, bits;
  std::memcpy(&exponent, &shifted, sizeof(float));
  std::memcpy(&bits, &power, sizeof(float));
  bits += exponent << 23;
  std::memcpy(&power, &bits, sizeof(float));
  return power;
}

}  // namespace projects
