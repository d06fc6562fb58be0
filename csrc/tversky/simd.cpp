// One pass over logits and labels, softmax in registers, a block of pixels at a time: labels are checked and
// widened, logits are read in place where they are dense and of the type of the sums, else copied into planes.
// Bytes: forward reads C elements and a label per pixel; backward reads the same and writes C elements.
#include "tversky/kernels.h"

#include <cmath>

#include "common/vector.h"
#include "tversky/math.h"

#define INLINE inline __attribute__((always_inline))

namespace asegnet::tversky {
namespace {

template <class T>
using Vec = Vector<T>;
template <class T>
using IntVec = Mask<T>;
template <class T>
using Int = typename Lane<T>::Integer;

template <class To, class From>
INLINE To bits(From v) {
  static_assert(sizeof(To) == sizeof(From));
  To r;
  __builtin_memcpy(&r, &v, sizeof(To));
  return r;
}
template <class T>
INLINE Vec<T> all(T v) {
  return v - Vec<T>{};
}
template <class T>
INLINE double total(Vec<T> v) {
  double sum = 0;
  for (int64_t i = 0; i < kLanes<T>; ++i) sum += static_cast<double>(v[i]);
  return sum;
}

// exp(x) for x <= 0; below e^-87 zero, NaN stays NaN. 2^n (1 + r + r^2 q(r)), relative error 1e-7.
INLINE Vec<float> exp_nonpositive(Vec<float> x, float) {
  using V = Vec<float>;
  using I = IntVec<float>;
  const auto tiny = x < -87.0f;
  const V y = tiny ? all(-87.0f) : x;
  const V shifted = y * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: rounds, and leaves n in the low bits
  const V n = shifted - 12582912.0f;
  const V r = (y - n * 0.693145752f) - n * 1.42860677e-6f;
  V q = r * 0.0013814613f + 0.00836871f;
  q = q * r + 0.04166839f;
  q = q * r + 0.16666521f;
  q = q * r + 0.49999994f;
  const V scale = bits<V>((bits<I>(shifted) << 23) + 0x3f800000);
  const V e = (q * (r * r) + r + 1.0f) * scale;
  return tiny ? V{} : e;
}

// log(1 + y) for y >= 0: 1 + y = 2^k (1 + f), f in [-1/4, 1/2), log(1 + f) = 2 atanh(f / (2 + f)).
INLINE Vec<float> log1p_nonnegative(Vec<float> y, float) {
  using V = Vec<float>;
  using I = IntVec<float>;
  const I k = (bits<I>(1.0f + y) - 0x3f400000) >> 23;
  const V scale = bits<V>((127 - k) << 23);
  const V f = y * scale + (scale - 1.0f);
  const V s = f / (f + 2.0f);
  const V t = s * s;
  V q = t * 0.15180284f + 0.19978912f;
  q = q * t + 0.33333474f;
  return __builtin_convertvector(k, V) * 0.693147181f + 2.0f * (s * t * q + s);
}

// float64 is for checking gradients; it takes the C library's functions.
INLINE Vec<double> exp_nonpositive(Vec<double> x, double) {
  for (int64_t i = 0; i < kLanes<double>; ++i) x[i] = std::exp(x[i]);
  return x;
}
INLINE Vec<double> log1p_nonnegative(Vec<double> y, double) {
  for (int64_t i = 0; i < kLanes<double>; ++i) y[i] = std::log1p(y[i]);
  return y;
}

// ---- blocks: from strided memory into planes, and back ------------------------------------------------------

// Calls run(offset, at, count) for each piece of the pixels [begin, end) that one innermost row holds.
template <class F>
INLINE void for_rows(const Pixels& pixels, const int64_t* strides, int64_t begin, int64_t end, F run) {
  const int64_t last = pixels.axes - 1, row = pixels.sizes[last];
  for (int64_t at = begin; at < end;) {
    const int64_t column = at % row;
    int64_t rest = at / row, offset = column * strides[last];
    for (int64_t axis = last - 1; axis >= 0; --axis) {
      offset += rest % pixels.sizes[axis] * strides[axis];
      rest /= pixels.sizes[axis];
    }
    const int64_t count = row - column < end - at ? row - column : end - at;
    run(offset, at - begin, count);
    at += count;
  }
}

template <class S, class T>
INLINE void read_row(const S* __restrict from, int64_t stride, T* __restrict to, int64_t count) {
  if (stride == 1) {
    for (int64_t i = 0; i < count; ++i) to[i] = to_acc(from[i]);
  } else if (stride == 2) {  // channels_last of two classes
    for (int64_t i = 0; i < count; ++i) to[i] = to_acc(from[2 * i]);
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] = to_acc(from[i * stride]);
  }
}

template <class S, class T>
INLINE void write_row(const T* __restrict from, S* __restrict to, int64_t stride, int64_t count) {
  if (stride == 1) {
    for (int64_t i = 0; i < count; ++i) to[i] = from_acc<S>(from[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) to[i * stride] = from_acc<S>(from[i]);
  }
}

template <class S, class T>
INLINE void write_pairs(const T* __restrict first, const T* __restrict second, S* __restrict to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    to[2 * i] = from_acc<S>(first[i]);
    to[2 * i + 1] = from_acc<S>(second[i]);
  }
}

// The label where it is a class that counts, else -1. Returns whether a label was undefined.
template <class L, class I>
INLINE bool read_label_row(const L* __restrict from, int64_t stride, I* __restrict to, int64_t count,
                           int64_t classes, bool has_ignore, int64_t ignore) {
  // An ignore_index the label type cannot hold matches no label.
  const bool can_ignore = has_ignore && static_cast<int64_t>(static_cast<L>(ignore)) == ignore;
  const L ignored = static_cast<L>(ignore);
  const auto read = [&](int64_t step) {
    I undefined = 0;
    for (int64_t i = 0; i < count; ++i) {
      const L label = from[i * step];
      const bool skip = can_ignore & (label == ignored);
      const bool known = (label >= 0) & (static_cast<uint64_t>(label) < static_cast<uint64_t>(classes));
      undefined |= static_cast<I>(!(known | skip));
      to[i] = known & !skip ? static_cast<I>(label) : I{-1};
    }
    return undefined != 0;
  };
  return stride == 1 ? read(1) : read(stride);
}

// Reads `count` labels from pixel `begin` on, and pads with -1 up to `padded`.
template <class I>
bool read_labels(const Problem& p, int64_t image, int64_t begin, int64_t count, int64_t padded, I* labels) {
  const Target& t = p.target;
  bool undefined = false;
  const auto read = [&]<class L>(const L* data) {
    for_rows(p.pixels, t.strides, begin, begin + count, [&](int64_t offset, int64_t at, int64_t n) {
      undefined |= read_label_row(data + image * t.image_stride + offset, t.strides[p.pixels.axes - 1],
                                  labels + at, n, p.classes(), t.has_ignore, t.ignore);
    });
  };
  switch (t.type) {
    case kUInt8: read(static_cast<const uint8_t*>(t.data)); break;
    case kInt8: read(static_cast<const int8_t*>(t.data)); break;
    case kInt16: read(static_cast<const int16_t*>(t.data)); break;
    case kInt32: read(static_cast<const int32_t*>(t.data)); break;
    case kInt64: read(static_cast<const int64_t*>(t.data)); break;
  }
  for (int64_t i = count; i < padded; ++i) labels[i] = I{-1};
  return undefined;
}

template <class A, class B>
inline constexpr bool kSame = false;
template <class A>
inline constexpr bool kSame<A, A> = true;

// Planes of T, one per channel, `stride` apart.
template <class T>
struct Planes {
  T* data;
  int64_t stride;
  T* operator[](int64_t c) const { return data + c * stride; }
};

// Whether a block of `count` pixels can be used where it lies.
template <class S, class T>
INLINE bool in_place(const Problem& p, const Logits& x, int64_t count) {
  return kSame<S, T> && p.channels > 1 && p.pixels.axes == 1 && x.strides[0] == 1 && count % kLanes<T> == 0;
}

// The logits of `count` pixels; in `buffer`, padded with 0, where they cannot be used in place.
template <class S, class T>
Planes<T> read_logits(const Problem& p, int64_t image, int64_t begin, int64_t count, int64_t padded, T* buffer) {
  const Logits& x = p.logits;
  S* const base = static_cast<S*>(x.data) + image * x.image_stride;
  if constexpr (kSame<S, T>) {
    if (in_place<S, T>(p, x, count)) return {base + begin, x.channel_stride};
  }
  const Planes<T> planes{buffer, block_pixels(p.classes())};
  T* const first = p.channels == 1 ? planes[1] : planes[0];
  for (int64_t c = 0; c < p.channels; ++c) {
    T* const plane = first + c * planes.stride;
    for_rows(p.pixels, x.strides, begin, begin + count, [&](int64_t offset, int64_t at, int64_t n) {
      read_row(base + c * x.channel_stride + offset, x.strides[p.pixels.axes - 1], plane + at, n);
    });
    for (int64_t i = count; i < padded; ++i) plane[i] = 0;
  }
  if (p.channels == 1) {
    for (int64_t i = 0; i < padded; ++i) planes[0][i] = 0;
  }
  return planes;
}

template <class S, class T>
void write_gradient(const Problem& p, const Logits& x, int64_t image, int64_t begin, int64_t count,
                    Planes<T> planes) {
  S* const base = static_cast<S*>(x.data) + image * x.image_stride;
  const int64_t step = x.strides[p.pixels.axes - 1];
  if (p.channels == 2 && x.channel_stride == 1 && step == 2) {  // channels_last: whole pairs, side by side
    for_rows(p.pixels, x.strides, begin, begin + count, [&](int64_t offset, int64_t at, int64_t n) {
      write_pairs(planes[0] + at, planes[1] + at, base + offset, n);
    });
    return;
  }
  const T* const first = p.channels == 1 ? planes[1] : planes[0];
  for (int64_t c = 0; c < p.channels; ++c) {
    const T* const plane = first + c * planes.stride;
    for_rows(p.pixels, x.strides, begin, begin + count, [&](int64_t offset, int64_t at, int64_t n) {
      write_row(plane + at, base + c * x.channel_stride + offset, step, n);
    });
  }
}

// ---- two classes: one exp per pixel -------------------------------------------------------------------------

template <class T>
struct Binary {
  using V = Vec<T>;
  using I = IntVec<T>;
  V d, e, p0, p1;  // e = exp(-|d|)

