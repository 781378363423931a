// Kernighan-Lin moves: a partition is improved until no pair of neighbouring clusters is better off with another border
// or as one, and no cluster with a part split off (Keuper et al., "Efficient Decomposition of Image and Mesh Graphs by
// Lifted Multicuts", ICCV 2015, algorithm 2).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <queue>
#include <tuple>
#include <utility>
#include <vector>

#include "edges.h"
#include "neighbours.h"

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

// Moves of nodes between two clusters.
class PairMoves {
 public:
  PairMoves(const Adjacency& adjacency, std::vector<int32_t>& labels, double least_gain)
      : adjacency_(adjacency), labels_(labels), least_gain_(least_gain), gains_(labels.size()), states_(labels.size(), kOther) {}

  // Moves nodes of a and b to the other of the two, always the one which gains most (the lowest among equals), each at
  // most once; at first one of the candidates, then also those that a move made neighbours of the other cluster. Ends
  // after `patience` moves without a new best sum of gains, takes back what followed the best one and returns it.
  double run(int32_t a, int32_t b, const std::vector<int32_t>& candidates, int64_t patience) {
    a_ = a, b_ = b;
    for (int32_t node : candidates) add(node);
    double sum = 0, best = least_gain_;
    size_t best_count = 0;
    while (!queue_.empty() && int64_t(moved_.size() - best_count) < patience) {
      const auto [gain, node] = queue_.top();
      queue_.pop();
      if (states_[~node] != kCandidate || gains_[~node] != gain) continue;
      sum += gain;
      move(~node);
      if (sum > best) {
        best = sum;
        best_count = moved_.size();
      }
    }
    for (size_t i = best_count; i < moved_.size(); ++i) labels_[moved_[i]] = opposite(labels_[moved_[i]]);
    reset();
    return best_count > 0 ? best : 0;
  }

 private:
  enum State : uint8_t { kOther, kCandidate, kMoved };

  int32_t opposite(int32_t label) const { return a_ + b_ - label; }

  void add(int32_t node) {
    if (states_[node] != kOther) return;
    states_[node] = kCandidate;
    seen_.push_back(node);
    const int32_t own = labels_[node], other = opposite(own);
    double gain = 0;
    for (const auto& [neighbour, cost] : adjacency_.of(node)) {
      if (labels_[neighbour] == other) gain += cost;
      if (labels_[neighbour] == own) gain -= cost;
    }
    set_gain(node, gain);
  }

  void move(int32_t node) {
    const int32_t from = labels_[node], to = opposite(from);
    labels_[node] = to;
    states_[node] = kMoved;
    moved_.push_back(node);
    for (const auto& [neighbour, cost] : adjacency_.of(node)) {
      const int32_t label = labels_[neighbour];
      if (label != from && label != to) continue;
      if (states_[neighbour] == kCandidate) set_gain(neighbour, gains_[neighbour] + (label == from ? 2 : -2) * cost);
      if (states_[neighbour] == kOther) add(neighbour);
    }
  }

  void set_gain(int32_t node, double gain) {
    gains_[node] = gain;
    queue_.push({gain, ~node});
  }

  void reset() {
    for (int32_t node : seen_) states_[node] = kOther;
    seen_.clear();
    moved_.clear();
    queue_ = {};
  }

  const Adjacency& adjacency_;
  std::vector<int32_t>& labels_;
  const double least_gain_;
  std::vector<double> gains_;
  std::vector<State> states_;
  std::vector<int32_t> seen_, moved_;
  std::priority_queue<std::pair<double, int32_t>> queue_;  // by gain, then by the complement of the node
  int32_t a_, b_;
};

class KernighanLin {
 public:
  // Of the edges of `merge_parallel_edges` and labels of 0 or more.
  KernighanLin(int64_t num_nodes, const std::vector<Edge>& edges, std::vector<int32_t> labels)
      : edges_(edges),
        adjacency_(num_nodes, edges),
        labels_(std::move(labels)),
        least_gain_(1e-9 * largest_cost(edges)),
        moves_(adjacency_, labels_, least_gain_) {}

