// A kernel is a step on as many windows as fill a cache line with values, and one walk over the map for all of them.
// Bytes: pool reads 4 and writes 1 element and 1 code per window; unpool the reverse. Nothing else moves.
#include "max_pool2x2/kernels.h"

#include "max_pool2x2/math.h"
#include "max_pool2x2/vector.h"

namespace asegnet::max_pool2x2 {
namespace {

// ---- where the elements of a window lie ---------------------------------------------------------------------

template <class V>
struct Quad {  // in the order of their codes: top left and right, bottom left and right
  V a, b, c, d;
};

// Bits that no code of a whole window has.
constexpr uint8_t kOutside = 0xfc;

// Bytes of the map to fetch ahead of a step. The two rows of NCHW windows leap over each other through one run of
// memory, which the hardware does not follow: 4 KiB, measured best of 1, 2 and 4. channels_last gains little.
constexpr int kAheadNeighbours = 4096, kAheadApart = 1024;

template <class T>
ASEGNET_HOST_DEVICE void fetch(const T* from, int64_t count, int ahead) {
  for (int64_t byte = 0; byte < count * static_cast<int64_t>(sizeof(T)); byte += 64) {
    __builtin_prefetch(reinterpret_cast<const char*>(from) + byte + ahead);
  }
}

// A run of whole windows along a row, whose columns are neighbours (NCHW).
template <class T>
struct Neighbours {
  T *top, *bottom;

  static constexpr uint8_t outside() { return kOutside; }
  template <int kWindows>
  ASEGNET_HOST_DEVICE void prefetch(int64_t i) const {
    fetch(top + 2 * i, 2 * kWindows, kAheadNeighbours), fetch(bottom + 2 * i, 2 * kWindows, kAheadNeighbours);
  }
  template <class V>
  ASEGNET_HOST_DEVICE Quad<V> load(int64_t i, V) const {
    const auto upper = load_columns<V>(top + 2 * i), lower = load_columns<V>(bottom + 2 * i);
    return {upper.left, upper.right, lower.left, lower.right};
  }
  template <bool kStream, class V, int kCount>
  ASEGNET_HOST_DEVICE void store(int64_t i, const Quad<V> (&quads)[kCount]) const {
    constexpr int kLanes = sizeof(V) / sizeof(T);
    for (int v = 0; v < kCount; ++v) {
      put_columns<kStream>(top + 2 * (i + v * kLanes), Columns<V>{quads[v].a, quads[v].b});
    }
    for (int v = 0; v < kCount; ++v) {
      put_columns<kStream>(bottom + 2 * (i + v * kLanes), Columns<V>{quads[v].c, quads[v].d});
    }
  }
};

// A run of channels of one window, whose columns lie apart (channels_last). In a window that is not whole the
// elements to the right of the map or below it are null.
template <class T, bool kWhole>
struct Apart {
  T *a, *b, *c, *d;

  template <int kWindows>
  ASEGNET_HOST_DEVICE void prefetch(int64_t i) const {
    if (!kWhole) return;
    fetch(a + i, kWindows, kAheadApart), fetch(b + i, kWindows, kAheadApart);
    fetch(c + i, kWindows, kAheadApart), fetch(d + i, kWindows, kAheadApart);
  }
  uint8_t outside() const { return kOutside | (kWhole || b ? 0 : 1) | (kWhole || c ? 0 : 2); }
  template <class V>
  ASEGNET_HOST_DEVICE Quad<V> load(int64_t i, V missing) const {
    const auto get = [&](const T* from) { return kWhole || from ? load_as<V>(from + i) : missing; };
    return {get(a), get(b), get(c), get(d)};
  }
  template <bool kStream, class V, int kCount>
  ASEGNET_HOST_DEVICE void store(int64_t i, const Quad<V> (&quads)[kCount]) const {
    const auto to = [&](T* corner, V Quad<V>::*value) {
      if (!kWhole && !corner) return;
      for (int v = 0; v < kCount; ++v) put<kStream>(corner + i + v * (sizeof(V) / sizeof(T)), quads[v].*value);
    };
    to(a, &Quad<V>::a), to(b, &Quad<V>::b), to(c, &Quad<V>::c), to(d, &Quad<V>::d);
  }
};

// One row of such windows, for streaming stores, which want few lines open at a time.
template <class T, bool kLower>
struct HalfApart {
  T *left, *right;

