// Passes over memory: statistics read x; forward reads x and writes y; reduce reads x and dy; backward reads x and dy
// and writes dx. Parameters and float sums of a run's channels lie in tables that stay in the first-level cache.
#include "bn_relu/kernels.h"

#include "bn_relu/math.h"
#include "bn_relu/pack.h"

namespace asegnet::bn_relu {
namespace {

// ---- tables ----------------------------------------------------------------------------------------------

constexpr int64_t kRows = 4;    // table lengths added up before a sum in a table is touched
constexpr int64_t kSteps = 64;  // times kRows: lengths added up in float before the sums go to double

// Elements after which channels and packs both start anew: a multiple of both, of a few packs at least. 0 where that
// would make long tables; such maps are worked on one value at a time.
template <class T>
int64_t period(int64_t channels) {
  constexpr int64_t kLeast = 4 * Pack<T>::kLength;
  int64_t a = channels, b = kLeast;
  while (b) {
    const int64_t rest = a % b;
    a = b, b = rest;
  }
  constexpr int64_t kMost = 65536;
  return channels / a <= kMost / kLeast ? channels / a * kLeast : 0;
}

template <class T>
using acc = typename Pack<T>::A;

// Per-element numbers over one period, in the order in which packs come out of memory.
template <class T>
struct Tables {
  using A = acc<T>;
  int64_t length;
  A *scale, *mean, *bias, *slope, *offset, *sums;  // sums: two tables
  double* totals;                                   // two tables

  Tables(int64_t length_, void* scratch) : length(length_) {
    totals = static_cast<double*>(scratch);
    A* next = reinterpret_cast<A*>(totals + 2 * length);
    A** const tables[] = {&scale, &mean, &bias, &slope, &offset, &sums};
    for (A** const table : tables) *table = next, next += length;
  }
  static int64_t bytes(int64_t length) { return length * (2 * sizeof(double) + 7 * sizeof(A)); }