  void run(int64_t patience) {
    patience_ = patience;
    int32_t count = 0;
    for (int32_t label : labels_) count = std::max(count, label + 1);
    changed_.assign(count, true);
    do {
      while (any_changed()) run_round();
      divide();
    } while (any_changed());
  }

  const std::vector<int32_t>& labels() const { return labels_; }
  int rounds = 0;

 private:
  struct CutEdge {
    int32_t a, b;  // the clusters, a < b
    int32_t edge;
    bool operator<(const CutEdge& other) const {
      return std::tie(a, b, edge) < std::tie(other.a, other.b, other.edge);
    }
  };

  bool any_changed() const { return std::find(changed_.begin(), changed_.end(), true) != changed_.end(); }

  // Tries every pair and every cluster of which something changed in the round before.
  void run_round() {
    ++rounds;
    find_clusters();
    const std::vector<bool> tried = std::exchange(changed_, std::vector<bool>(changed_.size()));
    const std::vector<CutEdge> cut = cut_edges(tried);
    for (auto pair = cut.begin(); pair != cut.end();) {
      const auto end = std::find_if(
          pair, cut.end(), [&](const CutEdge& other) { return other.a != pair->a || other.b != pair->b; });
      improve_pair(pair, end);
      pair = end;
    }
    for (size_t cluster = 0; cluster < tried.size(); ++cluster)
      if (tried[cluster] && !changed_[cluster]) split(int32_t(cluster), members(int32_t(cluster)), patience_);
  }

  // Gives every connected part of a cluster a label of its own, and lists their nodes.
  void find_clusters() {
    Roots roots(labels_.size());
    for (const Edge& edge : edges_)
      if (labels_[edge.u] == labels_[edge.v]) roots.join(roots.of(edge.u), roots.of(edge.v));
    std::vector<int32_t> labels = roots.labels();
    const int32_t count = labels.empty() ? 0 : 1 + *std::max_element(labels.begin(), labels.end());
    std::vector<bool> changed(count);
    for (size_t node = 0; node < labels.size(); ++node) changed[labels[node]] = changed_[labels_[node]];
    changed_ = changed;
    std::copy(labels.begin(), labels.end(), labels_.begin());
    starts_.assign(count + 1, 0);
    for (int32_t label : labels_) ++starts_[label + 1];
    for (int32_t i = 0; i < count; ++i) starts_[i + 1] += starts_[i];
    members_.resize(labels_.size());
    std::vector<int32_t> position(starts_.begin(), starts_.end() - 1);
    for (size_t node = 0; node < labels_.size(); ++node) members_[position[labels_[node]]++] = int32_t(node);
  }

  static double largest_cost(const std::vector<Edge>& edges) {
    double largest = 0;
    for (const Edge& edge : edges) largest = std::max(largest, std::abs(edge.cost));
    return largest;
  }

  std::vector<int32_t> members(int32_t cluster) const {
    return {members_.begin() + starts_[cluster], members_.begin() + starts_[cluster + 1]};
  }

  std::vector<CutEdge> cut_edges(const std::vector<bool>& tried) const {
    std::vector<CutEdge> cut;
    for (size_t e = 0; e < edges_.size(); ++e) {
      const auto [a, b] = std::minmax(labels_[edges_[e].u], labels_[edges_[e].v]);
      if (a != b && (tried[a] || tried[b])) cut.push_back({a, b, int32_t(e)});
    }
    std::sort(cut.begin(), cut.end());
    return cut;
  }

  template <typename Iterator>
  void improve_pair(Iterator begin, Iterator end) {
    const auto [a, b, edge] = *begin;
    std::vector<int32_t> border;
    double join = 0;
    const bool fresh = !changed_[a] && !changed_[b];
    for (auto cut = begin; cut != end; ++cut) {
      const Edge& e = edges_[cut->edge];
      join += e.cost;
      for (int32_t node : {e.u, e.v})
        if (labels_[node] == a || labels_[node] == b) border.push_back(node);
    }
    if (!fresh) join = 0;
    const double gain = moves_.run(a, b, border, patience_);
    if (std::max(gain, join) <= least_gain_) return;
    if (join >= gain) {
      for (int32_t node : members(b)) labels_[node] = a;
      for (int32_t node : members(a)) labels_[node] = a;
    }
    changed_[a] = changed_[b] = true;
  }

