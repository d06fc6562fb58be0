// Every kernel is one walk over runs of windows, and one step on as many windows as a vector has lanes.
// Bytes: pool reads 4 and writes 1 element and 1 code per window; unpool the reverse. Nothing else moves.
#include "max_pool2x2/kernels.h"

#include "max_pool2x2/math.h"
#include "max_pool2x2/vector.h"

#define ASEGNET_INLINE __attribute__((always_inline))

namespace asegnet::max_pool2x2 {
namespace {

// ---- where the elements of a window lie ---------------------------------------------------------------------

template <class V>
struct Quad {  // in the order of their codes: top left and right, bottom left and right
  V a, b, c, d;
};

// A run of whole windows along a row whose columns are neighbours (NCHW).
template <class T>
struct Neighbours {
  T *top, *bottom;

  static constexpr uint8_t outside() { return 0xfc; }  // the bits that no code in the map has
  template <class V>
  ASEGNET_HOST_DEVICE Quad<V> load(int64_t i, V) const {
    const auto upper = load_columns<V>(top + 2 * i), lower = load_columns<V>(bottom + 2 * i);
    return {upper.left, upper.right, lower.left, lower.right};
  }
  template <bool kStream, class V>
  ASEGNET_HOST_DEVICE void store(int64_t i, const Quad<V>* quads, int count) const {
    constexpr int kLanes = sizeof(V) / sizeof(T);
    for (int v = 0; v < count; ++v) {
      put_columns<kStream>(top + 2 * (i + v * kLanes), Columns<V>{quads[v].a, quads[v].b});
    }
    for (int v = 0; v < count; ++v) {
      put_columns<kStream>(bottom + 2 * (i + v * kLanes), Columns<V>{quads[v].c, quads[v].d});
    }
  }
};

// A run of channels of one window, columns lying apart (channels_last). kWhole: all four are there; else those to
// the right of the map or below it are null.
template <class T, bool kWhole>
struct Apart {
  T *a, *b, *c, *d;