  // `channels` numbers, over and over.
  void fill(A* table, const double* from, int64_t channels) const {
    using P = Pack<T>;
    for (int64_t base = 0, c = 0; base < length; base += P::kLength) {
      A natural[P::kLength];
      if (c + P::kLength <= channels) {
        for (int i = 0; i < P::kLength; ++i) natural[i] = static_cast<A>(from[c + i]);
        c += P::kLength;
      } else {
        for (int i = 0; i < P::kLength; ++i) {
          if (c == channels) c = 0;
          natural[i] = static_cast<A>(from[c++]);
        }
      }
      if (c == channels) c = 0;
      for (int k = 0; k < P::kVectors; ++k) {
        for (int lane = 0; lane < kLanes<A>; ++lane) table[base + k * kLanes<A> + lane] = natural[P::element(k, lane)];
      }
    }
  }
  void clear() const {
    for (int64_t i = 0; i < 2 * length; ++i) sums[i] = 0, totals[i] = 0;
  }
  void flush() const {
    for (int64_t i = 0; i < 2 * length; ++i) totals[i] += static_cast<double>(sums[i]), sums[i] = 0;
  }
  void add_to(double* out, int64_t channels) const {
    using P = Pack<T>;
    for (int half = 0; half < 2; ++half) {
      for (int64_t base = 0, first = 0; base < length; base += P::kLength) {
        for (int k = 0; k < P::kVectors; ++k) {
          for (int lane = 0; lane < kLanes<A>; ++lane) {
            int64_t c = first + P::element(k, lane);
            if (c >= channels) c %= channels;
            out[half * channels + c] += totals[half * length + base + k * kLanes<A> + lane];
          }
        }
        first += P::kLength;
        if (first >= channels) first %= channels;
      }
    }
  }
};

template <bool kValue>
struct Bool {
  static constexpr bool value = kValue;
};

template <class F>
void with(bool flag, const F& f) {
  if (flag) f(Bool<true>{});
  else f(Bool<false>{});
}

template <class A>
ASEGNET_HOST_DEVICE Vector<A> at(const A* table, int64_t i) { return load_as<Vector<A>>(table + i); }

template <class T>
Tables<T> filled(const Channels& c, int64_t length, void* scratch) {
  const Tables<T> t(length, scratch);
  t.fill(t.scale, c.scale, c.count);
  t.fill(t.mean, c.mean, c.count);
  t.fill(t.bias, c.bias, c.count);
  if (c.slope) {
    t.fill(t.slope, c.slope, c.count);
    t.fill(t.offset, c.offset, c.count);
  }
  return t;
}

// v of one vector and of one value.
template <class T>
ASEGNET_HOST_DEVICE Vector<acc<T>> normalised(const Tables<T>& t, int64_t j, Vector<acc<T>> x) {
  return affine(x, at(t.scale, j), at(t.mean, j), at(t.bias, j));
}
template <class A>
ASEGNET_HOST_DEVICE A normalised(const Channels& c, int64_t k, A x) {
  return affine(x, static_cast<A>(c.scale[k]), static_cast<A>(c.mean[k]), static_cast<A>(c.bias[k]));
}

// 0 where the ReLU cuts v off; NaN is kept.
template <bool kRelu, class V>
ASEGNET_HOST_DEVICE V cut(V v, V value) {
  if constexpr (kRelu) return select(v <= V{}, V{}, value);
  else return value;
}

// ---- runs ------------------------------------------------------------------------------------------------

// Calls whole(i, rows) for every kRows periods and every single period left, then each(i, channel) for what is left.
template <int64_t kMost, class Whole, class Each>
void walk(int64_t size, int64_t length, int64_t channels, const Whole& whole, const Each& each) {
  int64_t i = 0;
  if (length > 0) {
    if constexpr (kMost > 1) {
      for (; i + kMost * length <= size; i += kMost * length) whole(i, Bool<true>{});
    }
    for (; i + length <= size; i += length) whole(i, Bool<false>{});
  }
  for (int64_t c = 0; i < size; ++i) {
    each(i, c);
    if (++c == channels) c = 0;
  }
}

template <class T>
void statistics(const void* px, int64_t size, int64_t channels, double* first, double* sums, void* scratch) {
  using P = Pack<T>;
  using A = acc<T>;
  const T* x = static_cast<const T*>(px);
  for (int64_t c = 0; c < channels; ++c) first[c] = 0;
  const int64_t sampled = size / channels < 8 ? size / channels : 8;
  for (int64_t i = 0; i < sampled; ++i) {
    for (int64_t c = 0; c < channels; ++c) first[c] += static_cast<double>(to_acc(x[i * channels + c]));
  }
  for (int64_t c = 0; c < channels; ++c) {
    first[c] = static_cast<double>(static_cast<A>(first[c] / static_cast<double>(sampled)));
    if (first[c] - first[c] != 0) first[c] = 0;  // infinite or NaN
  }
  const Tables<T> t(period<T>(channels), scratch);
  t.fill(t.mean, first, channels);
  t.clear();
  int64_t steps = 0;
  const auto whole = [&](int64_t i, auto many) {
    constexpr int64_t kCount = decltype(many)::value ? kRows : 1;
    for (int64_t e = 0; e < t.length; e += P::kLength) {
      Vector<A> v[kCount][P::kVectors];
      for (int64_t r = 0; r < kCount; ++r) P::load(x + i + r * t.length + e, v[r]);
      for (int k = 0; k < P::kVectors; ++k) {
        const int64_t j = e + k * kLanes<A>;
        const Vector<A> from = at(t.mean, j);
        Vector<A> sum{}, square{};
        for (int64_t r = 0; r < kCount; ++r) {
          const Vector<A> d = v[r][k] - from;
          sum += d;
          square += d * d;
        }
        store_as(t.sums + j, at(t.sums, j) + sum);
        store_as(t.sums + t.length + j, at(t.sums, t.length + j) + square);
      }
    }
    if (++steps % kSteps == 0) t.flush();
  };
  walk<kRows>(size, t.length, channels, whole, [&](int64_t i, int64_t c) {
    const double d = static_cast<double>(to_acc(x[i])) - first[c];
    sums[c] += d;
    sums[channels + c] += d * d;
  });
  t.flush();
  t.add_to(sums, channels);
}

template <class T>
void forward(const void* px, void* py, int64_t size, const Channels& c, bool stream, void* scratch) {
  using P = Pack<T>;
  using A = acc<T>;
  const T* x = static_cast<const T*>(px);
  T* y = static_cast<T*>(py);
  const Tables<T> t = filled<T>(c, period<T>(c.count), scratch);
  with(c.relu, [&](auto relu) {
    constexpr bool kRelu = decltype(relu)::value;
    with(stream && is_aligned(y), [&](auto streams) {
      const auto whole = [&](int64_t i, auto) {
        for (int64_t e = 0; e < t.length; e += P::kLength) {
          Vector<A> v[P::kVectors];
          P::load(x + i + e, v);
          for (int k = 0; k < P::kVectors; ++k) {
            const int64_t j = e + k * kLanes<A>;
            v[k] = normalised(t, j, v[k]);
            v[k] = P::round(cut<kRelu>(v[k], v[k]));
          }
          P::template store<decltype(streams)::value>(y + i + e, v);
        }
      };
      walk<1>(size, t.length, c.count, whole, [&](int64_t i, int64_t k) {
        const A v = normalised(c, k, to_acc(x[i]));
        y[i] = from_acc<T>(kRelu && is_cut(v) ? A{0} : v);
      });
    });
  });
  if (stream) stream_fence();
}

// dx of one vector; where the statistics are constants they carry nothing, not even an infinite x.
template <bool kConstant, class T>
ASEGNET_HOST_DEVICE Vector<acc<T>> input_gradient(const Tables<T>& t, int64_t j, Vector<acc<T>> x, Vector<acc<T>> g) {
  if constexpr (kConstant) return g * at(t.scale, j);
  else return gradient(g, x, at(t.scale, j), at(t.mean, j), at(t.slope, j), at(t.offset, j));
}
template <bool kConstant, class A>
ASEGNET_HOST_DEVICE A input_gradient(const Channels& c, int64_t k, A x, A g) {
  const auto as = [&](const double* table) { return static_cast<A>(table[k]); };
  if constexpr (kConstant) return g * as(c.scale);
  else return gradient(g, x, as(c.scale), as(c.mean), as(c.slope), as(c.offset));
}

// g of one vector: the gradient that passes the ReLU.
template <bool kRelu, class T>
ASEGNET_HOST_DEVICE Vector<acc<T>> passes(const Tables<T>& t, int64_t j, Vector<acc<T>> x, Vector<acc<T>> dy) {
  if constexpr (kRelu) return cut<true>(normalised(t, j, x), dy);
  else return dy;
}
template <bool kRelu, class A>
ASEGNET_HOST_DEVICE A passes(const Channels& c, int64_t k, A x, A dy) {
  return kRelu && is_cut(normalised(c, k, x)) ? A{0} : dy;
}

template <class T>
void reduce(const void* pdy, const void* px, int64_t size, const Channels& c, double* sums, void* scratch) {
  using P = Pack<T>;
  using A = acc<T>;
  const T *dy = static_cast<const T*>(pdy), *x = static_cast<const T*>(px);
  const Tables<T> t = filled<T>(c, period<T>(c.count), scratch);
  t.clear();
  with(c.relu, [&](auto relu) {
    constexpr bool kRelu = decltype(relu)::value;
    int64_t steps = 0;
    const auto whole = [&](int64_t i, auto many) {
      constexpr int64_t kCount = decltype(many)::value ? kRows : 1;
      for (int64_t e = 0; e < t.length; e += P::kLength) {
        Vector<A> v[kCount][P::kVectors], g[kCount][P::kVectors];
        for (int64_t r = 0; r < kCount; ++r) {
          P::load(x + i + r * t.length + e, v[r]);
          P::load(dy + i + r * t.length + e, g[r]);
        }
        for (int k = 0; k < P::kVectors; ++k) {
          const int64_t j = e + k * kLanes<A>;
          const Vector<A> mean = at(t.mean, j);
          Vector<A> sum{}, product{};
          for (int64_t r = 0; r < kCount; ++r) {
            const Vector<A> passed = passes<kRelu>(t, j, v[r][k], g[r][k]);
            sum += passed;
            product += passed * (v[r][k] - mean);
          }
          store_as(t.sums + j, at(t.sums, j) + sum);
          store_as(t.sums + t.length + j, at(t.sums, t.length + j) + product);
        }
      }
      if (++steps % kSteps == 0) t.flush();
    };
    walk<kRows>(size, t.length, c.count, whole, [&](int64_t i, int64_t k) {
      const A passed = passes<kRelu>(c, k, to_acc(x[i]), to_acc(dy[i]));
      sums[k] += static_cast<double>(passed);
      sums[c.count + k] += static_cast<double>(passed) * (static_cast<double>(to_acc(x[i])) - c.mean[k]);
    });
  });
  t.flush();
  t.add_to(sums, c.count);
}

template <class T>
void backward(const void* pdy, const void* px, void* pdx, int64_t size, const Channels& c, bool stream,
              void* scratch) {
  using P = Pack<T>;
  using A = acc<T>;
  const T *dy = static_cast<const T*>(pdy), *x = static_cast<const T*>(px);
  T* dx = static_cast<T*>(pdx);
  const Tables<T> t = filled<T>(c, period<T>(c.count), scratch);
  with(c.relu, [&](auto relu) { with(c.slope == nullptr, [&](auto constant) {
    constexpr bool kRelu = decltype(relu)::value, kConstant = decltype(constant)::value;
    with(stream && is_aligned(dx), [&](auto streams) {
      with(dy != nullptr, [&](auto given) {
        constexpr bool kGiven = decltype(given)::value;
        const auto whole = [&](int64_t i, auto) {
          for (int64_t e = 0; e < t.length; e += P::kLength) {
            Vector<A> v[P::kVectors], g[P::kVectors] = {};
            P::load(x + i + e, v);
            if constexpr (kGiven) P::load(dy + i + e, g);
            for (int k = 0; k < P::kVectors; ++k) {
              const int64_t j = e + k * kLanes<A>;
              if constexpr (kGiven) g[k] = passes<kRelu>(t, j, v[k], g[k]);
              v[k] = P::round(input_gradient<kConstant>(t, j, v[k], g[k]));
            }
            P::template store<decltype(streams)::value>(dx + i + e, v);
          }
        };
        walk<1>(size, t.length, c.count, whole, [&](int64_t i, int64_t k) {
          const A value = to_acc(x[i]);
          A g = 0;
          if constexpr (kGiven) g = passes<kRelu>(c, k, value, to_acc(dy[i]));
          dx[i] = from_acc<T>(input_gradient<kConstant>(c, k, value, g));
        });
      });
    });
  }); });
  if (stream) stream_fence();
}

// ---- two rows of a channels_last map ----------------------------------------------------------------------

// How a pack is read and written: whole, or its first `count` elements where channels do not fill the last one.
template <class T>
struct Whole {
  using P = Pack<T>;
  using A = acc<T>;
  static void load(const T* from, Vector<A>* v) { P::load(from, v); }
  template <bool kStream>
  static void store(T* to, const Vector<A>* v) { P::template store<kStream>(to, v); }
  static void load_codes(const uint8_t* from, Mask<A>* codes) { P::load_codes(from, codes); }
  static void store_codes(uint8_t* to, const Mask<A>* codes) { P::store_codes(to, codes); }
};
template <class T>
struct Part {
  using P = Pack<T>;
  using A = acc<T>;
  int64_t count;
  void load(const T* from, Vector<A>* v) const {
    T whole[P::kLength] = {};
    __builtin_memcpy(whole, from, count * sizeof(T));
    P::load(whole, v);
  }
  template <bool>
  void store(T* to, const Vector<A>* v) const {
    T whole[P::kLength];
    P::template store<false>(whole, v);
    __builtin_memcpy(to, whole, count * sizeof(T));
  }
  void load_codes(const uint8_t* from, Mask<A>* codes) const {
    uint8_t whole[P::kLength] = {};
    __builtin_memcpy(whole, from, count);
    P::load_codes(whole, codes);
  }
  void store_codes(uint8_t* to, const Mask<A>* codes) const {
    uint8_t whole[P::kLength];
    P::store_codes(whole, codes);
    __builtin_memcpy(to, whole, count);
  }
};

template <int kCount>
struct Fixed {
  static constexpr int value = kCount;
};

// Packs that fill a cache line. A window's four elements lie far apart, and streaming stores must fill a line each
// before they turn to the next.
template <class T>
constexpr int kLinePacks = Pack<T>::kLength * sizeof(T) < 64 ? 64 / (Pack<T>::kLength * sizeof(T)) : 1;

// Calls f(first channel, access, number of packs) over a pixel's channels.
template <class T, class F>
ASEGNET_HOST_DEVICE void for_packs(int64_t channels, const F& f) {
  constexpr int64_t kLength = Pack<T>::kLength;
  int64_t e = 0;
  constexpr int64_t kLine = kLinePacks<T> * kLength;
  for (; e + kLine <= channels; e += kLine) f(e, Whole<T>{}, Fixed<kLinePacks<T>>{});
  for (; e + kLength <= channels; e += kLength) f(e, Whole<T>{}, Fixed<1>{});
  if (e < channels) f(e, Part<T>{channels - e}, Fixed<1>{});
}

template <class T>
int64_t padded(int64_t channels) {
  constexpr int64_t kLength = Pack<T>::kLength;
  return (channels + kLength - 1) / kLength * kLength;
}

// A window: where its four elements stand, and its result, in elements from the start.
struct Window {
  int64_t at[4], result;
};

template <class F>
ASEGNET_HOST_DEVICE void for_windows(const Rows& rows, int64_t channels, const F& f) {
  const int64_t columns = rows.width / 2;
  for (int64_t pair = 0; pair < rows.pairs; ++pair) {
    for (int64_t j = 0; j < columns; ++j) {
      const int64_t top = (2 * pair * rows.width + 2 * j) * channels, bottom = top + rows.width * channels;
      f(Window{{top, top + channels, bottom, bottom + channels}, (pair * columns + j) * channels});
    }
  }
}

// Calls f(element, channel) for the odd last column, which no window has.
template <class F>
void for_last_column(const Rows& rows, int64_t channels, const F& f) {
  if (rows.width % 2 == 0) return;
  for (int64_t row = 1; row <= 2 * rows.pairs; ++row) {
    for (int64_t c = 0; c < channels; ++c) f((row * rows.width - 1) * channels + c, c);
  }
}

template <class T>
void pool_forward(const void* px, void* py, const Rows& rows, const Channels& c, bool stream, void* scratch) {
  using P = Pack<T>;
  using A = acc<T>;
  const T* x = static_cast<const T*>(px);
  T *y = static_cast<T*>(py), *pooled = static_cast<T*>(rows.pooled);
  const Tables<T> t = filled<T>(c, padded<T>(c.count), scratch);
  const bool streams_y = stream && is_aligned(y) && c.count % P::kLength == 0;
  with(c.relu, [&](auto relu) {
    constexpr bool kRelu = decltype(relu)::value;
    with(y != nullptr, [&](auto full) {
      constexpr bool kFull = decltype(full)::value;
      with(streams_y, [&](auto streams) {
        for_windows(rows, c.count, [&](const Window& window) {
          for_packs<T>(c.count, [&](int64_t first, auto access, auto packs) {
            constexpr int kPacks = decltype(packs)::value;
            Vector<A> best[kPacks][P::kVectors];
            Mask<A> code[kPacks][P::kVectors] = {};
            for (int p = 0; p < 4; ++p) {
              for (int q = 0; q < kPacks; ++q) {
                const int64_t e = first + q * P::kLength;
                Vector<A> v[P::kVectors];
                access.load(x + window.at[p] + e, v);
                for (int k = 0; k < P::kVectors; ++k) {
                  v[k] = normalised(t, e + k * kLanes<A>, v[k]);
                  v[k] = P::round(cut<kRelu>(v[k], v[k]));
                  if (p == 0) {
                    best[q][k] = v[k];
                  } else {
                    const Mask<A> won = (v[k] > best[q][k]) | (v[k] != v[k]);
                    best[q][k] = select(won, v[k], best[q][k]);
                    code[q][k] = select(won, Mask<A>{} + p, code[q][k]);
                  }
                }
                if constexpr (kFull) access.template store<decltype(streams)::value>(y + window.at[p] + e, v);
              }
            }
            for (int q = 0; q < kPacks; ++q) {
              const int64_t e = window.result + first + q * P::kLength;
              access.template store<false>(pooled + e, best[q]);
              access.store_codes(rows.code + e, code[q]);
            }
          });
        });
        if constexpr (kFull) for_last_column(rows, c.count, [&](int64_t i, int64_t k) {
          const A v = normalised(c, k, to_acc(x[i]));
          y[i] = from_acc<T>(kRelu && is_cut(v) ? A{0} : v);
        });
      });
    });
  });
  if (stream) stream_fence();
}

// The gradient at position p of a window: the pool's where the code says so, and dy's where it is given.
template <class A>
ASEGNET_HOST_DEVICE Vector<A> at_position(int p, Mask<A> code, Vector<A> pooled, Vector<A> dy) {
  return dy + select(code == p, pooled, Vector<A>{});
}

template <class T>
void pool_reduce(const void* pdy, const void* px, const Rows& rows, const Channels& c, double* sums, void* scratch) {
  using P = Pack<T>;
  using A = acc<T>;
  const T *dy = static_cast<const T*>(pdy), *x = static_cast<const T*>(px);
  const T* pooled = static_cast<const T*>(rows.pooled);
  const Tables<T> t = filled<T>(c, padded<T>(c.count), scratch);
  t.clear();
  with(c.relu, [&](auto relu) {
    constexpr bool kRelu = decltype(relu)::value;
    with(dy != nullptr, [&](auto given) {
      constexpr bool kGiven = decltype(given)::value;
      int64_t steps = 0;
      for_windows(rows, c.count, [&](const Window& window) {
        for_packs<T>(c.count, [&](int64_t first, auto access, auto packs) {
          for (int64_t e = first; e < first + decltype(packs)::value * P::kLength; e += P::kLength) {
            Vector<A> v[4][P::kVectors], g[4][P::kVectors] = {}, from_pool[P::kVectors];
            Mask<A> code[P::kVectors];
            access.load(pooled + window.result + e, from_pool);
            access.load_codes(rows.code + window.result + e, code);
            for (int p = 0; p < 4; ++p) {
              access.load(x + window.at[p] + e, v[p]);
              if constexpr (kGiven) access.load(dy + window.at[p] + e, g[p]);
            }
            for (int k = 0; k < P::kVectors; ++k) {
              const int64_t i = e + k * kLanes<A>;
              const Vector<A> mean = at(t.mean, i);
              Vector<A> sum{}, product{};
              for (int p = 0; p < 4; ++p) {
                const Vector<A> all = at_position<A>(p, code[k], from_pool[k], g[p][k]);
                const Vector<A> passed = passes<kRelu>(t, i, v[p][k], all);
                sum += passed;
                product += passed * (v[p][k] - mean);
              }
              store_as(t.sums + i, at(t.sums, i) + sum);
              store_as(t.sums + t.length + i, at(t.sums, t.length + i) + product);
            }
          }
        });
        if (++steps % kSteps == 0) t.flush();
      });
      if constexpr (kGiven) for_last_column(rows, c.count, [&](int64_t i, int64_t k) {
        const A passed = passes<kRelu>(c, k, to_acc(x[i]), to_acc(dy[i]));
        sums[k] += static_cast<double>(passed);
        sums[c.count + k] += static_cast<double>(passed) * (static_cast<double>(to_acc(x[i])) - c.mean[k]);
      });
    });
  });
  t.flush();
  for (int half = 0; half < 2; ++half) {
    for (int64_t e = 0; e < t.length; e += P::kLength) {
      for (int k = 0; k < P::kVectors; ++k) {
        for (int lane = 0; lane < kLanes<A>; ++lane) {
          const int64_t channel = e + P::element(k, lane);
          if (channel < c.count) sums[half * c.count + channel] += t.totals[half * t.length + e + k * kLanes<A> + lane];
        }
      }
    }
  }
}

template <class T>
void pool_backward(const void* pdy, const void* px, void* pdx, const Rows& rows, const Channels& c, bool stream,
                   void* scratch) {
  using P = Pack<T>;
  using A = acc<T>;
  const T *dy = static_cast<const T*>(pdy), *x = static_cast<const T*>(px);
  const T* pooled = static_cast<const T*>(rows.pooled);
  T* dx = static_cast<T*>(pdx);
  const Tables<T> t = filled<T>(c, padded<T>(c.count), scratch);
  with(c.relu, [&](auto relu) { with(c.slope == nullptr, [&](auto constant) {
    constexpr bool kRelu = decltype(relu)::value, kConstant = decltype(constant)::value;
    with(dy != nullptr, [&](auto given) {
      constexpr bool kGiven = decltype(given)::value;
      with(stream && is_aligned(dx) && c.count % P::kLength == 0, [&](auto streams) {
        for_windows(rows, c.count, [&](const Window& window) {
          for_packs<T>(c.count, [&](int64_t first, auto access, auto packs) {
            constexpr int kPacks = decltype(packs)::value;
            Vector<A> from_pool[kPacks][P::kVectors];
            Mask<A> code[kPacks][P::kVectors];
            for (int q = 0; q < kPacks; ++q) {
              access.load(pooled + window.result + first + q * P::kLength, from_pool[q]);
              access.load_codes(rows.code + window.result + first + q * P::kLength, code[q]);
            }
            for (int p = 0; p < 4; ++p) {
              for (int q = 0; q < kPacks; ++q) {
                const int64_t e = first + q * P::kLength;
                Vector<A> v[P::kVectors], g[P::kVectors] = {};
                access.load(x + window.at[p] + e, v);
                if constexpr (kGiven) access.load(dy + window.at[p] + e, g);
                for (int k = 0; k < P::kVectors; ++k) {
                  const int64_t i = e + k * kLanes<A>;
                  const Vector<A> all = at_position<A>(p, code[q][k], from_pool[q][k], g[k]);
                  v[k] = P::round(input_gradient<kConstant>(t, i, v[k], passes<kRelu>(t, i, v[k], all)));
                }
                access.template store<decltype(streams)::value>(dx + window.at[p] + e, v);
              }
            }
          });
        });
        for_last_column(rows, c.count, [&](int64_t i, int64_t k) {
          const A value = to_acc(x[i]);
          A g = 0;
          if constexpr (kGiven) g = passes<kRelu>(c, k, value, to_acc(dy[i]));
          dx[i] = from_acc<T>(input_gradient<kConstant>(c, k, value, g));
        });
      });
    });
  }); });
  if (stream) stream_fence();
}

// ---- two rows of a plane ---------------------------------------------------------------------------------

template <class T>
void pool_plane(const void* py, const Rows& rows) {
  using A = acc<T>;
  const int64_t columns = rows.width / 2;
  for (int64_t pair = 0; pair < rows.pairs; ++pair) {
    const T *row0 = static_cast<const T*>(py) + 2 * pair * rows.width, *row1 = row0 + rows.width;
    T* __restrict pooled = static_cast<T*>(rows.pooled) + pair * columns;
    uint8_t* __restrict code = rows.code + pair * columns;
    for (int64_t j = 0; j < columns; ++j) {
      const A a = to_acc(row0[2 * j]), b = to_acc(row0[2 * j + 1]);
      const A c = to_acc(row1[2 * j]), d = to_acc(row1[2 * j + 1]);
      const bool b_wins = wins(b, a);
      const A top = b_wins ? b : a;
      const bool c_wins = wins(c, top);
      const A three = c_wins ? c : top;
      const bool d_wins = wins(d, three);
      pooled[j] = from_acc<T>(d_wins ? d : three);
      const int best = c_wins ? 2 : b_wins ? 1 : 0;
      code[j] = static_cast<uint8_t>(d_wins ? 3 : best);
    }
  }
}

template <class T>
void unpool_plane(const void* pdy, const Rows& rows, void* psum) {
  using A = acc<T>;
  const int64_t columns = rows.width / 2;
  const T zero = from_acc<T>(A{0});
  T* const sum = static_cast<T*>(psum);
  for (int64_t pair = 0; pair < rows.pairs; ++pair) {
    T *sum0 = sum + 2 * pair * rows.width, *sum1 = sum0 + rows.width;
    const T* pooled = static_cast<const T*>(rows.pooled) + pair * columns;
    const uint8_t* code = rows.code + pair * columns;
    for (int64_t j = 0; j < columns; ++j) {
      sum0[2 * j] = code[j] == 0 ? pooled[j] : zero;
      sum0[2 * j + 1] = code[j] == 1 ? pooled[j] : zero;
      sum1[2 * j] = code[j] == 2 ? pooled[j] : zero;
      sum1[2 * j + 1] = code[j] == 3 ? pooled[j] : zero;
    }
    if (rows.width % 2) sum0[rows.width - 1] = sum1[rows.width - 1] = zero;
  }
  if (!pdy) return;
  const T* dy = static_cast<const T*>(pdy);
  for (int64_t i = 0; i < 2 * rows.pairs * rows.width; ++i) sum[i] = from_acc<T>(to_acc(sum[i]) + to_acc(dy[i]));
}

template <class T>
int64_t scratch_bytes(int64_t channels) {
  const int64_t run = period<T>(channels), windows = padded<T>(channels);
  return Tables<T>::bytes(run > windows ? run : windows);
}

}  // namespace

#define ASEGNET_EVERY_TYPE(function) {function<float>, function<double>, function<BFloat16>, function<Float16>}
namespace ASEGNET_ISA {
const Kernels kernels = {
    ASEGNET_EVERY_TYPE(statistics),    ASEGNET_EVERY_TYPE(forward),     ASEGNET_EVERY_TYPE(reduce),
    ASEGNET_EVERY_TYPE(backward),      ASEGNET_EVERY_TYPE(pool_forward), ASEGNET_EVERY_TYPE(pool_reduce),
    ASEGNET_EVERY_TYPE(pool_backward), ASEGNET_EVERY_TYPE(pool_plane),  ASEGNET_EVERY_TYPE(unpool_plane),
    ASEGNET_EVERY_TYPE(scratch_bytes),
};
}  // namespace ASEGNET_ISA

}  // namespace asegnet::bn_relu