  void split(int32_t cluster, const std::vector<int32_t>& candidates, int64_t patience) {
    if (moves_.run(cluster, int32_t(changed_.size()), candidates, patience) == 0) return;
    changed_[cluster] = true;
    changed_.push_back(true);
  }

  void divide() {
    find_clusters();
    changed_.assign(changed_.size(), false);
    const int32_t count = changed_.size();
    for (int32_t cluster = 0; cluster < count; ++cluster) {
      const std::vector<int32_t> nodes = members(cluster);
      const size_t num_seeds = std::min<size_t>(kSeeds, nodes.size());
      for (size_t i = 0; i < num_seeds && !changed_[cluster]; ++i) {
        const int32_t seed = innermost(nodes.begin() + i * nodes.size() / num_seeds, nodes.begin() + (i + 1) * nodes.size() / num_seeds);
        split(cluster, {seed}, nodes.size());
      }
    }
  }

  template <typename Iterator>
  int32_t innermost(Iterator begin, Iterator end) const {
    int32_t best = *begin;
    double most = 0;
    for (auto node = begin; node != end; ++node) {
      double sum = 0;
      for (const auto& [neighbour, cost] : adjacency_.of(*node))
        if (labels_[neighbour] == labels_[*node]) sum += cost;
      if (sum > most) {
        most = sum;
        best = *node;
      }
    }
    return best;
  }

  size_t kSeeds = getenv("SEEDS") ? atoi(getenv("SEEDS")) : 8;
  const std::vector<Edge>& edges_;
  const Adjacency adjacency_;
  std::vector<int32_t> labels_;
  const double least_gain_;
  PairMoves moves_;
  std::vector<bool> changed_;
  std::vector<int32_t> starts_, members_;
  int64_t patience_;

};

// Numbers 0..M-1 of nodes of which two have the same where they are in one cluster and better joined: every node in turn
// that is still single takes the single neighbour of the highest positive cost, the lowest one among equals.
inline std::vector<int32_t> match(const Adjacency& adjacency, const std::vector<int32_t>& labels) {
  std::vector<int32_t> numbers(labels.size(), -1);
  int32_t count = 0;
  for (size_t node = 0; node < labels.size(); ++node) {
    if (numbers[node] >= 0) continue;
    const Adjacency::Neighbour* best = nullptr;
    for (const auto& neighbour : adjacency.of(int32_t(node)))
      if (numbers[neighbour.node] < 0 && labels[neighbour.node] == labels[node] && neighbour.cost > (best ? best->cost : 0))
        best = &neighbour;
    numbers[node] = count++;
    if (best) numbers[best->node] = numbers[node];
  }
  return numbers;
}

inline std::vector<int32_t> kernighan_lin(int64_t num_nodes, const std::vector<Edge>& edges, std::vector<int32_t> labels, int64_t patience) {
  const std::vector<int32_t> numbers = match(Adjacency(num_nodes, edges), labels);
  const int64_t count = numbers.empty() ? 0 : 1 + *std::max_element(numbers.begin(), numbers.end());
  if (count < 0.95 * num_nodes) {
    std::vector<int32_t> coarse_labels(count);
    for (size_t node = 0; node < labels.size(); ++node) coarse_labels[numbers[node]] = labels[node];
    std::vector<Edge> coarse;
    for (const Edge& edge : edges)
      if (numbers[edge.u] != numbers[edge.v]) coarse.push_back({numbers[edge.u], numbers[edge.v], edge.cost});
    coarse_labels = kernighan_lin(count, merge_parallel_edges(count, std::move(coarse)), coarse_labels, patience);
    for (size_t node = 0; node < labels.size(); ++node) labels[node] = coarse_labels[numbers[node]];
  }
  KernighanLin level(num_nodes, edges, std::move(labels));
  level.run(patience);
  return level.labels();
}

}  // namespace ssap