  uint8_t outside() const { return 0xfc | (kWhole || b ? 0 : 1) | (kWhole || c ? 0 : 2); }
  template <class V>
  ASEGNET_HOST_DEVICE Quad<V> load(int64_t i, V missing) const {
    const auto get = [&](const T* from) { return kWhole || from ? load_as<V>(from + i) : missing; };
    return {get(a), get(b), get(c), get(d)};
  }
  template <bool kStream, class V>
  ASEGNET_HOST_DEVICE void store(int64_t i, const Quad<V>* quads, int count) const {
    const auto to = [&](T* corner, V Quad<V>::*value) {
      if (!kWhole && !corner) return;
      for (int v = 0; v < count; ++v) put<kStream>(corner + i + v * (sizeof(V) / sizeof(T)), quads[v].*value);
    };
    to(a, &Quad<V>::a), to(b, &Quad<V>::b), to(c, &Quad<V>::c), to(d, &Quad<V>::d);
  }
};

// Calls f(top, bottom, start in the small map, whether it is the plane's last) for rows of windows [begin, end).
template <class T, class F>
void for_rows(const Geometry& g, T* large, int64_t begin, int64_t end, const F& f) {
  int64_t plane = begin / g.pooled_height, y = begin % g.pooled_height;
  for (int64_t row = begin; row < end; ++plane, y = 0) {
    T* start = large + plane / g.channels * g.image + plane % g.channels * g.channel;
    for (; y < g.pooled_height && row < end; ++y, ++row) {
      T* top = start + 2 * y * g.row;
      f(top, 2 * y + 1 < g.height ? top + g.row : nullptr, row * g.pooled_width * g.inner, y + 1 == g.pooled_height);
    }
  }
}

// Calls f(windows, start in the small map, count) for every run of one row of windows.
template <class T, class F>
void for_runs(const Geometry& g, T* top, T* bottom, int64_t start, const F& f) {
  const int64_t right = g.width / 2 < g.pooled_width ? g.width / 2 : g.pooled_width;  // windows with a right column
  const int64_t whole = bottom ? right : 0;
  int64_t x = 0;
  if (g.inner == 1 && g.column == 1) f(Neighbours<T>{top, bottom}, start, whole), x = whole;
  for (; x < whole; ++x) {
    T *a = top + 2 * x * g.column, *c = bottom + 2 * x * g.column;
    f(Apart<T, true>{a, a + g.column, c, c + g.column}, start + x * g.inner, g.inner);
  }
  for (; x < g.pooled_width; ++x) {
    T *a = top + 2 * x * g.column, *c = bottom ? bottom + 2 * x * g.column : nullptr;
    f(Apart<T, false>{a, x < right ? a + g.column : nullptr, c, nullptr}, start + x * g.inner, g.inner);
  }
}

// kCount vectors V at a time, of kLanes values each.
template <class T, int kBytes>
struct Step {
  static constexpr int kLanes = (kBytes < kVectorBytes ? kBytes : kVectorBytes) / sizeof(T);
  static constexpr int kCount = kBytes / sizeof(T) / kLanes;
  using V = Pack<T, kLanes>;
  using P = Pack<Integer<T>, kLanes>;  // positions
  static P all(int position) { return P{} + static_cast<Integer<T>>(position); }
};

// Calls f(step, i) over [0, count) with the longest steps that fit, a cache line at most; the last may repeat part of
// the one before, which writes the same values again.
template <class T, int kBytes = 64, class F>
ASEGNET_HOST_DEVICE void in_steps(int64_t count, const F& f) {
  constexpr int kElements = kBytes / sizeof(T);
  if constexpr (kElements == 1) {
    for (int64_t i = 0; i < count; ++i) f(Step<T, kBytes>{}, i);
  } else if (count < kElements) {
    in_steps<T, kBytes == 16 ? sizeof(T) : kBytes / 2>(count, f);
  } else {
    int64_t i = 0;
    for (; i + kElements <= count; i += kElements) f(Step<T, kBytes>{}, i);
    if (i < count) f(Step<T, kBytes>{}, count - kElements);
  }
}

// Whether every vector of every run over outputs that start here lies on a multiple of its size.
bool can_stream(const Geometry& g, bool large_output, int64_t element_size, const void* output, const void* codes) {
  const int64_t run = g.inner == 1 ? g.pooled_width : g.inner;
  const bool rows = !large_output || g.inner > 1 || g.width == 2 * g.pooled_width;
  return rows && run * element_size % 64 == 0 && is_aligned(output) && is_aligned(codes);
}

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

// ---- the three kernels --------------------------------------------------------------------------------------

template <class Order, bool kStream>
void pool_rows(const void* x, void* y_out, uint8_t* code, const Geometry& g, int64_t begin, int64_t end) {
  using T = typename Order::Stored;
  T* y = static_cast<T*>(y_out);
  for_rows(g, static_cast<const T*>(x), begin, end, [&](const T* top, const T* bottom, int64_t first, bool) {
    for_runs(g, top, bottom, first, [&](auto windows, int64_t start, int64_t count) {
      T* best_to = y + start;
      uint8_t* code_to = code + start;
      in_steps<T>(count, [&]<class S>(S, int64_t i) ASEGNET_INLINE {
        using V = typename S::V;
        typename S::P positions[S::kCount];
        for (int v = 0; v < S::kCount; ++v) {
          const int64_t at = i + v * S::kLanes;
          const V missing = V{} + Order::kLowest;
          const auto [a, b, c, d] = windows.load(at, missing);
          const V ka = Order::key(a), kb = Order::key(b), kc = Order::key(c), kd = Order::key(d);
          const auto wb = Order::wins(kb, ka);
          const V key_b = wb ? kb : ka, best_b = wb ? b : a;
          const auto wc = Order::wins(kc, key_b);
          const V key_c = wc ? kc : key_b, best_c = wc ? c : best_b;
          const auto wd = Order::wins(kd, key_c);
          const V best = wd ? d : best_c;
          const auto position_b = wb ? S::all(1) : S::all(0);
          const auto position_c = wc ? S::all(2) : position_b;
          positions[v] = wd ? S::all(3) : position_c;
          put<kStream>(best_to + at, best);
        }
        put_codes<kStream, S::kLanes>(code_to + i, positions);
      });
    });
  });
  if (kStream) stream_fence();
}

template <class T, bool kStream>
bool unpool_rows(const void* y_in, const uint8_t* code, void* out, const Geometry& g, int64_t begin, int64_t end) {
  const T* y = static_cast<const T*>(y_in);
  const int64_t used = 2 * g.pooled_width * g.inner, rest = g.width * g.inner - used;
  const auto zero = [](T* to, int64_t count) { __builtin_memset(to, 0, count * sizeof(T)); };
  uint64_t bad = 0;
  for_rows(g, static_cast<T*>(out), begin, end, [&](T* top, T* bottom, int64_t first, bool last) {
    for_runs(g, top, bottom, first, [&](auto windows, int64_t start, int64_t count) {
      const T* value_from = y + start;
      const uint8_t* code_from = code + start;
      uint64_t bad_in_run = 0;
      in_steps<T>(count, [&]<class S>(S, int64_t i) ASEGNET_INLINE {
        using V = typename S::V;
        Quad<V> quads[S::kCount];
        bad_in_run |= bad_bits<S::kLanes * S::kCount>(code_from + i, windows.outside());
        for (int v = 0; v < S::kCount; ++v) {
          const int64_t at = i + v * S::kLanes;
          const auto position = load_codes<typename S::P, S::kLanes>(code_from + at);
          const V value = load_as<V>(value_from + at), none{};
          quads[v] = {position == S::all(0) ? value : none, position == S::all(1) ? value : none,
                      position == S::all(2) ? value : none, position == S::all(3) ? value : none};
        }
        windows.template store<kStream>(i, quads, S::kCount);
      });
      bad |= bad_in_run;
    });
    // The odd last column and row belong to no window.
    if (rest > 0) zero(top + used, rest);
    if (rest > 0 && bottom) zero(bottom + used, rest);
    if (last && g.height > 2 * g.pooled_height) zero(top + 2 * g.row, used + rest);
  });
  if (kStream) stream_fence();
  return bad == 0;
}

template <class T, bool kStream>
bool gather_rows(const void* grad, const uint8_t* code, void* grad_y, const Geometry& g, int64_t begin, int64_t end) {
  T* out = static_cast<T*>(grad_y);
  uint64_t bad = 0;
  for_rows(g, static_cast<const T*>(grad), begin, end, [&](const T* top, const T* bottom, int64_t first, bool) {
    for_runs(g, top, bottom, first, [&](auto windows, int64_t start, int64_t count) {
      T* to = out + start;
      const uint8_t* code_from = code + start;
      uint64_t bad_in_run = 0;
      in_steps<T>(count, [&]<class S>(S, int64_t i) ASEGNET_INLINE {
        using V = typename S::V;
        bad_in_run |= bad_bits<S::kLanes * S::kCount>(code_from + i, windows.outside());
        for (int v = 0; v < S::kCount; ++v) {
          const int64_t at = i + v * S::kLanes;
          const auto position = load_codes<typename S::P, S::kLanes>(code_from + at);
          // All four are read, so that no load hangs on a condition.
          const auto [a, b, c, d] = windows.load(at, V{});
          const V upper = position == S::all(1) ? b : a, lower = position == S::all(3) ? d : c;
          put<kStream>(to + at, position > S::all(1) ? lower : upper);
        }
      });
      bad |= bad_in_run;
    });
  });
  if (kStream) stream_fence();
  return bad == 0;
}

template <class Order>
void pool(const void* x, void* y, uint8_t* code, const Geometry& g, int64_t begin, int64_t end, bool stream) {
  stream &= can_stream(g, false, sizeof(typename Order::Stored), y, code);
  (stream ? pool_rows<Order, true> : pool_rows<Order, false>)(x, y, code, g, begin, end);
}

template <class T>
bool unpool(const void* y, const uint8_t* code, void* out, const Geometry& g, int64_t begin, int64_t end, bool stream) {
  stream &= can_stream(g, true, sizeof(T), out, nullptr);
  return (stream ? unpool_rows<T, true> : unpool_rows<T, false>)(y, code, out, g, begin, end);
}

template <class T>
bool unpool_backward(const void* grad, const uint8_t* code, void* grad_y, const Geometry& g, int64_t begin, int64_t end,
                     bool stream) {
  stream &= can_stream(g, false, sizeof(T), grad_y, nullptr);
  return (stream ? gather_rows<T, true> : gather_rows<T, false>)(grad, code, grad_y, g, begin, end);
}

}  // namespace

namespace ASEGNET_ISA {
const Kernels kernels = {
    {pool<ByValue<float>>, pool<ByValue<double>>, pool<OrderBFloat16>, pool<OrderFloat16>},
    {unpool<int8_t>, unpool<int16_t>, unpool<float>, unpool<double>},
    {unpool_backward<int8_t>, unpool_backward<int16_t>, unpool_backward<float>, unpool_backward<double>},
};
}  // namespace ASEGNET_ISA

}  // namespace asegnet::max_pool2x2
