// The pixels of a level that may be in a pair of different nodes, and their class distributions.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "edge_cost.h"
#include "proposals.h"
#include "pyramid_level.h"

namespace ssap {

// Of each pixel whether one of its four neighbours is of another node, or the one of a node and the other of none.
inline std::vector<uint8_t> node_changes(const PyramidLevel& level, const std::vector<int32_t>& nodes) {
  std::vector<uint8_t> changes(level.size());
  const int64_t width = level.width;
  at::parallel_for(0, level.height, kRowsPerTask, [&](int64_t first, int64_t last) {
    for (int64_t y = first; y < last; ++y) {
      const int32_t* own = nodes.data() + y * width;
      const int32_t* above = y > 0 ? own - width : own;
      const int32_t* below = y + 1 < level.height ? own + width : own;
      uint8_t* out = changes.data() + y * width;
      for (int64_t x = 0; x < width; ++x) out[x] = (own[x] != above[x]) | (own[x] != below[x]);
      for (int64_t x = 1; x < width; ++x) out[x] |= own[x] != own[x - 1];
      for (int64_t x = 0; x + 1 < width; ++x) out[x] |= own[x] != own[x + 1];
    }
  });
  return changes;
}

// The marks with all pixels up to `radius` rows and columns from a marked one.
inline std::vector<uint8_t> dilated(const PyramidLevel& level, const std::vector<uint8_t>& marks, int64_t radius) {
  std::vector<uint8_t> wide(level.size()), result(level.size());
  const int64_t width = level.width;
  const auto join = [&](const uint8_t* from, int64_t from_column, uint8_t* to, int64_t to_column) {
    const int64_t count = width - std::max(from_column, to_column);
    for (int64_t x = 0; x < count; ++x) to[to_column + x] |= from[from_column + x];
  };
  at::parallel_for(0, level.height, kRowsPerTask, [&](int64_t first, int64_t last) {
    for (int64_t y = first; y < last; ++y)
      for (int64_t d = -radius; d <= radius; ++d)
        join(marks.data() + y * width, std::max<int64_t>(d, 0), wide.data() + y * width, std::max<int64_t>(-d, 0));
  });
  at::parallel_for(0, level.height, kRowsPerTask, [&](int64_t first, int64_t last) {
    for (int64_t y = first; y < last; ++y)
      for (int64_t other = std::max<int64_t>(y - radius, 0); other <= std::min(y + radius, level.height - 1); ++other)
        join(wide.data() + other * width, 0, result.data() + y * width, 0);
  });
  return result;
}

// The thing pixels within a window's reach of another node, numbered row by row. On the way from a pixel to one of
// another node in its window the node changes somewhere within the window.
struct Candidates {
  std::vector<int32_t> pixels;      // by number
  std::vector<int32_t> numbers;     // by raster index, of candidates only
  std::vector<int64_t> row_starts;  // the number of each row's first one; one more at the end

  Candidates(const PyramidLevel& level, const std::vector<int32_t>& nodes) : numbers(level.size()) {
    const std::vector<uint8_t> near = dilated(level, node_changes(level, nodes), level.window / 2);
    pixels.resize(level.size() + 1);
    int32_t count = 0;
    for (int64_t y = 0; y < level.height; ++y) {
      row_starts.push_back(count);
      for (int64_t i = y * level.width; i < (y + 1) * level.width; ++i) {
        pixels[count] = int32_t(i);  // kept where the last line moves on
        numbers[i] = count;
        count += near[i] & (nodes[i] != kNoNode);
      }
    }
    row_starts.push_back(count);
    pixels.resize(count);
  }
};

// The class distributions of the candidates, each in one piece, and their entropies.
class Distributions {
 public:
  Distributions(const PyramidLevel& level, const Candidates& candidates)
      : padded_((level.num_classes + kLanes - 1) / kLanes * kLanes),
        probabilities_(candidates.pixels.size() * padded_),
        entropies_(candidates.pixels.size()) {
    at::parallel_for(0, level.height, kRowsPerTask, [&](int64_t first, int64_t last) {
      for (int64_t y = first; y < last; ++y) {
        const int64_t begin = candidates.row_starts[y], end = candidates.row_starts[y + 1];
        for (int64_t c = 0; c < level.num_classes; ++c) {
          const float* probabilities = level.semantics.plane(c);
          for (int64_t i = begin; i < end; ++i)
            probabilities_[i * padded_ + c] =
                std::max(0.0f, probabilities[candidates.pixels[i] * level.semantics.pixel_stride]);
        }
        for (int64_t i = begin; i < end; ++i) entropies_[i] = entropy_of_mean(i, i);
      }
    });
  }

  // Jensen and Shannon's divergence of two candidates by number, 0 to log(2).
  float divergence(int64_t i, int64_t j) const {
    const float divergence = entropy_of_mean(i, j) - 0.5f * (entropies_[i] + entropies_[j]);
    return divergence > 0 ? divergence : 0;
  }

 private:
  static constexpr int64_t kLanes = 4;  // vector instructions take four classes at a time

  float entropy_of_mean(int64_t i, int64_t j) const {
    const float* p = probabilities_.data() + i * padded_;
    const float* q = probabilities_.data() + j * padded_;
    float sums[kLanes] = {};
    for (int64_t c = 0; c < padded_; c += kLanes)
      for (int64_t lane = 0; lane < kLanes; ++lane) sums[lane] += entropy_of(0.5f * (p[c + lane] + q[c + lane]));
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }

  int64_t padded_;  // classes, and some of probability 0 at the end
  std::vector<float> probabilities_, entropies_;
};

}  // namespace ssap
