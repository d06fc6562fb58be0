// Plain loops over contiguous memory, written so that the compiler vectorises them for each instruction set.
// Bytes: pool reads 4 and writes 1 element and 1 code per window; unpool the reverse. Nothing else moves.
#include "max_pool2x2/kernels.h"

#include "max_pool2x2/math.h"

namespace asegnet::max_pool2x2 {
namespace {

template <class T>
struct Window {  // the four elements under one window, columns `step` apart, elements `stride` apart
  const T *a, *b, *c, *d;
};

template <int64_t kCount>
struct Fixed {
  constexpr operator int64_t() const { return kCount; }
};

// Calls f(start, length) over blocks of fixed lengths. NCHW rows are short, and a loop of a length known to the
// compiler vectorises where one of unknown length would fall to its scalar tail.
template <class F>
void in_blocks(int64_t count, const F& f) {
  int64_t i = 0;
  for (; i + 64 <= count; i += 64) f(i, Fixed<64>{});
  if (i + 32 <= count) f(i, Fixed<32>{}), i += 32;
  if (i + 16 <= count) f(i, Fixed<16>{}), i += 16;
  if (i + 8 <= count) f(i, Fixed<8>{}), i += 8;
  for (; i < count; ++i) f(i, Fixed<1>{});
}

// One run of windows whose four inputs advance by `kStride` elements each.
template <class Order, int kStride, class T, class Count>
void pool_run(Window<T> in, T* __restrict y, uint8_t* __restrict code, Count count) {
  for (int64_t i = 0; i < count; ++i) {
    const T va = in.a[i * kStride], vb = in.b[i * kStride], vc = in.c[i * kStride], vd = in.d[i * kStride];
    using P = typename Order::Position;
    const auto ka = Order::key(va), kb = Order::key(vb), kc = Order::key(vc), kd = Order::key(vd);
    const auto wb = Order::wins(kb, ka);
    const auto best_b = Order::select(wb, kb, ka);
    const auto wc = Order::wins(kc, best_b);
    const auto wd = Order::wins(kd, Order::select(wc, kc, best_b));
    y[i] = Order::select(wd, vd, Order::select(wc, vc, Order::select(wb, vb, va)));
    code[i] = static_cast<uint8_t>(Order::select(wd, P{3}, Order::select(wc, P{2}, Order::select(wb, P{1}, P{0}))));
  }
}

// A window at the edge that has fewer than four elements.
template <class Order, class T>
void pool_edge(const T* row0, const T* row1, bool second, T* y, uint8_t* code, int64_t inner) {
  for (int64_t i = 0; i < inner; ++i) {
    T value = row0[i];
    uint8_t position = 0;
    const auto consider = [&](const T* row, int64_t at, uint8_t here) {
      if (Order::wins(Order::key(row[at]), Order::key(value))) value = row[at], position = here;
    };
    if (second) consider(row0, inner + i, 1);
    if (row1) consider(row1, i, 2);
    if (row1 && second) consider(row1, inner + i, 3);
    y[i] = value;
    code[i] = position;
  }
}

// Windows of a row that have all four elements.
int64_t whole_windows(const void* row1, Row r) {
  return row1 ? (r.width < 2 * r.pooled ? r.pooled - 1 : r.pooled) : 0;
}

template <class Order>
void pool(const void* p0, const void* p1, void* py, uint8_t* code, Row r) {
  using T = typename Order::Stored;
  const T* row0 = static_cast<const T*>(p0);
  const T* row1 = static_cast<const T*>(p1);
  T* y = static_cast<T*>(py);
  const int64_t whole = whole_windows(row1, r);
  if (r.inner == 1) {
    in_blocks(whole, [&](int64_t i, auto count) {
      const T *top = row0 + 2 * i, *bottom = row1 + 2 * i;
      pool_run<Order, 2, T>({top, top + 1, bottom, bottom + 1}, y + i, code + i, count);
    });
  } else {
    for (int64_t j = 0; j < whole; ++j) {
      const T *top = row0 + 2 * j * r.inner, *bottom = row1 + 2 * j * r.inner;
      pool_run<Order, 1, T>({top, top + r.inner, bottom, bottom + r.inner}, y + j * r.inner, code + j * r.inner,
                            r.inner);
    }
  }
  for (int64_t j = whole; j < r.pooled; ++j) {
    const int64_t at = 2 * j * r.inner;
    pool_edge<Order>(row0 + at, row1 ? row1 + at : nullptr, 2 * j + 1 < r.width, y + j * r.inner,
                     code + j * r.inner, r.inner);
  }
}

// `value` where the code says so, else zero: by arithmetic, since codes are as good as random to a branch.
template <class T>
T where(bool here, T value) {
  return static_cast<T>(value & static_cast<T>(-static_cast<T>(here)));
}

// Writes the four places of a run of windows: the value where the code says, zero elsewhere.
template <class T>
uint8_t unpool_run(const T* __restrict y, const uint8_t* __restrict code, T* __restrict a, T* __restrict b,
                   T* __restrict c, T* __restrict d, int64_t count) {
  uint8_t seen = 0;
  for (int64_t i = 0; i < count; ++i) {
    const T value = y[i];
    const uint8_t k = code[i];
    seen |= k;
    a[i] = where(k == 0, value);
    b[i] = where(k == 1, value);
    c[i] = where(k == 2, value);
    d[i] = where(k == 3, value);
  }
  return seen;
}

// NCHW: the two columns of a window are neighbours, so both rows are written as interleaved pairs.
template <class T, class Count>
uint8_t unpool_pairs(const T* __restrict y, const uint8_t* __restrict code, T* __restrict row0,
                     T* __restrict row1, Count count) {
  uint8_t seen = 0;
  for (int64_t i = 0; i < count; ++i) {
    const T value = y[i];
    const uint8_t k = code[i];
    seen |= k;
    row0[2 * i] = where(k == 0, value);
    row0[2 * i + 1] = where(k == 1, value);
    row1[2 * i] = where(k == 2, value);
    row1[2 * i + 1] = where(k == 3, value);
  }
  return seen;
}

template <class T>
bool unpool_edge(const T* y, const uint8_t* code, T* row0, T* row1, bool second, int64_t inner) {
  bool ok = true;
  for (int64_t i = 0; i < inner; ++i) {
    const uint8_t k = code[i];
    ok &= is_code(k) && (second || !(k & 1)) && (row1 || !(k & 2));
    row0[i] = k == 0 ? y[i] : T{0};
    if (second) row0[inner + i] = k == 1 ? y[i] : T{0};
    if (row1) row1[i] = k == 2 ? y[i] : T{0};
    if (row1 && second) row1[inner + i] = k == 3 ? y[i] : T{0};
  }
  return ok;
}

template <class T>
bool unpool(const void* py, const uint8_t* code, void* p0, void* p1, Row r) {
  const T* y = static_cast<const T*>(py);
  T* row0 = static_cast<T*>(p0);
  T* row1 = static_cast<T*>(p1);
  const int64_t whole = whole_windows(row1, r);
  uint8_t seen = 0;
  bool ok = true;
  if (r.inner == 1) {
    in_blocks(whole, [&](int64_t i, auto count) {
      seen |= unpool_pairs(y + i, code + i, row0 + 2 * i, row1 + 2 * i, count);
    });
  } else {
    for (int64_t j = 0; j < whole; ++j) {
      T *top = row0 + 2 * j * r.inner, *bottom = row1 + 2 * j * r.inner;
      seen |= unpool_run(y + j * r.inner, code + j * r.inner, top, top + r.inner, bottom, bottom + r.inner,
                            r.inner);
    }
  }
  for (int64_t j = whole; j < r.pooled; ++j) {
    const int64_t at = 2 * j * r.inner;
    ok &= unpool_edge(y + j * r.inner, code + j * r.inner, row0 + at, row1 ? row1 + at : nullptr,
                      2 * j + 1 < r.width, r.inner);
  }
  for (int64_t i = 2 * r.pooled * r.inner; i < r.width * r.inner; ++i) {  // the odd last column
    row0[i] = T{0};
    if (row1) row1[i] = T{0};
  }
  return ok && is_code(seen);
}

template <int kStride, class T, class Count>
uint8_t gather_run(Window<T> in, const uint8_t* __restrict code, T* __restrict grad, Count count) {
  uint8_t seen = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint8_t k = code[i];
    seen |= k;
    // All four are read, so that no load hangs on a condition.
    const T va = in.a[i * kStride], vb = in.b[i * kStride], vc = in.c[i * kStride], vd = in.d[i * kStride];
    const T top = k == 0 ? va : vb, bottom = k == 2 ? vc : vd;
    grad[i] = k < 2 ? top : bottom;
  }
  return seen;
}

template <class T>
bool unpool_backward(const void* p0, const void* p1, const uint8_t* code, void* pgrad, Row r) {
  const T* row0 = static_cast<const T*>(p0);
  const T* row1 = static_cast<const T*>(p1);
  T* grad = static_cast<T*>(pgrad);
  const int64_t whole = whole_windows(row1, r);
  uint8_t seen = 0;
  bool ok = true;
  if (r.pitch == 1) {
    in_blocks(whole, [&](int64_t i, auto count) {
      const T *top = row0 + 2 * i, *bottom = row1 + 2 * i;
      seen |= gather_run<2, T>({top, top + 1, bottom, bottom + 1}, code + i, grad + i, count);
    });
  } else {
    for (int64_t j = 0; j < whole; ++j) {
      const T *top = row0 + 2 * j * r.pitch, *bottom = row1 + 2 * j * r.pitch;
      seen |= gather_run<1, T>({top, top + r.pitch, bottom, bottom + r.pitch}, code + j * r.inner,
                               grad + j * r.inner, r.inner);
    }
  }
  for (int64_t j = whole; j < r.pooled; ++j) {
    for (int64_t i = 0; i < r.inner; ++i) {
      const uint8_t k = code[j * r.inner + i];
      const bool inside = is_code(k) && (2 * j + (k & 1) < r.width) && (row1 || !(k & 2));
      ok &= inside;
      const T* row = k & 2 ? row1 : row0;
      grad[j * r.inner + i] = inside ? row[(2 * j + (k & 1)) * r.pitch + i] : T{0};
    }
  }
  return ok && is_code(seen);
}

}  // namespace

namespace ASEGNET_ISA {
const Kernels kernels = {
    {pool<ByValue<float>>, pool<ByValue<double>>, pool<OrderBFloat16>, pool<OrderFloat16>},
    {unpool<uint8_t>, unpool<uint16_t>, unpool<uint32_t>, unpool<uint64_t>},
    {unpool_backward<uint8_t>, unpool_backward<uint16_t>, unpool_backward<uint32_t>, unpool_backward<uint64_t>},
};
}  // namespace ASEGNET_ISA

}  // namespace asegnet::max_pool2x2
