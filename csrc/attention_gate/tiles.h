// Tiles: a run of neighbouring pixels in the accumulation type, [pixels, padded channels] or [channels, kTilePixels].
// For simd.cpp only.
#pragma once

#include <cstdint>

#include "attention_gate/gemm.h"
#include "attention_gate/kernels.h"
#include "common/half.h"

namespace asegnet::attention_gate {
namespace {

// Memory of one call, aligned to a cache line, zero at first and freed at its end.
template <typename A>
class Scratch {
 public:
  explicit Scratch(int64_t count) : memory_(::operator new(sizeof(A) * static_cast<uint64_t>(count) + kLine)) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(memory_);
    data_ = reinterpret_cast<A*>((address + kLine - 1) / kLine * kLine);
    __builtin_memset(data_, 0, sizeof(A) * static_cast<uint64_t>(count));
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

ASEGNET_HOST_DEVICE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
ASEGNET_HOST_DEVICE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

struct Grid {
  int64_t rows, columns;
};

template <typename T>
ASEGNET_HOST_DEVICE T* pixel(const Image& image, int64_t n, int64_t row, int64_t column) {
  return static_cast<T*>(image.data) + n * image.n + row * image.h + column * image.w;
}

template <typename T>
ASEGNET_HOST_DEVICE T* pixel(const Image& image, const Grid& grid, int64_t index) {
  const int64_t row = index / grid.columns;
  return pixel<T>(image, row / grid.rows, row % grid.rows, index % grid.columns);
}

// Whether the pixels are image.w apart in memory, from the first to the last.
ASEGNET_HOST_DEVICE bool is_run(const Image& image, const Grid& grid, int64_t begin, int64_t pixels) {
  if (begin % grid.columns + pixels <= grid.columns) return true;
  if (image.h != grid.columns * image.w) return false;
  const int64_t size = grid.rows * grid.columns;
  return begin % size + pixels <= size || image.n == grid.rows * image.h;
}

// Calls run(first pixel, pixels, offset) for the parts that lie in one image row, or with the whole if it is a run.
template <class Run>
ASEGNET_HOST_DEVICE void for_runs(const Image& image, const Grid& grid, int64_t begin, int64_t pixels, const Run& run) {
  if (is_run(image, grid, begin, pixels)) return run(begin, pixels, int64_t(0));
  for (int64_t offset = 0; offset < pixels;) {
    const int64_t first = begin + offset;
    const int64_t count = least(pixels - offset, grid.columns - first % grid.columns);
    run(first, count, offset);
    offset += count;
  }
}

template <typename A>
struct Tile {
  A* data;
  int64_t pixel, channel;  // strides

