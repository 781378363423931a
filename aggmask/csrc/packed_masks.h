// Masks of a bit a pixel.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <vector>

// A function with it is compiled for processors that count a word's bits in one instruction, too; the one that fits the
// processor runs.
#if defined(__x86_64__) && defined(__gnu_linux__) && __has_attribute(target_clones)
#define WITH_POPCNT __attribute__((target_clones("popcnt", "default")))
#else
#define WITH_POPCNT
#endif

namespace aggmask {

// How many bits two runs of words have in common.
WITH_POPCNT inline int64_t common_bits(const uint64_t* a, const uint64_t* b, int64_t count) {
  int64_t common = 0;
  for (int64_t i = 0; i < count; ++i) common += std::popcount(a[i] & b[i]);
  return common;
}

// Masks cut into strips of 64 columns: a strip's row is a word, its rows follow each other, so that what two objects
// may share are a few runs of words.
class PackedMasks {
 public:
  PackedMasks(int64_t count, int64_t height, int64_t width)
      : height_(height),
        width_(width),
        strips_((width + kBits - 1) / kBits),
        words_(count * strips_ * height),
        rows_(count * strips_) {}

  // Takes in mask n, [height, width].
  void pack(int64_t n, const bool* mask) {
    uint64_t* words = &words_[n * strips_ * height_];
    for (int64_t y = 0; y < height_; ++y, mask += width_)
      for (int64_t strip = 0; strip < strips_; ++strip)
        words[strip * height_ + y] = pack_word(mask + strip * kBits, std::min(width_ - strip * kBits, kBits));
    for (int64_t strip = 0; strip < strips_; ++strip) rows_[n * strips_ + strip] = filled_rows(words + strip * height_);
  }

  // The number of pixels that are of both masks.
  int64_t intersection(int64_t m, int64_t n) const {
    int64_t pixels = 0;
    for (int64_t a = m * strips_, b = n * strips_; a < (m + 1) * strips_; ++a, ++b) {
      const int64_t first = std::max(rows_[a].first, rows_[b].first), last = std::min(rows_[a].last, rows_[b].last);
      if (first < last) pixels += common_bits(&words_[a * height_ + first], &words_[b * height_ + first], last - first);
    }
    return pixels;
  }

 private:
  static constexpr int64_t kBits = 64;

  // Rows first..last − 1.
  struct Rows {
    int64_t first = 0, last = 0;
  };

  // A bit for each of up to 64 pixels. In which order is the same for all masks, which is all that matters.
  static uint64_t pack_word(const bool* pixels, int64_t count) {
    uint64_t bytes[8] = {};
    if (count == kBits)
      std::memcpy(bytes, pixels, kBits);  // of a known length: no call
    else
      std::memcpy(bytes, pixels, count);
    uint64_t word = 0;
    // The product's highest byte gathers the lowest bits of the eight bytes.
    for (uint64_t eight : bytes) word = word << 8 | (eight * 0x0102040810204080) >> 56;
    return word;
  }

  // From the first row with a pixel to the last one.
  Rows filled_rows(const uint64_t* strip) const {
    int64_t first = 0, last = height_;
    while (first < last && !strip[first]) ++first;
    while (first < last && !strip[last - 1]) --last;
    return {first, last};
  }

  int64_t height_, width_, strips_;
  std::vector<uint64_t> words_;  // [mask, strip, row]
  std::vector<Rows> rows_;       // [mask, strip]
};

}  // namespace aggmask
