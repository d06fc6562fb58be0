// Kernels over pairs of rows and their 2x2 windows. For simd.cpp only.
#pragma once

#include "bn_relu/runs.h"
#include "common/window.h"

namespace asegnet::bn_relu {
namespace {

// ---- two rows of a channels_last map ----------------------------------------------------------------------

// How a pack is read and written: whole, or its first `count` elements where channels do not fill the last one.
template <class T>
struct Whole {
  using P = Pack<T>;
  using A = acc<T>;
  static ASEGNET_HOST_DEVICE void load(const T* from, Vector<A>* v) { P::load(from, v); }
  template <bool kStream>
  static ASEGNET_HOST_DEVICE void store(T* to, const Vector<A>* v) { P::template store<kStream>(to, v); }
  static ASEGNET_HOST_DEVICE void load_codes(const uint8_t* from, Mask<A>* codes) { P::load_codes(from, codes); }
  static ASEGNET_HOST_DEVICE void store_codes(uint8_t* to, const Mask<A> (&codes)[P::kVectors]) { P::store_codes(to, codes); }
};
template <class T>
struct Part {
  using P = Pack<T>;
  using A = acc<T>;
  int64_t count;
  void load(const T* from, Vector<A>* v) const {
    T whole[P::kLength] = {};
    __builtin_memcpy(whole, from, count * sizeof(T));
    P::load(whole, v);
  }
  template <bool>
  void store(T* to, const Vector<A>* v) const {
    T whole[P::kLength];
    P::template store<false>(whole, v);
    __builtin_memcpy(to, whole, count * sizeof(T));
  }
  void load_codes(const uint8_t* from, Mask<A>* codes) const {
    uint8_t whole[P::kLength] = {};
    __builtin_memcpy(whole, from, count);
    P::load_codes(whole, codes);
  }
  void store_codes(uint8_t* to, const Mask<A> (&codes)[P::kVectors]) const {
    uint8_t whole[P::kLength];
    P::store_codes(whole, codes);
    __builtin_memcpy(to, whole, count);
  }
};

// Packs that fill a cache line. A window's four elements lie far apart, and streaming stores must fill a line each
// before they turn to the next.
template <class T>
constexpr int kLinePacks = Pack<T>::kLength * sizeof(T) < 64 ? 64 / (Pack<T>::kLength * sizeof(T)) : 1;

// Calls f(first channel, access, number of packs) over a pixel's channels, which kWhole says fill packs.
template <class T, int kMost, bool kWhole, class F>
ASEGNET_HOST_DEVICE void for_packs(int64_t channels, const F& f) {
  constexpr int64_t kLength = Pack<T>::kLength, kLongest = kMost * kLength;
  int64_t e = 0;
  for (; e + kLongest <= channels; e += kLongest) f(e, Whole<T>{}, Constant<kMost>{});
  if constexpr (kMost > 1) {
    for (; e + kLength <= channels; e += kLength) f(e, Whole<T>{}, Constant<1>{});
  }
  if constexpr (!kWhole) {
    if (e < channels) f(e, Part<T>{channels - e}, Constant<1>{});
  }
}

// A window: where its four elements stand, and its result, in elements from the start.
struct Window {
  int64_t at[4], result;
};

template <class F>
ASEGNET_HOST_DEVICE void for_windows(const Rows& rows, int64_t channels, const F& f) {
  const int64_t columns = rows.width / 2;
  for (int64_t pair = 0; pair < rows.pairs; ++pair) {
    for (int64_t j = 0; j < columns; ++j) {
      const int64_t top = (2 * pair * rows.width + 2 * j) * channels, bottom = top + rows.width * channels;
      f(Window{{top, top + channels, bottom, bottom + channels}, (pair * columns + j) * channels});
    }
  }
}

// Calls f(begin, end) for each pixel of the odd last column, which no window has.
template <class F>
ASEGNET_HOST_DEVICE void for_last_column(const Rows& rows, int64_t channels, const F& f) {
  if (rows.width % 2 == 0) return;
  for (int64_t row = 1; row <= 2 * rows.pairs; ++row) {
    f((row * rows.width - 1) * channels, row * rows.width * channels);
  }
}

enum class Store { kNone, kPlain, kStream };

template <class T>
void pool_forward(const void* px, void* py, const Rows& rows, const Channels& c, bool stream, void* scratch) {
  using P = Pack<T>;
  using A = acc<T>;
  const T* x = static_cast<const T*>(px);
  T *y = static_cast<T*>(py), *pooled = static_cast<T*>(rows.pooled);
  const Tables<T> t = filled<T>(c, padded<T>(c.count), scratch);
  const Vector<A> limit = threshold<T>(c);
  const auto run = [&]<Store kStore>(Constant<kStore>) {
    for_windows(rows, c.count, [&](const Window& window) {
      for_packs<T, kLinePacks<T>, kStore == Store::kStream>(c.count, [&](int64_t first, auto access, auto packs) {
        constexpr int kPacks = decltype(packs)::value;
        Vector<A> best[kPacks][P::kVectors];
        Mask<A> code[kPacks][P::kVectors] = {};
        for (int p = 0; p < 4; ++p) {
          for (int q = 0; q < kPacks; ++q) {
            const int64_t e = first + q * P::kLength;
            Vector<A> v[P::kVectors];
            access.load(x + window.at[p] + e, v);
            for (int k = 0; k < P::kVectors; ++k) {
              v[k] = normalised(t, e + k * kLanes<A>, v[k]);
              v[k] = P::round(cut(v[k], limit, v[k]));
              if (p == 0) {
                best[q][k] = v[k];
              } else {
                const Mask<A> won = wins(v[k], best[q][k]);
                best[q][k] = select(won, v[k], best[q][k]);
                code[q][k] = select(won, Mask<A>{} + p, code[q][k]);
              }
            }
            if constexpr (kStore != Store::kNone) {
              access.template store<kStore == Store::kStream>(y + window.at[p] + e, v);
            }
          }
        }
        for (int q = 0; q < kPacks; ++q) {
          const int64_t e = window.result + first + q * P::kLength;
          access.template store<false>(pooled + e, best[q]);
          access.store_codes(rows.code + e, code[q]);
        }
      });
    });
  };
  if (!y) {
    run(Constant<Store::kNone>{});
  } else {
    if (stream && is_aligned(y) && c.count % P::kLength == 0) run(Constant<Store::kStream>{});
    else run(Constant<Store::kPlain>{});
    for_last_column(rows, c.count, [&](int64_t begin, int64_t end) { forward_values(x, y, begin, end, c); });
  }
  if (stream) stream_fence();
}

// The gradient at position p of a window: the pool's where the code says so, and dy's where it is given.
template <class A>
ASEGNET_HOST_DEVICE Vector<A> at_position(int p, Mask<A> code, Vector<A> pooled, Vector<A> dy) {
  return dy + select(code == p, pooled, Vector<A>{});
}

template <class T>
void pool_reduce(const void* pdy, const void* px, const Rows& rows, const Channels& c, double* sums, void* scratch) {
  using P = Pack<T>;
  using A = acc<T>;
  const T *dy = static_cast<const T*>(pdy), *x = static_cast<const T*>(px);
  const T* pooled = static_cast<const T*>(rows.pooled);
  const Tables<T> t = filled<T>(c, padded<T>(c.count), scratch);
  const Vector<A> limit = threshold<T>(c);
  t.clear();
  with(dy != nullptr, [&](auto given) {
    constexpr bool kGiven = decltype(given)::value;
    int64_t steps = 0;
    for_windows(rows, c.count, [&](const Window& window) {
      for_packs<T, 1, false>(c.count, [&](int64_t e, auto access, auto) {
        Vector<A> v[4][P::kVectors], g[4][P::kVectors] = {}, from_pool[P::kVectors];
        Mask<A> code[P::kVectors];
        access.load(pooled + window.result + e, from_pool);
        access.load_codes(rows.code + window.result + e, code);
        for (int p = 0; p < 4; ++p) {
          access.load(x + window.at[p] + e, v[p]);
          if constexpr (kGiven) access.load(dy + window.at[p] + e, g[p]);
        }
        for (int k = 0; k < P::kVectors; ++k) {
          const int64_t i = e + k * kLanes<A>;
          const Vector<A> mean = at(t.mean, i);
          Vector<A> sum{}, product{};
          for (int p = 0; p < 4; ++p) {
            const Vector<A> all = at_position<A>(p, code[k], from_pool[k], g[p][k]);
            const Vector<A> passed = passes(t, i, limit, v[p][k], all);
            sum += passed;
            product += passed * (v[p][k] - mean);
          }
          store_as(t.sums + i, at(t.sums, i) + sum);
          store_as(t.sums + t.length + i, at(t.sums, t.length + i) + product);
        }
      });
      if (++steps % kSteps == 0) t.flush();
    });
  });
  if (dy) for_last_column(rows, c.count, [&](int64_t begin, int64_t end) { reduce_values(dy, x, begin, end, c, sums); });
  t.add_to(sums, c.count, true);
}

template <class T>
void pool_backward(const void* pdy, const void* px, void* pdx, const Rows& rows, const Channels& c, bool stream,
                   void* scratch) {
  using P = Pack<T>;
  using A = acc<T>;
  const T *dy = static_cast<const T*>(pdy), *x = static_cast<const T*>(px);
  const T* pooled = static_cast<const T*>(rows.pooled);
  T* dx = static_cast<T*>(pdx);
  const Tables<T> t = filled<T>(c, padded<T>(c.count), scratch);
  const Vector<A> limit = threshold<T>(c);
  with(c.slope == nullptr, [&](auto constant) { with(dy != nullptr, [&](auto given) {
    constexpr bool kConstant = decltype(constant)::value, kGiven = decltype(given)::value;
    with(stream && is_aligned(dx) && c.count % P::kLength == 0, [&](auto streams) {
      constexpr bool kStream = decltype(streams)::value;
      for_windows(rows, c.count, [&](const Window& window) {
        for_packs<T, kLinePacks<T>, kStream>(c.count, [&](int64_t first, auto access, auto packs) {
          constexpr int kPacks = decltype(packs)::value;
          Vector<A> from_pool[kPacks][P::kVectors];
          Mask<A> code[kPacks][P::kVectors];
          for (int q = 0; q < kPacks; ++q) {
            access.load(pooled + window.result + first + q * P::kLength, from_pool[q]);
            access.load_codes(rows.code + window.result + first + q * P::kLength, code[q]);
          }
          for (int p = 0; p < 4; ++p) {
            for (int q = 0; q < kPacks; ++q) {
              const int64_t e = first + q * P::kLength;
              Vector<A> v[P::kVectors], g[P::kVectors] = {};
              access.load(x + window.at[p] + e, v);
              if constexpr (kGiven) access.load(dy + window.at[p] + e, g);
              for (int k = 0; k < P::kVectors; ++k) {
                const int64_t i = e + k * kLanes<A>;
                const Vector<A> all = at_position<A>(p, code[q][k], from_pool[q][k], g[k]);
                v[k] = P::round(input_gradient<kConstant>(t, i, v[k], passes(t, i, limit, v[k], all)));
              }
              access.template store<kStream>(dx + window.at[p] + e, v);
            }
          }
        });
      });
    });
  }); });
  for_last_column(rows, c.count, [&](int64_t begin, int64_t end) { backward_values(dy, x, dx, begin, end, c); });
  if (stream) stream_fence();
}

// ---- two rows of a plane ---------------------------------------------------------------------------------

template <class T>
void pool_plane(const void* py, const Rows& rows) {
  using A = acc<T>;
  const int64_t columns = rows.width / 2;
  for (int64_t pair = 0; pair < rows.pairs; ++pair) {
    const T *row0 = static_cast<const T*>(py) + 2 * pair * rows.width, *row1 = row0 + rows.width;
    T* __restrict pooled = static_cast<T*>(rows.pooled) + pair * columns;
    uint8_t* __restrict code = rows.code + pair * columns;
    for (int64_t j = 0; j < columns; ++j) {
      const A a = to_acc(row0[2 * j]), b = to_acc(row0[2 * j + 1]);
      const A c = to_acc(row1[2 * j]), d = to_acc(row1[2 * j + 1]);
      const bool b_wins = wins(b, a);
      const A top = b_wins ? b : a;
      const bool c_wins = wins(c, top);
      const A three = c_wins ? c : top;
      const bool d_wins = wins(d, three);
      pooled[j] = from_acc<T>(d_wins ? d : three);
      const int best = c_wins ? 2 : b_wins ? 1 : 0;
      code[j] = static_cast<uint8_t>(d_wins ? 3 : best);
    }
  }
}

template <class T>
void unpool_plane(const void* pdy, const Rows& rows, void* psum) {
  using A = acc<T>;
  const int64_t columns = rows.width / 2;
  const T zero = from_acc<T>(A{0});
  T* const sum = static_cast<T*>(psum);
  for (int64_t pair = 0; pair < rows.pairs; ++pair) {
    T *sum0 = sum + 2 * pair * rows.width, *sum1 = sum0 + rows.width;
    const T* pooled = static_cast<const T*>(rows.pooled) + pair * columns;
    const uint8_t* code = rows.code + pair * columns;
    for (int64_t j = 0; j < columns; ++j) {
      sum0[2 * j] = code[j] == 0 ? pooled[j] : zero;
      sum0[2 * j + 1] = code[j] == 1 ? pooled[j] : zero;
      sum1[2 * j] = code[j] == 2 ? pooled[j] : zero;
      sum1[2 * j + 1] = code[j] == 3 ? pooled[j] : zero;
    }
    if (rows.width % 2) sum0[rows.width - 1] = sum1[rows.width - 1] = zero;
  }
  if (!pdy) return;
  const T* dy = static_cast<const T*>(pdy);
  for (int64_t i = 0; i < 2 * rows.pairs * rows.width; ++i) sum[i] = from_acc<T>(to_acc(sum[i]) + to_acc(dy[i]));
}

}  // namespace
}  // namespace asegnet::bn_relu
