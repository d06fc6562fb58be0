// Tiles: a run of neighbouring pixels of one image row, as [pixels, padded channels] in the accumulation type.
// For simd.cpp only.
#pragma once

#include <cstdint>

#include "attention_gate/gemm.h"
#include "attention_gate/kernels.h"
#include "common/half.h"

namespace asegnet::attention_gate {
namespace {

constexpr int64_t kTilePixels = 64;

// Memory of one call, aligned to a cache line and freed at its end.
template <typename A>
class Scratch {
 public:
  explicit Scratch(int64_t count) : memory_(::operator new(sizeof(A) * static_cast<uint64_t>(count) + kLine)) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(memory_);
    data_ = reinterpret_cast<A*>((address + kLine - 1) / kLine * kLine);
  }
  ~Scratch() { ::operator delete(memory_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  operator A*() const { return data_; }

 private:
  static constexpr uintptr_t kLine = 64;
  void* memory_;
  A* data_;
};

template <typename T>
ASEGNET_HOST_DEVICE T* pixel(const Image& image, int64_t n, int64_t row, int64_t column) {
  return static_cast<T*>(image.data) + n * image.n + row * image.h + column * image.w;
}

template <typename A>
struct Tile {
  A* data;
  int64_t stride;  // from one pixel to the next
};

// Whether a tensor's own memory is a tile already.
template <typename T, typename A>
ASEGNET_HOST_DEVICE bool is_tile(const Image& image, int64_t channels) {
  return sizeof(T) == sizeof(A) && image.c == 1 && padded<A>(channels) == channels;
}

// The tile that starts at `from`: the tensor's memory where that is a tile, else a converted copy in `buffer`.
template <typename T, typename A>
inline Tile<A> read_tile(const Image& image, const T* from, int64_t channels, int64_t pixels, A* buffer) {
  if (is_tile<T, A>(image, channels)) return {reinterpret_cast<A*>(const_cast<T*>(from)), image.w};
  const int64_t stride = padded<A>(channels);
  if (image.c == 1) {
    for (int64_t p = 0; p < pixels; ++p) {
      const T* __restrict source = from + p * image.w;
      A* __restrict target = buffer + p * stride;
      for (int64_t c = 0; c < channels; ++c) target[c] = to_acc(source[c]);
    }
  } else {
    for (int64_t c = 0; c < channels; ++c) {
      const T* __restrict source = from + c * image.c;
      A* __restrict target = buffer + c;
      for (int64_t p = 0; p < pixels; ++p) target[p * stride] = to_acc(source[p * image.w]);
    }
  }
  for (int64_t p = 0; p < pixels; ++p) {
    for (int64_t c = channels; c < stride; ++c) buffer[p * stride + c] = A(0);
  }
  return {buffer, stride};
}

// Where to put a tile that write_tile will store at `to`.
template <typename T, typename A>
inline Tile<A> target_tile(const Image& image, T* to, int64_t channels, A* buffer) {
  if (is_tile<T, A>(image, channels)) return {reinterpret_cast<A*>(to), image.w};
  return {buffer, padded<A>(channels)};
}

template <typename T, typename A>
inline void write_tile(const Image& image, T* to, int64_t channels, int64_t pixels, const Tile<A>& tile) {
  if (is_tile<T, A>(image, channels)) return;
  if (image.c == 1) {
    for (int64_t p = 0; p < pixels; ++p) {
      const A* __restrict source = tile.data + p * tile.stride;
      T* __restrict target = to + p * image.w;
      for (int64_t c = 0; c < channels; ++c) target[c] = from_acc<T>(source[c]);
    }
  } else {
    for (int64_t c = 0; c < channels; ++c) {
      const A* __restrict source = tile.data + c;
      T* __restrict target = to + c * image.c;
      for (int64_t p = 0; p < pixels; ++p) target[p * image.w] = from_acc<T>(source[p * tile.stride]);
    }
  }
}

// u = Wg g + b_g, made row by row of the coarse grid for one strip of columns, and upsampled from there. Two coarse
// rows are kept, which a walk down the image reads again, so u is never stored whole.
template <typename T, typename A>
class Upsampler {
 public:
  Upsampler(const Problem<A>& problem, int64_t strip_columns)
      : problem_(problem),
        stride_(padded<A>(problem.inter_channels)),
        row_size_((strip_columns < problem.columns.coarse ? strip_columns + 2 : problem.columns.coarse) * stride_),
        rows_(2 * row_size_),
        blended_(row_size_),
        g_tile_(kTilePixels * padded<A>(problem.gating_channels)) {}

  // Fine columns [begin, end), at most strip_columns of them.
  void start_strip(int64_t begin, int64_t end) {
    coarse_begin_ = problem_.columns.lower[begin];
    coarse_end_ = problem_.columns.upper[end - 1] + 1;
    held_[0] = held_[1] = -1;
  }

  void start_row(int64_t n, int64_t y) {
    const Axis<A>& axis = problem_.rows;
    const int64_t upper_row = axis.upper[y];
    const A* lower = coarse_row(n, axis.lower[y], upper_row);
    if (!axis.blend || upper_row == axis.lower[y]) {
      current_ = lower;
      return;
    }
    const A* __restrict upper = coarse_row(n, upper_row, axis.lower[y]);
    const A upper_weight = axis.upper_weight[y];
    const A lower_weight = A(1) - upper_weight;
    A* __restrict blended = blended_;
    const int64_t count = (coarse_end_ - coarse_begin_) * stride_;
    for (int64_t i = 0; i < count; ++i) blended[i] = lower_weight * lower[i] + upper_weight * upper[i];
    current_ = blended_;
  }

  // up(u) of the started row at fine columns [x, x + pixels), to a [pixels, padded F] tile.
  void tile(int64_t x, int64_t pixels, A* __restrict to) const {
    const Axis<A>& axis = problem_.columns;
    for (int64_t p = 0; p < pixels; ++p, to += stride_) {
      const A* __restrict lower = current_ + (axis.lower[x + p] - coarse_begin_) * stride_;
      if (!axis.blend) {
        for (int64_t f = 0; f < stride_; f += kLanes<A>) store(to + f, load(lower + f));
        continue;
      }
      const A* __restrict upper = current_ + (axis.upper[x + p] - coarse_begin_) * stride_;
      const Vector<A> upper_weight = broadcast(axis.upper_weight[x + p]);
      const Vector<A> lower_weight = A(1) - upper_weight;
      for (int64_t f = 0; f < stride_; f += kLanes<A>) {
        store(to + f, lower_weight * load(lower + f) + upper_weight * load(upper + f));
      }
    }
  }

 private:
  // The row's values; `other` is the row that must not be given up for it.
  const A* coarse_row(int64_t n, int64_t row, int64_t other) {
    const int64_t wanted = n * problem_.rows.coarse + row;
    for (int slot = 0; slot < 2; ++slot) {
      if (held_[slot] == wanted) return rows_ + slot * row_size_;
    }
    const int slot = held_[0] == n * problem_.rows.coarse + other ? 1 : 0;
    held_[slot] = wanted;
    A* values = rows_ + slot * row_size_;
    for (int64_t column = coarse_begin_; column < coarse_end_; column += kTilePixels) {
      const int64_t left = coarse_end_ - column;
      const int64_t pixels = left < kTilePixels ? left : kTilePixels;
      const T* from = pixel<const T>(problem_.g, n, row, column);
      const Tile<A> g = read_tile<T, A>(problem_.g, from, problem_.gating_channels, pixels, g_tile_);
      A* to = values + (column - coarse_begin_) * stride_;
      for (int64_t p = 0; p < pixels; ++p) {
        for (int64_t f = 0; f < stride_; ++f) to[p * stride_ + f] = problem_.b_g[f];
      }
      product<A>({pixels, stride_, problem_.gating_channels, g.data, g.stride, 1, problem_.w_g, stride_, to, stride_,
                  true});
    }
    return values;
  }

  const Problem<A>& problem_;
  int64_t stride_, row_size_;
  Scratch<A> rows_, blended_, g_tile_;
  int64_t held_[2] = {-1, -1};
  int64_t coarse_begin_ = 0, coarse_end_ = 0;
  const A* current_ = nullptr;
};

}  // namespace
}  // namespace asegnet::attention_gate
