// Clustering on the GPU. One block a class goes through its seeds, one after the other, without the host; what they
// start is drawn by a thread a pixel. The host waits three times an image, however many objects there are: for the number
// of pixels that take part, for that of objects, and while it sends their list.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/nonzero.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <vector>

#include "clustering.h"
#include "clustering_arguments.h"

namespace spatial_embeddings {
namespace {

constexpr int kThreads = 1024;     // of the block that finds a class's objects
constexpr int kDrawThreads = 256;  // of a block that draws
constexpr int kWarp = 32;

// What one pass over a class's pixels finds.
struct Pass {
  unsigned long long best;  // the highest rank that is left
  int size, free;           // the gaussian's pixels, and how many of them were unclustered

  __device__ void add(const Pass& other) {
    best = best > other.best ? best : other.best;
    size += other.size;
    free += other.free;
  }
};

// The sum over the block's threads, known to all of them.
__device__ Pass sum_over_block(Pass pass) {
  __shared__ Pass warps[kThreads / kWarp];
  for (int offset = kWarp / 2; offset > 0; offset /= 2)
    pass.add({__shfl_down_sync(~0u, pass.best, offset), __shfl_down_sync(~0u, pass.size, offset),
              __shfl_down_sync(~0u, pass.free, offset)});
  __syncthreads();  // the last sum has been read
  if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = pass;
  __syncthreads();
  Pass total = warps[0];
  for (int warp = 1; warp < kThreads / kWarp; ++warp) total.add(warps[warp]);
  return total;
}

// Ranks of the pixels that take part. taking_part: int64 [P, 2], their class and raster index.
__global__ void rank_pixels(
    const int64_t* taking_part, int64_t num_pixels, const float* seeds, int64_t map_size, uint64_t* ranks) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= num_pixels) return;
  const int64_t pixel = taking_part[2 * i + 1];
  ranks[i] = rank_of(seeds[taking_part[2 * i] * map_size + pixel], int32_t(pixel));
}

// Where each class begins in `taking_part`, which is sorted by class. starts: [num_classes + 1].
__global__ void find_classes(const int64_t* taking_part, int64_t num_pixels, int64_t num_classes, int64_t* starts) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i > num_pixels) return;
  const int64_t previous = i > 0 ? taking_part[2 * (i - 1)] : -1;
  const int64_t next = i < num_pixels ? taking_part[2 * i] : num_classes;
  for (int64_t c = previous + 1; c <= next; ++c) starts[c] = i;
}

// One block a class: writes the ranks of the seeds that start an object, in the order found, to the class's part of
// `objects`, and their number to `counts`.
__global__ void __launch_bounds__(kThreads) find_objects(
    Maps maps, const int64_t* starts, uint64_t* ranks, Thresholds thresholds, uint64_t* objects, int64_t* counts) {
  const int64_t begin = starts[blockIdx.x], end = starts[blockIdx.x + 1];
  int64_t unclustered = end - begin, count = 0;
  Pass pass{0, 0, 0};
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) pass.add({ranks[i], 0, 0});
  uint64_t seed = sum_over_block(pass).best;

  while (unclustered > thresholds.min_pixels && score_of(seed) >= thresholds.seed) {
    const Gaussian gaussian = gaussian_at(maps, pixel_of(seed));
    pass = {0, 0, 0};
    for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
      const uint64_t rank = ranks[i];
      const int32_t pixel = pixel_of(rank);
      const bool member = belongs(gaussian, maps.x[pixel], maps.y[pixel]);
      // The centre counts as clustered before the share of free pixels is taken, as in the authors' code.
      const bool free = !is_clustered(rank) && rank != seed;
      const uint64_t left = member || !free ? clustered(rank) : rank;
      ranks[i] = left;
      pass.add({left, member, member && free});
    }
    pass = sum_over_block(pass);
    unclustered -= 1 + pass.free;
    if (is_object(pass.size, pass.free, thresholds)) {
      if (threadIdx.x == 0) objects[begin + count] = seed;
      ++count;
    }
    seed = pass.best;
  }
  if (threadIdx.x == 0) counts[blockIdx.x] = count;
}

// One thread a pixel: its label, that of the last object it belongs to, and its place in every mask.
// rank_at: where in `objects` object k's rank is. masks may be null.
__global__ void draw(
    Maps maps, const float* seeds, const uint64_t* objects, const int64_t* rank_at, const int64_t* classes,
    int64_t num_objects, int32_t* labels, bool* masks) {
  const int64_t map_size = maps.height * maps.width;
  const int64_t pixel = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (pixel >= map_size) return;
  int32_t label = 0;
  for (int64_t k = num_objects - 1; k >= 0; --k) {
    const bool member = seeds[classes[k] * map_size + pixel] > kHalf &&
        belongs(gaussian_at(maps, pixel_of(objects[rank_at[k]])), maps.x[pixel], maps.y[pixel]);
    if (member && label == 0) label = int32_t(k + 1);
    if (masks) masks[k * map_size + pixel] = member;
    else if (label != 0) break;
  }
  labels[pixel] = label;
}

