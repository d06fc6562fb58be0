// Every kernel is one walk over runs of windows, and one step on as many windows as a vector has lanes.
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

// A run of windows along a row, columns being neighbours (NCHW). No bottom row: null.
template <class T>
struct Neighbours {
  T *top, *bottom;

  template <int kLanes, class V>
  Quad<V> load(int64_t i, V outside) const {
    const auto upper = load_pairs<kLanes>(top + 2 * i);
    if (!bottom) return {upper.left, upper.right, outside, outside};
    const auto lower = load_pairs<kLanes>(bottom + 2 * i);
    return {upper.left, upper.right, lower.left, lower.right};
  }
  template <bool kStream, int kLanes, class V>
  void store(int64_t i, const Quad<V>& q) const {
    store_pairs<kStream, kLanes>(top + 2 * i, {q.a, q.b});
    if (bottom) store_pairs<kStream, kLanes>(bottom + 2 * i, {q.c, q.d});
  }
  uint8_t outside() const { return bottom ? 0 : 2; }
};

// One window of a run of channels, columns lying apart (channels_last). No right column or bottom row: null.
template <class T>
struct Apart {
  T *a, *b, *c, *d;

  template <int kLanes, class V>
  Quad<V> load(int64_t i, V outside) const {
    const auto get = [&](const T* from) { return from ? load_as<V>(from + i) : outside; };
    return {load_as<V>(a + i), get(b), get(c), get(d)};
  }
  template <bool kStream, int kLanes, class V>
  void store(int64_t i, const Quad<V>& q) const {
    put<kStream>(a + i, q.a);
    if (b) put<kStream>(b + i, q.b);
    if (c) put<kStream>(c + i, q.c);
    if (d) put<kStream>(d + i, q.d);
  }
  uint8_t outside() const { return (b ? 0 : 1) | (c ? 0 : 2); }  // bits of a code that would leave the map
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
  const int64_t whole = g.width / 2 < g.pooled_width ? g.width / 2 : g.pooled_width;  // windows with a right column
  int64_t x = 0;
  if (g.inner == 1 && g.column == 1) f(Neighbours<T>{top, bottom}, start, whole), x = whole;
  for (; x < g.pooled_width; ++x) {
    T *a = top + 2 * x * g.column, *c = bottom ? bottom + 2 * x * g.column : nullptr;
    const bool right = x < whole;
    f(Apart<T>{a, right ? a + g.column : nullptr, c, right && c ? c + g.column : nullptr}, start + x * g.inner,
      g.inner);
  }
}

template <int kCount>
struct Lanes {};

// Calls f(Lanes<n>, i) over [0, count) with the widest vectors that fit; the last one may repeat part of the one
// before, which writes the same values again.
template <class T, int kBytes = kVectorBytes, class F>
void in_vectors(int64_t count, const F& f) {
  constexpr int kLanes = kBytes / sizeof(T);
  if (count < kLanes) {
    if constexpr (kBytes > 16) return in_vectors<T, kBytes / 2>(count, f);
    for (int64_t i = 0; i < count; ++i) f(Lanes<1>{}, i);
    return;
  }
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) f(Lanes<kLanes>{}, i);
  if (i < count) f(Lanes<kLanes>{}, count - kLanes);
}

// Whether every vector of every run over outputs that start here lies on a multiple of its size.
bool can_stream(const Geometry& g, bool large_output, int64_t element_size, const void* output, const void* codes) {
  const int64_t run = g.inner == 1 ? g.pooled_width : g.inner;
  const bool rows = !large_output || g.inner > 1 || g.width == 2 * g.pooled_width;
  return rows && run * element_size % kVectorBytes == 0 && is_aligned(output) && is_aligned(codes);
}

// ---- the three kernels --------------------------------------------------------------------------------------

template <class Order, bool kStream>
void pool_rows(const void* x, void* y_out, uint8_t* code, const Geometry& g, int64_t begin, int64_t end) {
  using T = typename Order::Stored;
  T* y = static_cast<T*>(y_out);
  for_rows(g, static_cast<const T*>(x), begin, end, [&](const T* top, const T* bottom, int64_t first, bool) {
  for_runs(g, top, bottom, first, [&](auto windows, int64_t start, int64_t count) {
    in_vectors<T>(count, [&]<int kLanes>(Lanes<kLanes>, int64_t i) {
      using V = Pack<T, kLanes>;
      using P = Pack<Integer<T>, kLanes>;
      const V lowest = V{} + Order::kLowest;
      const auto [a, b, c, d] = windows.template load<kLanes>(i, lowest);
      const V kb = Order::key(b), kc = Order::key(c), kd = Order::key(d);
      V best = a, key = Order::key(a);
      P position{};
      const auto consider = [&](V candidate, V candidate_key, int here) {
        const auto wins = Order::wins(candidate_key, key);
        const P there = P{} + static_cast<Integer<T>>(here);
        best = wins ? candidate : best;
        key = wins ? candidate_key : key;
        position = wins ? there : position;
      };
      consider(b, kb, 1);
      consider(c, kc, 2);
      consider(d, kd, 3);
      put<kStream>(y + start + i, best);
      store_codes<kStream, kLanes>(code + start + i, position);
    });
  });
  });
  if (kStream) stream_fence();
}