  INLINE Binary(V z0, V z1) : d(z1 - z0) {
    const I positive = d >= T{0};
    const V top = positive ? z1 : z0;  // its difference from itself is NaN where it is infinite, as softmax is
    e = exp_nonpositive((positive ? -d : d) + (top - top), T{});
    const V large = T{1} / (T{1} + e);
    const V small = e * large;
    p1 = positive ? large : small;
    p0 = positive ? small : large;
  }
};

template <class T, bool kP2, bool kCe>
void binary_sums(Planes<T> z, const Int<T>* label, int64_t padded, double* sums) {
  using V = Vec<T>;
  using I = IntVec<T>;
  V tp0{}, tp1{}, cross0{}, cross1{}, p20{}, p21{}, ce0{}, ce1{};
  I n0{}, n1{};
  for (int64_t i = 0; i < padded; i += kLanes<T>) {
    const Binary<T> b(load_as<V>(z[0] + i), load_as<V>(z[1] + i));
    const I t = load_as<I>(label + i);
    const I is0 = t == 0, is1 = t == 1;
    n0 -= is0;
    n1 -= is1;
    tp0 += is0 ? b.p0 : V{};
    tp1 += is1 ? b.p1 : V{};
    cross0 += is1 ? b.p0 : V{};  // false positive mass of class 0, and false negative mass of class 1
    cross1 += is0 ? b.p1 : V{};
    if constexpr (kP2) {
      const I valid = t >= 0;
      p20 += valid ? b.p0 * b.p0 : V{};
      p21 += valid ? b.p1 * b.p1 : V{};
    }
    if constexpr (kCe) {
      const V log1p_e = log1p_nonnegative(b.e, T{});
      ce0 += is0 ? (b.d < T{0} ? V{} : b.d) + log1p_e : V{};
      ce1 += is1 ? (b.d > T{0} ? V{} : -b.d) + log1p_e : V{};
    }
  }
  const double rows[2][ROWS] = {
      {total<T>(tp0), total<T>(cross0), total<T>(cross1), 0, total<T>(p20), total<T>(ce0)},
      {total<T>(tp1), total<T>(cross1), total<T>(cross0), 0, total<T>(p21), total<T>(ce1)},
  };
  for (int64_t c = 0; c < 2; ++c)
    for (int64_t row = 0; row < ROWS; ++row) sums[2 * row + c] += rows[c][row];
  for (int64_t i = 0; i < kLanes<T>; ++i) {
    sums[2 * COUNT] += static_cast<double>(n0[i]);
    sums[2 * COUNT + 1] += static_cast<double>(n1[i]);
  }
}

template <class T, bool kP2, bool kCe>
void binary_gradient_block(Planes<T> z, const Int<T>* label, int64_t padded, const double* k, Planes<T> out,
                           bool both) {
  using V = Vec<T>;
  using I = IntVec<T>;
  const auto at = [&](int row, int c) { return k[2 * row + c]; };
  // d loss / d p1 - d loss / d p0 where the label is 0 and where it is 1, without the part that grows with p.
  const V slope0 = all(static_cast<T>(at(FP, 1) - (at(TP, 0) - at(FN, 0))));
  const V slope1 = all(static_cast<T>((at(TP, 1) - at(FN, 1)) - at(FP, 0)));
  const V square0 = all(static_cast<T>(2 * at(SUM_P2, 0))), square1 = all(static_cast<T>(2 * at(SUM_P2, 1)));
  const V k_ce0 = all(static_cast<T>(at(CE, 0))), k_ce1 = all(static_cast<T>(at(CE, 1)));
  for (int64_t i = 0; i < padded; i += kLanes<T>) {
    const Binary<T> b(load_as<V>(z[0] + i), load_as<V>(z[1] + i));
    const I t = load_as<I>(label + i);
    const I is1 = t == 1;
    V slope = is1 ? slope1 : slope0;
    if constexpr (kP2) slope += square1 * b.p1 - square0 * b.p0;
    V g;
    if constexpr (kCe) {
      g = binary_gradient(b.p0, b.p1, slope, is1 ? k_ce1 : k_ce0, is1 ? -b.p0 : b.p1);
    } else {
      g = b.p0 * b.p1 * slope;
    }
    g = t >= 0 ? g : V{};
    store_as(out[1] + i, g);
    if (both) store_as(out[0] + i, -g);
  }
}

// ---- any number of classes ----------------------------------------------------------------------------------

// Softmax of one vector of pixels. exps[c] becomes exp(z_c - max).
template <class T>
struct Softmax {
  using V = Vec<T>;
  using I = IntVec<T>;
  I top;      // class of the (first) largest logit
  V max;
  V others;   // sum of exps without the largest
  V rest;     // sum of exps without the label's
  V inverse;  // 1 / sum of exps
  V z_label;

