// The op ssap::multicut on the CPU.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "contraction.h"
#include "kernighan_lin.h"

namespace ssap {
namespace {

// The edges between different nodes.
std::vector<Edge> edges_of(int64_t num_nodes, const at::Tensor& nodes, const at::Tensor& costs) {
  const auto ends = nodes.accessor<int64_t, 2>();
  const auto values = costs.accessor<double, 1>();
  std::vector<Edge> edges;
  edges.reserve(nodes.size(0));
  for (int64_t e = 0; e < nodes.size(0); ++e) {
    const int64_t u = ends[e][0], v = ends[e][1];
    TORCH_CHECK_VALUE(
        std::min(u, v) >= 0 && std::max(u, v) < num_nodes, "edge ", e, " joins ", u, " and ", v, ", of ", num_nodes,
        " nodes");
    if (u != v) edges.push_back({int32_t(u), int32_t(v), values[e]});
  }
  return edges;
}

at::Tensor multicut(int64_t num_nodes, const at::Tensor& nodes, const at::Tensor& costs, bool refine) {
  TORCH_CHECK_VALUE(
      nodes.dim() == 2 && nodes.size(1) == 2 && nodes.scalar_type() == at::kLong && costs.dim() == 1 &&
          costs.size(0) == nodes.size(0) && costs.scalar_type() == at::kDouble,
      "multicut takes edges int64 [E, 2] and costs float64 [E], but got ", nodes.scalar_type(), " ", nodes.sizes(),
      " and ", costs.scalar_type(), " ", costs.sizes());
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  TORCH_CHECK_VALUE(
      0 <= num_nodes && num_nodes <= kMost && nodes.size(0) <= kMost,
      "multicut takes fewer than 2^31 nodes and edges, not ", num_nodes, " and ", nodes.size(0));
  std::vector<Edge> edges = edges_of(num_nodes, nodes, costs);
  std::vector<int32_t> labels;
  if (refine) {
    edges = merge_parallel_edges(num_nodes, std::move(edges));
    labels = kernighan_lin(num_nodes, edges, greedy_contraction(num_nodes, edges));
  } else {
    labels = greedy_contraction(num_nodes, std::move(edges));
  }
  at::Tensor result = at::empty({num_nodes}, nodes.options());
  std::copy(labels.begin(), labels.end(), result.mutable_data_ptr<int64_t>());
  return result;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(ssap, m) {
  m.def("multicut(int num_nodes, Tensor edges, Tensor costs, bool refine) -> Tensor");
}

TORCH_LIBRARY_IMPL(ssap, CPU, m) { m.impl("multicut", &multicut); }

}  // namespace ssap
