// The queue of edges to be contracted.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "edges.h"

namespace ssap {

// Edges with a positive cost, by cost. An edge whose cost changed is pushed again, its older entries are outdated.
// Entries lie in buckets of similar cost, in each of them at first unordered: most of them are outdated by the time
// that their bucket is the highest one, and dropped before they are ordered at all.
class ContractionQueue {
 public:
  struct Entry {
    double cost;
    int32_t first;  // decides between equal costs: the lower one goes first
    int32_t edge;

    bool operator<(const Entry& other) const { return cost != other.cost ? cost < other.cost : first > other.first; }
  };

  explicit ContractionQueue(const std::vector<Edge>& edges) : buckets_(kBuckets) {
    double highest = 0;
    for (const Edge& edge : edges) highest = std::max(highest, edge.cost);
    base_ = leading_bits(highest) - kBelow;
    std::vector<int64_t> counts(kBuckets);
    for (const Edge& edge : edges)
      if (edge.cost > 0) ++counts[bucket_of(edge.cost)];
    for (int64_t i = 0; i < kBuckets; ++i) buckets_[i].entries.reserve(counts[i]);
    for (size_t e = 0; e < edges.size(); ++e) push({edges[e].cost, int32_t(e), int32_t(e)});
  }

  // Edges without a positive cost are left out.
  void push(const Entry& entry) {
    if (!(entry.cost > 0)) return;
    const int64_t number = bucket_of(entry.cost);
    buckets_[number].entries.push_back(entry);
    top_ = std::max(top_, number);
  }

  // The best entry that is still valid(entry), until the next push; null for none.
  template <typename Valid>
  const Entry* top(Valid valid) {
    for (; top_ >= 0; --top_) {
      Bucket& bucket = buckets_[top_];
      bucket.order(valid);
      std::vector<Entry>& entries = bucket.entries;
      while (!entries.empty()) {
        if (valid(entries.front())) return &entries.front();
        std::pop_heap(entries.begin(), entries.end());
        entries.pop_back();
        --bucket.ordered;
      }
    }
    top_ = 0;
    return nullptr;
  }

 private:
  // Buckets divide a doubling of the cost into 8, from 2^-24 to 2^16 times the highest cost at the start. What is
  // lower or higher is in the first or the last one.
  static constexpr int kMantissaBits = 3;
  static constexpr int64_t kBelow = 24 << kMantissaBits, kBuckets = 40 << kMantissaBits;

  // Rises with the cost.
  static int64_t leading_bits(double cost) {
    int64_t bits;
    std::memcpy(&bits, &cost, sizeof(bits));
    return bits >> (52 - kMantissaBits);
  }

  int64_t bucket_of(double cost) const {
    return std::clamp<int64_t>(leading_bits(cost) - base_, 0, kBuckets - 1);
  }

  struct Bucket {
    std::vector<Entry> entries;
    int64_t ordered = 0;  // so many of them, the first ones, are a heap

    // Makes all of them a heap, but for outdated ones.
    template <typename Valid>
    void order(Valid valid) {
      for (size_t i = ordered; i < entries.size(); ++i) {
        if (!valid(entries[i])) continue;
        entries[ordered++] = entries[i];
        std::push_heap(entries.begin(), entries.begin() + ordered);
      }
      entries.erase(entries.begin() + ordered, entries.end());
    }
  };

  std::vector<Bucket> buckets_;
  int64_t base_;     // leading bits of the first bucket
  int64_t top_ = 0;  // no bucket above it has entries
};

}  // namespace ssap
