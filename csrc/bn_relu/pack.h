// A pack: as many stored values as fill the vectors they widen to. For simd.cpp only.
#pragma once

#include <cstdint>

#include "common/codes.h"
#include "common/half_vector.h"

namespace asegnet::bn_relu {
namespace {

template <class V>
ASEGNET_HOST_DEVICE V select(const auto mask, V yes, V no) {
  return mask ? yes : no;
}

// float and double: a pack is one vector.
template <class T>
struct Pack {
  using A = T;
  static constexpr int kVectors = 1, kLength = kLanes<A>;
  static constexpr int element(int, int lane) { return lane; }
  static ASEGNET_HOST_DEVICE void load(const T* from, Vector<A>* v) { v[0] = load_as<Vector<A>>(from); }
  static ASEGNET_HOST_DEVICE Vector<A> round(Vector<A> v) { return v; }
  // Stores rounded values.
  template <bool kStream>
  static ASEGNET_HOST_DEVICE void store(T* to, const Vector<A>* v) {
    put<kStream>(to, v[0]);
  }
  static ASEGNET_HOST_DEVICE void load_codes(const uint8_t* from, Mask<A>* codes) {
    codes[0] = asegnet::load_codes<Mask<A>, kLength>(from);
  }
  static ASEGNET_HOST_DEVICE void store_codes(uint8_t* to, const Mask<A> (&codes)[1]) {
    put_codes<false, kLength>(to, codes);
  }
};

// bfloat16: the even elements, then the odd ones, which takes a shift and a mask and crosses no lane.
template <>
struct Pack<BFloat16> {
  using A = float;
  static constexpr int kVectors = 2, kLength = 2 * kLanes<A>;
  using Pairs = VectorOf<int16_t, kLength>;
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
    put<kStream>(to, words);
  }
  static ASEGNET_HOST_DEVICE void load_codes(const uint8_t* from, Mask<A>* codes) {
    const Words pairs = (Words)asegnet::load_codes<Pairs, kLength>(from);
    codes[0] = (Mask<A>)(pairs & 0xffffu);
    codes[1] = (Mask<A>)(pairs >> 16);
  }
  static ASEGNET_HOST_DEVICE void store_codes(uint8_t* to, const Mask<A> (&codes)[2]) {
    const Pairs pairs[] = {(Pairs)((Words)codes[0] | ((Words)codes[1] << 16))};
    put_codes<false, kLength>(to, pairs);
  }
};

// float16: two vectors one after the other.
template <>
struct Pack<Float16> {
  using A = float;
  static constexpr int kVectors = 2, kLength = 2 * kLanes<A>;
  static constexpr int element(int k, int lane) { return k * kLanes<A> + lane; }
  static ASEGNET_HOST_DEVICE void load(const Float16* from, Vector<A>* v) {
    for (int k = 0; k < 2; ++k) v[k] = widen<Float16>(load_as<Halves>(from + k * kLanes<A>));
  }
  static ASEGNET_HOST_DEVICE Vector<A> round(Vector<A> v) { return widen<Float16>(narrow<Float16>(v)); }
  template <bool kStream>
  static ASEGNET_HOST_DEVICE void store(Float16* to, const Vector<A>* v) {
    for (int k = 0; k < 2; ++k) {
      if constexpr (kStream && sizeof(Halves) >= 16) stream_as(to + k * kLanes<A>, narrow<Float16>(v[k]));
      else store_as(to + k * kLanes<A>, narrow<Float16>(v[k]));
    }
  }
  static ASEGNET_HOST_DEVICE void load_codes(const uint8_t* from, Mask<A>* codes) {
    for (int k = 0; k < 2; ++k) {
      codes[k] = asegnet::load_codes<Mask<A>, kLanes<A>>(from + k * kLanes<A>);
    }
  }
  static ASEGNET_HOST_DEVICE void store_codes(uint8_t* to, const Mask<A> (&codes)[2]) {
    put_codes<false, kLanes<A>>(to, codes);
  }
};

}  // namespace
}  // namespace asegnet::bn_relu