__global__ void read_scores(const uint64_t* objects, const int64_t* rank_at, int64_t num_objects, float* scores) {
  const int64_t k = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (k < num_objects) scores[k] = score_of(objects[rank_at[k]]);
}

unsigned blocks(int64_t count) { return unsigned((count + kDrawThreads - 1) / kDrawThreads); }

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> cluster(
    const at::Tensor& embeddings, const at::Tensor& bandwidth, const at::Tensor& seeds, double seed_threshold,
    int64_t min_pixels, double min_unclustered, bool return_masks) {
  check_arguments(embeddings, bandwidth, seeds, min_pixels);
  const c10::cuda::CUDAGuard guard(seeds.device());
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  const int64_t num_classes = seeds.size(0), height = seeds.size(1), width = seeds.size(2), map_size = height * width;
  const Thresholds thresholds{float(seed_threshold), min_pixels, min_unclustered};
  const at::Tensor e = embeddings.contiguous(), b = bandwidth.contiguous(), s = seeds.contiguous();
  const float* x = e.const_data_ptr<float>();
  const float* bandwidth_x = b.const_data_ptr<float>();
  const Maps maps{height, width, x, x + map_size, bandwidth_x, bandwidth_x + (b.size(0) - 1) * map_size, nullptr};
  const float* seed_maps = s.const_data_ptr<float>();

  const at::Tensor taking_part = at::nonzero(s.view({num_classes, map_size}).gt(kHalf));  // the host waits
  const int64_t num_pixels = taking_part.size(0);
  const auto longs = s.options().dtype(at::kLong);
  const at::Tensor starts_and_counts = at::zeros({2 * num_classes + 1}, longs);
  const at::Tensor ranks = at::empty({num_pixels}, longs), objects = at::empty({num_pixels}, longs);
  int64_t* starts = starts_and_counts.mutable_data_ptr<int64_t>();
  uint64_t* rank_data = reinterpret_cast<uint64_t*>(ranks.mutable_data_ptr<int64_t>());
  uint64_t* object_data = reinterpret_cast<uint64_t*>(objects.mutable_data_ptr<int64_t>());
  if (num_pixels > 0) {
    const int64_t* pixels = taking_part.const_data_ptr<int64_t>();
    rank_pixels<<<blocks(num_pixels), kDrawThreads, 0, stream>>>(pixels, num_pixels, seed_maps, map_size, rank_data);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    find_classes<<<blocks(num_pixels + 1), kDrawThreads, 0, stream>>>(pixels, num_pixels, num_classes, starts);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    find_objects<<<unsigned(num_classes), kThreads, 0, stream>>>(
        maps, starts, rank_data, thresholds, object_data, starts + num_classes + 1);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }

  const at::Tensor found = starts_and_counts.cpu();  // the host waits
  const int64_t* found_starts = found.const_data_ptr<int64_t>();
  std::vector<int64_t> rank_at_list, class_list;
  for (int64_t c = 0; c < num_classes; ++c)
    for (int64_t k = 0; k < found_starts[num_classes + 1 + c]; ++k) {
      rank_at_list.push_back(found_starts[c] + k);
      class_list.push_back(c);
    }
  const int64_t count = int64_t(class_list.size());
  const at::Tensor lists = at::empty({2, count}, found.options());
  std::copy(rank_at_list.begin(), rank_at_list.end(), lists.mutable_data_ptr<int64_t>());
  std::copy(class_list.begin(), class_list.end(), lists.mutable_data_ptr<int64_t>() + count);
  const at::Tensor on_device = lists.to(s.device());
  const int64_t* rank_at = on_device.const_data_ptr<int64_t>();

  const at::Tensor labels = at::zeros({height, width}, s.options().dtype(at::kInt));
  const at::Tensor scores = at::empty({count}, s.options());
  const at::Tensor masks = at::empty({return_masks ? count : 0, height, width}, s.options().dtype(at::kBool));
  if (count > 0) {
    read_scores<<<blocks(count), kDrawThreads, 0, stream>>>(
        object_data, rank_at, count, scores.mutable_data_ptr<float>());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    draw<<<blocks(map_size), kDrawThreads, 0, stream>>>(
        maps, seed_maps, object_data, rank_at, rank_at + count, count, labels.mutable_data_ptr<int32_t>(),
        return_masks ? masks.mutable_data_ptr<bool>() : nullptr);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return {labels, scores, on_device[1].clone(), masks};
}

}  // namespace

TORCH_LIBRARY_IMPL(spatial_embeddings, CUDA, m) { m.impl("cluster", &cluster); }

}  // namespace spatial_embeddings
