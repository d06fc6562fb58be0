// exp and log(1 + y) on the ranges softmax needs. For simd.cpp only.
#pragma once

#include <cmath>

#include "common/vector.h"

namespace asegnet::tversky {
namespace {

template <class T>
using Vec = Vector<T>;
template <class T>
using IntVec = Mask<T>;
template <class T>
using Int = typename Lane<T>::Integer;

template <class To, class From>
ASEGNET_HOST_DEVICE To bits(From v) {
  static_assert(sizeof(To) == sizeof(From));
  To r;
  __builtin_memcpy(&r, &v, sizeof(To));
  return r;
}
template <class T>
ASEGNET_HOST_DEVICE Vec<T> all(T v) {
  return v - Vec<T>{};
}
template <class T>
ASEGNET_HOST_DEVICE Vec<T> keep(IntVec<T> where, Vec<T> v) {  // v there, else 0
  return bits<Vec<T>>(where & bits<IntVec<T>>(v));
}

// x becomes exp(x), for x <= 0: 2^n (1 + r c(r)) with |r| <= log(2) / 2; exp(0) is 1, NaN stays NaN. The polynomial's
// relative error is 9e-8, with rounding 2e-7. Below -87.7, n is -127, whose bits make the factor 2^n zero.
// Several vectors go step by step, side by side: one alone waits for each result before it can use it.
template <int kCount>
ASEGNET_HOST_DEVICE void exp_nonpositive(Vec<float> (&x)[kCount], float) {
  using V = Vec<float>;
  using I = IntVec<float>;
  V shifted[kCount], r[kCount], c[kCount];
  const auto each = [](auto step) {
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) step(i);
  };
  each([&](int i) { x[i] = all(-88.0f) > x[i] ? all(-88.0f) : x[i]; });
  each([&](int i) { shifted[i] = x[i] * 1.44269504f + 12582912.0f; });  // 1.5 * 2^23: rounds; n in the low bits
  each([&](int i) { c[i] = shifted[i] - 12582912.0f; });
  each([&](int i) { r[i] = x[i] - c[i] * 0.693145752f; });
  each([&](int i) { r[i] = r[i] - c[i] * 1.42860677e-6f; });
  each([&](int i) { c[i] = r[i] * 0.00829027221f + 0.0418981612f; });
  each([&](int i) { c[i] = c[i] * r[i] + 0.166676387f; });
  each([&](int i) { c[i] = c[i] * r[i] + 0.499991477f; });
  each([&](int i) { c[i] = c[i] * r[i] + 0.99999970f; });
  each([&](int i) { c[i] = c[i] * r[i] + 1.0f; });
  each([&](int i) { x[i] = c[i] * bits<V>((bits<I>(shifted[i]) << 23) + 0x3f800000); });
}

// log(1 + y) for y >= 0: 1 + y = 2^k (1 + f), f in [-1/4, 1/2), log(1 + f) = 2 atanh(f / (2 + f)).
ASEGNET_HOST_DEVICE Vec<float> log1p_nonnegative(Vec<float> y, float) {
  using V = Vec<float>;
  using I = IntVec<float>;
  const I k = (bits<I>(1.0f + y) - 0x3f400000) >> 23;
  const V scale = bits<V>((127 - k) << 23);
  const V f = y * scale + (scale - 1.0f);
  const V s = f / (f + 2.0f);
  const V t = s * s;
  V q = t * 0.15180284f + 0.19978912f;
  q = q * t + 0.33333474f;
  return __builtin_convertvector(k, V) * 0.693147181f + 2.0f * (s * t * q + s);
}

// The same for y in [0, 1], without the power of two.
ASEGNET_HOST_DEVICE Vec<float> log1p_unit(Vec<float> y, float) {
  using V = Vec<float>;
  const V s = y / (y + 2.0f);
  const V t = s * s, twice = s + s;
  V q = t * 0.140059963f + 0.140009016f;
  q = q * t + 0.200107634f;
  q = q * t + 0.333332092f;
  return twice * (t * q) + twice;
}

// float64 is for checking gradients; it takes the C library's functions.
template <int kCount>
ASEGNET_HOST_DEVICE void exp_nonpositive(Vec<double> (&x)[kCount], double) {
  double lanes[kCount * kLanes<double>];
  __builtin_memcpy(lanes, x, sizeof(x));
  for (double& v : lanes) v = std::exp(v);
  __builtin_memcpy(x, lanes, sizeof(x));
}
ASEGNET_HOST_DEVICE Vec<double> log1p_nonnegative(Vec<double> y, double) {
  for (int64_t i = 0; i < kLanes<double>; ++i) y[i] = std::log1p(y[i]);
  return y;
}
ASEGNET_HOST_DEVICE Vec<double> log1p_unit(Vec<double> y, double) { return log1p_nonnegative(y, double{}); }

}  // namespace
}  // namespace asegnet::tversky
