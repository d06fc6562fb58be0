// One pass over logits and labels with softmax in registers, a block of pixels at a time: labels are checked and
// narrowed first, logits are read where they lie in the usual layouts, else copied into planes.
// Bytes: forward reads C elements and a label per pixel; backward reads the same and writes C elements.
#include "tversky/blocks.h"
#include "tversky/math.h"
#include "tversky/vector_math.h"

#define INLINE inline __attribute__((always_inline))
#define INLINE_LAMBDA __attribute__((always_inline))

namespace asegnet::tversky {
namespace {

template <class T>
struct WideLane {  // as many doubles as a vector of T has lanes
  typedef Vec<double> Vector;
};
template <>
struct WideLane<float> {
  typedef double Vector __attribute__((vector_size(2 * kVectorBytes)));
};

// Sums of lanes over the blocks of a chunk; in double, lane by lane.
template <class T>
struct Totals {
  using Wide = typename WideLane<T>::Vector;
  double* memory;  // [rows][classes][lanes]
  int64_t classes;

  INLINE void add(int row, int64_t c, Vec<T> v) const {
    double* const at = memory + (row * classes + c) * kLanes<T>;
    store_as(at, load_as<Wide>(at) + __builtin_convertvector(v, Wide));
  }
  INLINE void add(int row, int64_t c, IntVec<T> v) const {
    double* const at = memory + (row * classes + c) * kLanes<T>;
    store_as(at, load_as<Wide>(at) + __builtin_convertvector(v, Wide));
  }
  void clear() const {
    for (int64_t i = 0; i < ROWS * classes * kLanes<T>; ++i) memory[i] = 0;
  }
  void add_to(double* sums) const {
    for (int64_t k = 0; k < ROWS * classes; ++k)
      for (int64_t lane = 0; lane < kLanes<T>; ++lane) sums[k] += memory[k * kLanes<T> + lane];
  }
};

template <auto kValue>
struct Constant {
  static constexpr auto value = kValue;
};

// The next block's labels, brought into the cache while the processor computes: they are read all at once, before
// anything can be computed. Where they do not lie side by side, or there is no next block, `data` is scratch.
struct Soon {
  const char* data;
  int64_t label_bytes;

  static bool fits(const Problem& p) { return p.pixels.axes == 1 && p.target.strides[0] == 1; }
  static Soon labels(const Problem& p, int64_t image, int64_t begin) {
    const Target& t = p.target;
    const int64_t bytes = t.type == kInt64 ? 8 : t.type == kInt32 ? 4 : t.type == kInt16 ? 2 : 1;
    return {static_cast<const char*>(t.data) + (image * t.image_stride + begin) * bytes, bytes};
  }
  template <class T, int kVectors>
  INLINE void prefetch(int64_t i) const {
    constexpr int kLongest = kVectors * kLanes<T> * 8;
    for (int line = 0; line < (kLongest + 63) / 64; ++line) __builtin_prefetch(data + i * label_bytes + line * 64);
  }
};

// A vector of labels, as wide as the logits.
template <class T>
INLINE IntVec<T> load_labels(const int32_t* label) {
  return __builtin_convertvector(load_as<VectorOf<int32_t, kLanes<T>>>(label), IntVec<T>);
}

constexpr bool has_tp(Rows rows) { return rows != kCrossEntropyRows; }
constexpr bool has_errors(Rows rows) { return rows == kTverskyRows || rows == kAllRows; }
constexpr bool has_count(Rows rows) { return rows != kTverskyRows; }
constexpr bool has_p2(Rows rows) { return rows == kGeneralizedRows || rows == kAllRows; }
constexpr bool has_ce(Rows rows) { return rows == kCrossEntropyRows || rows == kAllRows; }

// ---- two classes: one exp per pixel -------------------------------------------------------------------------

template <class T>
struct Binary {
  using V = Vec<T>;
  using I = IntVec<T>;
  V d, e;          // e = exp(-|d|)
  V large, small;  // the two probabilities

