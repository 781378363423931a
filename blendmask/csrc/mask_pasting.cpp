// Pasting masks on the CPU: of the image only what the boxes reach is written.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <array>
#include <vector>

#include "interpolation.h"
#include "mask_pasting.h"
#include "mask_pasting_arguments.h"
#include "projects/csrc/empty_masks.h"

namespace blendmask {
namespace {

// Pastes one mask after the other. A mask's rows are interpolated along the columns as they come, the last two of them
// are kept, and the image's rows are interpolated between those.
class Paster {
 public:
  // mask: [size, size]. Writes the pixels of `image` that the sides reach.
  void paste(
      const float* mask, int64_t size, const PastedSide& columns, const PastedSide& rows, float threshold, bool* image,
      int64_t width) {
    const int64_t length = columns.last - columns.first;
    if (length <= 0) return;
    along_columns_.fill(length, 1, [&](int64_t s, int64_t) { return paste_taps(columns, columns.first + s, size); });
    for (std::vector<float>& line : lines_) line.resize(length);
    held_ = {-1, -1};
    for (int64_t y = rows.first; y < rows.last; ++y) {
      const Taps<float> taps = paste_taps(rows, y, size);
      const float *low = line(mask, size, taps.low), *high = line(mask, size, taps.high);
      bool* const row = image + y * width + columns.first;
      for (int64_t x = 0; x < length; ++x) row[x] = taps.low_weight * low[x] + taps.high_weight * high[x] >= threshold;
    }
  }

 private:
  const float* line(const float* mask, int64_t size, int64_t row) {
    std::vector<float>& line = lines_[row % 2];
    if (held_[row % 2] != row) along_columns_.interpolate(mask + row * size, line.data());
    held_[row % 2] = row;
    return line.data();
  }

  Interpolation<float> along_columns_;
  std::array<std::vector<float>, 2> lines_;  // of even and of odd rows
  std::array<int64_t, 2> held_;              // which ones
};

at::Tensor paste_masks(
    const at::Tensor& masks, const at::Tensor& boxes, int64_t height, int64_t width, double threshold) {
  check_arguments(masks, boxes, height, width, threshold);
  const at::Tensor m = masks.contiguous(), b = boxes.contiguous();
  const int64_t count = m.size(0), size = m.size(1);
  const float *mask = m.const_data_ptr<float>(), *box = b.const_data_ptr<float>();
  at::Tensor pasted = projects::empty_masks(count, height, width);
  bool* image = pasted.mutable_data_ptr<bool>();
  at::parallel_for(0, count, 1, [&](int64_t first, int64_t last) {
    Paster paster;
    for (int64_t n = first; n < last; ++n) {
      const PastedSide columns = paste_side(box[4 * n], box[4 * n + 2], width);
      const PastedSide rows = paste_side(box[4 * n + 1], box[4 * n + 3], height);
      paster.paste(mask + n * size * size, size, columns, rows, float(threshold), image + n * height * width, width);
    }
  });
  return pasted;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(blendmask, m) {
  m.def("paste_masks(Tensor masks, Tensor boxes, int height, int width, float threshold) -> Tensor");
}

TORCH_LIBRARY_IMPL(blendmask, CPU, m) { m.impl("paste_masks", &paste_masks); }

}  // namespace blendmask
