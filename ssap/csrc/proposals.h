// From one level's proposals to the next level's nodes.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "pyramid_level.h"

namespace ssap {

constexpr int32_t kNoNode = -1;
constexpr int64_t kRowsPerTask = 16;

// Takes class c as the best of a row's pixels where its probability is higher than the highest so far. In two loops, of
// which compilers make vector instructions, unlike of one.
inline void keep_higher(
    const float* __restrict probabilities, int32_t c, int64_t width, float* __restrict highest,
    int32_t* __restrict best) {
  for (int64_t x = 0; x < width; ++x) best[x] = probabilities[x] > highest[x] ? c : best[x];
  for (int64_t x = 0; x < width; ++x) highest[x] = std::max(highest[x], probabilities[x]);
}

// The most probable class of pixels first..last whose classes lie in planes.
inline void best_of_planes(const PyramidLevel& level, int64_t first, int64_t last, int32_t* best) {
  const float* probabilities = level.semantics.plane(0);
  std::vector<float> highest(probabilities + first, probabilities + last);
  for (int32_t c = 1; c < level.num_classes; ++c)
    keep_higher(level.semantics.plane(c) + first, c, last - first, highest.data(), best + first);
}

// The same where each pixel's classes lie together.
inline void best_of_pixels(const PyramidLevel& level, int64_t first, int64_t last, int32_t* best) {
  for (int64_t i = first; i < last; ++i) {
    const float* probabilities = level.semantics.data + i * level.num_classes;
    best[i] = int32_t(std::max_element(probabilities, probabilities + level.num_classes) - probabilities);
  }
}

// The most probable class of every pixel, the lower one of equals.
inline std::vector<int32_t> classes_of(const PyramidLevel& level) {
  std::vector<int32_t> classes(level.size());
  const bool in_planes = level.semantics.channel_stride != 1;
  at::parallel_for(0, level.height, kRowsPerTask, [&](int64_t first, int64_t last) {
    for (int64_t y = first; y < last; ++y)
      (in_planes ? best_of_planes : best_of_pixels)(level, y * level.width, (y + 1) * level.width, classes.data());
  });
  return classes;
}

// The nodes of a level's graph.
struct Nodes {
  std::vector<int32_t> of_pixel;  // kNoNode for stuff
  int32_t count = 0;
};

// The interiors of one level's proposals, each of which is one node of the next level's graph.
struct Interiors {
  int64_t width = 0;
  std::vector<int32_t> of_pixel;  // kNoNode outside of all
  std::vector<int32_t> classes;   // the most frequent one among each interior's pixels, the lower one of equals
};

// Of labels 1..num_labels, 0 for stuff: interiors consist of the pixels none of whose four neighbours in the image is in
// another proposal. Where a proposal ends at stuff, the finer semantics say which of the pixels are still things.
inline Interiors interiors_of(
    const PyramidLevel& level, const std::vector<int32_t>& classes, const int32_t* labels, int32_t num_labels) {
  Interiors interiors{level.width, std::vector<int32_t>(level.size(), kNoNode), {}};
  const int64_t width = level.width, height = level.height;
  std::vector<int32_t> numbers(num_labels + 1, kNoNode);
  std::vector<int32_t> votes;  // [interior, class]
  for (int64_t y = 0; y < height; ++y)
    for (int64_t x = 0; x < width; ++x) {
      const int64_t i = y * width + x;
      const int32_t label = labels[i];
      const auto other = [&](int64_t neighbour) { return labels[neighbour] > 0 && labels[neighbour] != label; };
      if (label == 0 || (x > 0 && other(i - 1)) || (x < width - 1 && other(i + 1)) || (y > 0 && other(i - width)) ||
          (y < height - 1 && other(i + width)))
        continue;
      if (numbers[label] == kNoNode) {
        numbers[label] = int32_t(votes.size() / level.num_classes);
        votes.resize(votes.size() + level.num_classes);
      }
      interiors.of_pixel[i] = numbers[label];
      ++votes[numbers[label] * level.num_classes + classes[i]];
    }
  for (auto row = votes.begin(); row != votes.end(); row += level.num_classes)
    interiors.classes.push_back(int32_t(std::max_element(row, row + level.num_classes) - row));
  return interiors;
}

// The nodes of a level of these classes: first the interiors of the level before, of which every pixel is 2×2 pixels
// here and which keep those that are of the interior's class, then every other thing pixel by itself.
inline Nodes nodes_of(
    const PyramidLevel& level, const std::vector<int32_t>& classes, const std::vector<bool>& is_thing,
    const Interiors& interiors) {
  Nodes nodes{std::vector<int32_t>(level.size(), kNoNode), int32_t(interiors.classes.size())};
  for (int64_t y = 0; y < level.height; ++y) {
    const int32_t* coarse = interiors.of_pixel.empty() ? nullptr : &interiors.of_pixel[y / 2 * interiors.width];
    for (int64_t x = 0; x < level.width; ++x) {
      const int64_t i = y * level.width + x;
      if (!is_thing[classes[i]]) continue;
      const int32_t interior = coarse ? coarse[x / 2] : kNoNode;
      const bool kept = interior != kNoNode && interiors.classes[interior] == classes[i];
      nodes.of_pixel[i] = kept ? interior : nodes.count++;
    }
  }
  return nodes;
}

}  // namespace ssap
