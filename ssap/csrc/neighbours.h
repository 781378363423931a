// The clusters of a graph under contraction and the edges between them.
#pragma once

#include <cstdint>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "edges.h"

namespace ssap {

// Which cluster a node is in, by the cluster's root.
class Roots {
 public:
  explicit Roots(int64_t num_nodes) : parents_(num_nodes) { std::iota(parents_.begin(), parents_.end(), 0); }

  int64_t num_nodes() const { return parents_.size(); }
  bool is_root(int32_t node) const { return parents_[node] == node; }
  void join(int32_t root, int32_t to) { parents_[root] = to; }

  int32_t of(int32_t node) {
    while (!is_root(node)) node = parents_[node] = parents_[parents_[node]];
    return node;
  }

  // The clusters' numbers, 0..K-1 by first node, of every node.
  std::vector<int32_t> labels() {
    std::vector<int32_t> of_root(parents_.size(), -1), labels(parents_.size());
    int32_t count = 0;
    for (size_t node = 0; node < labels.size(); ++node) {
      int32_t& label = of_root[of(int32_t(node))];
      if (label < 0) label = count++;
      labels[node] = label;
    }
    return labels;
  }

 private:
  std::vector<int32_t> parents_;
};

// For every cluster a hash table from its neighbours' roots to the edges there. A key that is no root any more stays in
// its table until its place is needed.
class Neighbours {
 public:
  // Of nodes that are all roots.
  Neighbours(const Roots& roots, const std::vector<Edge>& edges) : roots_(roots), tables_(roots.num_nodes()) {
    for (const Edge& edge : edges) {
      ++tables_[edge.u].degree;
      ++tables_[edge.v].degree;
    }
    for (Table& table : tables_) {
      table.reserve(table.degree);
      table.degree = 0;
    }
    for (size_t e = 0; e < edges.size(); ++e) {
      insert(edges[e].u, edges[e].v, int32_t(e));
      insert(edges[e].v, edges[e].u, int32_t(e));
    }
  }

  int32_t degree(int32_t root) const { return tables_[root].degree; }

  // Gives the edges of a cluster that was just joined to `kept` to that one. merge(edge that stays, edge that goes) is
  // called where it has one to the same neighbour.
  template <typename Merge>
  void move(int32_t dropped, int32_t kept, Merge merge) {
    const Table table = std::move(tables_[dropped]);
    --tables_[kept].degree;  // the edge between the two
    for (const Slot *slot = table.begin(), *end = table.end(); slot != end; ++slot) {
      if (!is_live(*slot) || slot->neighbour == kept) continue;
      const int32_t edge = find(kept, slot->neighbour);
      --tables_[slot->neighbour].degree;
      if (edge != kNone) {
        merge(edge, slot->edge);
      } else {
        insert(kept, slot->neighbour, slot->edge);
        insert(slot->neighbour, kept, slot->edge);
      }
    }
  }

 private:
  static constexpr int32_t kNone = -1;

  struct Slot {
    int32_t neighbour = kNone, edge;
  };

  // Linear probing, filled to 7/8 at most.
  struct Table {
    std::unique_ptr<Slot[]> slots;
    int32_t bits = 0;    // of the capacity, a power of two
    int32_t used = 0;    // slots with a key
    int32_t degree = 0;  // those whose key is a root

    const Slot* begin() const { return slots.get(); }
    const Slot* end() const { return slots ? begin() + (int64_t(1) << bits) : begin(); }
    int64_t limit() const { return slots ? int64_t(7) << (bits - 3) : 0; }
    uint32_t start(int32_t neighbour) const { return uint32_t(neighbour) * 0x9e3779b1u >> (32 - bits); }
    uint32_t next(uint32_t slot) const { return (slot + 1) & ((uint32_t(1) << bits) - 1); }

    // Room for so many keys, none for none.
    void reserve(int64_t count) {
      if (count == 0) return;
      bits = 3;
      while (int64_t(7) << (bits - 3) < count) ++bits;
      slots.reset(new Slot[size_t(1) << bits]);
    }
  };

  bool is_live(const Slot& slot) const { return slot.neighbour != kNone && roots_.is_root(slot.neighbour); }

  int32_t find(int32_t root, int32_t neighbour) const {
    const Table& table = tables_[root];
    if (!table.slots) return kNone;
    uint32_t i = table.start(neighbour);
    while (table.slots[i].neighbour != neighbour && table.slots[i].neighbour != kNone) i = table.next(i);
    return table.slots[i].neighbour == kNone ? kNone : table.slots[i].edge;
  }

  // A key that is not there yet.
  void insert(int32_t root, int32_t neighbour, int32_t edge) {
    Table& table = tables_[root];
    if (!place(table, {neighbour, edge})) {
      grow(table);
      place(table, {neighbour, edge});
    }
    ++table.degree;
  }

  // Whether there was room.
  bool place(Table& table, const Slot& slot) const {
    if (!table.slots) return false;
    uint32_t i = table.start(slot.neighbour);
    while (is_live(table.slots[i])) i = table.next(i);
    if (table.slots[i].neighbour == kNone) {
      if (table.used == table.limit()) return false;
      ++table.used;
    }
    table.slots[i] = slot;
    return true;
  }

  void grow(Table& table) const {
    Table grown;
    grown.degree = table.degree;
    grown.reserve(int64_t(table.degree) * 3 / 2 + 1);
    for (const Slot& slot : table)
      if (is_live(slot)) place(grown, slot);
    table = std::move(grown);
  }

  const Roots& roots_;
  std::vector<Table> tables_;
};

}  // namespace ssap
