// Sequences of moves between two clusters.
#pragma once

#include <cstdint>
#include <queue>
#include <utility>
#include <vector>

#include "adjacency.h"

namespace ssap {

class PairMoves {
 public:
  // Of the nodes that have these labels, which are changed. A sequence that gains no more than `least_gain` is none.
  PairMoves(const Adjacency& adjacency, std::vector<int32_t>& labels, double least_gain)
      : adjacency_(adjacency),
        labels_(labels),
        least_gain_(least_gain),
        gains_(labels.size()),
        states_(labels.size(), kOther) {}

  // Moves nodes of the clusters a and b to the other one of the two: the one that gains most (the lowest among equals)
  // of the candidates and of those that a move left with a neighbour in the other cluster, each at most once. Ends
  // after `patience` moves without a new highest sum of gains, takes back what followed that one, and returns it.
  double run(int32_t a, int32_t b, const std::vector<int32_t>& candidates, int64_t patience) {
    a_ = a, b_ = b;
    for (int32_t node : candidates)
      if (states_[node] == kOther) add(node);
    double sum = 0, best = least_gain_;
    size_t best_count = 0;
    while (!queue_.empty() && int64_t(moved_.size() - best_count) < patience) {
      const double gain = queue_.top().first;
      const int32_t node = ~queue_.top().second;
      queue_.pop();
      if (states_[node] != kCandidate || gains_[node] != gain) continue;  // an outdated entry
      sum += gain;
      move(node);
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

  int32_t opposite(int32_t label) const { return label == a_ ? b_ : a_; }

  // Makes a node a candidate.
  void add(int32_t node) {
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
  std::vector<int32_t> seen_;   // candidates, moved or not
  std::vector<int32_t> moved_;  // in the order of their moves
  std::priority_queue<std::pair<double, int32_t>> queue_;  // gain and the node's complement
  int32_t a_ = 0, b_ = 0;
};

}  // namespace ssap