  static constexpr uint8_t outside() { return kOutside; }
  template <bool kStream, class V, int kCount>
  ASEGNET_HOST_DEVICE void store(int64_t i, const Quad<V> (&quads)[kCount]) const {
    constexpr int kLanes = sizeof(V) / sizeof(T);
    for (int v = 0; v < kCount; ++v) put<kStream>(left + i + v * kLanes, kLower ? quads[v].c : quads[v].a);
    for (int v = 0; v < kCount; ++v) put<kStream>(right + i + v * kLanes, kLower ? quads[v].d : quads[v].b);
  }
};

// ---- the three steps ----------------------------------------------------------------------------------------

// kBytes of T: kCount vectors V of kLanes values, and their positions P.
template <class T, int kBytes>
struct Step {
  static constexpr int kLanes = (kBytes < kVectorBytes ? kBytes : kVectorBytes) / sizeof(T);
  static constexpr int kWindows = kBytes / sizeof(T), kCount = kWindows / kLanes;
  using V = VectorOf<T, kLanes>;
  using P = VectorOf<Integer<T>, kLanes>;
  static P all(int position) { return P{} + static_cast<Integer<T>>(position); }
};

// Each works on the windows i, i + 1, ... of a run, whose values and codes start at `at` in the small map, and
// collects in `bad` the bits of codes that leave the map.

template <class Order>
struct Pool {
  using T = typename Order::Stored;
  using Large = const T;
  static constexpr bool kWritesMap = false;
  T* y;
  uint8_t* code;
  uint64_t bad = 0;

  template <class S, bool kStream, class Windows>
  ASEGNET_HOST_DEVICE void step(const Windows& windows, int64_t i, int64_t at) {
    using V = typename S::V;
    typename S::P positions[S::kCount];
    windows.template prefetch<S::kWindows>(i);
    for (int v = 0; v < S::kCount; ++v) {
      const V missing = V{} + Order::kLowest;
      const auto [a, b, c, d] = windows.load(i + v * S::kLanes, missing);
      const V ka = Order::key(a), kb = Order::key(b), kc = Order::key(c), kd = Order::key(d);
      const auto wins_b = Order::wins(kb, ka);
      const V key_b = wins_b ? kb : ka, best_b = wins_b ? b : a;
      const auto wins_c = Order::wins(kc, key_b);
      const V key_c = wins_c ? kc : key_b, best_c = wins_c ? c : best_b;
      const auto wins_d = Order::wins(kd, key_c);
      const V best = wins_d ? d : best_c;
      const auto position_b = wins_b ? S::all(1) : S::all(0);
      const auto position_c = wins_c ? S::all(2) : position_b;
      positions[v] = wins_d ? S::all(3) : position_c;
      put<kStream>(y + at + i + v * S::kLanes, best);
    }
    put_codes<kStream, S::kLanes>(code + at + i, positions);
  }
};

// Those of the bits `outside` that any of kCount codes has.
template <int kCount>
ASEGNET_HOST_DEVICE uint64_t bad_bits(const uint8_t* code, uint8_t outside) {
  constexpr int kBytes = kCount < 8 ? kCount : 8;
  uint64_t seen = 0;
  for (int i = 0; i < kCount; i += kBytes) {
    uint64_t some = 0;
    __builtin_memcpy(&some, code + i, kBytes);
    seen |= some;
  }
  return seen & 0x0101010101010101u * outside;
}

template <class Element>
struct Unpool {
  using T = Element;
  using Large = T;
  static constexpr bool kWritesMap = true;
  const T* y;
  const uint8_t* code;
  uint64_t bad = 0;

