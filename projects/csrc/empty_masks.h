// Masks of which most is never written.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <cstdlib>
#include <new>

namespace projects {

// Masks of no pixel [count, height, width]. The system hands out zeroed memory page by page where it is written: most
// of a mask is never touched, and costs neither time nor memory.
inline at::Tensor empty_masks(int64_t count, int64_t height, int64_t width) {
  void* memory = std::calloc(std::max<int64_t>(1, count * height * width), sizeof(bool));
  if (!memory) throw std::bad_alloc();
  return at::from_blob(memory, {count, height, width}, std::free, at::TensorOptions().dtype(at::kBool));
}

}  // namespace projects