  Operand<A> rows() const { return {data, pixel, channel, kPanel<A> * channel}; }
  Operand<A> transposed() const { return {data, channel, pixel, kPanel<A> * pixel}; }
};

template <typename A>
ASEGNET_HOST_DEVICE int64_t tile_size(int64_t channels) {
  return kTilePixels * padded<A>(channels);
}

template <typename A>
ASEGNET_HOST_DEVICE Tile<A> tile_in(A* buffer, int64_t channels, bool by_channel) {
  if (by_channel) return {buffer, 1, kTilePixels};
  return {buffer, padded<A>(channels), 1};
}

template <typename T, typename A>
ASEGNET_HOST_DEVICE void convert(const T* __restrict from, A* __restrict to, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes<A> <= count; i += kLanes<A>) {
    if constexpr (sizeof(T) == 2) store(to + i, widen<T>(load_as<Halves>(from + i)));
    else store(to + i, load(from + i));
  }
  for (; i < count; ++i) to[i] = to_acc(from[i]);
}

// The tile of pixels [begin, begin + pixels): the tensor's memory where that is one, else a converted copy in `buffer`.
template <typename T, typename A>
inline Tile<A> read_tile(const Image& image, const Grid& grid, int64_t begin, int64_t pixels, int64_t channels,
                         bool by_channel, A* buffer) {
  if (!by_channel && sizeof(T) == sizeof(A) && image.c == 1 && padded<A>(channels) == channels &&
      is_run(image, grid, begin, pixels)) {
    return {reinterpret_cast<A*>(pixel<T>(image, grid, begin)), image.w, 1};
  }
  const Tile<A> tile = tile_in(buffer, channels, by_channel);
  for_runs(image, grid, begin, pixels, [&](int64_t first, int64_t count, int64_t offset) {
    const T* from = pixel<const T>(image, grid, first);
    A* to = buffer + offset * tile.pixel;
    if (!by_channel) {
      for (int64_t p = 0; p < count; ++p) {
        const T* __restrict source = from + p * image.w;
        A* __restrict target = to + p * tile.pixel;
        if (image.c == 1) {
          convert(source, target, channels);
        } else {
          for (int64_t c = 0; c < channels; ++c) target[c] = to_acc(source[c * image.c]);
        }
      }
      return;
    }
    for (int64_t c = 0; c < channels; ++c) {
      const T* __restrict source = from + c * image.c;
      A* __restrict target = to + c * kTilePixels;
      if (image.w == 1) {
        convert(source, target, count);
      } else {
        for (int64_t p = 0; p < count; ++p) target[p] = to_acc(source[p * image.w]);
      }
    }
  });
  return tile;
}

// What read_tile will read of these pixels.
template <typename T>
inline Ahead ahead_of(const Image& image, const Grid& grid, int64_t begin, int64_t pixels, int64_t channels) {
  if (pixels <= 0 || !is_run(image, grid, begin, pixels)) return {};
  constexpr int64_t kSize = sizeof(T), kLine = 64;
  Ahead ahead;
  ahead.row = reinterpret_cast<const char*>(pixel<const T>(image, grid, begin));
  if (image.c == 1) {
    const bool dense = image.w == channels;
    ahead.rows = dense ? 1 : pixels;
    ahead.lines = ((dense ? pixels : 1) * channels * kSize + kLine - 1) / kLine;
    ahead.row_step = image.w * kSize;
  } else if (image.w == 1) {
    ahead.rows = channels;
    ahead.lines = (pixels * kSize + kLine - 1) / kLine;
    ahead.row_step = image.c * kSize;
  }
  return ahead;
}

// to = scale from, with `scale` one value or, with kEach, one for each element.
template <bool kEach, typename T, typename A>
ASEGNET_HOST_DEVICE void store_scaled(T* __restrict to, const A* __restrict from, const A* __restrict scale,
                                      int64_t count, bool stream) {
  constexpr int L = kLanes<A>;
  int64_t i = 0;
  const auto scaled = [&]() { return load(from + i) * (kEach ? load(scale + i) : broadcast(*scale)); };
  if constexpr (sizeof(T) == sizeof(A)) {
    if (stream && is_aligned(to)) {
      for (; i + L <= count; i += L) stream_as(to + i, scaled());
    }
    for (; i + L <= count; i += L) store(to + i, scaled());
  } else {
    if (kVectorBytes >= 32 && stream && is_aligned(to, sizeof(Halves))) {
      for (; i + L <= count; i += L) stream_as(to + i, narrow<T>(scaled()));
    }
    for (; i + L <= count; i += L) store_as(to + i, narrow<T>(scaled()));
  }
  for (; i < count; ++i) to[i] = from_acc<T>(scale[kEach ? i : 0] * from[i]);
}

// The tile times one factor per pixel, to the tensor.
template <typename T, typename A>
inline void write_tile(const Image& image, const Grid& grid, int64_t begin, int64_t pixels, int64_t channels,
                       const Tile<A>& tile, const A* scale, bool stream) {
  for_runs(image, grid, begin, pixels, [&](int64_t first, int64_t count, int64_t offset) {
    T* to = pixel<T>(image, grid, first);
    const A* from = tile.data + offset * tile.pixel;
    if (image.c == 1 && tile.channel == 1) {
      for (int64_t p = 0; p < count; ++p) {
        store_scaled<false>(to + p * image.w, from + p * tile.pixel, scale + offset + p, channels, stream);
      }
    } else if (image.w == 1 && tile.pixel == 1) {
      for (int64_t c = 0; c < channels; ++c) {
        store_scaled<true>(to + c * image.c, from + c * tile.channel, scale + offset, count, stream);
      }
    } else {
      for (int64_t c = 0; c < channels; ++c) {
        for (int64_t p = 0; p < count; ++p) {
          to[c * image.c + p * image.w] = from_acc<T>(scale[offset + p] * from[c * tile.channel + p * tile.pixel]);
        }
      }
    }
  });
}

// up(u) at pixels [begin, begin + pixels) of the fine grid, as a [pixels, padded F] tile. `blended` has room for
// kTilePixels + 1 coarse pixels.
template <typename A>
inline void upsample_tile(const Problem<A>& problem, int64_t begin, int64_t pixels, A* to, A* blended) {
  const Axis<A>&rows = problem.rows, &columns = problem.columns;
  const int64_t stride = padded<A>(problem.inter_channels);
  for (int64_t offset = 0; offset < pixels;) {
    const int64_t row = (begin + offset) / columns.fine, x = (begin + offset) % columns.fine;
    const int64_t n = row / rows.fine, y = row % rows.fine;
    const int64_t count = least(pixels - offset, columns.fine - x);
    const int64_t first = columns.lower[x], coarse = columns.upper[x + count - 1] + 1 - first;
    const A* lower_row = problem.u + ((n * rows.coarse + rows.lower[y]) * columns.coarse + first) * stride;
    const A* source = lower_row;
    if (rows.blend && rows.upper[y] != rows.lower[y]) {
      const A* upper_row = lower_row + (rows.upper[y] - rows.lower[y]) * columns.coarse * stride;
      const Vector<A> weight = broadcast(rows.upper_weight[y]), rest = A(1) - weight;
      for (int64_t i = 0; i < coarse * stride; i += kLanes<A>) {
        store(blended + i, rest * load(lower_row + i) + weight * load(upper_row + i));
      }
      source = blended;
    }
    for (int64_t p = 0; p < count; ++p, to += stride) {
      const A* lower = source + (columns.lower[x + p] - first) * stride;
      if (!columns.blend) {
        for (int64_t f = 0; f < stride; f += kLanes<A>) store(to + f, load(lower + f));
        continue;
      }
      const A* upper = source + (columns.upper[x + p] - first) * stride;
      const Vector<A> weight = broadcast(columns.upper_weight[x + p]), rest = A(1) - weight;
      for (int64_t f = 0; f < stride; f += kLanes<A>) {
        store(to + f, rest * load(lower + f) + weight * load(upper + f));
      }
    }
    offset += count;
  }
}

}  // namespace
}  // namespace asegnet::attention_gate