  template <class S, bool kStream, class Windows>
  ASEGNET_HOST_DEVICE void step(const Windows& windows, int64_t i, int64_t at) {
    using V = typename S::V;
    Quad<V> quads[S::kCount];
    bad |= bad_bits<S::kWindows>(code + at + i, windows.outside());
    for (int v = 0; v < S::kCount; ++v) {
      const int64_t here = at + i + v * S::kLanes;
      const auto position = load_codes<typename S::P, S::kLanes>(code + here);
      const V value = load_as<V>(y + here), none{};
      quads[v] = {position == S::all(0) ? value : none, position == S::all(1) ? value : none,
                  position == S::all(2) ? value : none, position == S::all(3) ? value : none};
    }
    windows.template store<kStream>(i, quads);
  }
};

template <class Element>
struct Gather {
  using T = Element;
  using Large = const T;
  static constexpr bool kWritesMap = false;
  const uint8_t* code;
  T* grad_y;
  uint64_t bad = 0;

  template <class S, bool kStream, class Windows>
  ASEGNET_HOST_DEVICE void step(const Windows& windows, int64_t i, int64_t at) {
    using V = typename S::V;
    windows.template prefetch<S::kWindows>(i);
    bad |= bad_bits<S::kWindows>(code + at + i, windows.outside());
    for (int v = 0; v < S::kCount; ++v) {
      const int64_t here = at + i + v * S::kLanes;
      const auto position = load_codes<typename S::P, S::kLanes>(code + here);
      const auto [a, b, c, d] = windows.load(i + v * S::kLanes, V{});  // all, so that no load hangs on a condition
      const V upper = position == S::all(1) ? b : a, lower = position == S::all(3) ? d : c;
      put<kStream>(grad_y + here, position > S::all(1) ? lower : upper);
    }
  }
};

// ---- the walk -----------------------------------------------------------------------------------------------

// One by one; apart from the rest, for it is rare.
template <class Op>
__attribute__((noinline, cold)) uint64_t at_edge(Op op, Apart<typename Op::Large, false> window, int64_t at,
                                                 int64_t count) {
  using T = typename Op::T;
  for (int64_t i = 0; i < count; ++i) op.template step<Step<T, sizeof(T)>, false>(window, i, at);
  return op.bad;
}

// Rows of windows [begin, end), in steps S; no run is shorter than one, and where values are streamed each is a multiple
// of one. Elsewhere the last step of a run may repeat part of the one before, which writes the same values again.
template <class S, bool kStream, bool kNeighbours, class Op>
uint64_t walk(Op op, typename Op::Large* large, const Geometry g, int64_t begin, int64_t end) {
  using L = typename Op::Large;
  const auto run = [&](auto windows, int64_t at, int64_t count) {
    int64_t i = 0;
    for (; i + S::kWindows <= count; i += S::kWindows) op.template step<S, kStream>(windows, i, at);
    if constexpr (!kStream && S::kWindows > 1) {
      if (i < count) op.template step<S, false>(windows, count - S::kWindows, at);
    }
  };
  const int64_t right = g.width / 2 < g.pooled_width ? g.width / 2 : g.pooled_width;  // windows with a right column
  const int64_t used = 2 * g.pooled_width * g.inner, rest = g.width * g.inner - used;
  int64_t plane = begin / g.pooled_height, y = begin % g.pooled_height;
  for (int64_t row = begin; row < end; ++plane, y = 0) {
    L* start = large + plane / g.channels * g.image + plane % g.channels * g.channel;
    for (; y < g.pooled_height && row < end; ++y, ++row) {
      L *top = start + 2 * y * g.row, *bottom = 2 * y + 1 < g.height ? top + g.row : nullptr;
      const int64_t at = row * g.pooled_width * g.inner, whole = bottom ? right : 0;
      if constexpr (kNeighbours) {
        if (whole) run(Neighbours<L>{top, bottom}, at, whole);
      } else {
        for (int64_t x = 0; x < whole; ++x) {
          L *a = top + 2 * x * g.column, *c = bottom + 2 * x * g.column;
          const int64_t here = at + x * g.inner;
          if constexpr (kStream && Op::kWritesMap) {
            run(HalfApart<L, false>{a, a + g.column}, here, g.inner);
            run(HalfApart<L, true>{c, c + g.column}, here, g.inner);
          } else {
            run(Apart<L, true>{a, a + g.column, c, c + g.column}, here, g.inner);
          }
        }
      }
      for (int64_t x = whole; x < g.pooled_width; ++x) {
        L *a = top + 2 * x * g.column, *c = bottom ? bottom + 2 * x * g.column : nullptr;
        op.bad |= at_edge(op, {a, x < right ? a + g.column : nullptr, c, nullptr}, at + x * g.inner, g.inner);
      }
      if constexpr (Op::kWritesMap) {  // the odd last column and row belong to no window
        const auto zero = [](L* to, int64_t count) { __builtin_memset(to, 0, count * sizeof(L)); };
        if (rest > 0) zero(top + used, rest);
        if (rest > 0 && bottom) zero(bottom + used, rest);
        if (y + 1 == g.pooled_height && g.height > 2 * g.pooled_height) zero(top + 2 * g.row, used + rest);
      }
    }
  }
  if (kStream) stream_fence();
  return op.bad;
}

// Walks in the longest steps that fit, and streams where every vector then lies on a multiple of its size.
template <class Op>
bool walk_all(Op op, typename Op::Large* large, const Geometry& g, int64_t begin, int64_t end, bool stream) {
  using T = typename Op::T;
  const bool neighbours = g.inner == 1 && g.column == 1;
  const int64_t run = neighbours ? (g.width / 2 < g.pooled_width ? g.width / 2 : g.pooled_width) : g.inner;
  const auto go = [&]<int kBytes, bool kStream>() {
    using S = Step<T, kBytes>;
    return (neighbours ? walk<S, kStream, true, Op> : walk<S, kStream, false, Op>)(op, large, g, begin, end) == 0;
  };
  const int64_t bytes = run * static_cast<int64_t>(sizeof(T));
  if (bytes >= 64 && bytes % 64 == 0 && stream) return go.template operator()<64, true>();
  if (bytes >= 64) return go.template operator()<64, false>();
  if (bytes >= 32) return go.template operator()<32, false>();
  if (bytes >= 16) return go.template operator()<16, false>();
  return go.template operator()<sizeof(T), false>();
}

// ---- the kernels --------------------------------------------------------------------------------------------

template <class Order>
void pool(const void* x, void* y, uint8_t* code, const Geometry& g, int64_t begin, int64_t end, bool stream) {
  using T = typename Order::Stored;
  stream &= is_aligned(y, 64) && is_aligned(code, 64);
  walk_all(Pool<Order>{static_cast<T*>(y), code}, static_cast<const T*>(x), g, begin, end, stream);
}

template <class T>
bool unpool(const void* y, const uint8_t* code, void* out, const Geometry& g, int64_t begin, int64_t end, bool stream) {
  stream &= is_aligned(out, 64) && (g.inner > 1 || g.width == 2 * g.pooled_width);  // rows are too
  return walk_all(Unpool<T>{static_cast<const T*>(y), code}, static_cast<T*>(out), g, begin, end, stream);
}

template <class T>
bool unpool_backward(const void* grad, const uint8_t* code, void* grad_y, const Geometry& g, int64_t begin, int64_t end,
                     bool stream) {
  stream &= is_aligned(grad_y, 64);
  return walk_all(Gather<T>{code, static_cast<T*>(grad_y)}, static_cast<const T*>(grad), g, begin, end, stream);
}

}  // namespace

namespace ASEGNET_ISA {
const Kernels kernels = {
    {pool<ByValue<float>>, pool<ByValue<double>>, pool<OrderBFloat16>, pool<OrderFloat16>},
    // Moved only, never computed with: float and double stand for any elements of their size.
    {unpool<int16_t>, unpool<float>, unpool<double>},
    {unpool_backward<int16_t>, unpool_backward<float>, unpool_backward<double>},
};
}  // namespace ASEGNET_ISA

}  // namespace asegnet::max_pool2x2