  template <int kCount>
  static INLINE void of(const V (&z)[kCount][2], Binary (&b)[kCount]) {
    V e[kCount];
    for (int u = 0; u < kCount; ++u) {
      const V top = z[u][0] > z[u][1] ? z[u][0] : z[u][1];
      b[u].d = z[u][1] - z[u][0];
      // 0 times an infinite logit is NaN, as softmax of it is; a difference that overflows is a sure prediction.
      e[u] = bits<V>(bits<I>(b[u].d) | sign()) + top * T{0};
    }
    exp_nonpositive(e, T{});
    for (int u = 0; u < kCount; ++u) {
      b[u].e = e[u];
      b[u].large = T{1} / (T{1} + e[u]);
      b[u].small = e[u] * b[u].large;
    }
  }
  static INLINE I sign() { return bits<I>(-V{}); }

  INLINE V p1() const { return bits<I>(d) < 0 ? small : large; }
  INLINE V p0() const { return bits<I>(d) < 0 ? large : small; }
  // The probability of the class that is not the label.
  INLINE V wrong(I is1) const { return (bits<I>(d) ^ is1) < 0 ? small : large; }
  // -log of the label's probability.
  INLINE V cross_entropy(I is1) const {
    const V against = bits<V>(bits<I>(d) ^ (is1 & sign()));
    return (against < T{0} ? V{} : against) + log1p_unit(e, T{});
  }
};

// Calls f(i, labels, probabilities) for each vector of pixels, some of them side by side.
template <class A, class F>
INLINE void for_pixels(A x, const int32_t* label, int64_t padded, Soon soon, F f) {
  using T = typename A::T;
  constexpr int kTogether = 2;
  const auto step = [&](int64_t i, auto together) INLINE_LAMBDA {
    constexpr int kCount = decltype(together)::value;
    Vec<T> z[kCount][2];
    Binary<T> b[kCount];
    for (int u = 0; u < kCount; ++u) x.load(i + u * kLanes<T>, z[u]);
    soon.template prefetch<T, kCount>(i);
    Binary<T>::of(z, b);
    for (int u = 0; u < kCount; ++u) {
      const int64_t at = i + u * kLanes<T>;
      f(at, A::template order<2>(load_labels<T>(label + at)), b[u]);
    }
  };
  int64_t i = 0;
  for (; i + kTogether * kLanes<T> <= padded; i += kTogether * kLanes<T>) step(i, Constant<kTogether>{});
  for (; i < padded; i += kLanes<T>) step(i, Constant<1>{});
}

template <class A, Rows kRows>
__attribute__((noinline)) void binary_sums(A x, const int32_t* label, int64_t padded, Totals<typename A::T> totals, Soon soon) {
  using T = typename A::T;
  using V = Vec<T>;
  using I = IntVec<T>;
  V tp0{}, tp1{}, cross0{}, cross1{}, p20{}, p21{}, ce0{}, ce1{};
  I n0{}, n1{};
  for_pixels(x, label, padded, soon, [&](int64_t, I t, const Binary<T>& b) INLINE_LAMBDA {
    const I is0 = t == 0, is1 = t == 1;
    if constexpr (has_tp(kRows)) {
      tp0 += keep<T>(is0, b.p0());
      tp1 += keep<T>(is1, b.p1());
    }
    if constexpr (has_errors(kRows)) {
      cross0 += keep<T>(is1, b.p0());  // false positive mass of class 0, and false negative mass of class 1
      cross1 += keep<T>(is0, b.p1());
    }
    if constexpr (has_count(kRows)) {
      n0 -= is0;
      n1 -= is1;
    }
    if constexpr (has_p2(kRows)) {
      const I valid = t >= 0;
      p20 += keep<T>(valid, b.p0() * b.p0());
      p21 += keep<T>(valid, b.p1() * b.p1());
    }
    if constexpr (has_ce(kRows)) {
      const V ce = b.cross_entropy(is1);
      ce0 += keep<T>(is0, ce);
      ce1 += keep<T>(is1, ce);
    }
  });
  const auto add = [&](int row, auto first, auto second) {
    totals.add(row, 0, first);
    totals.add(row, 1, second);
  };
  if constexpr (has_tp(kRows)) add(TP, tp0, tp1);
  if constexpr (has_errors(kRows)) add(FP, cross0, cross1);
  if constexpr (has_errors(kRows)) add(FN, cross1, cross0);
  if constexpr (has_count(kRows)) add(COUNT, n0, n1);
  if constexpr (has_p2(kRows)) add(SUM_P2, p20, p21);
  if constexpr (has_ce(kRows)) add(CE, ce0, ce1);
}

template <class A, Rows kRows>
__attribute__((noinline)) void binary_gradient_block(A x, const int32_t* label, int64_t padded, const double* k, A out,
                           Soon soon) {
  using T = typename A::T;
  using V = Vec<T>;
  using I = IntVec<T>;
  const auto at = [&](int row, int c) { return k[2 * row + c]; };
  // d loss / d p1 - d loss / d p0 where the label is 0 and where it is 1, without the part that grows with p.
  const V slope0 = all(static_cast<T>(at(FP, 1) - (at(TP, 0) - at(FN, 0))));
  const V slope1 = all(static_cast<T>((at(TP, 1) - at(FN, 1)) - at(FP, 0)));
  const V square0 = all(static_cast<T>(2 * at(SUM_P2, 0))), square1 = all(static_cast<T>(2 * at(SUM_P2, 1)));
  const V ce0 = all(static_cast<T>(at(CE, 0))), ce1 = all(static_cast<T>(-at(CE, 1)));
  for_pixels(x, label, padded, soon, [&](int64_t i, I t, const Binary<T>& b) INLINE_LAMBDA {
    const I is1 = t == 1;
    V g{};
    if constexpr (has_tp(kRows)) {
      V slope = is1 ? slope1 : slope0;
      if constexpr (has_p2(kRows)) slope += square1 * b.p1() - square0 * b.p0();
      g = b.small * b.large * slope;
    }
    if constexpr (has_ce(kRows)) g += (is1 ? ce1 : ce0) * b.wrong(is1);
    g = keep<T>(t >= 0, g);
    const V both[2] = {-g, g};
    out.store(i, both);
  });
}

// ---- any number of classes ----------------------------------------------------------------------------------

// kClasses is the number of classes where the compiler may know it, else 0.
template <class V, int kClasses>
struct PerClass {
  V values[kClasses];
  INLINE explicit PerClass(V*) {}
  INLINE V& operator[](int64_t c) { return values[c]; }
};
template <class V>
struct PerClass<V, 0> {
  V* values;
  INLINE explicit PerClass(V* memory) : values(memory) {}
  INLINE V& operator[](int64_t c) { return values[c]; }
};

// Softmax of one vector of pixels: e[c] = exp(z_c - max), 1 for the largest.
template <class A, int kClasses>
struct Softmax {
  using T = typename A::T;
  using V = Vec<T>;
  using I = IntVec<T>;
  V max, total, inverse;
  PerClass<V, kClasses> e;

