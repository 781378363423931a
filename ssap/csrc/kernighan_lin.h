// Kernighan-Lin moves on a multicut's partition (Keuper et al., "Efficient Decomposition of Image and Mesh Graphs by
// Lifted Multicuts", ICCV 2015, algorithm 2), first between groups of nodes, then between nodes.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <tuple>
#include <utility>
#include <vector>

#include "adjacency.h"
#include "edges.h"
#include "neighbours.h"
#include "pair_moves.h"

namespace ssap {

// Improves a partition until no pair of neighbouring clusters is better off with another border or as one, and no
// cluster with a part split off, as far as sequences of moves find out.
class KernighanLin {
 public:
  // Of the edges of `merge_parallel_edges`.
  KernighanLin(const Adjacency& adjacency, const std::vector<Edge>& edges, std::vector<int32_t> labels)
      : edges_(edges),
        adjacency_(adjacency),
        labels_(std::move(labels)),
        least_gain_(kPrecision * largest_cost(edges)),
        moves_(adjacency_, labels_, least_gain_),
        changed_(count_labels(labels_), true) {}

  std::vector<int32_t> run() {
    do {
      while (any_changed()) improve();
      divide();
    } while (any_changed());
    return labels_;
  }

  static int32_t count_labels(const std::vector<int32_t>& labels) {
    return labels.empty() ? 0 : 1 + *std::max_element(labels.begin(), labels.end());
  }

 private:
  // Gains up to this share of the largest cost may be rounding alone.
  static constexpr double kPrecision = 1e-9;
  // Moves without progress that a border is given.
  static constexpr int64_t kPatience = 100;

  struct CutEdge {
    int32_t a, b;  // the clusters, a < b
    int32_t edge;

    bool operator<(const CutEdge& other) const {
      return std::tie(a, b, edge) < std::tie(other.a, other.b, other.edge);
    }
  };
  using CutEdges = std::vector<CutEdge>;

  static double largest_cost(const std::vector<Edge>& edges) {
    double largest = 0;
    for (const Edge& edge : edges) largest = std::max(largest, std::abs(edge.cost));
    return largest;
  }

  bool any_changed() const { return std::find(changed_.begin(), changed_.end(), true) != changed_.end(); }

  // One round: every pair and every cluster of which something changed in the round before.
  void improve() {
    find_clusters();
    const std::vector<bool> tried = std::exchange(changed_, std::vector<bool>(changed_.size()));
    const CutEdges cut = cut_edges(tried);
    for (auto pair = cut.begin(); pair != cut.end();) {
      const auto is_other = [&](const CutEdge& edge) { return edge.a != pair->a || edge.b != pair->b; };
      const auto end = std::find_if(pair, cut.end(), is_other);
      improve_pair(pair, end);
      pair = end;
    }
    for (size_t cluster = 0; cluster < tried.size(); ++cluster)
      if (tried[cluster] && !changed_[cluster]) split(int32_t(cluster), members(int32_t(cluster)), kPatience);
  }

  // Gives every connected part of a cluster a label of its own, and lists its nodes.
  void find_clusters() {
    Roots roots(labels_.size());
    for (const Edge& edge : edges_)
      if (labels_[edge.u] == labels_[edge.v]) roots.join(roots.of(edge.u), roots.of(edge.v));
    const std::vector<int32_t> labels = roots.labels();
    std::vector<bool> changed(count_labels(labels));
    starts_.assign(changed.size() + 1, 0);
    for (size_t node = 0; node < labels.size(); ++node) {
      changed[labels[node]] = changed_[labels_[node]];
      labels_[node] = labels[node];
      ++starts_[labels[node] + 1];
    }
    changed_ = std::move(changed);
    for (size_t i = 1; i < starts_.size(); ++i) starts_[i] += starts_[i - 1];
    members_.resize(labels.size());
    std::vector<int32_t> position(starts_.begin(), starts_.end() - 1);
    for (size_t node = 0; node < labels.size(); ++node) members_[position[labels[node]]++] = int32_t(node);
  }

  // A cluster's nodes when the round started.
  std::vector<int32_t> members(int32_t cluster) const {
    return {members_.begin() + starts_[cluster], members_.begin() + starts_[cluster + 1]};
  }

  // The edges between clusters of which one is to be tried, pair by pair.
  CutEdges cut_edges(const std::vector<bool>& tried) const {
    CutEdges cut;
    for (size_t e = 0; e < edges_.size(); ++e) {
      const auto [a, b] = std::minmax(labels_[edges_[e].u], labels_[edges_[e].v]);
      if (a != b && (tried[a] || tried[b])) cut.push_back({a, b, int32_t(e)});
    }
    std::sort(cut.begin(), cut.end());
    return cut;
  }

