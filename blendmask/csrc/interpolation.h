// Separable interpolation of square maps on the CPU, from tables: along the columns of a plane, then along its rows.
#pragma once

#include <algorithm>
#include <vector>

#include "taps.h"

namespace blendmask {

// How the samples along one side of a map are interpolated from a line: sample s is the sum over t of
// weight[t · samples + s] · line[index[t · samples + s]].
template <typename T>
struct Interpolation {
  int64_t samples = 0, taps = 0;
  std::vector<int64_t> index;
  std::vector<T> weight;

  // Fills the table: every sample is the sum over `points` of what taps_of(sample, point) stands for.
  template <typename TapsOf>
  void fill(int64_t new_samples, int64_t points, TapsOf taps_of) {
    samples = new_samples, taps = 2 * points;
    index.resize(taps * samples), weight.resize(taps * samples);
    for (int64_t point = 0, low = 0, high = samples; point < points; ++point, low += samples, high += samples)
      for (int64_t s = 0; s < samples; ++s, ++low, ++high) {
        const Taps<T> t = taps_of(s, point);
        index[low] = t.low, weight[low] = t.low_weight;
        index[high] = t.high, weight[high] = t.high_weight;
      }
  }

  void interpolate(const T* line, T* result) const {
    std::fill_n(result, samples, T(0));
    for (int64_t t = 0, first = 0; t < taps; ++t, first += samples)
      for (int64_t s = 0; s < samples; ++s) result[s] += weight[first + s] * line[index[first + s]];
  }

  // Adds the gradient by the line, given that by the result.
  void add_gradient(const T* gradient, T* line) const {
    for (int64_t t = 0, first = 0; t < taps; ++t, first += samples)
      for (int64_t s = 0; s < samples; ++s) line[index[first + s]] += weight[first + s] * gradient[s];
  }
};

// A plane's rows, interpolated along the columns: only those that are asked for.
template <typename T>
class Lines {
 public:
  void reset(int64_t height, int64_t length) {
    length_ = length;
    if (int64_t(values_.size()) < height * length) values_.resize(height * length);
    used_.assign(height, false);
  }

  T* operator[](int64_t row) { return &values_[row * length_]; }
  bool used(int64_t row) const { return used_[row]; }

  // A row, given to fill(row) first where it was never asked for.
  template <typename Fill>
  T* get(int64_t row, Fill fill) {
    if (!used_[row]) fill((*this)[row]);
    used_[row] = true;
    return (*this)[row];
  }

 private:
  int64_t length_;
  std::vector<T> values_;
  std::vector<char> used_;
};

template <typename T>
struct Plane {
  T* data;
  int64_t height, width;
};

// Interpolates a plane; result: [rows.samples, columns.samples].
template <typename T>
void resample(
    const Interpolation<T>& rows, const Interpolation<T>& columns, Plane<const T> plane, Lines<T>& lines, T* result) {
  const int64_t size = columns.samples;
  lines.reset(plane.height, size);
  for (int64_t sample = 0; sample < rows.samples; ++sample, result += size) {
    std::fill_n(result, size, T(0));
    for (int64_t tap = sample; tap < rows.taps * rows.samples; tap += rows.samples) {
      const T weight = rows.weight[tap];
      if (weight == 0) continue;
      const T* row = plane.data + rows.index[tap] * plane.width;
      const T* line = lines.get(rows.index[tap], [&](T* line) { columns.interpolate(row, line); });
      for (int64_t i = 0; i < size; ++i) result[i] += weight * line[i];
    }
  }
}

// Adds the gradient by the plane, given that by `resample`'s result.
template <typename T>
void add_resample_gradient(
    const Interpolation<T>& rows, const Interpolation<T>& columns, const T* gradient, Lines<T>& lines, Plane<T> plane) {
  const int64_t size = columns.samples;
  lines.reset(plane.height, size);
  for (int64_t sample = 0; sample < rows.samples; ++sample, gradient += size)
    for (int64_t tap = sample; tap < rows.taps * rows.samples; tap += rows.samples) {
      const T weight = rows.weight[tap];
      if (weight == 0) continue;
      T* line = lines.get(rows.index[tap], [&](T* line) { std::fill_n(line, size, T(0)); });
      for (int64_t i = 0; i < size; ++i) line[i] += weight * gradient[i];
    }
  for (int64_t row = 0; row < plane.height; ++row)
    if (lines.used(row)) columns.add_gradient(lines[row], plane.data + row * plane.width);
}

}  // namespace blendmask
