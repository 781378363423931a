// The cascaded graph partition on the CPU.
#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <cmath>
#include <vector>

#include "contraction.h"
#include "pixel_pairs.h"
#include "proposals.h"
#include "pyramid_level.h"

namespace ssap {
namespace {

void check_arguments(at::TensorList affinities, at::TensorList semantics, at::IntArrayRef thing_classes) {
  TORCH_CHECK_VALUE(
      !affinities.empty() && affinities.size() == semantics.size(),
      "cascaded_partition takes affinities and semantics of the same levels, but got ", affinities.size(), " and ",
      semantics.size());
  for (size_t i = 0; i < affinities.size(); ++i) {
    const at::Tensor &a = affinities[i], &s = semantics[i];
    TORCH_CHECK_VALUE(
        a.dim() == 3 && s.dim() == 3 && a.sizes().slice(1) == s.sizes().slice(1) && s.size(0) > 0 &&
            a.scalar_type() == at::kFloat && s.scalar_type() == at::kFloat,
        "level ", i, ": cascaded_partition takes float affinities [K, h, w] and semantics [C, h, w], but got ", a.sizes(),
        " and ", s.sizes());
    const int64_t window = std::lround(std::sqrt(double(a.size(0) + 1)));
    TORCH_CHECK_VALUE(
        window >= 3 && window % 2 == 1 && window * window == a.size(0) + 1, "level ", i, ": ", a.size(0),
        " channels of affinities are no odd window's");
    TORCH_CHECK_VALUE(
        i == 0 || (affinities[i - 1].size(1) == (a.size(1) + 1) / 2 &&
                   affinities[i - 1].size(2) == (a.size(2) + 1) / 2),
        "level ", i, " is not twice the size of the level before");
    for (int64_t c : thing_classes)
      TORCH_CHECK_VALUE(0 <= c && c < s.size(0), "level ", i, ": class ", c, " is not one of ", s.size(0));
  }
}

// Numbers the instances from 1 on by first pixel, 0 where there is no node; returns how many there are.
int32_t write_labels(const std::vector<int32_t>& nodes, const std::vector<int32_t>& cluster_of_node, int32_t* labels) {
  std::vector<int32_t> numbers(cluster_of_node.size());
  int32_t count = 0;
  for (size_t i = 0; i < nodes.size(); ++i) {
    if (nodes[i] == kNoNode) continue;
    int32_t& number = numbers[cluster_of_node[nodes[i]]];
    if (number == 0) number = ++count;
    labels[i] = number;
  }
  return count;
}

std::vector<at::Tensor> cascaded_partition(
    at::TensorList affinities, at::TensorList semantics, at::IntArrayRef thing_classes, bool refine_semantics) {
  check_arguments(affinities, semantics, thing_classes);
  std::vector<at::Tensor> partitions;
  Interiors interiors;
  for (size_t i = 0; i < affinities.size(); ++i) {
    const at::Tensor &a = affinities[i], &s = semantics[i];
    const int64_t window = std::lround(std::sqrt(double(a.size(0) + 1)));
    const PyramidLevel level{a.size(1), a.size(2), window, s.size(0), Channels(a), Channels(s)};
    std::vector<bool> is_thing(level.num_classes);
    for (int64_t c : thing_classes) is_thing[c] = true;

    const std::vector<int32_t> classes = classes_of(level);
    const Nodes nodes = nodes_of(level, classes, is_thing, interiors);
    const PixelPairs pairs(level, nodes.of_pixel);
    const std::vector<int32_t> clusters = greedy_contraction(nodes.count, pairs.edges(refine_semantics));
    partitions.push_back(at::zeros({level.height, level.width}, a.options().dtype(at::kInt)));
    int32_t* labels = partitions.back().mutable_data_ptr<int32_t>();
    const int32_t count = write_labels(nodes.of_pixel, clusters, labels);
    if (i + 1 < affinities.size()) interiors = interiors_of(level, classes, labels, count);
  }
  return partitions;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(ssap, m) {
  m.def(
      "cascaded_partition(Tensor[] affinities, Tensor[] semantics, int[] thing_classes, bool refine_semantics) "
      "-> Tensor[]");
}

TORCH_LIBRARY_IMPL(ssap, CPU, m) { m.impl("cascaded_partition", &cascaded_partition); }

}  // namespace ssap
