// Loads, masks and sums of vectors. For simd.cpp only.
#pragma once

#include <cstdint>

#include "common/host_device.h"
#include "common/vector.h"

namespace asegnet::attention_gate {
namespace {

template <typename A>
ASEGNET_HOST_DEVICE Vector<A> load(const A* from) {
  return load_as<Vector<A>>(from);
}

template <typename A>
ASEGNET_HOST_DEVICE void store(A* to, Vector<A> value) {
  store_as(to, value);
}

template <typename A>
ASEGNET_HOST_DEVICE Vector<A> broadcast(A value) {
  return Vector<A>{} + value;
}

template <typename A>
ASEGNET_HOST_DEVICE Vector<A> keep(Vector<A> value, Mask<A> lanes) {
  return (Vector<A>)((Mask<A>)value & lanes);
}

// 0, 1, 2, ... over the lanes.
template <typename A>
ASEGNET_HOST_DEVICE Mask<A> lane_numbers() {
  Mask<A> numbers{};
  for (int lane = 0; lane < kLanes<A>; ++lane) numbers[lane] = lane;
  return numbers;
}

// All ones in the lanes whose bit is set.
template <typename A>
ASEGNET_HOST_DEVICE Mask<A> lanes_of(unsigned bits) {
  Mask<A> single{};
  for (int lane = 0; lane < kLanes<A>; ++lane) single[lane] = typename Lane<A>::Integer(1) << lane;
  return ((Mask<A>{} + static_cast<typename Lane<A>::Integer>(bits)) & single) != 0;
}

// The inverse: one bit for each lane that is all ones.
template <typename A>
ASEGNET_HOST_DEVICE unsigned bits_of(Mask<A> lanes) {
  unsigned bits = 0;
#if defined(__AVX512F__)
  if constexpr (kVectorBytes == 64) {
    if constexpr (sizeof(A) == 4) return _mm512_test_epi32_mask((__m512i)lanes, (__m512i)lanes);
    return _mm512_test_epi64_mask((__m512i)lanes, (__m512i)lanes);
  }
#endif
#if defined(__AVX2__)
  if constexpr (kVectorBytes == 32) {
    if constexpr (sizeof(A) == 4) return _mm256_movemask_ps((__m256)lanes);
    return _mm256_movemask_pd((__m256d)lanes);
  }
#endif
#if defined(__SSE2__)
  __m128i parts[kVectorBytes / 16];
  __builtin_memcpy(parts, &lanes, kVectorBytes);
  for (int i = 0; i < kVectorBytes / 16; ++i) {
    if constexpr (sizeof(A) == 4) bits |= unsigned(_mm_movemask_ps((__m128)parts[i])) << (4 * i);
    else bits |= unsigned(_mm_movemask_pd((__m128d)parts[i])) << (2 * i);
  }
#else
  for (int lane = 0; lane < kLanes<A>; ++lane) bits |= unsigned(lanes[lane] & 1) << lane;
#endif
  return bits;
}

// Pairs of lanes are added first, so that the sum is as exact as the vector sums it ends.
template <typename A>
ASEGNET_HOST_DEVICE A sum_of(Vector<A> value) {
  A lanes[kLanes<A>];
  __builtin_memcpy(lanes, &value, sizeof(value));
  for (int half = kLanes<A> / 2; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

}  // namespace
}  // namespace asegnet::attention_gate
