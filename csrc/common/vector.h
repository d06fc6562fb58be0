// Vectors of the width the including file is compiled for. For simd.cpp only: the anonymous namespace gives each
// instruction set its own copy.
#pragma once

#include <cstdint>

#include "common/host_device.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace asegnet {
namespace {

// ASEGNET_VECTOR_BYTES sets another width than the instruction set's own: 64 runs the AVX-512 kernels' logic on a
// machine without AVX-512. Code therefore asks for kVectorBytes, and for a macro of the compiler only around intrinsics.
#if defined(ASEGNET_VECTOR_BYTES)
constexpr int kVectorBytes = ASEGNET_VECTOR_BYTES;
#elif defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <typename A>
struct Lane;
template <>
struct Lane<float> {
  typedef int32_t Integer;
  typedef float Vector __attribute__((vector_size(kVectorBytes)));
  typedef int32_t Mask __attribute__((vector_size(kVectorBytes)));
};
template <>
struct Lane<double> {
  typedef int64_t Integer;
  typedef double Vector __attribute__((vector_size(kVectorBytes)));
  typedef int64_t Mask __attribute__((vector_size(kVectorBytes)));
};
template <typename A>
using Vector = typename Lane<A>::Vector;
template <typename A>
using Mask = typename Lane<A>::Mask;  // also a vector of integers as wide as A
template <typename A>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(A));

template <class T, int kLanes>
struct OfLanes {
  typedef T type __attribute__((vector_size(kLanes * sizeof(T))));
};
template <class T>
struct OfLanes<T, 1> {
  using type = T;
};
// kLanes values of T: a vector, or the plain type for one.
template <class T, int kLanes>
using VectorOf = typename OfLanes<T, kLanes>::type;

// Any vector type, any address.
template <class V, class T>
ASEGNET_HOST_DEVICE V load_as(const T* from) {
  V value;
  __builtin_memcpy(&value, from, sizeof(V));
  return value;
}
template <class V, class T>
ASEGNET_HOST_DEVICE void store_as(T* to, V value) {
  __builtin_memcpy(to, &value, sizeof(V));
}

// Streaming store of one vector to an address aligned to its size: the line goes to memory without being read, and
// leaves the cache to others. Vectors of fewer than 4 bytes, and any where there is no SSE2, are stored as others.
// Call stream_fence() before another thread may read.
template <class V, class T>
ASEGNET_HOST_DEVICE void stream_as(T* to, V value) {
#if defined(__AVX512F__)
  if constexpr (sizeof(V) == 64) return _mm512_stream_si512((__m512i*)to, (__m512i)value);
#endif
#if defined(__AVX2__)
  if constexpr (sizeof(V) == 32) return _mm256_stream_si256((__m256i*)to, (__m256i)value);
  if constexpr (sizeof(V) == 64) {
    __m256i halves[2];
    __builtin_memcpy(halves, &value, 64);
    _mm256_stream_si256((__m256i*)to, halves[0]);
    return _mm256_stream_si256((__m256i*)to + 1, halves[1]);
  }
#endif
#if defined(__SSE2__)
  if constexpr (sizeof(V) == 4) {
    int32_t bits;
    __builtin_memcpy(&bits, &value, 4);
    return _mm_stream_si32((int*)to, bits);
  }
  if constexpr (sizeof(V) == 8) {
    long long bits;
    __builtin_memcpy(&bits, &value, 8);
    return _mm_stream_si64((long long*)to, bits);
  }
  if constexpr (sizeof(V) < 4) return store_as(to, value);
  __m128i parts[sizeof(V) / 16];
  __builtin_memcpy(parts, &value, sizeof(V));
  for (unsigned i = 0; i < sizeof(V) / 16; ++i) _mm_stream_si128((__m128i*)to + i, parts[i]);
#else
  store_as(to, value);
#endif
}

template <bool kStream, class T, class V>
ASEGNET_HOST_DEVICE void put(T* to, V value) {
  if constexpr (kStream) {
    stream_as(to, value);
  } else {
    store_as(to, value);
  }
}

ASEGNET_HOST_DEVICE void stream_fence() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

template <class T>
ASEGNET_HOST_DEVICE bool is_aligned(const T* address, uint64_t bytes = kVectorBytes) {
  return reinterpret_cast<uintptr_t>(address) % bytes == 0;
}

}  // namespace
}  // namespace asegnet