  INLINE Softmax(Planes<T> z, int64_t i, int64_t classes, I label, V* exps) {
    using Scalar = Int<T>;
    max = load_as<V>(z[0] + i);
    top = I{};
    for (int64_t c = 1; c < classes; ++c) {
      const V v = load_as<V>(z[c] + i);
      const I larger = v > max;
      max = larger ? v : max;
      top = larger ? static_cast<Scalar>(c) - I{} : top;
    }
    others = rest = max - max;  // NaN where a logit is infinite, as softmax is
    z_label = V{};
    for (int64_t c = 0; c < classes; ++c) {
      const V v = load_as<V>(z[c] + i);
      const V e = exp_nonpositive(v - max, T{});
      exps[c] = e;
      others += top == static_cast<Scalar>(c) ? V{} : e;
      rest += label == static_cast<Scalar>(c) ? V{} : e;
      z_label = label == static_cast<Scalar>(c) ? v : z_label;
    }
    inverse = T{1} / (T{1} + others);
  }
};

template <class T, bool kP2, bool kCe>
void general_sums(Planes<T> z, const Int<T>* label, int64_t padded, int64_t classes, double* sums, Vec<T>* lanes) {
  using V = Vec<T>;
  using I = IntVec<T>;
  V* const exps = lanes;
  V* const rows = lanes + classes;  // [classes][ROWS]
  for (int64_t i = 0; i < classes * ROWS; ++i) rows[i] = V{};
  for (int64_t i = 0; i < padded; i += kLanes<T>) {
    const I t = load_as<I>(label + i);
    const I valid = t >= 0;
    const Softmax<T> s(z, i, classes, t, exps);
    const V miss = s.rest * s.inverse;
    V ce{};
    if constexpr (kCe) ce = (s.max - s.z_label) + log1p_nonnegative(s.others, T{});
    for (int64_t c = 0; c < classes; ++c) {
      V* const row = rows + c * ROWS;
      const V p = exps[c] * s.inverse;
      const I hit = t == static_cast<Int<T>>(c);
      row[TP] += hit ? p : V{};
      row[FP] += (valid & ~hit) ? p : V{};
      row[FN] += hit ? miss : V{};
      row[COUNT] += hit ? all(T{1}) : V{};
      if constexpr (kP2) row[SUM_P2] += valid ? p * p : V{};
      if constexpr (kCe) row[CE] += hit ? ce : V{};
    }
  }
  for (int64_t c = 0; c < classes; ++c)
    for (int64_t row = 0; row < ROWS; ++row) sums[row * classes + c] += total<T>(rows[c * ROWS + row]);
}

template <class T, bool kP2, bool kCe>
void general_gradient_block(Planes<T> z, const Int<T>* label, int64_t padded, int64_t classes, const double* k,
                            Planes<T> out, Vec<T>* lanes) {
  using V = Vec<T>;
  using I = IntVec<T>;
  V* const exps = lanes;             // becomes p
  V* const slopes = lanes + classes;  // d loss / d p
  const auto at = [&](int row, int64_t c) { return k[row * classes + c]; };
  for (int64_t i = 0; i < padded; i += kLanes<T>) {
    const I t = load_as<I>(label + i);
    const Softmax<T> s(z, i, classes, t, exps);
    V slope_top{}, k_ce{};
    for (int64_t c = 0; c < classes; ++c) {
      const V p = exps[c] * s.inverse;
      const I hit = t == static_cast<Int<T>>(c);
      V slope = hit ? all(static_cast<T>(at(TP, c) - at(FN, c))) : all(static_cast<T>(at(FP, c)));
      if constexpr (kP2) slope += static_cast<T>(2 * at(SUM_P2, c)) * p;
      if constexpr (kCe) k_ce = hit ? all(static_cast<T>(at(CE, c))) : k_ce;
      slope_top = s.top == static_cast<Int<T>>(c) ? slope : slope_top;
      exps[c] = p;
      slopes[c] = slope;
    }
    // Slopes relative to the likeliest class, whose own term is then 0: a saturated softmax cancels no digits.
    V mean{};
    for (int64_t c = 0; c < classes; ++c) mean += exps[c] * (slopes[c] - slope_top);
    for (int64_t c = 0; c < classes; ++c) {
      const V p = exps[c];
      V g = p * ((slopes[c] - slope_top) - mean);
      if constexpr (kCe) g += k_ce * (t == static_cast<Int<T>>(c) ? -(s.rest * s.inverse) : p);
      store_as(out[c] + i, t >= 0 ? g : V{});
    }
  }
}

// ---- entry points -------------------------------------------------------------------------------------------

template <class T>
struct Scratch {
  Int<T>* labels;
  T *planes, *gradients;
  Vec<T>* lanes;