  INLINE Softmax(A x, int64_t i, int64_t classes, V* memory) : e(memory) {
    if constexpr (kClasses > 0) {
      x.load(i, e.values);
    } else {
      for (int64_t c = 0; c < classes; ++c) e[c] = x.plane(c, i);
    }
    max = e[0];
    for (int64_t c = 1; c < classes; ++c) max = e[c] > max ? e[c] : max;
  }
  INLINE void normalise(int64_t classes) {
    total = V{};
    for (int64_t c = 0; c < classes; ++c) e[c] = e[c] - max;  // NaN where the largest is infinite, as softmax is
    if constexpr (kClasses > 0) {
      exp_nonpositive(e.values, T{});
    } else {
      for (int64_t c = 0; c < classes; ++c) exp_nonpositive(reinterpret_cast<V(&)[1]>(e[c]), T{});
    }
    for (int64_t c = 0; c < classes; ++c) total += e[c];
    inverse = T{1} / total;
  }
  // Sum of e without the label's: 1 - p would cancel for a sure prediction.
  INLINE V rest(I label, int64_t classes) {
    V sum{};
    for (int64_t c = 0; c < classes; ++c) sum += keep<T>(label != static_cast<Int<T>>(c), e[c]);
    return sum;
  }
};

template <class A, Rows kRows, int kClasses>
__attribute__((noinline)) void general_sums(A x, const int32_t* label, int64_t padded, int64_t classes_in,
                  Totals<typename A::T> totals, Vec<typename A::T>* lanes, Soon soon) {
  using T = typename A::T;
  using V = Vec<T>;
  using I = IntVec<T>;
  const int64_t classes = kClasses ? kClasses : classes_in;
  PerClass<V, kClasses> tp(lanes + classes), fp(lanes + 2 * classes), fn(lanes + 3 * classes),
      count(lanes + 4 * classes), p2(lanes + 5 * classes), ce(lanes + 6 * classes);
  for (int64_t c = 0; c < classes; ++c) tp[c] = fp[c] = fn[c] = count[c] = p2[c] = ce[c] = V{};
  for (int64_t i = 0; i < padded; i += kLanes<T>) {
    const I t = A::template order<kClasses ? kClasses : 1>(load_labels<T>(label + i));
    const I valid = t >= 0;
    Softmax<A, kClasses> s(x, i, classes, lanes);
    soon.template prefetch<T, 1>(i);
    V z_label{};
    if constexpr (has_ce(kRows)) {
      for (int64_t c = 0; c < classes; ++c) z_label = t == static_cast<Int<T>>(c) ? s.e[c] : z_label;
    }
    s.normalise(classes);
    V rest{}, miss{}, loss{};
    if constexpr (has_errors(kRows) || has_ce(kRows)) rest = s.rest(t, classes);
    if constexpr (has_errors(kRows)) miss = rest * s.inverse;
    if constexpr (has_ce(kRows)) {
      loss = (s.max - z_label) + log1p_nonnegative(z_label == s.max ? rest : s.total - T{1}, T{});
    }
    for (int64_t c = 0; c < classes; ++c) {
      const V p = s.e[c] * s.inverse;
      const I hit = t == static_cast<Int<T>>(c);
      if constexpr (has_tp(kRows)) tp[c] += keep<T>(hit, p);
      if constexpr (has_errors(kRows)) {
        fp[c] += keep<T>(valid & ~hit, p);
        fn[c] += keep<T>(hit, miss);
      }
      if constexpr (has_count(kRows)) count[c] += keep<T>(hit, all(T{1}));
      if constexpr (has_p2(kRows)) p2[c] += keep<T>(valid, p * p);
      if constexpr (has_ce(kRows)) ce[c] += keep<T>(hit, loss);
    }
  }
  for (int64_t c = 0; c < classes; ++c) {
    if constexpr (has_tp(kRows)) totals.add(TP, c, tp[c]);
    if constexpr (has_errors(kRows)) totals.add(FP, c, fp[c]);
    if constexpr (has_errors(kRows)) totals.add(FN, c, fn[c]);
    if constexpr (has_count(kRows)) totals.add(COUNT, c, count[c]);
    if constexpr (has_p2(kRows)) totals.add(SUM_P2, c, p2[c]);
    if constexpr (has_ce(kRows)) totals.add(CE, c, ce[c]);
  }
}

template <class A, Rows kRows, int kClasses>
__attribute__((noinline)) void general_gradient_block(A x, const int32_t* label, int64_t padded, int64_t classes_in,
                            const double* k, A out, Vec<typename A::T>* lanes, Soon soon) {
  using T = typename A::T;
  using V = Vec<T>;
  using I = IntVec<T>;
  const int64_t classes = kClasses ? kClasses : classes_in;
  const auto at = [&](int row, int64_t c) { return k[row * classes + c]; };
  PerClass<V, kClasses> slopes(lanes + classes);  // d loss / d p
  PerClass<V, kClasses> on_hit(lanes + 2 * classes), off_hit(lanes + 3 * classes), square(lanes + 4 * classes),
      k_ce(lanes + 5 * classes);
  for (int64_t c = 0; c < classes; ++c) {
    on_hit[c] = all(static_cast<T>(at(TP, c) - at(FN, c)));
    off_hit[c] = all(static_cast<T>(at(FP, c)));
    square[c] = all(static_cast<T>(2 * at(SUM_P2, c)));
    k_ce[c] = all(static_cast<T>(at(CE, c)));
  }
  for (int64_t i = 0; i < padded; i += kLanes<T>) {
    const I t = A::template order<kClasses ? kClasses : 1>(load_labels<T>(label + i));
    const I valid = t >= 0;
    Softmax<A, kClasses> s(x, i, classes, lanes);
    soon.template prefetch<T, 1>(i);
    s.normalise(classes);
    V slope_top{}, k_label{}, miss{}, mean{};
    if constexpr (has_ce(kRows)) {
      miss = s.rest(t, classes) * s.inverse;
      for (int64_t c = 0; c < classes; ++c) k_label = t == static_cast<Int<T>>(c) ? k_ce[c] : k_label;
    }
    if constexpr (has_tp(kRows)) {
      // Slopes relative to the likeliest class, whose own term is then 0: a saturated softmax cancels no digits.
      for (int64_t c = 0; c < classes; ++c) {
        V slope = t == static_cast<Int<T>>(c) ? on_hit[c] : off_hit[c];
        if constexpr (has_p2(kRows)) slope += square[c] * (s.e[c] * s.inverse);
        slope_top = s.e[c] == T{1} ? slope : slope_top;
        slopes[c] = slope;
      }
      for (int64_t c = 0; c < classes; ++c) mean += s.e[c] * s.inverse * (slopes[c] - slope_top);
    }
    const auto gradient_of = [&](int64_t c) {
      const V p = s.e[c] * s.inverse;
      V g{};
      if constexpr (has_tp(kRows)) g = p * ((slopes[c] - slope_top) - mean);
      if constexpr (has_ce(kRows)) g += k_label * (t == static_cast<Int<T>>(c) ? -miss : p);
      return keep<T>(valid, g);
    };
    if constexpr (kClasses > 0) {
      for (int64_t c = 0; c < classes; ++c) slopes[c] = gradient_of(c);
      out.store(i, slopes.values);
    } else {
      for (int64_t c = 0; c < classes; ++c) out.set_plane(c, i, gradient_of(c));
    }
  }
}

// ---- entry points -------------------------------------------------------------------------------------------

template <class T>
struct Scratch {
  double* totals;
  int32_t* labels;
  Vec<T>* lanes;
  T *planes, *gradients;