  // Moves the border between two clusters, or joins them, whichever gains more.
  void improve_pair(CutEdges::const_iterator begin, CutEdges::const_iterator end) {
    const int32_t a = begin->a, b = begin->b;
    std::vector<int32_t> border;
    double join = 0;
    for (auto cut = begin; cut != end; ++cut) {
      const Edge& edge = edges_[cut->edge];
      join += edge.cost;
      for (int32_t node : {edge.u, edge.v})
        if (labels_[node] == a || labels_[node] == b) border.push_back(node);
    }
    // Where one of them changed in this round, the listed edges are not all that lie between them now.
    if (changed_[a] || changed_[b]) join = 0;
    const double gain = moves_.run(a, b, border, kPatience);
    if (std::max(gain, join) <= least_gain_) return;
    if (join >= gain)
      for (int32_t cluster : {a, b})
        for (int32_t node : members(cluster)) labels_[node] = a;
    changed_[a] = changed_[b] = true;
  }

  // Splits off a part of a cluster, of the first moves among the candidates.
  void split(int32_t cluster, const std::vector<int32_t>& candidates, int64_t patience) {
    if (moves_.run(cluster, int32_t(changed_.size()), candidates, patience) == 0) return;
    changed_[cluster] = true;
    changed_.push_back(true);
  }

  // Splits clusters in two: a part grows through all of the cluster from the innermost node of the one half (by the
  // nodes' numbers), then from that of the other.
  void divide() {
    find_clusters();
    const int32_t count = int32_t(changed_.size());
    for (int32_t cluster = 0; cluster < count; ++cluster) {
      const std::vector<int32_t> nodes = members(cluster);
      const auto middle = nodes.begin() + nodes.size() / 2;
      if (middle == nodes.begin()) continue;
      split(cluster, {innermost(nodes.begin(), middle)}, nodes.size());
      if (!changed_[cluster]) split(cluster, {innermost(middle, nodes.end())}, nodes.size());
    }
  }

  // The node of a cluster with the highest costs to the rest of it, the first one among equals.
  template <typename Iterator>
  int32_t innermost(Iterator begin, Iterator end) const {
    return *std::max_element(begin, end, [&](int32_t x, int32_t y) { return inner_cost(x) < inner_cost(y); });
  }

  double inner_cost(int32_t node) const {
    double sum = 0;
    for (const auto& [neighbour, cost] : adjacency_.of(node))
      if (labels_[neighbour] == labels_[node]) sum += cost;
    return sum;
  }

  const std::vector<Edge>& edges_;
  const Adjacency& adjacency_;
  std::vector<int32_t> labels_;
  const double least_gain_;
  PairMoves moves_;
  std::vector<bool> changed_;              // by cluster, since its pairs were last tried
  std::vector<int32_t> starts_, members_;  // the clusters' nodes, one cluster after the other
};

// Numbers 0..M-1 of groups of one or two nodes: every node in turn that is still alone takes the neighbour of the
// highest positive cost among those alone in its cluster, the lowest one among equals.
inline std::vector<int32_t> group_nodes(const Adjacency& adjacency, const std::vector<int32_t>& labels) {
  std::vector<int32_t> groups(labels.size(), -1);
  int32_t count = 0;
  for (size_t node = 0; node < labels.size(); ++node) {
    if (groups[node] >= 0) continue;
    Adjacency::Neighbour best{-1, 0};
    for (const auto& neighbour : adjacency.of(int32_t(node)))
      if (groups[neighbour.node] < 0 && labels[neighbour.node] == labels[node] && neighbour.cost > best.cost)
        best = neighbour;
    if (best.node >= 0) groups[best.node] = count;
    groups[node] = count++;
  }
  return groups;
}

// A partition that is improved by moves of groups of nodes, which are found in the same way on the graph of groups, and
// then of nodes. Of the edges of `merge_parallel_edges`.
inline std::vector<int32_t> kernighan_lin(
    int64_t num_nodes, const std::vector<Edge>& edges, std::vector<int32_t> labels) {
  const Adjacency adjacency(num_nodes, edges);
  const std::vector<int32_t> groups = group_nodes(adjacency, labels);
  const int32_t count = KernighanLin::count_labels(groups);
  if (count < 0.9 * num_nodes) {  // with fewer pairs the groups are not worth a level
    std::vector<Edge> coarse_edges;
    for (const Edge& edge : edges)
      if (groups[edge.u] != groups[edge.v]) coarse_edges.push_back({groups[edge.u], groups[edge.v], edge.cost});
    std::vector<int32_t> coarse_labels(count);
    for (size_t node = 0; node < labels.size(); ++node) coarse_labels[groups[node]] = labels[node];
    coarse_edges = merge_parallel_edges(count, std::move(coarse_edges));
    coarse_labels = kernighan_lin(count, coarse_edges, std::move(coarse_labels));
    for (size_t node = 0; node < labels.size(); ++node) labels[node] = coarse_labels[groups[node]];
  }
  return KernighanLin(adjacency, edges, std::move(labels)).run();
}

}  // namespace ssap
