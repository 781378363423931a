// The aggregation of instances on bands of the image, one after the other.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "band.h"
#include "instance_convolution.h"
#include "row_kernels.h"

namespace aggmask {

constexpr int64_t kHidden = 4;     // channels between the convolutions
constexpr int64_t kBandRows = 32;  // a band's maps stay in a processor's own cache

struct Instances {
  const float* maps;          // [map, height, width]
  const float* context;       // [image, channels, height, width]
  const float* weights;       // [count, num_weights]
  const int64_t* neighbours;  // [count, num_neighbours]
  const int64_t* images;      // [count]
  int64_t count, num_neighbours, channels, num_weights, height, width;

  int64_t inputs() const { return num_neighbours + channels; }
  int64_t area() const { return height * width; }
  int64_t bands() const { return (height + kBandRows - 1) / kBandRows; }
  Band band(int64_t b) const { return {b * kBandRows, std::min(height, (b + 1) * kBandRows), height}; }

  // Where an instance's input begins in the maps, or behind them in the context.
  int64_t map_of(int64_t p, int64_t input) const { return neighbours[p * num_neighbours + input] * area(); }
  int64_t context_of(int64_t p, int64_t input) const {
    return (images[p] * channels + input - num_neighbours) * area();
  }
};

class BandAggregation {
 public:
  explicit BandAggregation(const Instances& instances)
      : instances_(instances),
        convolutions_{{instances.inputs(), kHidden}, {kHidden, kHidden}, {kHidden, 1}},
        in_(planes(instances.inputs())),
        hidden_{planes(kHidden), planes(kHidden)},
        gradients_{planes(kHidden), planes(kHidden), planes(1)},
        row_(planes(kOutputs)),
        constant_(planes(2)) {}

  void move_to(const Band& band) {
    band_ = band;
    image_ = -1;
    for (Planes* planes : {&in_, &row_, &constant_}) planes->move_to(band);
    for (Planes& planes : hidden_) planes.move_to(band);
    for (Planes& planes : gradients_) planes.move_to(band);
    std::fill_n(constant_.row(1, band.first), instances_.width, 1.0f);
  }

  // Writes the band's rows of an instance's mask [height, width].
  void forward(int64_t p, float* mask) {
    compute_hidden(p, 0);
    for (int64_t y = band_.first; y < band_.last; ++y) {
      convolve(convolutions_[2], hidden_[1], y);
      std::copy_n(row_.row(0, band_.first), instances_.width, mask + y * instances_.width);
    }
  }

  // Adds to the gradients of the maps and the context in the band's rows, and writes what these rows contribute to
  // those of the instance's weights, from those of its mask.
  void backward(int64_t p, const float* mask, float* maps, float* context, float* weights) {
    compute_hidden(p, 1);
    gradients_[2].load(0, mask, band_.with(3));
    back_to_hidden(1, 2);
    back_to_hidden(0, 1);
    add_input_gradients(p, maps, context);
    const Planes* in[] = {&in_, &hidden_[0], &hidden_[1]};
    for (int layer = 0; layer < 3; ++layer) {
      convolutions_[layer].weight_gradients(
          kernels_, *in[layer], gradients_[layer], band_.with(0), instances_.width, constant_.row(1, band_.first),
          constant_.row(0, band_.first), weights);
      weights += convolutions_[layer].size();
    }
  }

 private:
  Planes planes(int64_t channels) const { return Planes(channels, kBandRows, instances_.width); }

  // The inputs and both hidden layers, the latter in the band's rows and `margin` + 1 more, which backward needs.
  void compute_hidden(int64_t p, int64_t margin) {
    const float* numbers = instances_.weights + p * instances_.num_weights;
    for (InstanceConvolution& convolution : convolutions_) {
      convolution.set(numbers);
      numbers += convolution.size();
    }
    load_inputs(p);
    hide(convolutions_[0], in_, hidden_[0], margin + 2);
    hide(convolutions_[1], hidden_[0], hidden_[1], margin + 1);
  }

  void load_inputs(int64_t p) {
    const Rows rows = band_.with(Planes::kMargin);
    for (int64_t i = 0; i < instances_.num_neighbours; ++i)
      in_.load(i, instances_.maps + instances_.map_of(p, i), rows);
    if (image_ == instances_.images[p]) return;  // the context of the instance before is this one's, too
    image_ = instances_.images[p];
    for (int64_t i = instances_.num_neighbours; i < instances_.inputs(); ++i)
      in_.load(i, instances_.context + instances_.context_of(p, i), rows);
  }

  void hide(InstanceConvolution& convolution, const Planes& in, Planes& out, int64_t margin) {
    const Rows rows = band_.with(margin);
    for (int64_t y = rows.first; y < rows.last; ++y) {
      convolve(convolution, in, y);
      for (int64_t c = 0; c < kHidden; ++c) {
        const float* value = row_.row(c, band_.first);
        float* rectified = out.row(c, y);
        for (int64_t x = 0; x < instances_.width; ++x) rectified[x] = value[x] < 0 ? 0 : value[x];
      }
    }
  }

  // The gradients of a hidden layer before its ReLU, from those of the layer after it.
  void back_to_hidden(int layer, int after) {
    const Rows rows = band_.with(after);
    for (int64_t y = rows.first; y < rows.last; ++y) {
      convolve_transposed(convolutions_[after], gradients_[after], 0, y);
      for (int64_t c = 0; c < kHidden; ++c) {
        const float *value = row_.row(c, band_.first), *hidden = hidden_[layer].row(c, y);
        float* gradient = gradients_[layer].row(c, y);
        for (int64_t x = 0; x < instances_.width; ++x) gradient[x] = hidden[x] <= 0 ? 0 : value[x];
      }
    }
  }

  void add_input_gradients(int64_t p, float* maps, float* context) {
    for (int64_t y = band_.first; y < band_.last; ++y)
      for (int64_t group = 0; group < convolutions_[0].groups(); ++group) {
        convolve_transposed(convolutions_[0], gradients_[0], group, y);
        const int64_t first = group * kOutputs, last = std::min(first + kOutputs, instances_.inputs());
        for (int64_t i = first; i < last; ++i) {
          const float* value = row_.row(i - first, band_.first);
          const bool is_map = i < instances_.num_neighbours;
          float* sum = is_map ? maps + instances_.map_of(p, i) : context + instances_.context_of(p, i);
          sum += y * instances_.width;
          for (int64_t x = 0; x < instances_.width; ++x) sum[x] += value[x];
        }
      }
  }

  // Both to `row_`.
  void convolve(InstanceConvolution& convolution, const Planes& in, int64_t y) {
    float* out[kOutputs];
    convolution.row(kernels_, in, y, instances_.width, result_rows(out));
  }

  void convolve_transposed(InstanceConvolution& convolution, const Planes& gradients, int64_t group, int64_t y) {
    float* out[kOutputs];
    convolution.transposed_row(kernels_, gradients, group, y, instances_.width, result_rows(out));
  }

  float* const* result_rows(float** rows) {
    for (int64_t o = 0; o < kOutputs; ++o) rows[o] = row_.row(o, band_.first);
    return rows;
  }

  const Instances& instances_;
  const RowKernels kernels_ = row_kernels();
  InstanceConvolution convolutions_[3];
  Planes in_;
  Planes hidden_[2];
  Planes gradients_[3];  // of each convolution's outputs
  Planes row_;           // what a convolution gave, of which one row is used
  Planes constant_;      // of 0 and of 1, of which one row is used
  Band band_{};
  int64_t image_ = -1;  // whose context is loaded
};

}  // namespace aggmask
