// Columns pulled apart and put together. For simd.cpp only.
#pragma once

#include "common/codes.h"
#include "common/vector.h"

namespace asegnet::max_pool2x2 {
namespace {

template <int kBytes>
struct IntegerOf;
template <>
struct IntegerOf<2> {
  using type = int16_t;
};
template <>
struct IntegerOf<4> {
  using type = int32_t;
};
template <>
struct IntegerOf<8> {
  using type = int64_t;
};
template <class T>
using Integer = typename IntegerOf<sizeof(T)>::type;

// 0, 1, ... kCount - 1 as template arguments.
template <int... kIndex>
struct Indices {};
template <int kCount, int... kIndex>
struct FirstIndices : FirstIndices<kCount - 1, kCount - 1, kIndex...> {};
template <int... kIndex>
struct FirstIndices<0, kIndex...> {
  using type = Indices<kIndex...>;
};
template <int kCount>
using First = typename FirstIndices<kCount>::type;

template <class V>
struct Columns {
  V left, right;
};

template <class V, int... i>
ASEGNET_HOST_DEVICE Columns<V> apart(V first, V second, Indices<i...>) {
  return {__builtin_shufflevector(first, second, (2 * i)...), __builtin_shufflevector(first, second, (2 * i + 1)...)};
}

// The same where `first` holds quarters 0 and 2 of the row, `second` 1 and 3: no element crosses a half of a vector,
// which takes AVX2 more than one instruction.
template <class V, int... i>
ASEGNET_HOST_DEVICE Columns<V> apart_in_halves(V first, V second, Indices<i...>) {
  constexpr int n = sizeof...(i), half = n / 2, quarter = n / 4;
  constexpr auto from = [](int at) { return at / half * half + at % quarter * 2 + at % half / quarter * n; };
  return {__builtin_shufflevector(first, second, from(i)...), __builtin_shufflevector(first, second, (from(i) + 1)...)};
}
template <class H, int... i>
ASEGNET_HOST_DEVICE auto join(H low, H high, Indices<i...>) {
  return __builtin_shufflevector(low, high, i...);
}

// Windows whose columns are neighbours.
template <class V, class T>
ASEGNET_HOST_DEVICE Columns<V> load_columns(const T* from) {
  constexpr int kLanes = sizeof(V) / sizeof(T);
  if constexpr (kLanes == 1) {
    return {from[0], from[1]};
  } else if constexpr (sizeof(V) == 32) {
    const auto quarter = [&](int i) { return load_as<VectorOf<T, kLanes / 2>>(from + i * kLanes / 2); };
    const First<kLanes> all;
    return apart_in_halves<V>(join(quarter(0), quarter(2), all), join(quarter(1), quarter(3), all), all);
  } else {
    return apart(load_as<V>(from), load_as<V>(from + kLanes), First<kLanes>{});
  }
}

template <bool kStream, class T, class V, int... i>
ASEGNET_HOST_DEVICE void put_interleaved(T* to, Columns<V> v, Indices<i...>) {
  constexpr int n = sizeof...(i);
  put<kStream>(to, __builtin_shufflevector(v.left, v.right, (i / 2 + i % 2 * n)...));
  put<kStream>(to + n, __builtin_shufflevector(v.left, v.right, (n / 2 + i / 2 + i % 2 * n)...));
}

template <bool kStream, class T, class V>
ASEGNET_HOST_DEVICE void put_columns(T* to, Columns<V> v) {
  if constexpr (sizeof(V) == sizeof(T)) {
    to[0] = v.left, to[1] = v.right;
  } else {
    put_interleaved<kStream>(to, v, First<sizeof(V) / sizeof(T)>{});
  }
}

}  // namespace
}  // namespace asegnet::max_pool2x2
