// Kernels over a run of memory: whole periods of packs, then what is left one value at a time. For simd.cpp only.
#pragma once

#include "bn_relu/tables.h"

namespace asegnet::bn_relu {
namespace {

constexpr int64_t kRows = 4;    // table lengths added up before a sum in a table is touched
constexpr int64_t kSteps = 64;  // times kRows: lengths added up in float before the sums go to double

// Calls whole(i, count) for every kMost periods and every single period left. Returns where it stopped.
template <int64_t kMost, class Whole>
ASEGNET_HOST_DEVICE int64_t for_periods(int64_t size, int64_t length, const Whole& whole) {
  int64_t i = 0;
  if (length == 0) return i;
  if constexpr (kMost > 1) {
    for (; i + kMost * length <= size; i += kMost * length) whole(i, Constant<kMost>{});
  }
  for (; i + length <= size; i += length) whole(i, Constant<int64_t{1}>{});
  return i;
}

// Calls each(i, channel) for the elements [i, end), which begin with channel 0.
template <class Each>
ASEGNET_HOST_DEVICE void for_values(int64_t i, int64_t end, int64_t channels, const Each& each) {
  for (int64_t c = 0; i < end; ++i) {
    each(i, c);
    if (++c == channels) c = 0;
  }
}

template <class T>
void statistics(const void* px, int64_t size, int64_t channels, double* first, double* sums, void* scratch) {
  using P = Pack<T>;
  using A = acc<T>;
  const T* x = static_cast<const T*>(px);
  for (int64_t c = 0; c < channels; ++c) first[c] = 0;
  const int64_t sampled = size / channels < 8 ? size / channels : 8;
  for (int64_t i = 0; i < sampled; ++i) {
    for (int64_t c = 0; c < channels; ++c) first[c] += static_cast<double>(to_acc(x[i * channels + c]));
  }
  for (int64_t c = 0; c < channels; ++c) {
    first[c] = static_cast<double>(static_cast<A>(first[c] / static_cast<double>(sampled)));
    if (first[c] - first[c] != 0) first[c] = 0;  // infinite or NaN
  }
  const Tables<T> t(period<T>(channels), scratch);
  t.fill(t.mean, first, channels);
  t.clear();
  int64_t steps = 0;
  const int64_t rest = for_periods<kRows>(size, t.length, [&](int64_t i, auto count) {
    constexpr int64_t kCount = decltype(count)::value;
    for (int64_t e = 0; e < t.length; e += P::kLength) {
      Vector<A> v[kCount][P::kVectors];
      for (int64_t r = 0; r < kCount; ++r) P::load(x + i + r * t.length + e, v[r]);
      for (int k = 0; k < P::kVectors; ++k) {
        const int64_t j = e + k * kLanes<A>;
        const Vector<A> from = at(t.mean, j);
        Vector<A> sum{}, square{};
        for (int64_t r = 0; r < kCount; ++r) {
          const Vector<A> d = v[r][k] - from;
          sum += d;
          square += d * d;
        }
        store_as(t.sums + j, at(t.sums, j) + sum);
        store_as(t.sums + t.length + j, at(t.sums, t.length + j) + square);
      }
    }
    if (++steps % kSteps == 0) t.flush();
  });
  for_values(rest, size, channels, [&](int64_t i, int64_t c) {
    const double d = static_cast<double>(to_acc(x[i])) - first[c];
    sums[c] += d;
    sums[channels + c] += d * d;
  });
  t.add_to(sums, channels, false);
}

// ---- elements [i, end), which begin with channel 0, one at a time -----------------------------------------------

template <class T>
__attribute__((noinline)) void forward_values(const T* x, T* y, int64_t i, int64_t end, const Channels& c) {
  for_values(i, end, c.count, [&](int64_t e, int64_t k) {
    const acc<T> v = normalised(c, k, to_acc(x[e]));
    y[e] = from_acc<T>(c.relu && is_cut(v) ? acc<T>{0} : v);
  });
}

template <class T>
__attribute__((noinline)) void reduce_values(const T* dy, const T* x, int64_t i, int64_t end, const Channels& c,
                                             double* sums) {
  for_values(i, end, c.count, [&](int64_t e, int64_t k) {
    const acc<T> value = to_acc(x[e]), passed = passes(c, k, value, to_acc(dy[e]));
    sums[k] += static_cast<double>(passed);
    sums[c.count + k] += static_cast<double>(passed) * (static_cast<double>(value) - c.mean[k]);
  });
}

// dy may be null.
template <class T>
__attribute__((noinline)) void backward_values(const T* dy, const T* x, T* dx, int64_t i, int64_t end,
                                               const Channels& c) {
  with(c.slope == nullptr, [&](auto constant) {
    for_values(i, end, c.count, [&](int64_t e, int64_t k) {
      const acc<T> value = to_acc(x[e]), g = dy ? passes(c, k, value, to_acc(dy[e])) : acc<T>{0};
      dx[e] = from_acc<T>(input_gradient<decltype(constant)::value>(c, k, value, g));
    });
  });
}

// ---- runs ------------------------------------------------------------------------------------------------

template <class T>
void forward(const void* px, void* py, int64_t size, const Channels& c, bool stream, void* scratch) {
  using P = Pack<T>;
  using A = acc<T>;
  const T* x = static_cast<const T*>(px);
  T* y = static_cast<T*>(py);
  const Tables<T> t = filled<T>(c, period<T>(c.count), scratch);
  const Vector<A> limit = threshold<T>(c);
  with(stream && is_aligned(y), [&](auto streams) {
    const int64_t rest = for_periods<1>(size, t.length, [&](int64_t i, auto) {
      for (int64_t e = 0; e < t.length; e += P::kLength) {
        Vector<A> v[P::kVectors];
        P::load(x + i + e, v);
        for (int k = 0; k < P::kVectors; ++k) {
          v[k] = normalised(t, e + k * kLanes<A>, v[k]);
          v[k] = P::round(cut(v[k], limit, v[k]));
        }
        P::template store<decltype(streams)::value>(y + i + e, v);
      }
    });
    forward_values(x, y, rest, size, c);
  });
  if (stream) stream_fence();
}

template <class T>
void reduce(const void* pdy, const void* px, int64_t size, const Channels& c, double* sums, void* scratch) {
  using P = Pack<T>;
  using A = acc<T>;
  const T *dy = static_cast<const T*>(pdy), *x = static_cast<const T*>(px);
  const Tables<T> t = filled<T>(c, period<T>(c.count), scratch);
  const Vector<A> limit = threshold<T>(c);
  t.clear();
  int64_t steps = 0;
  const int64_t rest = for_periods<kRows>(size, t.length, [&](int64_t i, auto count) {
    constexpr int64_t kCount = decltype(count)::value;
    for (int64_t e = 0; e < t.length; e += P::kLength) {
      Vector<A> v[kCount][P::kVectors], g[kCount][P::kVectors];
      for (int64_t r = 0; r < kCount; ++r) {
        P::load(x + i + r * t.length + e, v[r]);
        P::load(dy + i + r * t.length + e, g[r]);
      }
      for (int k = 0; k < P::kVectors; ++k) {
        const int64_t j = e + k * kLanes<A>;
        const Vector<A> mean = at(t.mean, j);
        Vector<A> sum{}, product{};
        for (int64_t r = 0; r < kCount; ++r) {
          const Vector<A> passed = passes(t, j, limit, v[r][k], g[r][k]);
          sum += passed;
          product += passed * (v[r][k] - mean);
        }
        store_as(t.sums + j, at(t.sums, j) + sum);
        store_as(t.sums + t.length + j, at(t.sums, t.length + j) + product);
      }
    }
    if (++steps % kSteps == 0) t.flush();
  });
  reduce_values(dy, x, rest, size, c, sums);
  t.add_to(sums, c.count, false);
}

template <class T>
void backward(const void* pdy, const void* px, void* pdx, int64_t size, const Channels& c, bool stream,
              void* scratch) {
  using P = Pack<T>;
  using A = acc<T>;
  const T *dy = static_cast<const T*>(pdy), *x = static_cast<const T*>(px);
  T* dx = static_cast<T*>(pdx);
  const Tables<T> t = filled<T>(c, period<T>(c.count), scratch);
  const Vector<A> limit = threshold<T>(c);
  with(c.slope == nullptr, [&](auto constant) {
    with(stream && is_aligned(dx), [&](auto streams) {
      const int64_t rest = for_periods<1>(size, t.length, [&](int64_t i, auto) {
        for (int64_t e = 0; e < t.length; e += P::kLength) {
          Vector<A> v[P::kVectors], g[P::kVectors];
          P::load(x + i + e, v);
          P::load(dy + i + e, g);
          for (int k = 0; k < P::kVectors; ++k) {
            const int64_t j = e + k * kLanes<A>;
            const Vector<A> passed = passes(t, j, limit, v[k], g[k]);
            v[k] = P::round(input_gradient<decltype(constant)::value>(t, j, v[k], passed));
          }
          P::template store<decltype(streams)::value>(dx + i + e, v);
        }
      });
      backward_values(dy, x, dx, rest, size, c);
    });
  });
  if (stream) stream_fence();
}

}  // namespace
}  // namespace asegnet::bn_relu