  Scratch(void* memory, int64_t classes) {
    char* at = static_cast<char*>(memory);
    labels = reinterpret_cast<Int<T>*>(at);
    at += kBlock * 8;
    lanes = reinterpret_cast<Vec<T>*>(at);
    at += classes * 8 * 64;
    planes = reinterpret_cast<T*>(at);
    gradients = planes + classes * block_pixels(classes);
  }
};

template <class T>
int64_t padded_size(int64_t count) {
  return (count + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
}

template <bool kValue>
struct Flag {
  static constexpr bool value = kValue;
};

// Calls f with the two run-time flags as types.
template <class F>
INLINE void with_flags(bool p2, bool ce, F f) {
  if (p2 && ce) f(Flag<true>{}, Flag<true>{});
  else if (p2) f(Flag<true>{}, Flag<false>{});
  else if (ce) f(Flag<false>{}, Flag<true>{});
  else f(Flag<false>{}, Flag<false>{});
}

template <class S>
bool sums(const Problem& p, int64_t image, int64_t begin, int64_t end, double* out, void* memory) {
  using T = acc_t<S>;
  const int64_t classes = p.classes(), block = block_pixels(classes);
  const Scratch<T> scratch(memory, classes);
  bool undefined = false;
  for (int64_t at = begin; at < end; at += block) {
    const int64_t count = end - at < block ? end - at : block, padded = padded_size<T>(count);
    undefined |= read_labels(p, image, at, count, padded, scratch.labels);
    const Planes<T> z = read_logits<S, T>(p, image, at, count, padded, scratch.planes);
    with_flags(p.want_p2, p.want_ce, [&](auto p2, auto ce) {
      if (classes == 2) {
        binary_sums<T, decltype(p2)::value, decltype(ce)::value>(z, scratch.labels, padded, out);
      } else {
        general_sums<T, decltype(p2)::value, decltype(ce)::value>(z, scratch.labels, padded, classes, out,
                                                                  scratch.lanes);
      }
    });
  }
  return !undefined;
}

template <class S>
bool gradient(const Problem& p, const Logits& grad, int64_t image, int64_t begin, int64_t end,
              const double* coefficients, void* memory) {
  using T = acc_t<S>;
  const int64_t classes = p.classes(), block = block_pixels(classes);
  const Scratch<T> scratch(memory, classes);
  bool undefined = false;
  for (int64_t at = begin; at < end; at += block) {
    const int64_t count = end - at < block ? end - at : block, padded = padded_size<T>(count);
    undefined |= read_labels(p, image, at, count, padded, scratch.labels);
    const Planes<T> z = read_logits<S, T>(p, image, at, count, padded, scratch.planes);
    const bool direct = in_place<S, T>(p, grad, count);
    Planes<T> out{scratch.gradients, block};
    if constexpr (kSame<S, T>) {
      if (direct) out = {static_cast<T*>(grad.data) + image * grad.image_stride + at, grad.channel_stride};
    }
    with_flags(p.want_p2, p.want_ce, [&](auto p2, auto ce) {
      if (classes == 2) {
        binary_gradient_block<T, decltype(p2)::value, decltype(ce)::value>(z, scratch.labels, padded, coefficients,
                                                                           out, p.channels == 2);
      } else {
        general_gradient_block<T, decltype(p2)::value, decltype(ce)::value>(z, scratch.labels, padded, classes,
                                                                            coefficients, out, scratch.lanes);
      }
    });
    if (!direct) write_gradient<S, T>(p, grad, image, at, count, out);
  }
  return !undefined;
}

}  // namespace

namespace ASEGNET_ISA {
const Kernels kernels = {
    {sums<float>, sums<double>, sums<BFloat16>, sums<Float16>},
    {gradient<float>, gradient<double>, gradient<BFloat16>, gradient<Float16>},
};
}  // namespace ASEGNET_ISA

}  // namespace asegnet::tversky
