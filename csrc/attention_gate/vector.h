// Loads, masks and sums of vectors. For simd.cpp only.
#pragma once

#include <cstdint>

#include "attention_gate/math.h"
#include "common/half_vector.h"
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

// Minus 0 and not plus 0, which would cost an addition: -0 + 0 is 0.
template <typename A>
ASEGNET_HOST_DEVICE Vector<A> broadcast(A value) {
  return value - Vector<A>{};
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

// sigmoid of each lane; the float one within 2 units in the last place. NaN stays NaN.
ASEGNET_HOST_DEVICE Vector<double> sigmoid_lanes(Vector<double> logit) {
  for (int lane = 0; lane < kLanes<double>; ++lane) logit[lane] = sigmoid(logit[lane]);
  return logit;
}

ASEGNET_HOST_DEVICE Vector<float> sigmoid_lanes(Vector<float> logit) {
  // exp(x) = 2^k exp(r) with |r| <= ln(2) / 2. From k = 128 on the power is infinity, which gives the right 0; below
  // -87 the result is 1.
  Vector<float> x = -logit;
  x = x > 89.0f ? broadcast(89.0f) : x;
  x = x < -87.0f ? broadcast(-87.0f) : x;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: leaves the nearest integer in the low bits
  const Vector<float> shifted = x * 1.44269504f + kRound, k = shifted - kRound;
  const Vector<float> r = x - k * 0.693359375f - k * -2.12194440e-4f;
  Vector<float> e = r * (1.0f / 720) + 1.0f / 120;
  e = e * r + 1.0f / 24;
  e = e * r + 1.0f / 6;
  e = e * r + 0.5f;
  e = e * r + 1.0f;
  e = e * r + 1.0f;
  const Mask<float> power = ((Mask<float>)shifted << 23) + (127 << 23);
  e *= (Vector<float>)power;
  return 1.0f / (1.0f + e);
}

}  // namespace
}  // namespace asegnet::attention_gate
