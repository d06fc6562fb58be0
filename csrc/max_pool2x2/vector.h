// Vectors that the pooling kernels need: of any number of lanes, neighbours pulled apart and put together, and
// conversions between positions in lanes and codes in bytes.
#pragma once

#include "common/vector.h"

namespace asegnet::max_pool2x2 {
namespace {

template <class T, int kLanes>
struct PackOf {
  typedef T type __attribute__((vector_size(kLanes * sizeof(T))));
};
template <class T>
struct PackOf<T, 1> {
  using type = T;
};
// kLanes values of T: a vector, or the plain type for one.
template <class T, int kLanes>
using Pack = typename PackOf<T, kLanes>::type;

template <int kBytes>
struct IntegerOf;
template <>
struct IntegerOf<1> { using type = int8_t; };
template <>
struct IntegerOf<2> { using type = int16_t; };
template <>
struct IntegerOf<4> { using type = int32_t; };
template <>
struct IntegerOf<8> { using type = int64_t; };
template <class T>
using Integer = typename IntegerOf<sizeof(T)>::type;

// 0, 1, ... kCount - 1 as a pack of template arguments.
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

template <bool kStream, class T, class V>
ASEGNET_HOST_DEVICE void put(T* to, V value) {
  if constexpr (kStream) {
    stream_as(to, value);
  } else {
    store_as(to, value);
  }
}

template <class V>
struct Two {
  V left, right;
};

template <class V, int... i>
ASEGNET_HOST_DEVICE Two<V> evens_and_odds(V first, V second, Indices<i...>) {
  return {__builtin_shufflevector(first, second, (2 * i)...), __builtin_shufflevector(first, second, (2 * i + 1)...)};
}

// 2 * kLanes neighbours as left and right columns.
template <int kLanes, class T>
ASEGNET_HOST_DEVICE Two<Pack<T, kLanes>> load_pairs(const T* from) {
  using V = Pack<T, kLanes>;
  if constexpr (kLanes == 1) {
    return {from[0], from[1]};
  } else {
    return evens_and_odds(load_as<V>(from), load_as<V>(from + kLanes), First<kLanes>{});
  }
}

template <bool kStream, class T, class V, int... i>
ASEGNET_HOST_DEVICE void interleave(T* to, Two<V> v, Indices<i...>) {
  constexpr int n = sizeof...(i);
  put<kStream>(to, __builtin_shufflevector(v.left, v.right, (i / 2 + i % 2 * n)...));
  put<kStream>(to + n, __builtin_shufflevector(v.left, v.right, (n / 2 + i / 2 + i % 2 * n)...));
}

template <bool kStream, int kLanes, class T>
ASEGNET_HOST_DEVICE void store_pairs(T* to, Two<Pack<T, kLanes>> v) {
  if constexpr (kLanes == 1) {
    to[0] = v.left, to[1] = v.right;
  } else {
    interleave<kStream>(to, v, First<kLanes>{});
  }
}

// Codes in bytes as positions in lanes as wide as T, and back.
template <class T, int kLanes>
ASEGNET_HOST_DEVICE Pack<Integer<T>, kLanes> load_codes(const uint8_t* code) {
  if constexpr (kLanes == 1) {
    return *code;
  } else {
    return __builtin_convertvector(load_as<Pack<uint8_t, kLanes>>(code), Pack<Integer<T>, kLanes>);
  }
}

// Positions fit a byte, so packing with saturation is exact. g++ 12 would convert lane by lane, without AVX-512.
template <int kLanes, class P>
ASEGNET_HOST_DEVICE Pack<uint8_t, kLanes> narrowed(P positions) {
#if defined(__SSE2__) && !defined(__AVX512F__)
  constexpr int kWidth = sizeof(P) / kLanes, kParts = sizeof(P) / 16;
  if constexpr (kParts > 0 && (kWidth == 2 || kWidth == 4)) {
    __m128i part[kParts];
    __builtin_memcpy(part, &positions, sizeof(P));
    int n = kParts;
    const auto halve = [&](auto pack) {
      for (int i = 0; i < n; i += 2) part[i / 2] = pack(part[i], part[i + 1 < n ? i + 1 : i]);
      n = (n + 1) / 2;
    };
    if constexpr (kWidth == 4) halve([](__m128i a, __m128i b) { return _mm_packs_epi32(a, b); });
    halve([](__m128i a, __m128i b) { return _mm_packs_epi16(a, b); });
    Pack<uint8_t, kLanes> codes;
    __builtin_memcpy(&codes, part, kLanes);
    return codes;
  }
#endif
  return __builtin_convertvector(positions, Pack<uint8_t, kLanes>);
}

template <bool kStream, int kLanes, class P>
ASEGNET_HOST_DEVICE void store_codes(uint8_t* code, P positions) {
  if constexpr (kLanes == 1) {
    *code = static_cast<uint8_t>(positions);
  } else {
    put<kStream>(code, narrowed<kLanes>(positions));
  }
}

}  // namespace
}  // namespace asegnet::max_pool2x2
