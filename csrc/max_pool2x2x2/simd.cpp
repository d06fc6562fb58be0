// A kernel is a step on a run of windows, and one walk over the map for all of them.
// Bytes: pool reads 8 and writes 1 element and 1 code per window; unpool the reverse. Nothing else moves.
#include "max_pool2x2x2/kernels.h"

#include "max_pool2x2x2/math.h"

namespace asegnet::max_pool2x2x2 {
namespace {

// Where the elements of the first window of a run lie, in the order of their codes; null outside the map.
template <class L>
struct Corners {
  L* at[kElements];
};

// Windows of a run are kStep elements apart: 2 along a row (NCDHW), 1 along the channels of one window (channels_last).
// kWhole: every element lies in the map. A step collects in `bad` whether a code left it.

template <class Order>
struct Pool {
  using T = typename Order::Stored;
  using Large = const T;
  static constexpr bool kWritesMap = false;
  T* __restrict__ y;
  uint8_t* __restrict__ code;
  bool bad = false;

  template <int kStep, bool kWhole>
  ASEGNET_HOST_DEVICE void run(const Corners<const T>& from, int64_t at, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      T value = from.at[0][i * kStep], best = Order::key(value);
      uint8_t position = 0;
      for (int k = 1; k < kElements; ++k) {
        if (!kWhole && !from.at[k]) continue;
        const T candidate = from.at[k][i * kStep], key = Order::key(candidate);
        const bool wins = Order::wins(key, best);
        best = wins ? key : best;
        value = wins ? candidate : value;
        position = wins ? k : position;
      }
      y[at + i] = value;
      code[at + i] = position;
    }
  }
};

template <class Element>
struct Unpool {
  using T = Element;
  using Large = T;
  static constexpr bool kWritesMap = true;
  const T* __restrict__ y;
  const uint8_t* __restrict__ code;
  bool bad = false;

  template <int kStep, bool kWhole>
  ASEGNET_HOST_DEVICE void run(const Corners<T>& to, int64_t at, int64_t count) {
    bad |= leaves<kWhole>(to, code + at, count);
    for (int k = 0; k < kElements; k += 2) {  // the two columns of a row together: their elements are neighbours
      T *left = to.at[k], *right = to.at[k + 1];
      if (!kWhole && !left) continue;
      for (int64_t i = 0; i < count; ++i) {
        left[i * kStep] = code[at + i] == k ? y[at + i] : T{};
        if (kWhole || right) right[i * kStep] = code[at + i] == k + 1 ? y[at + i] : T{};
      }
    }
  }
};

template <class Element>
struct Gather {
  using T = Element;
  using Large = const T;
  static constexpr bool kWritesMap = false;
  const uint8_t* __restrict__ code;
  T* __restrict__ grad_y;
  bool bad = false;

