// Clustering on the CPU. Neighbouring pixels mostly embed near each other: tiles of the image with the box of their
// embeddings and their highest seed tell where an object's pixels can be, and where the next one starts.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "box.h"
#include "clustering.h"
#include "clustering_arguments.h"
#include "projects/csrc/empty_masks.h"

namespace spatial_embeddings {
namespace {

constexpr float kInfinity = Box::kInfinity;
constexpr int64_t kTileSize = 16;  // pixels to a side

struct Object {
  float score;
  std::vector<int32_t> pixels;  // raster indices
};

// The box that holds every embedding which belongs to a gaussian, with room for rounding.
Box reach(const Gaussian& g) {
  // A negative bandwidth makes far pixels belong, along the other axis too.
  const bool bounded = g.bandwidth_x >= 0 && g.bandwidth_y >= 0;
  const auto along = [&](float bandwidth) {
    return bounded ? 1.001 * std::sqrt(double(kHalfDistance) / bandwidth) : kInfinity;
  };
  const double dx = along(g.bandwidth_x), dy = along(g.bandwidth_y);
  return {
      std::nextafter(float(g.center_x - dx), -kInfinity), std::nextafter(float(g.center_y - dy), -kInfinity),
      std::nextafter(float(g.center_x + dx), kInfinity), std::nextafter(float(g.center_y + dy), kInfinity)};
}

// The pixels of one class that take part, tile by tile.
class Tiles {
 public:
  explicit Tiles(const Maps& maps) {
    for (int64_t row = 0; row < maps.height; row += kTileSize)
      for (int64_t column = 0; column < maps.width; column += kTileSize) add_tile(maps, row, column);
    unclustered_ = ranks_.size();
  }

  int64_t unclustered() const { return unclustered_; }

  // The rank of the best seed among the unclustered pixels, of which there must be one.
  uint64_t best() const {
    uint64_t best = 0;
    for (const Tile& tile : tiles_) best = std::max(best, tile.best);
    return best;
  }

  // Marks a seed's own pixel as clustered.
  void take_seed(uint64_t rank) {
    for (Tile& tile : tiles_) {
      if (tile.best != rank) continue;
      *std::find(ranks_.begin() + tile.begin, ranks_.begin() + tile.end, rank) = clustered(rank);
      tile.best = *std::max_element(ranks_.begin() + tile.begin, ranks_.begin() + tile.end);
    }
    --unclustered_;
  }

  // Marks the gaussian's pixels as clustered. Writes them to `members`, which has room for all and one; returns how many they
  // are and how many of them were unclustered.
  std::pair<int64_t, int64_t> take(const Gaussian& gaussian, int32_t* members) {
    const Box box = reach(gaussian);
    int64_t size = 0, free = 0;
    for (Tile& tile : tiles_) {
      if (!tile.box.overlaps(box)) continue;
      const int64_t count = tile.end - tile.begin;
      const float *x = x_.data() + tile.begin, *y = y_.data() + tile.begin;
      uint64_t* ranks = ranks_.data() + tile.begin;
      std::array<int32_t, kTileSize * kTileSize> member;
      for (int64_t i = 0; i < count; ++i) member[i] = belongs(gaussian, x[i], y[i]);
      uint64_t best = 0;
      for (int64_t i = 0; i < count; ++i) {
        const uint64_t rank = ranks[i];
        members[size] = pixel_of(rank);  // kept where the next line moves on
        size += member[i];
        free += member[i] & !is_clustered(rank);
        ranks[i] = member[i] ? clustered(rank) : rank;
        best = std::max(best, ranks[i]);
      }
      tile.best = best;
    }
    unclustered_ -= free;
    return {size, free};
  }

 private:
  struct Tile {
    int64_t begin, end;  // its pixels
    Box box;             // of their embeddings
    uint64_t best;       // the highest rank
  };

