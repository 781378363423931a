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

// Edges in the order of one end's numbers, those with the same number in the order they had.
inline void sort_by_end(int64_t num_nodes, std::vector<Edge>& edges, int32_t Edge::*end) {
  std::vector<int64_t> position(num_nodes + 1);
  for (const Edge& edge : edges) ++position[edge.*end + 1];
  for (int64_t node = 0; node < num_nodes; ++node) position[node + 1] += position[node];
  std::vector<Edge> sorted(edges.size());
  for (const Edge& edge : edges) sorted[position[edge.*end]++] = edge;
  edges.swap(sorted);
}

// Edges with u < v in the order of (u, v), parallel ones as one of their summed cost. The sum is rounded alike whatever
// the order they came in: the lowest cost first.
inline std::vector<Edge> merge_parallel_edges(int64_t num_nodes, std::vector<Edge> edges) {
  for (Edge& edge : edges)
    if (edge.u > edge.v) std::swap(edge.u, edge.v);
  const auto before = [](const Edge& a, const Edge& b) { return a.u != b.u ? a.u < b.u : a.v < b.v; };
  if (!std::is_sorted(edges.begin(), edges.end(), before)) {
    sort_by_end(num_nodes, edges, &Edge::v);
    sort_by_end(num_nodes, edges, &Edge::u);
  }
  auto merged = edges.begin();
  for (auto run = edges.begin(); run != edges.end();) {
    const auto end = std::find_if(run, edges.end(), [&](const Edge& edge) { return before(*run, edge); });
    std::sort(run, end, [](const Edge& a, const Edge& b) { return a.cost < b.cost; });
    Edge sum = *run;
    while (++run != end) sum.cost += run->cost;
    *merged++ = sum;
  }
  edges.erase(merged, edges.end());
  return edges;
}

}  // namespace ssap
