// The edges of a level's graph, from the dense maps.
#pragma once

#include <ATen/Parallel.h>

#include <cstdint>
#include <numeric>
#include <optional>
#include <vector>

#include "candidates.h"
#include "edge_cost.h"
#include "edges.h"
#include "proposals.h"
#include "pyramid_level.h"

namespace ssap {

// The pairs of neighbouring pixels that are of two different nodes.
class PixelPairs {
 public:
  PixelPairs(const PyramidLevel& level, const std::vector<int32_t>& nodes)
      : level_(level), nodes_(nodes), offsets_(level.offsets()), candidates_(level, nodes), starts_(level.height + 1) {
    at::parallel_for(0, level.height, kRowsPerTask, [&](int64_t first, int64_t last) {
      Row row(level.width);
      for (int64_t y = first; y < last; ++y)
        for (const Offset& offset : offsets_) starts_[y + 1] += collect(y, offset, row);
    });
    std::partial_sum(starts_.begin(), starts_.end(), starts_.begin());
  }

  // An edge for every pair: of the same two nodes there may be many.
  std::vector<Edge> edges(bool refine_semantics) const {
    std::vector<Edge> edges(starts_.back());
    std::optional<Distributions> distributions;
    if (refine_semantics) distributions.emplace(level_, candidates_);
    at::parallel_for(0, level_.height, kRowsPerTask, [&](int64_t first, int64_t last) {
      Row row(level_.width);
      for (int64_t y = first; y < last; ++y) {
        Edge* out = edges.data() + starts_[y];
        for (const Offset& offset : offsets_) {
          const int64_t count = collect(y, offset, row);
          if (refine_semantics) diverge(*distributions, count, row);
          compute_costs(offset, count, row);
          for (int64_t i = 0; i < count; ++i) *out++ = {nodes_[row.first[i]], nodes_[row.second[i]], row.cost[i]};
        }
      }
    });
    return edges;
  }

 private:
  // The pairs of a row's pixels with one of their neighbours.
  struct Row {
    explicit Row(int64_t width)
        : first(width + 1), second(width + 1), affinity(width), divergence(width), cost(width) {}

    std::vector<int32_t> first, second;  // raster indices, with room for one more
    std::vector<float> affinity, divergence, cost;
  };

  // Finds the pairs; returns how many they are.
  int64_t collect(int64_t y, const Offset& offset, Row& row) const {
    if (y + offset.dy >= level_.height) return 0;
    const int64_t start = y * level_.width, step = offset.dy * level_.width + offset.dx;
    const int64_t left = start + level_.first_column(offset.dx), right = start + level_.end_column(offset.dx);
    int64_t count = 0;
    for (int64_t i = candidates_.row_starts[y]; i < candidates_.row_starts[y + 1]; ++i) {
      const int32_t pixel = candidates_.pixels[i];
      if (pixel < left || pixel >= right) continue;
      const int32_t other = nodes_[pixel + step];
      row.first[count] = pixel;  // kept where the last line moves on
      row.second[count] = int32_t(pixel + step);
      count += (other != kNoNode) & (other != nodes_[pixel]);
    }
    return count;
  }

  void diverge(const Distributions& distributions, int64_t count, Row& row) const {
    for (int64_t i = 0; i < count; ++i)
      row.divergence[i] =
          distributions.divergence(candidates_.numbers[row.first[i]], candidates_.numbers[row.second[i]]);
  }

  void compute_costs(const Offset& offset, int64_t count, Row& row) const {
    const float* forward = level_.affinities.plane(offset.channel);
    const float* backward = level_.affinities.plane(offset.reverse);
    const int64_t stride = level_.affinities.pixel_stride;
    for (int64_t i = 0; i < count; ++i)
      row.affinity[i] = 0.5f * (forward[row.first[i] * stride] + backward[row.second[i] * stride]);
    edge_costs(row.affinity.data(), row.divergence.data(), count, row.cost.data());
  }

  // In two loops, of which compilers make vector instructions, unlike of one.
  static void edge_costs(
      const float* __restrict affinity, const float* __restrict divergence, int64_t count, float* __restrict cost) {
    for (int64_t i = 0; i < count; ++i) cost[i] = refined_affinity(affinity[i], divergence[i]);
    for (int64_t i = 0; i < count; ++i) cost[i] = edge_cost(cost[i]);
  }

  const PyramidLevel& level_;
  const std::vector<int32_t>& nodes_;
  std::vector<Offset> offsets_;
  Candidates candidates_;
  std::vector<int64_t> starts_;  // the number of each row's first edge; one more at the end
};

}  // namespace ssap
