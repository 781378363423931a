// One 3×3 convolution of an instance, of up to four output channels, on a band.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "band.h"
#include "row_kernels.h"

namespace aggmask {

class InstanceConvolution {
 public:
  InstanceConvolution(int64_t inputs, int64_t outputs)
      : inputs_(inputs),
        outputs_(outputs),
        groups_((inputs + kOutputs - 1) / kOutputs),
        weights_(inputs * kArea * kOutputs),
        transposed_(groups_ * outputs * kArea * kOutputs),
        sums_((inputs + 1) * kArea * kOutputs * kMostLanes),
        in_(3 * std::max(inputs, outputs)) {}

  int64_t inputs() const { return inputs_; }
  int64_t groups() const { return groups_; }

  // The numbers of weights and biases.
  int64_t size() const { return outputs_ * inputs_ * kArea + outputs_; }

  // Takes weights [output, input, row, column], then biases.
  void set(const float* numbers) {
    for (int64_t o = 0; o < outputs_; ++o)
      for (int64_t i = 0; i < inputs_; ++i)
        for (int64_t tap = 0; tap < kArea; ++tap, ++numbers) {
          weights_[(i * kArea + tap) * kOutputs + o] = *numbers;
          const int64_t group = i / kOutputs, place = (group * outputs_ + o) * kArea + kArea - 1 - tap;
          transposed_[place * kOutputs + i % kOutputs] = *numbers;
        }
    std::copy_n(numbers, outputs_, biases_);
  }

  // A row of the four outputs, those that there are not are 0.
  void row(const RowKernels& kernels, const Planes& in, int64_t y, int64_t width, float* const* out) {
    gather(in, inputs_, y);
    kernels.convolve(in_.data(), 3 * inputs_, weights_.data(), biases_, width, out);
  }

  // A row of the gradients of inputs 4 · group and the three after it, from those of the outputs.
  void transposed_row(
      const RowKernels& kernels, const Planes& gradients, int64_t group, int64_t y, int64_t width, float* const* out) {
    constexpr float kNoBias[kOutputs] = {};
    gather(gradients, outputs_, y);
    const float* weights = &transposed_[group * outputs_ * kArea * kOutputs];
    kernels.convolve(in_.data(), 3 * outputs_, weights, kNoBias, width, out);
  }

  // Writes the gradients, from those of the outputs in some rows, in the order of `set`. `ones` is a row of them.
  void weight_gradients(
      const RowKernels& kernels, const Planes& in, const Planes& gradients, Rows rows, int64_t width, const float* ones,
      const float* zeros, float* out) {
    std::fill(sums_.begin(), sums_.end(), 0.0f);
    constexpr int64_t kRowSums = 3 * kOutputs * kMostLanes;
    const float* gradient[kOutputs] = {zeros, zeros, zeros, zeros};
    for (int64_t y = rows.first; y < rows.last; ++y) {
      for (int64_t o = 0; o < outputs_; ++o) gradient[o] = gradients.row(o, y);
      gather(in, inputs_, y);
      for (int64_t r = 0; r < 3 * inputs_; ++r) kernels.correlate(in_[r], gradient, width, &sums_[r * kRowSums]);
      kernels.correlate(ones, gradient, width, &sums_[3 * inputs_ * kRowSums]);
    }
    for (int64_t o = 0; o < outputs_; ++o)
      for (int64_t tap = 0; tap < inputs_ * kArea; ++tap) *out++ = sum(tap, o);
    for (int64_t o = 0; o < outputs_; ++o) *out++ = sum(inputs_ * kArea + 1, o);  // the ones' middle column
  }

 private:
  static constexpr int64_t kArea = 9;

  // Points to the rows that row y of the result depends on.
  void gather(const Planes& planes, int64_t channels, int64_t y) {
    for (int64_t r = 0; r < 3 * channels; ++r) in_[r] = planes.row(r / 3, y + r % 3 - 1);
  }

  float sum(int64_t tap, int64_t output) const {
    const float* parts = &sums_[(tap * kOutputs + output) * kMostLanes];
    float sum = 0;
    for (int i = 0; i < kMostLanes; ++i) sum += parts[i];
    return sum;
  }

  int64_t inputs_, outputs_, groups_;
  std::vector<float> weights_;     // [input, row, column, output]
  float biases_[kOutputs] = {};
  std::vector<float> transposed_;  // [group of inputs, output, row, column, input], rotated by half a turn
  std::vector<float> sums_;        // [input, row, column, output, lane], then the biases' as an input's of one row
  std::vector<const float*> in_;
};

}  // namespace aggmask