  template <int kStep, bool kWhole>
  ASEGNET_HOST_DEVICE void run(const Corners<const T>& from, int64_t at, int64_t count) {
    bad |= leaves<kWhole>(from, code + at, count);
    for (int64_t i = 0; i < count; ++i) {
      T value{};
      for (int k = 0; k < kElements; ++k) {
        if (!kWhole && !from.at[k]) continue;
        const T candidate = from.at[k][i * kStep];  // all of them, so that no load hangs on a condition
        value = code[at + i] == k ? candidate : value;
      }
      grad_y[at + i] = value;
    }
  }
};

// Whether any of `count` codes is none, or names an element outside the map.
template <bool kWhole, class L>
ASEGNET_HOST_DEVICE bool leaves(const Corners<L>& corners, const uint8_t* code, int64_t count) {
  uint8_t high = 0;
  for (int64_t i = 0; i < count; ++i) high |= code[i];
  if (!is_code(high)) return true;
  bool outside = false;
  for (int64_t i = 0; !kWhole && i < count; ++i) outside |= corners.at[code[i]] == nullptr;
  return outside;
}

// Rows of windows [begin, end).
template <bool kNeighbours, class Op>
bool walk(Op op, typename Op::Large* large, const Geometry g, int64_t begin, int64_t end) {
  using L = typename Op::Large;
  const int64_t depths = g.pooled[0], heights = g.pooled[1], widths = g.pooled[2], column = g.stride[2];
  const int64_t right = g.full[2] / 2 < widths ? g.full[2] / 2 : widths;  // windows with a right column
  const int64_t per_image = g.channels * depths * heights;
  for (int64_t r = begin; r < end; ++r) {
    const int64_t z = r / heights % depths, y = r % heights;
    L* corner = large + r / per_image * g.image + r % per_image / (depths * heights) * g.channel +
                2 * z * g.stride[0] + 2 * y * g.stride[1];
    const bool lower = 2 * y + 1 < g.full[1], deeper = 2 * z + 1 < g.full[0];
    const auto corners = [&](int64_t x) {
      Corners<L> found;
      for (int k = 0; k < kElements; ++k) {
        const bool inside = ((k & 4) == 0 || deeper) && ((k & 2) == 0 || lower) && ((k & 1) == 0 || x < right);
        found.at[k] = inside ? corner + (k >> 2) * g.stride[0] + (k >> 1 & 1) * g.stride[1] + (2 * x + (k & 1)) * column
                             : nullptr;
      }
      return found;
    };
    const int64_t at = r * widths * g.inner, whole = lower && deeper ? right : 0;
    if constexpr (kNeighbours) {
      if (whole) op.template run<2, true>(corners(0), at, whole);
      for (int64_t x = whole; x < widths; ++x) op.template run<2, false>(corners(x), at + x, 1);
    } else {
      for (int64_t x = 0; x < widths; ++x) {
        if (x < whole) {
          op.template run<1, true>(corners(x), at + x * g.inner, g.inner);
        } else {
          op.template run<1, false>(corners(x), at + x * g.inner, g.inner);
        }
      }
    }
    if constexpr (Op::kWritesMap) {  // odd last slices, rows and columns belong to no window
      const auto windows_or_rest = [](int64_t index, int64_t pooled, int64_t full) {
        return index + 1 == pooled ? full - 2 * index : 2;
      };
      const int64_t slices = windows_or_rest(z, depths, g.full[0]), rows = windows_or_rest(y, heights, g.full[1]);
      for (int64_t dz = 0; dz < slices; ++dz) {
        for (int64_t dy = 0; dy < rows; ++dy) {
          const int64_t first = dz < 2 && dy < 2 ? 2 * widths : 0;
          if (first >= g.full[2]) continue;
          L* row = corner + dz * g.stride[0] + dy * g.stride[1];
          __builtin_memset(row + first * column, 0, (g.full[2] - first) * g.inner * sizeof(L));
        }
      }
    }
  }
  return !op.bad;
}

template <class Op>
bool walk_all(Op op, typename Op::Large* large, const Geometry& g, int64_t begin, int64_t end) {
  const bool neighbours = g.inner == 1 && g.stride[2] == 1;
  return neighbours ? walk<true>(op, large, g, begin, end) : walk<false>(op, large, g, begin, end);
}

template <class Order>
void pool(const void* x, void* y, uint8_t* code, const Geometry& g, int64_t begin, int64_t end) {
  using T = typename Order::Stored;
  walk_all(Pool<Order>{static_cast<T*>(y), code}, static_cast<const T*>(x), g, begin, end);
}

template <class T>
bool unpool(const void* y, const uint8_t* code, void* out, const Geometry& g, int64_t begin, int64_t end) {
  return walk_all(Unpool<T>{static_cast<const T*>(y), code}, static_cast<T*>(out), g, begin, end);
}

template <class T>
bool unpool_backward(const void* grad, const uint8_t* code, void* grad_y, const Geometry& g, int64_t begin,
                     int64_t end) {
  return walk_all(Gather<T>{code, static_cast<T*>(grad_y)}, static_cast<const T*>(grad), g, begin, end);
}

}  // namespace

namespace ASEGNET_ISA {
const Kernels kernels = {
    {pool<ByValue<float>>, pool<ByValue<double>>, pool<OrderBFloat16>, pool<OrderFloat16>},
    {unpool<uint8_t>, unpool<uint16_t>, unpool<uint32_t>, unpool<uint64_t>},
    {unpool_backward<uint8_t>, unpool_backward<uint16_t>, unpool_backward<uint32_t>, unpool_backward<uint64_t>},
};
}  // namespace ASEGNET_ISA

}  // namespace asegnet::max_pool2x2x2
