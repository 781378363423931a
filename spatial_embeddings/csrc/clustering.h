// The clustering's rules for one pixel and one object, shared by the CPU and the CUDA kernels.
#pragma once

#include <cstdint>
#include <cstring>

#include "projects/csrc/host_device.h"

namespace spatial_embeddings {

// A pixel takes part in a class's clustering where its seed exceeds this.
constexpr float kHalf = 0.5f;

// phi = exp(-distance) exceeds 0.5 in single precision up to this distance: log(2) less two units in the last place,
// at which exp still rounds to 0.5.
constexpr float kHalfDistance = 0x1.62e42cp-1f;

struct Thresholds {
  float seed;              // the lowest seed that starts an object
  int64_t min_pixels;      // an object has more pixels than this
  double min_unclustered;  // more than this share of them belongs to no object yet
};

// An object's gaussian.
struct Gaussian {
  float center_x, center_y;
  float bandwidth_x, bandwidth_y;
};

// Whether phi > 0.5 at an embedding. Never where anything is NaN.
HOST_DEVICE bool belongs(const Gaussian& gaussian, float x, float y) {
  const float dx = x - gaussian.center_x, dy = y - gaussian.center_y;
  return dx * dx * gaussian.bandwidth_x + dy * dy * gaussian.bandwidth_y <= kHalfDistance;
}

// A pixel's rank as a seed: the higher score first, among equals the lower raster index. Scores are positive, and the
// bits of positive floats are in the floats' order. A clustered pixel's score is 0.
HOST_DEVICE uint64_t rank_of(float score, int32_t pixel) {
  uint32_t bits;
  std::memcpy(&bits, &score, sizeof(bits));
  return uint64_t(bits) << 32 | uint32_t(~pixel);
}

HOST_DEVICE float score_of(uint64_t rank) {
  const uint32_t bits = uint32_t(rank >> 32);
  float score;
  std::memcpy(&score, &bits, sizeof(score));
  return score;
}

HOST_DEVICE int32_t pixel_of(uint64_t rank) { return int32_t(~uint32_t(rank)); }
HOST_DEVICE uint64_t clustered(uint64_t rank) { return uint32_t(rank); }
HOST_DEVICE bool is_clustered(uint64_t rank) { return rank >> 32 == 0; }

// Prediction maps, by raster index; seeds of one class.
struct Maps {
  int64_t height, width;
  const float *x, *y;  // embeddings
  const float *bandwidth_x, *bandwidth_y;
  const float* seeds;
};

// The gaussian of the object that starts at a pixel.
HOST_DEVICE Gaussian gaussian_at(const Maps& maps, int32_t pixel) {
  return {maps.x[pixel], maps.y[pixel], maps.bandwidth_x[pixel], maps.bandwidth_y[pixel]};
}

// Whether `size` pixels, of which `free` belonged to no object before, are an object.
HOST_DEVICE bool is_object(int64_t size, int64_t free, const Thresholds& thresholds) {
  return size > thresholds.min_pixels && double(free) / double(size) > thresholds.min_unclustered;
}

}  // namespace spatial_embeddings
