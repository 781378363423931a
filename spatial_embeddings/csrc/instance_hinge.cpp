// The objects' Lovász-hinge on the CPU. An object looks only at tiles of the image whose embeddings reach into its
// gaussian; the gradients come with the value, so that nothing of the size of objects × pixels is kept.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "box.h"
#include "instance_hinge.h"

namespace spatial_embeddings {
namespace {

constexpr int32_t kIgnored = -2;  // as an owner; -1 owns nothing
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

struct Image {
  const float* x;  // embeddings
  const float* y;
  const int32_t* owner;
  int64_t height, width;
};

// The bounding boxes of the embeddings in the image's square tiles. Ignored pixels are in none.
class Tiles {
 public:
  static constexpr int64_t kSide = 16;

  explicit Tiles(const Image& image)
      : image_(image),
        rows_((image.height + kSide - 1) / kSide),
        columns_((image.width + kSide - 1) / kSide),
        boxes_(rows_ * columns_),
        has_nan_(rows_) {
    at::parallel_for(0, rows_, 1, [&](int64_t first, int64_t last) {
      for (int64_t row = first; row < last; ++row) bound(row);
    });
  }

  // Whether any pixel that isn't ignored has no place.
  bool have_nan() const { return std::find(has_nan_.begin(), has_nan_.end(), 1) != has_nan_.end(); }

  // Calls visit(first, count) with the rows, runs of pixels, of the tiles that may have embeddings in the box.
  template <typename Visit>
  void within(const Box& box, Visit visit) const {
    for (int64_t tile = 0; tile < rows_ * columns_; ++tile) {
      if (!boxes_[tile].overlaps(box)) continue;
      const int64_t row = tile / columns_, left = tile % columns_ * kSide;
      const int64_t bottom = std::min((row + 1) * kSide, image_.height);
      for (int64_t y = row * kSide; y < bottom; ++y)
        visit(y * image_.width + left, std::min(kSide, image_.width - left));
    }
  }

 private:
  void bound(int64_t row) {
    const int64_t bottom = std::min((row + 1) * kSide, image_.height);
    bool has_nan = false;
    for (int64_t y = row * kSide; y < bottom; ++y)
      for (int64_t x = 0; x < image_.width; ++x) {
        const int64_t i = y * image_.width + x;
        if (image_.owner[i] == kIgnored) continue;
        has_nan |= std::isnan(image_.x[i]) || std::isnan(image_.y[i]);
        boxes_[row * columns_ + x / kSide].add(image_.x[i], image_.y[i]);
      }
    has_nan_[row] = has_nan;
  }

  const Image& image_;
  int64_t rows_, columns_;
  std::vector<Box> boxes_;
  std::vector<char> has_nan_;  // by row of tiles
};

// Every object's pixels, in raster order.
class OwnPixels {
 public:
  OwnPixels(const Image& image, int64_t objects) : starts_(objects + 2) {
    const int64_t count = image.height * image.width;
    for (int64_t i = 0; i < count; ++i) {
      TORCH_CHECK_INDEX(
          image.owner[i] < objects, "Pixel ", i, " belongs to object ", image.owner[i], ", but there are ", objects);
      if (image.owner[i] >= 0) ++starts_[image.owner[i] + 2];
    }
    std::partial_sum(starts_.begin(), starts_.end(), starts_.begin());
    pixels_.resize(starts_.back());
    for (int64_t i = 0; i < count; ++i)
      if (image.owner[i] >= 0) pixels_[starts_[image.owner[i] + 1]++] = int32_t(i);
  }

  const int32_t* begin(int64_t object) const { return pixels_.data() + starts_[object]; }
  const int32_t* end(int64_t object) const { return pixels_.data() + starts_[object + 1]; }

 private:
  std::vector<int64_t> starts_;
  std::vector<int32_t> pixels_;
};

// One object's loss and gradients after the other's, in memory for the largest that may come.
class ObjectHinge {
 public:
  ObjectHinge(const Image& image, const Tiles& tiles, const OwnPixels& own_pixels)
      : image_(image),
        tiles_(tiles),
        own_pixels_(own_pixels),
        pixels_(new int32_t[image.height * image.width + 1]),
        phi_(new float[image.height * image.width + 1]),
        records_(new uint64_t[image.height * image.width]) {}

  // The object's loss. The pixels that contribute to it, its own first, and their slopes stay for `add_gradients`.
  double loss(int64_t object, const Attraction& attraction) {
    low_.assign(kDigits, 0);
    high_.assign(kDigits, Passed{});
    collect(object, attraction);
    sort_by_low_digit();
    return weigh();
  }

  // The gradients of the last loss times `scale`: adds those of the embeddings, returns those of the attraction.
  std::array<double, 4> add_gradients(const Attraction& a, float scale, float* grad_x, float* grad_y) const {
    double center_x = 0, center_y = 0, precision_x = 0, precision_y = 0;
    for (int64_t c = 0; c < count_; ++c) {
      const int32_t i = pixels_[c];
      const float slope = scale * phi_[c];
      const float dx = image_.x[i] - a.center_x, dy = image_.y[i] - a.center_y;
      const float slope_x = 2 * slope * dx * a.precision_x, slope_y = 2 * slope * dy * a.precision_y;
      grad_x[i] += slope_x, grad_y[i] += slope_y;
      center_x -= slope_x, center_y -= slope_y;
      precision_x += slope * dx * dx, precision_y += slope * dy * dy;
    }
    return {center_x, center_y, precision_x, precision_y};
  }

