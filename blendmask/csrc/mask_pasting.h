// The rules for one pixel of a pasted mask, shared by the CPU and the CUDA kernels.
#pragma once

#include <cmath>
#include <cstdint>

#include "projects/csrc/host_device.h"
#include "taps.h"

namespace blendmask {

// One side of a box in the image, and the pixels first..last−1 that are looked at for it: up to one beyond the box.
struct PastedSide {
  float low, high;
  int64_t first, last;
};

// The side of an image of `size` pixels that a mask from `low` to `high` reaches; nothing where there is no such mask.
HOST_DEVICE PastedSide paste_side(float low, float high, int64_t size) {
  if (!(std::isfinite(low) && std::isfinite(high) && low < high)) return {0, 0, 0, 0};
  const float limit = float(size), first = std::floor(low) - 1, last = std::ceil(high) + 1;
  return {
      low, high, first > 0 ? int64_t(first < limit ? first : limit) : 0,
      last > 0 ? (last < limit ? int64_t(last) : size) : 0};
}

// What a pixel's centre is interpolated from along a side of the mask, outside of which there is 0.
HOST_DEVICE Taps<float> paste_taps(const PastedSide& side, int64_t pixel, int64_t mask_size) {
  const float position = (float(pixel) + 0.5f - side.low) / (side.high - side.low) * float(mask_size) - 0.5f;
  const float below = std::floor(position), share = position - below;
  // Not "is smaller or larger": a NaN, of a side too long for single precision, is nowhere.
  if (!(below >= -1 && below < float(mask_size))) return {0, 0, 0, 0};
  const int64_t low = int64_t(below), high = low + 1;
  const bool has_low = low >= 0, has_high = high < mask_size;
  return {has_low ? low : 0, has_high ? high : low, has_low ? 1 - share : 0, has_high ? share : 0};
}

}  // namespace blendmask
