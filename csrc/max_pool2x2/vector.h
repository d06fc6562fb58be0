// Vectors for the pooling kernels: of any number of lanes, columns pulled apart and put together, and conversions
// between positions in lanes and codes in bytes.
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
struct IntegerOf<1> {
  using type = int8_t;
};
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

template <bool kStream, class T, class V>
ASEGNET_HOST_DEVICE void put(T* to, V value) {
  if constexpr (kStream) {
    stream_as(to, value);
  } else {
    store_as(to, value);
  }
}

// ---- columns ------------------------------------------------------------------------------------------------

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
    const auto quarter = [&](int i) { return load_as<Pack<T, kLanes / 2>>(from + i * kLanes / 2); };
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

// ---- codes: positions in lanes as wide as the values, and bytes ---------------------------------------------
// g++ 12 converts most of these lane by lane, hence the instructions by name.

template <class P, int kLanes>
ASEGNET_HOST_DEVICE P load_codes(const uint8_t* code) {
  if constexpr (kLanes == 1) {
    return *code;
  } else {
#if defined(__SSE2__)
    constexpr int kWidth = sizeof(P) / kLanes;
    __m128i bytes{};
    __builtin_memcpy(&bytes, code, kLanes < 16 ? kLanes : 16);
#if defined(__AVX512F__)
    if constexpr (sizeof(P) == 64 && kWidth == 2) return (P)_mm512_cvtepu8_epi16(load_as<__m256i>(code));
    if constexpr (sizeof(P) == 64 && kWidth == 4) return (P)_mm512_cvtepu8_epi32(bytes);
    if constexpr (sizeof(P) == 64 && kWidth == 8) return (P)_mm512_cvtepu8_epi64(bytes);
#endif
#if defined(__AVX2__)
    if constexpr (sizeof(P) == 32 && kWidth == 2) return (P)_mm256_cvtepu8_epi16(bytes);
    if constexpr (sizeof(P) == 32 && kWidth == 4) return (P)_mm256_cvtepu8_epi32(bytes);
    if constexpr (sizeof(P) == 32 && kWidth == 8) return (P)_mm256_cvtepu8_epi64(bytes);
#endif
    if constexpr (sizeof(P) == 16) {
      const __m128i zero{};
      if constexpr (kWidth >= 2) bytes = _mm_unpacklo_epi8(bytes, zero);
      if constexpr (kWidth >= 4) bytes = _mm_unpacklo_epi16(bytes, zero);
      if constexpr (kWidth >= 8) bytes = _mm_unpacklo_epi32(bytes, zero);
      return (P)bytes;
    }
#endif
    return __builtin_convertvector(load_as<Pack<uint8_t, kLanes>>(code), P);
  }
}

// kCount vectors of kLanes positions each.
template <bool kStream, int kLanes, class P, int kCount>
ASEGNET_HOST_DEVICE void put_codes(uint8_t* code, const P (&positions)[kCount]) {
  if constexpr (kLanes == 1) {
    *code = static_cast<uint8_t>(positions[0]);
  } else {
#if defined(__SSE2__) && !defined(__AVX512F__)
    constexpr int kWidth = sizeof(P) / kLanes, kParts = sizeof(positions) / 16;
    if constexpr (kWidth == 2 || kWidth == 4) {  // positions fit a byte: saturation changes none
      __m128i part[kParts];
      __builtin_memcpy(part, positions, sizeof(positions));
      int n = kParts;
      const auto halve = [&](auto pack) {
        for (int i = 0; i < n; i += 2) part[i / 2] = pack(part[i], part[i + 1 < n ? i + 1 : i]);
        n = (n + 1) / 2;
      };
      if constexpr (kWidth == 4) halve([](__m128i a, __m128i b) { return _mm_packs_epi32(a, b); });
      halve([](__m128i a, __m128i b) { return _mm_packs_epi16(a, b); });
      Pack<uint8_t, kLanes * kCount> codes;
      __builtin_memcpy(&codes, part, sizeof(codes));
      return put<kStream>(code, codes);
    }
#endif
    for (int v = 0; v < kCount; ++v) {
      put<kStream>(code + v * kLanes, __builtin_convertvector(positions[v], Pack<uint8_t, kLanes>));
    }
  }
}

}  // namespace
}  // namespace asegnet::max_pool2x2