 private:
  // The keys are sorted by their low, then by their high half.
  static constexpr int kDigitBits = kKeyBits / 2;
  static constexpr uint32_t kDigits = 1 << kDigitBits;

  struct Passed {
    uint32_t own = 0, others = 0;
  };

  void collect(int64_t object, const Attraction& a) {
    count_ = 0;
    float smallest = Box::kInfinity;
    for (const int32_t* i = own_pixels_.begin(object); i < own_pixels_.end(object); ++i) {
      pixels_[count_] = *i;
      phi_[count_] = attraction_distance(a, image_.x[*i], image_.y[*i]);
      smallest = std::min(smallest, phi_[count_++]);
    }
    size_ = count_;
    for (int64_t c = 0; c < size_; ++c) {
      phi_[c] = std::exp(-phi_[c]);
      count(c, &Passed::own);
    }

    const float limit = reach(smallest);
    // With room for rounding.
    const float x = 1.001f * std::sqrt(limit / a.precision_x), y = 1.001f * std::sqrt(limit / a.precision_y);
    const Box box{a.center_x - x, a.center_y - y, a.center_x + x, a.center_y + y};
    tiles_.within(box, [&](int64_t first, int64_t length) {
      // Most runs are whole rows of a tile: a length that the compiler knows makes vector instructions of the loops.
      constexpr std::integral_constant<int64_t, Tiles::kSide> kWhole;
      if (length == kWhole)
        collect_others(int32_t(object), a, limit, first, kWhole);
      else
        collect_others(int32_t(object), a, limit, first, length);
    });
  }

  template <typename Length>
  void collect_others(int32_t object, const Attraction& a, float limit, int64_t first, Length length) {
    float phi[Tiles::kSide];  // the distance at first
    int32_t takes[Tiles::kSide], near = 0, taken = 0;
    for (int64_t j = 0; j < length; ++j) {
      phi[j] = attraction_distance(a, image_.x[first + j], image_.y[first + j]);
      takes[j] = phi[j] < limit;
      near |= takes[j];
    }
    if (!near) return;
    for (int64_t j = 0; j < length; ++j) {
      const int32_t owner = image_.owner[first + j];
      takes[j] &= (owner != object) & (owner != kIgnored);
      taken += takes[j];
    }
    for (int64_t j = 0; j < length; ++j) phi[j] = exp_minus(phi[j]);
    if (taken == length) {
      std::iota(&pixels_[count_], &pixels_[count_ + length], int32_t(first));
      std::copy_n(phi, length, &phi_[count_]);
    } else {
      for (int64_t j = 0, c = count_; j < length; ++j) {
        pixels_[c] = int32_t(first + j);  // kept where the last line moves on
        phi_[c] = phi[j];
        c += takes[j];
      }
    }
    for (int64_t c = count_; c < count_ + taken; ++c) count(c, &Passed::others);
    count_ += taken;
  }

  // Counts the digits of a pixel's key, the high one of own and other pixels apart.
  void count(int64_t c, uint32_t Passed::*kind) {
    const uint32_t key = sorting_key(half_error(kind == &Passed::own, phi_[c]));
    ++low_[key % kDigits];
    ++(high_[key / kDigits].*kind);
  }

  void sort_by_low_digit() {
    uint32_t next = 0;
    for (uint32_t& n : low_) next += std::exchange(n, next);
    for (int64_t c = 0; c < count_; ++c) {
      const uint32_t key = sorting_key(half_error(c < size_, phi_[c]));
      records_[low_[key % kDigits]++] = uint64_t(key / kDigits) << 32 | uint64_t(c);
    }
  }

  // Sorting by the high digit tells how many pixels a pixel comes after, which is all that is asked.
  double weigh() {
    Passed next;
    for (Passed& n : high_) {
      next.own += std::exchange(n.own, next.own);
      next.others += std::exchange(n.others, next.others);
    }
    double loss = 0;
    for (int64_t r = 0; r < count_; ++r) {
      const uint32_t c = uint32_t(records_[r]);
      Passed& passed = high_[records_[r] >> 32];
      const bool own = c < size_;
      ++(own ? passed.own : passed.others);
      const double weight = 2 * jaccard_growth(own, passed.own, passed.others, size_);
      loss += weight * half_error(own, phi_[c]);
      phi_[c] *= float(own ? weight : -weight);
    }
    return loss;
  }