  Scratch(void* memory, int64_t classes) {
    char* at = static_cast<char*>(memory);
    labels = reinterpret_cast<int32_t*>(at);
    at += kBlock * 4;
    lanes = reinterpret_cast<Vec<T>*>(at);
    at += classes * 8 * 64;
    totals = reinterpret_cast<double*>(at);
    at += classes * ROWS * 128;
    planes = reinterpret_cast<T*>(at);
    gradients = planes + classes * block_pixels(classes);
  }
};

template <class T>
int64_t padded_size(int64_t count) {
  return (count + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
}

template <class F>
INLINE void with_rows(Rows rows, F f) {
  switch (rows) {
    case kTverskyRows: return f(Constant<kTverskyRows>{});
    case kGeneralizedRows: return f(Constant<kGeneralizedRows>{});
    case kCrossEntropyRows: return f(Constant<kCrossEntropyRows>{});
    case kAllRows: return f(Constant<kAllRows>{});
  }
}

// Calls f(access to the logits, access to the gradient, number of classes) with the types that fit: in place where
// logits and gradient lie alike, else in planes of scratch, which are then written back. grad may be null.
template <class S, class F>
INLINE void with_access(const Problem& p, const Logits* grad, int64_t image, int64_t begin, int64_t count,
                        const Scratch<acc_t<S>>& scratch, F f) {
  using T = acc_t<S>;
  const int64_t classes = p.classes(), block = block_pixels(classes);
  const auto base = [&](const Logits& x) { return static_cast<S*>(x.data) + image * x.image_stride; };
  if constexpr (sizeof(S) <= 4) {
    if (is_interleaved<T>(p, p.logits, count) && (!grad || is_interleaved<T>(p, *grad, count))) {
      using A = Access<S, true>;
      const A x{base(p.logits) + begin * classes, 0}, out{grad ? base(*grad) + begin * classes : nullptr, 0};
      if (classes == 2) return f(x, out, Constant<2>{});
      return f(x, out, Constant<4>{});
    }
  }
  const auto on_planes = [&](auto x, auto out) {
    if (classes == 2) return f(x, out, Constant<2>{});
    if constexpr (sizeof(S) <= 4) {  // float64 spends its time in the C library
      if (classes == 4) return f(x, out, Constant<4>{});
    }
    return f(x, out, Constant<0>{});
  };
  if (has_planes<T>(p, p.logits, count) && (!grad || has_planes<T>(p, *grad, count))) {
    using A = Access<S, false>;
    return on_planes(A{base(p.logits) + begin, p.logits.channel_stride},
                     grad ? A{base(*grad) + begin, grad->channel_stride} : A{});
  }
  const Access<T, false> x{scratch.planes, block}, out{scratch.gradients, block};
  read_logits<S, T>(p, image, begin, count, padded_size<T>(count), x);
  on_planes(x, out);
  if (grad) write_gradient<S, T>(p, *grad, image, begin, count, out);
}

// Calls f(rows, ...) as with_access does, for each block. False where a label was undefined.
template <class S, class F>
INLINE bool for_blocks(const Problem& p, const Logits* grad, int64_t image, int64_t begin, int64_t end,
                       const Scratch<acc_t<S>>& scratch, F f) {
  const int64_t block = block_pixels(p.classes());
  bool undefined = false;
  for (int64_t at = begin; at < end; at += block) {
    const int64_t count = end - at < block ? end - at : block, padded = padded_size<acc_t<S>>(count);
    undefined |= read_labels(p, image, at, count, padded, scratch.labels);
    const Soon soon = at + block < end && Soon::fits(p) ? Soon::labels(p, image, at + block)
                                                        : Soon{reinterpret_cast<const char*>(scratch.labels), 0};
    with_rows(p.rows, [&](auto rows) {
      with_access<S>(p, grad, image, at, count, scratch,
                     [&](auto x, auto out, auto classes) { f(rows, x, out, classes, padded, soon); });
    });
  }
  return !undefined;
}

template <class S>
bool sums(const Problem& p, int64_t image, int64_t begin, int64_t end, double* sums, void* memory) {
  const Scratch<acc_t<S>> scratch(memory, p.classes());
  const Totals<acc_t<S>> totals{scratch.totals, p.classes()};
  totals.clear();
  const bool defined = for_blocks<S>(
      p, nullptr, image, begin, end, scratch, [&](auto rows, auto x, auto, auto classes, int64_t padded, Soon soon) {
        constexpr Rows kRows = decltype(rows)::value;
        constexpr int kClasses = decltype(classes)::value;
        if constexpr (kClasses == 2) {
          binary_sums<decltype(x), kRows>(x, scratch.labels, padded, totals, soon);
        } else {
          general_sums<decltype(x), kRows, kClasses>(x, scratch.labels, padded, p.channels, totals, scratch.lanes,
                                                     soon);
        }
      });
  totals.add_to(sums);
  return defined;
}

template <class S>
bool gradient(const Problem& p, const Logits& grad, int64_t image, int64_t begin, int64_t end,
              const double* coefficients, void* memory) {
  const Scratch<acc_t<S>> scratch(memory, p.classes());
  return for_blocks<S>(
      p, &grad, image, begin, end, scratch, [&](auto rows, auto x, auto out, auto classes, int64_t padded, Soon soon) {
        constexpr Rows kRows = decltype(rows)::value;
        constexpr int kClasses = decltype(classes)::value;
        if constexpr (kClasses == 2) {
          binary_gradient_block<decltype(x), kRows>(x, scratch.labels, padded, coefficients, out, soon);
        } else {
          general_gradient_block<decltype(x), kRows, kClasses>(x, scratch.labels, padded, p.channels, coefficients,
                                                               out, scratch.lanes, soon);
        }
      });
}

}  // namespace

namespace ASEGNET_ISA {
const Kernels kernels = {
    {sums<float>, sums<double>, sums<BFloat16>, sums<Float16>},
    {gradient<float>, gradient<double>, gradient<BFloat16>, gradient<Float16>},
};
}  // namespace ASEGNET_ISA

}  // namespace asegnet::tversky
