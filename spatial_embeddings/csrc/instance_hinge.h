// The Lovász-hinge of an object's gaussian: the rules for one pixel, shared by the CPU and the CUDA kernels.
#pragma once

#include <cmath>
#include <cstdint>

#include "projects/csrc/exp_minus.h"
#include "projects/csrc/host_device.h"

namespace spatial_embeddings {

using projects::exp_minus;

// What an object attracts by: phi = exp(-distance).
struct Attraction {
  float center_x, center_y;
  float precision_x, precision_y;
};

HOST_DEVICE float attraction_distance(const Attraction& a, float x, float y) {
  const float dx = x - a.center_x, dy = y - a.center_y;
  return dx * dx * a.precision_x + dy * dy * a.precision_y;
}

// Other pixels of a smaller phi are left out. Their hinge errors, 2 phi, weigh 1 together at most, so the loss of an
// object changes by less than twice this.
constexpr float kNegligiblePhi = 1e-8f;

// The distance from which on other pixels contribute nothing. Once all own pixels are got wrong the Jaccard loss is 1
// and stays so: an error, 2 phi, below the smallest of the own ones, 2 - 2 phi, weighs 0.
HOST_DEVICE float reach(float smallest_own_distance) {
  const float phi = -std::expm1(-smallest_own_distance);
  return -std::log(phi > kNegligiblePhi ? phi : kNegligiblePhi);
}

// Half a pixel's hinge error, 0 to 1.
HOST_DEVICE float half_error(bool own, float phi) { return own ? 1 - phi : phi; }

// By how much the Jaccard loss, (own + others) / (size + others), grows with a pixel that is got wrong: the own-th of
// the object's `size` pixels or the others-th of all others.
HOST_DEVICE double jaccard_growth(bool is_own, int64_t own, int64_t others, int64_t size) {
  const double outside = double(size + others);
  return is_own ? 1 / outside : double(size - own) / (outside * (outside - 1));
}

constexpr int kKeyBits = 24;

// Orders pixels by decreasing error, in steps of 2^-24 of half an error: single precision near 1. NaN is last.
HOST_DEVICE uint32_t sorting_key(float half_error) {
  constexpr float kScale = 1 << kKeyBits;
  const float key = (1 - half_error) * kScale;
  return key < kScale - 1 ? uint32_t(int32_t(key > 0 ? key : 0)) : (1u << kKeyBits) - 1;
}

}  // namespace spatial_embeddings
