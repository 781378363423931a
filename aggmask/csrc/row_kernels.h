// The inner loops of 3×3 convolutions with four output channels, in vector instructions that the processor has.
//
// Rows are of floats: columns −1 and, from the width on, up to the next multiple of kColumns and one further are there,
// too, for reading.
#pragma once

#include <cstdint>
#include <cstring>

namespace aggmask {

constexpr int64_t kColumns = 16;  // that are computed at a time at most
constexpr int kOutputs = 4;
constexpr int kMostLanes = 8;

// A vector type's operations, unlike loops, stay vectors where they are inlined into functions for other processors.
typedef float FourLanes __attribute__((vector_size(16)));
typedef float EightLanes __attribute__((vector_size(32)));

// out[o][x] = bias[o] + Σ_{r < count, k < 3} weights[r][k][o] · in[r][x + k − 1]
template <typename Lanes>
[[gnu::always_inline]] inline void convolve_rows(
    const float* const* in, int64_t count, const float* weights, const float* bias, int64_t width, float* const* out) {
  constexpr int64_t kLanes = sizeof(Lanes) / sizeof(float);
  for (int64_t x = 0; x < width; x += 2 * kLanes) {
    Lanes sums[kOutputs][2];
#pragma GCC unroll 4
    for (int o = 0; o < kOutputs; ++o) sums[o][0] = sums[o][1] = Lanes{} + bias[o];
    for (int64_t r = 0; r < count; ++r) {
#pragma GCC unroll 3
      for (int64_t k = 0; k < 3; ++k) {
        const float* weight = weights + (r * 3 + k) * kOutputs;
        Lanes low, high;
        std::memcpy(&low, in[r] + x + k - 1, sizeof(Lanes));
        std::memcpy(&high, in[r] + x + k - 1 + kLanes, sizeof(Lanes));
#pragma GCC unroll 4
        for (int o = 0; o < kOutputs; ++o) {
          sums[o][0] += weight[o] * low;
          sums[o][1] += weight[o] * high;
        }
      }
    }
#pragma GCC unroll 4
    for (int o = 0; o < kOutputs; ++o) std::memcpy(out[o] + x, sums[o], sizeof(sums[o]));
  }
}

// sums[k][o], of kMostLanes parts each, grow by Σ_x in[x + k − 1] · gradients[o][x], which are 0 from the width on.
template <typename Lanes>
[[gnu::always_inline]] inline void correlate_rows(
    const float* in, const float* const* gradients, int64_t width, float* sums) {
  constexpr int64_t kLanes = sizeof(Lanes) / sizeof(float);
  Lanes totals[3][kOutputs];
#pragma GCC unroll 12
  for (int i = 0; i < 3 * kOutputs; ++i)
    std::memcpy(&totals[i / kOutputs][i % kOutputs], sums + i * kMostLanes, sizeof(Lanes));
  for (int64_t x = 0; x < width; x += kLanes) {
#pragma GCC unroll 3
    for (int64_t k = 0; k < 3; ++k) {
      Lanes value;
      std::memcpy(&value, in + x + k - 1, sizeof(Lanes));
#pragma GCC unroll 4
      for (int o = 0; o < kOutputs; ++o) {
        Lanes gradient;
        std::memcpy(&gradient, gradients[o] + x, sizeof(Lanes));
        totals[k][o] += value * gradient;
      }
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < 3 * kOutputs; ++i)
    std::memcpy(sums + i * kMostLanes, &totals[i / kOutputs][i % kOutputs], sizeof(Lanes));
}

struct RowKernels {
  void (*convolve)(
      const float* const* in, int64_t count, const float* weights, const float* bias, int64_t width, float* const* out);
  void (*correlate)(const float* in, const float* const* gradients, int64_t width, float* sums);
};

#ifdef __x86_64__
__attribute__((target("avx2"))) inline void convolve_avx2(
    const float* const* in, int64_t count, const float* weights, const float* bias, int64_t width, float* const* out) {
  convolve_rows<EightLanes>(in, count, weights, bias, width, out);
}

__attribute__((target("avx2"))) inline void correlate_avx2(
    const float* in, const float* const* gradients, int64_t width, float* sums) {
  correlate_rows<EightLanes>(in, gradients, width, sums);
}
#endif

inline RowKernels row_kernels() {
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx2")) return {convolve_avx2, correlate_avx2};
#endif
  return {convolve_rows<FourLanes>, correlate_rows<FourLanes>};
}

}  // namespace aggmask
