// bfloat16 and float16, a vector at a time: to_acc and from_acc (common/half.h) of every lane. For simd.cpp only.
#pragma once

#include "common/half.h"
#include "common/vector.h"

namespace asegnet {
namespace {

typedef uint32_t Words __attribute__((vector_size(kVectorBytes)));
typedef uint16_t Halves __attribute__((vector_size(kVectorBytes / 2)));

// From the low 16 bits of each word; the high ones are zero.
template <class S>
ASEGNET_HOST_DEVICE Vector<float> widen_words(Words half) {
  using V = Vector<float>;
  if constexpr (kIsSame<S, BFloat16>) {
    return (V)(half << 16);
  } else {
    const Words sign = (half & 0x8000u) << 16, magnitude = (half & 0x7fffu) << 13;
    const Words scaled = (Words)((V)magnitude * 0x1p112f);
    return (V)(sign | (magnitude >= 0x0f800000u ? magnitude | 0x7f800000u : scaled));
  }
}

// Into the low 16 bits of each word, the high ones zero.
template <class S>
ASEGNET_HOST_DEVICE Words narrow_words(Vector<float> v) {
  const Words word = (Words)v;
  if constexpr (kIsSame<S, BFloat16>) {
    const Words rounded = (word + 0x7fffu + ((word >> 16) & 1u)) >> 16;
    return v != v ? Words{} + 0x7fc0u : rounded;
  } else {
    const Words sign = word >> 16 & 0x8000u, magnitude = word & 0x7fffffffu;
    const Words normal = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
    const Words subnormal = (Words)((Vector<float>)magnitude + 0.5f) - 0x3f000000u;
    const Words special = magnitude > 0x7f800000u ? Words{} + 0x7e00u : Words{} + 0x7c00u;
    const Words finite = magnitude < 0x38800000u ? subnormal : normal;
    return sign | (magnitude >= 0x47800000u ? special : finite);
  }
}

// Templates to the last argument, so that only the branch of the right width is compiled.
template <class S, class H = Halves>
ASEGNET_HOST_DEVICE Vector<float> widen(H half) {
#if defined(__AVX512F__)
  if constexpr (kIsSame<S, Float16> && sizeof(H) == 32) return (Vector<float>)_mm512_maskz_cvtph_ps(0xffff, (__m256i)half);
#endif
#if defined(__F16C__)
  if constexpr (kIsSame<S, Float16> && sizeof(H) == 16) return (Vector<float>)_mm256_cvtph_ps((__m128i)half);
#endif
  return widen_words<S>(__builtin_convertvector(half, Words));
}

template <class S, class V = Vector<float>>
ASEGNET_HOST_DEVICE Halves narrow(V v) {
#if defined(__AVX512F__)
  if constexpr (kIsSame<S, Float16> && sizeof(V) == 64) {
    return (Halves)_mm512_maskz_cvtps_ph(0xffff, (__m512)v, _MM_FROUND_TO_NEAREST_INT);
  }
#endif
#if defined(__F16C__)
  if constexpr (kIsSame<S, Float16> && sizeof(V) == 32) {
    return (Halves)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
  }
#endif
  return __builtin_convertvector(narrow_words<S>(v), Halves);
}

}  // namespace
}  // namespace asegnet
