// A pack: as many stored values as fill the vectors they widen to. For simd.cpp only.
#pragma once

#include <cstdint>

#include "common/half.h"
#include "common/vector.h"

namespace asegnet::bn_relu {
namespace {

template <class V>
ASEGNET_HOST_DEVICE V select(const auto mask, V yes, V no) {
  return mask ? yes : no;
}

// One byte for each lane of a vector of A.
template <class A>
struct ByteLanes;
template <>
struct ByteLanes<float> {
  typedef uint8_t Bytes __attribute__((vector_size(kVectorBytes / 4)));
};
template <>
struct ByteLanes<double> {
  typedef uint8_t Bytes __attribute__((vector_size(kVectorBytes / 8)));
};

// float and double: a pack is one vector.
template <class T>
struct Pack {
  using A = T;
  static constexpr int kVectors = 1, kLength = kLanes<A>;
  using Bytes = typename ByteLanes<A>::Bytes;
  static constexpr int element(int, int lane) { return lane; }
  static ASEGNET_HOST_DEVICE void load(const T* from, Vector<A>* v) { v[0] = load_as<Vector<A>>(from); }
  static ASEGNET_HOST_DEVICE Vector<A> round(Vector<A> v) { return v; }
  // Stores rounded values.
  template <bool kStream>
  static ASEGNET_HOST_DEVICE void store(T* to, const Vector<A>* v) {
    if constexpr (kStream) stream_as(to, v[0]);
    else store_as(to, v[0]);
  }
  static ASEGNET_HOST_DEVICE void load_codes(const uint8_t* from, Mask<A>* codes) {
    codes[0] = __builtin_convertvector(load_as<Bytes>(from), Mask<A>);
  }
  static ASEGNET_HOST_DEVICE void store_codes(uint8_t* to, const Mask<A>* codes) {
    store_as(to, __builtin_convertvector(codes[0], Bytes));
  }
};

// bfloat16: the even elements, then the odd ones, which takes a shift and a mask and crosses no lane.
template <>
struct Pack<BFloat16> {
  using A = float;
  static constexpr int kVectors = 2, kLength = 2 * kLanes<A>;
  typedef uint32_t Words __attribute__((vector_size(kVectorBytes)));
  typedef uint16_t Halves __attribute__((vector_size(kVectorBytes)));
  typedef uint8_t Bytes __attribute__((vector_size(kVectorBytes / 2)));
  static constexpr int element(int k, int lane) { return 2 * lane + k; }
  static ASEGNET_HOST_DEVICE void load(const BFloat16* from, Vector<A>* v) {
    const Words words = load_as<Words>(from);
    v[0] = (Vector<A>)(words << 16);
    v[1] = (Vector<A>)(words & 0xffff0000u);
  }
  static ASEGNET_HOST_DEVICE Vector<A> round(Vector<A> v) {  // to nearest even; NaN stays NaN
    const Words bits = (Words)v;
    const Words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u;
    return (Vector<A>)select(v != v, Words{} + 0x7fc00000u, rounded);
  }
  template <bool kStream>
  static ASEGNET_HOST_DEVICE void store(BFloat16* to, const Vector<A>* v) {
    const Words words = ((Words)v[0] >> 16) | (Words)v[1];
    if constexpr (kStream) stream_as(to, words);
    else store_as(to, words);
  }
  static ASEGNET_HOST_DEVICE void load_codes(const uint8_t* from, Mask<A>* codes) {
    const Words pairs = (Words)__builtin_convertvector(load_as<Bytes>(from), Halves);
    codes[0] = (Mask<A>)(pairs & 0xffffu);
    codes[1] = (Mask<A>)(pairs >> 16);
  }
  static ASEGNET_HOST_DEVICE void store_codes(uint8_t* to, const Mask<A>* codes) {
    const Words pairs = (Words)codes[0] | ((Words)codes[1] << 16);
    store_as(to, __builtin_convertvector((Halves)pairs, Bytes));
  }
};

// float16: two vectors one after the other.
template <>
struct Pack<Float16> {
  using A = float;
  static constexpr int kVectors = 2, kLength = 2 * kLanes<A>;
  typedef uint16_t Halves __attribute__((vector_size(kVectorBytes / 2)));
  using Bytes = typename ByteLanes<A>::Bytes;
  static constexpr int element(int k, int lane) { return k * kLanes<A> + lane; }
  // Templates, so that only the branch of the right width is compiled.
  template <class H>
  static ASEGNET_HOST_DEVICE Vector<A> widen(H h) {
#if defined(__AVX512F__)
    if constexpr (sizeof(H) == 32) return (Vector<A>)_mm512_maskz_cvtph_ps(0xffff, (__m256i)h);
#endif
#if defined(__F16C__)
    if constexpr (sizeof(H) == 16) return (Vector<A>)_mm256_cvtph_ps((__m128i)h);
#endif
    Vector<A> v;
    for (int i = 0; i < kLanes<A>; ++i) v[i] = to_acc(Float16{h[i]});
    return v;
  }
  template <class V>
  static ASEGNET_HOST_DEVICE Halves narrow(V v) {
#if defined(__AVX512F__)
    if constexpr (sizeof(V) == 64) return (Halves)_mm512_maskz_cvtps_ph(0xffff, (__m512)v, _MM_FROUND_TO_NEAREST_INT);
#endif
#if defined(__F16C__)
    if constexpr (sizeof(V) == 32) return (Halves)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
#endif
    Halves h;
    for (int i = 0; i < kLanes<A>; ++i) h[i] = from_acc<Float16>(v[i]).bits;
    return h;
  }
  static ASEGNET_HOST_DEVICE void load(const Float16* from, Vector<A>* v) {
    for (int k = 0; k < 2; ++k) v[k] = widen(load_as<Halves>(from + k * kLanes<A>));
  }
  static ASEGNET_HOST_DEVICE Vector<A> round(Vector<A> v) { return widen(narrow(v)); }
  template <bool kStream>
  static ASEGNET_HOST_DEVICE void store(Float16* to, const Vector<A>* v) {
    for (int k = 0; k < 2; ++k) {
      if constexpr (kStream && sizeof(Halves) >= 16) stream_as(to + k * kLanes<A>, narrow(v[k]));
      else store_as(to + k * kLanes<A>, narrow(v[k]));
    }
  }
  static ASEGNET_HOST_DEVICE void load_codes(const uint8_t* from, Mask<A>* codes) {
    for (int k = 0; k < 2; ++k) {
      codes[k] = __builtin_convertvector(load_as<Bytes>(from + k * kLanes<A>), Mask<A>);
    }
  }
  static ASEGNET_HOST_DEVICE void store_codes(uint8_t* to, const Mask<A>* codes) {
    for (int k = 0; k < 2; ++k) store_as(to + k * kLanes<A>, __builtin_convertvector(codes[k], Bytes));
  }
};

}  // namespace
}  // namespace asegnet::bn_relu
