// Parameters and float sums of a run's channels, in tables that stay in the first-level cache, and the rules of
// math.h on vectors that read them. For simd.cpp only.
#pragma once

#include "bn_relu/kernels.h"
#include "bn_relu/math.h"
#include "bn_relu/pack.h"

namespace asegnet::bn_relu {
namespace {

// A run-time choice as a type.
template <auto kValue>
struct Constant {
  static constexpr auto value = kValue;
};

template <class F>
ASEGNET_HOST_DEVICE void with(bool flag, const F& f) {
  if (flag) f(Constant<true>{});
  else f(Constant<false>{});
}

template <class T>
using acc = typename Pack<T>::A;

// Elements after which channels and packs both start anew: a multiple of both, of a few packs at least. 0 where that
// would make long tables; such maps are worked on one value at a time.
template <class T>
int64_t period(int64_t channels) {
  constexpr int64_t kLeast = 4 * Pack<T>::kLength;
  int64_t a = channels, b = kLeast;
  while (b) {
    const int64_t rest = a % b;
    a = b, b = rest;
  }
  constexpr int64_t kMost = 65536;
  return channels / a <= kMost / kLeast ? channels / a * kLeast : 0;
}

// Whole packs of so many channels.
template <class T>
int64_t padded(int64_t channels) {
  constexpr int64_t kLength = Pack<T>::kLength;
  return (channels + kLength - 1) / kLength * kLength;
}

// Per-element numbers over one period, in the order in which packs come out of memory.
template <class T>
struct Tables {
  using A = acc<T>;
  int64_t length;
  A *scale, *mean, *bias, *slope, *offset, *sums;  // sums: two tables
  double* totals;                                   // two tables

  Tables(int64_t length_, void* scratch) : length(length_) {
    totals = static_cast<double*>(scratch);
    A* next = reinterpret_cast<A*>(totals + 2 * length);
    A** const tables[] = {&scale, &mean, &bias, &slope, &offset, &sums};
    for (A** const table : tables) *table = next, next += length;
  }
  static int64_t bytes(int64_t length) { return length * (2 * sizeof(double) + 7 * sizeof(A)); }

  // `channels` numbers, over and over.
  __attribute__((noinline)) void fill(A* table, const double* from, int64_t channels) const {
    using P = Pack<T>;
    if (channels == 1) {  // a plane
      const A value = static_cast<A>(*from);
      for (int64_t i = 0; i < length; ++i) table[i] = value;
      return;
    }
    for (int64_t base = 0, c = 0; base < length; base += P::kLength) {
      A natural[P::kLength];
      if (c + P::kLength <= channels) {
        for (int i = 0; i < P::kLength; ++i) natural[i] = static_cast<A>(from[c + i]);
        c += P::kLength;
      } else {
        for (int i = 0; i < P::kLength; ++i) {
          if (c == channels) c = 0;
          natural[i] = static_cast<A>(from[c++]);
        }
      }
      if (c == channels) c = 0;
      for (int k = 0; k < P::kVectors; ++k) {
        for (int lane = 0; lane < kLanes<A>; ++lane) table[base + k * kLanes<A> + lane] = natural[P::element(k, lane)];
      }
    }
  }
  void clear() const {
    for (int64_t i = 0; i < 2 * length; ++i) sums[i] = 0, totals[i] = 0;
  }
  __attribute__((noinline)) void flush() const {
    for (int64_t i = 0; i < 2 * length; ++i) totals[i] += static_cast<double>(sums[i]), sums[i] = 0;
  }
  // What the sums hold, to the channels; of a table that is padded, what lies past them is no channel's.
  __attribute__((noinline)) void add_to(double* out, int64_t channels, bool is_padded) const {
    using P = Pack<T>;
    flush();
    if (channels == 1 && !is_padded) {  // a plane, in the order below
      for (int64_t i = 0; i < length; ++i) out[0] += totals[i];
      for (int64_t i = length; i < 2 * length; ++i) out[1] += totals[i];
      return;
    }
    for (int half = 0; half < 2; ++half) {
      for (int64_t base = 0, first = 0; base < length; base += P::kLength) {
        for (int k = 0; k < P::kVectors; ++k) {
          for (int lane = 0; lane < kLanes<A>; ++lane) {
            int64_t c = first + P::element(k, lane);
            if (c >= channels && is_padded) continue;
            if (c >= channels) c %= channels;
            out[half * channels + c] += totals[half * length + base + k * kLanes<A> + lane];
          }
        }
        first += P::kLength;
        if (first >= channels) first %= channels;
      }
    }
  }
};

template <class T>
__attribute__((noinline)) Tables<T> filled(const Channels& c, int64_t length, void* scratch) {
  const Tables<T> t(length, scratch);
  t.fill(t.scale, c.scale, c.count);
  t.fill(t.mean, c.mean, c.count);
  t.fill(t.bias, c.bias, c.count);
  if (c.slope) {
    t.fill(t.slope, c.slope, c.count);
    t.fill(t.offset, c.offset, c.count);
  }
  return t;
}

// ---- the rules, on a vector at table position j and on one value of channel k ------------------------------

template <class A>
ASEGNET_HOST_DEVICE Vector<A> at(const A* table, int64_t j) { return load_as<Vector<A>>(table + j); }

template <class T>
ASEGNET_HOST_DEVICE Vector<acc<T>> normalised(const Tables<T>& t, int64_t j, Vector<acc<T>> x) {
  return affine(x, at(t.scale, j), at(t.mean, j), at(t.bias, j));
}
template <class A>
ASEGNET_HOST_DEVICE A normalised(const Channels& c, int64_t k, A x) {
  return affine(x, static_cast<A>(c.scale[k]), static_cast<A>(c.mean[k]), static_cast<A>(c.bias[k]));
}

// What the ReLU cuts v off up to: 0, and where there is none NaN, up to which nothing is.
template <class T>
ASEGNET_HOST_DEVICE Vector<acc<T>> threshold(const Channels& c) {
  return Vector<acc<T>>{} + (c.relu ? acc<T>{0} : static_cast<acc<T>>(__builtin_nan("")));
}
// `value`, or 0 where v is cut off; NaN is kept.
template <class V>
ASEGNET_HOST_DEVICE V cut(V v, V limit, V value) { return select(v <= limit, V{}, value); }

// The gradient that passes the ReLU.
template <class T, class V>
ASEGNET_HOST_DEVICE V passes(const Tables<T>& t, int64_t j, V limit, V x, V dy) {
  return cut(normalised(t, j, x), limit, dy);
}
template <class A>
ASEGNET_HOST_DEVICE A passes(const Channels& c, int64_t k, A x, A dy) {
  return c.relu && is_cut(normalised(c, k, x)) ? A{0} : dy;
}

// dx; where the statistics are constants they carry nothing, not even an infinite x.
template <bool kConstant, class T, class V>
ASEGNET_HOST_DEVICE V input_gradient(const Tables<T>& t, int64_t j, V x, V g) {
  if constexpr (kConstant) return g * at(t.scale, j);
  else return gradient(g, x, at(t.scale, j), at(t.mean, j), at(t.slope, j), at(t.offset, j));
}
template <bool kConstant, class A>
ASEGNET_HOST_DEVICE A input_gradient(const Channels& c, int64_t k, A x, A g) {
  const auto as = [&](const double* table) { return static_cast<A>(table[k]); };
  if constexpr (kConstant) return g * as(c.scale);
  else return gradient(g, x, as(c.scale), as(c.mean), as(c.slope), as(c.offset));
}

}  // namespace
}  // namespace asegnet::bn_relu
