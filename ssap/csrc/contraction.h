// Greedy additive edge contraction: a minimum cost multicut's approximate solution (Keuper et al., "Efficient
// Decomposition of Image and Mesh Graphs by Lifted Multicuts", ICCV 2015, algorithm 1).
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "contraction_queue.h"
#include "edges.h"
#include "neighbours.h"

namespace ssap {

// A graph whose edges are contracted one after the other. A cluster goes by one of its nodes, its root.
class Contraction {
 public:
  // Of the edges of `merge_parallel_edges`.
  Contraction(int64_t num_nodes, std::vector<Edge> edges)
      : edges_(std::move(edges)), first_(edges_.size()), roots_(num_nodes), neighbours_(roots_, edges_), queue_(edges_) {
    std::iota(first_.begin(), first_.end(), 0);
  }

  // Contracts until no edge has a positive cost.
  void run() {
    const auto valid = [&](const ContractionQueue::Entry& entry) {
      return edges_[entry.edge].cost == entry.cost && first_[entry.edge] == entry.first;
    };
    while (const ContractionQueue::Entry* best = queue_.top(valid)) contract(best->edge);
  }

  Roots& roots() { return roots_; }

 private:
  // Joins the clusters of an edge's two ends.
  void contract(int32_t edge) {
    int32_t kept = roots_.of(edges_[edge].u), dropped = roots_.of(edges_[edge].v);
    if (neighbours_.degree(kept) < neighbours_.degree(dropped)) std::swap(kept, dropped);
    remove(edge);
    roots_.join(dropped, kept);
    neighbours_.move(dropped, kept, [&](int32_t to, int32_t from) {
      edges_[to].cost += edges_[from].cost;
      first_[to] = std::min(first_[to], first_[from]);
      remove(from);
      queue_.push({edges_[to].cost, first_[to], to});
    });
  }

  // Makes every entry of the edge in the queue an outdated one.
  void remove(int32_t edge) { edges_[edge].cost = -std::numeric_limits<double>::infinity(); }

  std::vector<Edge> edges_;     // the cost of all that were merged into one; its ends as they were at first
  std::vector<int32_t> first_;  // the lowest number among them, which decides between equal costs
  Roots roots_;
  Neighbours neighbours_;
  ContractionQueue queue_;
};

// The clusters, numbered 0..K-1 by their first node, that are left when the edge of the highest cost is contracted, and
// the costs of edges that become parallel are added, until no cost is positive. Edges may be parallel and in any order,
// with u != v. Among edges of equal cost goes first the one which holds the first of the given edges in the order of
// (lower node, higher node): the result does not depend on the order given.
inline std::vector<int32_t> greedy_contraction(int64_t num_nodes, std::vector<Edge> edges) {
  Contraction contraction(num_nodes, merge_parallel_edges(num_nodes, std::move(edges)));
  contraction.run();
  return contraction.roots().labels();
}

}  // namespace ssap