  const Image& image_;
  const Tiles& tiles_;
  const OwnPixels& own_pixels_;
  // The pixels that contribute, the object's own `size_` first.
  int64_t size_ = 0, count_ = 0;
  std::unique_ptr<int32_t[]> pixels_;
  std::unique_ptr<float[]> phi_;         // distance, then phi, then the loss's derivative by the distance
  std::unique_ptr<uint64_t[]> records_;  // high digit and index of such pixels, sorted by low digit
  std::vector<uint32_t> low_;
  std::vector<Passed> high_;
};

// Every worker adds up its objects' gradients by itself: no more of them than this, for the memory's sake.
constexpr int64_t kMaxWorkers = 8;

// The objects' mean loss, and its gradients where they are asked for, else empty tensors. Any NaN, and any centre or
// precision that isn't finite, makes all of them NaN.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> instance_hinge(
    const at::Tensor& embeddings, const at::Tensor& centers, const at::Tensor& precision, const at::Tensor& owner,
    bool with_gradients) {
  const at::Tensor e = embeddings.contiguous(), c = centers.contiguous(), p = precision.contiguous();
  const at::Tensor owners = owner.contiguous();
  const int64_t objects = c.size(1), pixels = owners.numel();
  const float* xs = e.const_data_ptr<float>();
  const Image image{xs, xs + pixels, owners.const_data_ptr<int32_t>(), owners.size(0), owners.size(1)};
  const float* center = c.const_data_ptr<float>();
  const float* precision_x = p.const_data_ptr<float>();
  const float* precision_y = precision_x + (p.size(0) - 1) * objects;

  const auto gradient = [&](const at::Tensor& x) {
    return with_gradients ? at::zeros_like(x) : at::empty({0}, x.options());
  };
  at::Tensor loss = at::zeros({}, e.options());
  at::Tensor grad_embeddings = gradient(e), grad_centers = gradient(c), grad_precision = gradient(p);
  const OwnPixels own_pixels(image, objects);
  if (objects == 0) return {loss, grad_embeddings, grad_centers, grad_precision};

  const Tiles tiles(image);
  const auto finite = [](const at::Tensor& x) {
    const float* first = x.const_data_ptr<float>();
    return std::all_of(first, first + x.numel(), [](float value) { return std::isfinite(value); });
  };
  if (tiles.have_nan() || !finite(c) || !finite(p)) {
    for (const at::Tensor& x : {loss, grad_embeddings, grad_centers, grad_precision})
      std::fill_n(x.mutable_data_ptr<float>(), x.numel(), kNaN);
    return {loss, grad_embeddings, grad_centers, grad_precision};
  }

  // The same worker always has the same objects: the sums are the same in every run.
  const int64_t workers = std::min({objects, int64_t(at::get_num_threads()), kMaxWorkers});
  std::vector<double> losses(objects);
  std::vector<std::array<double, 4>> gradients(objects);
  std::vector<std::vector<float>> sums(workers);  // of the embeddings' gradients; the first worker's are in the result
  at::parallel_for(0, workers, 1, [&](int64_t first, int64_t last) {
    for (int64_t worker = first; worker < last; ++worker) {
      if (with_gradients && worker > 0) sums[worker].resize(2 * pixels);
      float* sum = worker > 0 ? sums[worker].data() : grad_embeddings.mutable_data_ptr<float>();
      ObjectHinge hinge(image, tiles, own_pixels);
      for (int64_t k = worker; k < objects; k += workers) {
        const Attraction attraction{center[k], center[objects + k], precision_x[k], precision_y[k]};
        losses[k] = hinge.loss(k, attraction);
        if (with_gradients) gradients[k] = hinge.add_gradients(attraction, 1.0f / objects, sum, sum + pixels);
      }
    }
  });

  *loss.mutable_data_ptr<float>() = std::accumulate(losses.begin(), losses.end(), 0.0) / objects;
  if (!with_gradients) return {loss, grad_embeddings, grad_centers, grad_precision};
  at::parallel_for(0, 2 * pixels, 1 << 15, [&](int64_t first, int64_t last) {
    float* total = grad_embeddings.mutable_data_ptr<float>();
    for (int64_t worker = 1; worker < workers; ++worker)
      for (int64_t i = first; i < last; ++i) total[i] += sums[worker][i];
  });
  float* grad_center = grad_centers.mutable_data_ptr<float>();
  float* grad_precision_x = grad_precision.mutable_data_ptr<float>();
  float* grad_precision_y = grad_precision_x + (p.size(0) - 1) * objects;
  for (int64_t k = 0; k < objects; ++k) {
    const auto [center_x, center_y, by_precision_x, by_precision_y] = gradients[k];
    grad_center[k] = center_x, grad_center[objects + k] = center_y;
    // The same element where there is one precision.
    grad_precision_x[k] += by_precision_x, grad_precision_y[k] += by_precision_y;
  }
  return {loss, grad_embeddings, grad_centers, grad_precision};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(spatial_embeddings, m) {
  m.def(
      "instance_hinge(Tensor embeddings, Tensor centers, Tensor precision, Tensor owner, bool with_gradients) -> "
      "(Tensor loss, Tensor grad_embeddings, Tensor grad_centers, Tensor grad_precision)");
}

TORCH_LIBRARY_IMPL(spatial_embeddings, CPU, m) { m.impl("instance_hinge", &instance_hinge); }

}  // namespace spatial_embeddings
