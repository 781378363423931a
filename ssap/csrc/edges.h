// A graph as a list of edges with costs.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace ssap {

// Joining u and v gains the cost: what is cut is paid for.
struct Edge {
  int32_t u, v;
  double cost;
};

// Edges in the order of their lower ends, u < v.
inline void sort_by_lower_end(int64_t num_nodes, std::vector<Edge>& edges) {
  std::vector<int64_t> position(num_nodes + 1);
  for (const Edge& edge : edges) ++position[edge.u + 1];
  for (int64_t node = 0; node < num_nodes; ++node) position[node + 1] += position[node];
  std::vector<Edge> sorted(edges.size());
  for (const Edge& edge : edges) sorted[position[edge.u]++] = edge;
  edges.swap(sorted);
}

// Edges with u < v in the order of (u, v), parallel ones as one of their summed cost. The sum is rounded alike whatever
// the order they came in: the lowest cost first.
inline std::vector<Edge> merge_parallel_edges(int64_t num_nodes, std::vector<Edge> edges) {
  for (Edge& edge : edges)
    if (edge.u > edge.v) std::swap(edge.u, edge.v);
  sort_by_lower_end(num_nodes, edges);
  auto merged = edges.begin();
  for (auto run = edges.begin(); run != edges.end();) {
    const int32_t u = run->u;
    const auto end = std::find_if(run, edges.end(), [&](const Edge& edge) { return edge.u != u; });
    std::sort(run, end, [](const Edge& a, const Edge& b) { return a.v != b.v ? a.v < b.v : a.cost < b.cost; });
    while (run != end) {
      Edge sum = *run;
      while (++run != end && run->v == sum.v) sum.cost += run->cost;
      *merged++ = sum;
    }
  }
  edges.erase(merged, edges.end());
  return edges;
}

}  // namespace ssap
