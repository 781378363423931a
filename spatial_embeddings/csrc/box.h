// Bounding boxes in the space of embeddings.
#pragma once

#include <limits>

namespace spatial_embeddings {

// Bounds of embeddings, none at first. NaN is in no box.
struct Box {
  static constexpr float kInfinity = std::numeric_limits<float>::infinity();

  float x0 = kInfinity, y0 = kInfinity, x1 = -kInfinity, y1 = -kInfinity;

  void add(float x, float y) {
    x0 = x < x0 ? x : x0, x1 = x > x1 ? x : x1;
    y0 = y < y0 ? y : y0, y1 = y > y1 ? y : y1;
  }

  bool overlaps(const Box& other) const {
    return x0 <= other.x1 && other.x0 <= x1 && y0 <= other.y1 && other.y0 <= y1;
  }
};

}  // namespace spatial_embeddings