  void add_tile(const Maps& maps, int64_t first_row, int64_t first_column) {
    const int64_t end_row = std::min(maps.height, first_row + kTileSize);
    const int64_t columns = std::min(maps.width - first_column, kTileSize);
    std::array<float, kTileSize * kTileSize> x, y;
    std::array<uint64_t, kTileSize * kTileSize> ranks;
    int64_t size = 0;
    for (int64_t row = first_row; row < end_row; ++row) {
      const int64_t start = row * maps.width + first_column, end = start + columns;
      int32_t found = 0;
      for (int64_t i = start; i < end; ++i) found += maps.seeds[i] > kHalf;
      if (found == 0) continue;
      for (int64_t i = start; i < end; ++i) {
        x[size] = maps.x[i];  // kept where the last line moves on
        y[size] = maps.y[i];
        ranks[size] = rank_of(maps.seeds[i], int32_t(i));
        size += maps.seeds[i] > kHalf;
      }
    }
    if (size == 0) return;
    Tile tile{int64_t(ranks_.size()), int64_t(ranks_.size()) + size, {}, 0};
    for (int64_t i = 0; i < size; ++i) {
      tile.box.add(x[i], y[i]);
      tile.best = std::max(tile.best, ranks[i]);
    }
    x_.insert(x_.end(), x.begin(), x.begin() + size);
    y_.insert(y_.end(), y.begin(), y.begin() + size);
    ranks_.insert(ranks_.end(), ranks.begin(), ranks.begin() + size);
    tiles_.push_back(tile);
  }

  std::vector<Tile> tiles_;  // those that are not empty
  std::vector<float> x_, y_;      // embeddings of the pixels
  std::vector<uint64_t> ranks_;
  int64_t unclustered_;
};

// The objects of one class, in the order found.
std::vector<Object> cluster_class(const Maps& maps, const Thresholds& thresholds) {
  std::vector<Object> objects;
  Tiles tiles(maps);
  std::vector<int32_t> members(tiles.unclustered() + 1);
  while (tiles.unclustered() > thresholds.min_pixels) {
    const uint64_t rank = tiles.best();
    if (score_of(rank) < thresholds.seed) break;
    const Gaussian gaussian = gaussian_at(maps, pixel_of(rank));
    // The centre counts as clustered before the share of free pixels is taken, as in the authors' code.
    tiles.take_seed(rank);
    const auto [size, free] = tiles.take(gaussian, members.data());
    if (is_object(size, free, thresholds))
      objects.push_back({score_of(rank), {members.begin(), members.begin() + size}});
  }
  return objects;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> cluster(
    const at::Tensor& embeddings, const at::Tensor& bandwidth, const at::Tensor& seeds, double seed_threshold,
    int64_t min_pixels, double min_unclustered, bool return_masks) {
  check_arguments(embeddings, bandwidth, seeds, min_pixels);
  const int64_t height = seeds.size(1), width = seeds.size(2), count = height * width, num_classes = seeds.size(0);
  const Thresholds thresholds{float(seed_threshold), min_pixels, min_unclustered};
  const at::Tensor e = embeddings.contiguous(), b = bandwidth.contiguous(), s = seeds.contiguous();
  const float* xs = e.const_data_ptr<float>();
  const float* bandwidth_x = b.const_data_ptr<float>();
  const float* bandwidth_y = bandwidth_x + (b.size(0) - 1) * count;

  std::vector<std::vector<Object>> by_class(num_classes);
  at::parallel_for(0, num_classes, 1, [&](int64_t first, int64_t last) {
    for (int64_t c = first; c < last; ++c)
      by_class[c] = cluster_class(
          {height, width, xs, xs + count, bandwidth_x, bandwidth_y, s.const_data_ptr<float>() + c * count}, thresholds);
  });

  int64_t total = 0;
  for (const auto& objects : by_class) total += objects.size();
  at::Tensor labels = at::zeros({height, width}, e.options().dtype(at::kInt));
  at::Tensor scores = at::empty({total}, e.options());
  at::Tensor classes = at::empty({total}, e.options().dtype(at::kLong));
  at::Tensor masks = projects::empty_masks(return_masks ? total : 0, height, width);
  int32_t* label = labels.mutable_data_ptr<int32_t>();
  int64_t k = 0;
  for (int64_t c = 0; c < num_classes; ++c)
    for (const Object& object : by_class[c]) {
      scores.mutable_data_ptr<float>()[k] = object.score;
      classes.mutable_data_ptr<int64_t>()[k] = c;
      for (int32_t pixel : object.pixels) label[pixel] = int32_t(k + 1);
      if (return_masks) {
        bool* mask = masks.mutable_data_ptr<bool>() + k * count;
        for (int32_t pixel : object.pixels) mask[pixel] = true;
      }
      ++k;
    }
  return {labels, scores, classes, masks};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(spatial_embeddings, m) {
  m.def(
      "cluster(Tensor embeddings, Tensor bandwidth, Tensor seeds, float seed_threshold, int min_pixels, "
      "float min_unclustered, bool return_masks) -> (Tensor labels, Tensor scores, Tensor classes, Tensor masks)");
}

TORCH_LIBRARY_IMPL(spatial_embeddings, CPU, m) { m.impl("cluster", &cluster); }

}  // namespace spatial_embeddings
