// Logits in registers: a vector of pixels at a time, read and written where they lie. For simd.cpp only.
#pragma once

#include "common/half_vector.h"
#include "tversky/vector_math.h"

namespace asegnet::tversky {
namespace {

// ---- shuffles within each 16 bytes ----------------------------------------------------------------------------

// Lanes 0 and 2 of a, then of b; odd: 1 and 3.
template <class V>
ASEGNET_HOST_DEVICE V even(V a, V b) {
  if constexpr (sizeof(V) == 16) return __builtin_shufflevector(a, b, 0, 2, 4, 6);
  else if constexpr (sizeof(V) == 32) return __builtin_shufflevector(a, b, 0, 2, 8, 10, 4, 6, 12, 14);
  else return __builtin_shufflevector(a, b, 0, 2, 16, 18, 4, 6, 20, 22, 8, 10, 24, 26, 12, 14, 28, 30);
}
template <class V>
ASEGNET_HOST_DEVICE V odd(V a, V b) {
  if constexpr (sizeof(V) == 16) return __builtin_shufflevector(a, b, 1, 3, 5, 7);
  else if constexpr (sizeof(V) == 32) return __builtin_shufflevector(a, b, 1, 3, 9, 11, 5, 7, 13, 15);
  else return __builtin_shufflevector(a, b, 1, 3, 17, 19, 5, 7, 21, 23, 9, 11, 25, 27, 13, 15, 29, 31);
}
// Their inverse: lanes 0 and 1 of a and b in turns; upper: 2 and 3.
template <class V>
ASEGNET_HOST_DEVICE V lower(V a, V b) {
  if constexpr (sizeof(V) == 16) return __builtin_shufflevector(a, b, 0, 4, 1, 5);
  else if constexpr (sizeof(V) == 32) return __builtin_shufflevector(a, b, 0, 8, 1, 9, 4, 12, 5, 13);
  else return __builtin_shufflevector(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
}
template <class V>
ASEGNET_HOST_DEVICE V upper(V a, V b) {
  if constexpr (sizeof(V) == 16) return __builtin_shufflevector(a, b, 2, 6, 3, 7);
  else if constexpr (sizeof(V) == 32) return __builtin_shufflevector(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
  else return __builtin_shufflevector(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
}
// The order in which one step of even and odd leaves pixels of two lanes, and two steps pixels of four.
template <class V>
ASEGNET_HOST_DEVICE V order_of_pairs(V a) {
  if constexpr (sizeof(V) == 16) return a;
  else if constexpr (sizeof(V) == 32) return __builtin_shufflevector(a, a, 0, 1, 4, 5, 2, 3, 6, 7);
  else return __builtin_shufflevector(a, a, 0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15);
}
template <class V>
ASEGNET_HOST_DEVICE V order_of_fours(V a) {
  if constexpr (sizeof(V) == 16) return a;
  else if constexpr (sizeof(V) == 32) return __builtin_shufflevector(a, a, 0, 2, 4, 6, 1, 3, 5, 7);
  else return __builtin_shufflevector(a, a, 0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
}

template <class S>
ASEGNET_HOST_DEVICE Vec<acc_t<S>> load_wide(const S* from) {
  if constexpr (sizeof(S) == 2) return widen<S>(load_as<Halves>(from));
  else return load_as<Vec<S>>(from);
}
template <class S>
ASEGNET_HOST_DEVICE void store_narrow(S* to, Vec<acc_t<S>> v) {
  if constexpr (sizeof(S) == 2) store_as(to, narrow<S>(v));
  else store_as(to, v);
}

template <class S>
struct Loaded {  // a vector of what is stored, before widening
  typedef Vec<S> Vector;
};
template <>
struct Loaded<BFloat16> {
  typedef Words Vector;
};
template <>
struct Loaded<Float16> {
  typedef Words Vector;
};

// ---- the logits of a block of pixels --------------------------------------------------------------------------

// One plane per channel, `stride` apart, or the channels of each pixel side by side (2 or 4 of at most 4 bytes each).
// A vector of interleaved pixels has the lanes in another order, which order() gives to labels too.
template <class S_, bool kInterleaved>
struct Access {
  using S = S_;
  using T = acc_t<S>;
  using V = Vec<T>;
  static_assert(!kInterleaved || sizeof(S) <= 4);
  S* data;
  int64_t stride;

  ASEGNET_HOST_DEVICE V plane(int64_t c, int64_t i) const { return load_wide(data + c * stride + i); }
  ASEGNET_HOST_DEVICE void set_plane(int64_t c, int64_t i, V v) const { store_narrow(data + c * stride + i, v); }

  template <int kChannels>
  static ASEGNET_HOST_DEVICE IntVec<T> order(IntVec<T> labels) {
    if constexpr (!kInterleaved || kChannels * sizeof(S) == 4) return labels;
    else if constexpr (kChannels * sizeof(S) == 8) return order_of_pairs(labels);
    else return order_of_fours(labels);
  }

  template <int kChannels>
  ASEGNET_HOST_DEVICE void load(int64_t i, V (&z)[kChannels]) const {
    if constexpr (!kInterleaved) {
      for (int c = 0; c < kChannels; ++c) z[c] = plane(c, i);
    } else {
      static_assert(kChannels == 2 || kChannels == 4);
      using U = typename Loaded<S>::Vector;
      const S* const from = data + kChannels * i;
      const auto part = [&](int k) { return load_as<U>(from + k * (kVectorBytes / static_cast<int>(sizeof(S)))); };
      if constexpr (sizeof(S) == 2 && kChannels == 2) {
        split(part(0), z[0], z[1]);
      } else if constexpr (sizeof(S) == 2) {
        split(even(part(0), part(1)), z[0], z[1]);
        split(odd(part(0), part(1)), z[2], z[3]);
      } else if constexpr (kChannels == 2) {
        const U a = part(0), b = part(1);
        z[0] = even(a, b);
        z[1] = odd(a, b);
      } else {
        const U a = part(0), b = part(1), c = part(2), d = part(3);
        const U even_ab = even(a, b), even_cd = even(c, d), odd_ab = odd(a, b), odd_cd = odd(c, d);
        z[0] = even(even_ab, even_cd);
        z[2] = odd(even_ab, even_cd);
        z[1] = even(odd_ab, odd_cd);
        z[3] = odd(odd_ab, odd_cd);
      }
    }
  }

  template <int kChannels>
  ASEGNET_HOST_DEVICE void store(int64_t i, const V (&g)[kChannels]) const {
    if constexpr (!kInterleaved) {
      for (int c = 0; c < kChannels; ++c) set_plane(c, i, g[c]);
    } else {
      S* const to = data + kChannels * i;
      const auto put = [&](int k, auto v) { store_as(to + k * (kVectorBytes / static_cast<int>(sizeof(S))), v); };
      if constexpr (sizeof(S) == 2 && kChannels == 2) {
        put(0, joined(g[0], g[1]));
      } else if constexpr (sizeof(S) == 2) {
        const Words first = joined(g[0], g[1]), second = joined(g[2], g[3]);
        put(0, lower(first, second));
        put(1, upper(first, second));
      } else if constexpr (kChannels == 2) {
        put(0, lower(g[0], g[1]));
        put(1, upper(g[0], g[1]));
      } else {
        const V low_02 = lower(g[0], g[2]), high_02 = upper(g[0], g[2]);
        const V low_13 = lower(g[1], g[3]), high_13 = upper(g[1], g[3]);
        put(0, lower(low_02, low_13));
        put(1, upper(low_02, low_13));
        put(2, lower(high_02, high_13));
        put(3, upper(high_02, high_13));
      }
    }
  }

 private:
  // Two half channels of a pixel in one word, the first in the low bits.
  static ASEGNET_HOST_DEVICE void split(Words pair, V& first, V& second) {
    if constexpr (kIsSame<S, BFloat16>) {
      first = bits<V>(pair << 16);
      second = bits<V>(pair & 0xffff0000u);
    } else {
      first = widen_words<S>(pair & 0xffffu);
      second = widen_words<S>(pair >> 16);
    }
  }
  static ASEGNET_HOST_DEVICE Words joined(V first, V second) {
    return narrow_words<S>(first) | narrow_words<S>(second) << 16;
  }
};

}  // namespace
}  // namespace asegnet::tversky