// Collects codes that leave the map, kLanes bytes at a time.
struct BadCodes {
  uint64_t bits = 0;
  template <int kLanes>
  void look(const uint8_t* code, uint8_t outside) {
    constexpr int kBytes = kLanes < 8 ? kLanes : 8;
    const uint64_t bad = 0x0101010101010101u * static_cast<uint8_t>(0xfc | outside);
    for (int i = 0; i < kLanes; i += kBytes) {
      uint64_t some = 0;
      __builtin_memcpy(&some, code + i, kBytes);
      bits |= some & bad;
    }
  }
};

template <class T, bool kStream>
bool unpool_rows(const void* y_in, const uint8_t* code, void* out, const Geometry& g, int64_t begin, int64_t end) {
  const T* y = static_cast<const T*>(y_in);
  const auto zero = [](T* to, int64_t count) { __builtin_memset(to, 0, count * sizeof(T)); };
  BadCodes bad;
  for_rows(g, static_cast<T*>(out), begin, end, [&](T* top, T* bottom, int64_t first, bool last) {
  for_runs(g, top, bottom, first, [&](auto windows, int64_t start, int64_t count) {
    in_vectors<T>(count, [&]<int kLanes>(Lanes<kLanes>, int64_t i) {
      using V = Pack<T, kLanes>;
      using P = Pack<Integer<T>, kLanes>;
      bad.look<kLanes>(code + start + i, windows.outside());
      const P position = load_codes<T, kLanes>(code + start + i);
      const V value = load_as<V>(y + start + i);
      const auto where = [&](int here) {
        const P there = P{} + static_cast<Integer<T>>(here);
        return position == there ? value : V{};
      };
      windows.template store<kStream, kLanes>(i, Quad<V>{where(0), where(1), where(2), where(3)});
    });
  });
  // The odd last column and row belong to no window.
  const int64_t used = 2 * g.pooled_width * g.inner, rest = g.width * g.inner - used;
  if (rest > 0) zero(top + used, rest);
  if (rest > 0 && bottom) zero(bottom + used, rest);
  if (last && g.height > 2 * g.pooled_height) zero(top + 2 * g.row, used + rest);
  });
  if (kStream) stream_fence();
  return bad.bits == 0;
}

template <class T, bool kStream>
bool gather_rows(const void* grad, const uint8_t* code, void* grad_y, const Geometry& g, int64_t begin, int64_t end) {
  T* out = static_cast<T*>(grad_y);
  BadCodes bad;
  for_rows(g, static_cast<const T*>(grad), begin, end, [&](const T* top, const T* bottom, int64_t first, bool) {
  for_runs(g, top, bottom, first, [&](auto windows, int64_t start, int64_t count) {
    in_vectors<T>(count, [&]<int kLanes>(Lanes<kLanes>, int64_t i) {
      using V = Pack<T, kLanes>;
      using P = Pack<Integer<T>, kLanes>;
      bad.look<kLanes>(code + start + i, windows.outside());
      const P position = load_codes<T, kLanes>(code + start + i);
      // All four are read, so that no load hangs on a condition.
      const auto [a, b, c, d] = windows.template load<kLanes>(i, V{});
      const P one = P{} + Integer<T>{1};
      const V top = (position & one) == one ? b : a, bottom = (position & one) == one ? d : c;
      put<kStream>(out + start + i, position > one ? bottom : top);
    });
  });
  });
  if (kStream) stream_fence();
  return bad.bits == 0;
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
    {unpool<int8_t>, unpool<int16_t>, unpool<int32_t>, unpool<int64_t>},
    {unpool_backward<int8_t>, unpool_backward<int16_t>, unpool_backward<int32_t>, unpool_backward<int64_t>},
};
}  // namespace ASEGNET_ISA

}  // namespace asegnet::max_pool2x2
