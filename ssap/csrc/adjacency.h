// A graph's edges by node.
#pragma once

#include <cstdint>
#include <vector>

#include "edges.h"

namespace ssap {

// Every node's neighbours in the order of their numbers, with the costs of the edges there.
class Adjacency {
 public:
  struct Neighbour {
    int32_t node;
    double cost;
  };

  struct Range {
    const Neighbour *first, *last;
    const Neighbour* begin() const { return first; }
    const Neighbour* end() const { return last; }
  };

  // Of the edges of `merge_parallel_edges`.
  Adjacency(int64_t num_nodes, const std::vector<Edge>& edges) : starts_(num_nodes + 1), neighbours_(2 * edges.size()) {
    for (const Edge& edge : edges) {
      ++starts_[edge.u + 1];
      ++starts_[edge.v + 1];
    }
    for (int64_t node = 0; node < num_nodes; ++node) starts_[node + 1] += starts_[node];
    std::vector<int64_t> position(starts_.begin(), starts_.end() - 1);
    for (const Edge& edge : edges) {
      neighbours_[position[edge.u]++] = {edge.v, edge.cost};
      neighbours_[position[edge.v]++] = {edge.u, edge.cost};
    }
  }

  Range of(int32_t node) const { return {neighbours_.data() + starts_[node], neighbours_.data() + starts_[node + 1]}; }

 private:
  std::vector<int64_t> starts_;
  std::vector<Neighbour> neighbours_;
};

}  // namespace ssap
