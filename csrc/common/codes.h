// Positions in a 2x2 window: in lanes as wide as the values, and as bytes in memory. For simd.cpp only.
// g++ 12 converts most of these lane by lane, hence the instructions by name.
#pragma once

#include "common/vector.h"

namespace asegnet {
namespace {

template <class P, int kLanes>
ASEGNET_HOST_DEVICE P load_codes(const uint8_t* code) {
  if constexpr (kLanes == 1) {
    return *code;
  } else {
#if defined(__SSE2__)
    constexpr int kWidth = sizeof(P) / kLanes;
    __m128i bytes{};
    __builtin_memcpy(&bytes, code, kLanes < 16 ? kLanes : 16);
#if defined(__AVX512F__)  // with masks: g++ 12 takes the others' unused operand for an uninitialised value
    if constexpr (sizeof(P) == 64 && kWidth == 2) return (P)_mm512_maskz_cvtepu8_epi16(~0u, load_as<__m256i>(code));
    if constexpr (sizeof(P) == 64 && kWidth == 4) return (P)_mm512_maskz_cvtepu8_epi32(0xffff, bytes);
    if constexpr (sizeof(P) == 64 && kWidth == 8) return (P)_mm512_maskz_cvtepu8_epi64(0xff, bytes);
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
    return __builtin_convertvector(load_as<VectorOf<uint8_t, kLanes>>(code), P);
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
      VectorOf<uint8_t, kLanes * kCount> codes;
      __builtin_memcpy(&codes, part, sizeof(codes));
      return put<kStream>(code, codes);
    }
#endif
    for (int v = 0; v < kCount; ++v) {
      put<kStream>(code + v * kLanes, __builtin_convertvector(positions[v], VectorOf<uint8_t, kLanes>));
    }
  }
}

}  // namespace
}  // namespace asegnet
