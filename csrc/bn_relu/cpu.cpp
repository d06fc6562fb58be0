// Tensors in, tensors out: layouts, threads over a fixed number of steps, and the joining of their sums.
#include <algorithm>
#include <cmath>
#include <memory>

#include "bn_relu/kernels.h"
#include "bn_relu/math.h"
#include "common/cache.h"
#include "common/tensor.h"

namespace asegnet::bn_relu {
namespace {

// ---- how a map is cut ------------------------------------------------------------------------------------

// A function of the shape alone, never of the number of threads: the same steps give the same bits.
// A step is a piece of an image in which every channel has the same number of elements. For channels_last it is one
// run of memory with all channels; for NCHW it is one run in each of `planes` planes, which are items of their own.
// `units` of an image are pixels, or pairs of rows where windows must stay whole.
struct Plan {
  int64_t images, units, piece, planes;

  Plan(int64_t images_, int64_t units_, int64_t unit_elements, int64_t channels, bool channels_last)
      : images(images_), units(units_), planes(channels_last ? 1 : channels) {
    constexpr int64_t kSteps = 64, kLeastElements = 32768, kLeastUnits = 128;
    const int64_t run = std::max<int64_t>(unit_elements * (channels_last ? channels : 1), 1);
    piece = std::max((kLeastElements + run - 1) / run, (images * units + kSteps - 1) / kSteps);
    if (unit_elements == 1) piece = std::max(piece, kLeastUnits);
  }
  int64_t pieces() const { return std::max<int64_t>((units + piece - 1) / piece, 1); }
  int64_t steps() const { return images * pieces(); }
};

struct Item {
  int64_t plane, step;           // plane: image * planes + channel
  int64_t channel, begin, end;   // units
  bool is_last;                  // of its plane
  char* scratch;
};

// Calls f(item) for all items on many threads. The first pass over a map goes backwards, so that it starts at what its
// producer wrote last and ends at what the second pass, which goes forwards, reads first: both find it in the cache.
template <class F>
void for_items(const Plan& plan, int64_t elements, int64_t scratch_bytes, bool backwards, const F& f) {
  const int64_t pieces = plan.pieces(), count = plan.images * plan.planes * pieces;
  if (count == 0) return;
  parallel_for(0, count, grain(elements / count), [&](int64_t first, int64_t last) {
    const std::unique_ptr<char[]> memory(new char[scratch_bytes + 64]);
    char* const scratch = memory.get() + (64 - reinterpret_cast<uintptr_t>(memory.get()) % 64);
    for (int64_t k = first; k < last; ++k) {
      const int64_t i = backwards ? first + last - 1 - k : k;
      const int64_t plane = i / pieces, piece = i % pieces, begin = piece * plan.piece;
      f(Item{plane, plane / plan.planes * pieces + piece, plane % plan.planes, begin,
             std::min(begin + plan.piece, plan.units), piece == pieces - 1, scratch});
    }
  });
}

template <class T>
auto* at(T* base, int64_t offset, int64_t element_size) {
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  return base ? static_cast<T*>(static_cast<Byte*>(base) + offset * element_size) : nullptr;
}

// ---- one number per channel ------------------------------------------------------------------------------

using Numbers = std::vector<double>;

ScalarType sums_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

Numbers numbers(const std::optional<Tensor>& t, int64_t channels, double otherwise, const char* name) {
  if (!t) return Numbers(channels, otherwise);
  check(t->dim() == 1 && t->size(0) == channels, name, "one number per channel", shape_string(*t));
  Numbers out(channels);
  const Tensor whole = torch::stable::contiguous(*t);
  const auto copy = [&](const auto* from) {
    for (int64_t c = 0; c < channels; ++c) out[c] = static_cast<double>(to_acc(from[c]));
  };
  switch (float_of(whole, name)) {
    case kFloat32: copy(static_cast<const float*>(whole.const_data_ptr())); break;
    case kFloat64: copy(static_cast<const double*>(whole.const_data_ptr())); break;
    case kBFloat16: copy(static_cast<const BFloat16*>(whole.const_data_ptr())); break;
    default: copy(static_cast<const Float16*>(whole.const_data_ptr()));
  }
  return out;
}

Tensor tensor_of(const Numbers& values, const Tensor& x) {
  const auto count = static_cast<int64_t>(values.size());
  Tensor out = empty_dense({count}, sums_type(x), x);
  void* const to = out.mutable_data_ptr();
  if (sums_type(x) == ScalarType::Double) std::copy_n(values.data(), count, static_cast<double*>(to));
  else std::copy_n(values.data(), count, static_cast<float*>(to));
  return out;
}

// What the tensor of these numbers will hold: backward must find the same scale in it.
void round_as(ScalarType type, Numbers& values) {
  if (type == ScalarType::Double) return;
  for (double& v : values) v = static_cast<float>(v);
}

struct Parameters {
  Numbers scale, bias, mean, inverse_deviation, slope, offset;
  bool relu, constant = true;

  Parameters(const Tensor& x, int64_t channels, const std::optional<Tensor>& weight, const std::optional<Tensor>& bias_,
             const Numbers& mean_, const Numbers& var, double eps, bool relu_)
      : scale(numbers(weight, channels, 1, "weight")),
        bias(numbers(bias_, channels, 0, "bias")),
        mean(mean_),
        inverse_deviation(channels),
        relu(relu_) {
    for (int64_t c = 0; c < channels; ++c) {
      inverse_deviation[c] = 1 / std::sqrt(var[c] + eps);
      scale[c] *= inverse_deviation[c];
    }
    round_as(sums_type(x), scale);
  }

  // The statistics depend on x: sums [2][channels] of g and g (x - mean) over `count` values a channel.
  void vary(const Numbers& sums, double count) {
    const size_t channels = scale.size();
    constant = false;
    slope.resize(channels), offset.resize(channels);
    for (size_t c = 0; c < channels; ++c) {
      slope[c] = -scale[c] * inverse_deviation[c] * inverse_deviation[c] * sums[channels + c] / count;
      offset[c] = -scale[c] * sums[c] / count;
    }
  }

  Channels from(int64_t channel, int64_t count) const {
    return {count,
            scale.data() + channel,
            mean.data() + channel,
            bias.data() + channel,
            constant ? nullptr : slope.data() + channel,
            constant ? nullptr : offset.data() + channel,
            relu};
  }
};

// ---- passes ----------------------------------------------------------------------------------------------

// A dense map and how its runs lie.
struct Map {
  Dims d;
  bool channels_last;
  Tensor x;
  Float type;
  int64_t size;

  explicit Map(const Tensor& t)
      : d(dims4(t, "x")), channels_last(is_channels_last(t)), x(dense(t, channels_last)), type(float_of(t, "x")),
        size(t.element_size()) {}
  const void* data() const { return x.const_data_ptr(); }
  int64_t run_channels() const { return channels_last ? d.c : 1; }
  int64_t pixels() const { return d.n * d.h * d.w; }
  int64_t h() const { return d.h / 2; }
  int64_t w() const { return d.w / 2; }
  // Runs of pixels: a channels_last map is one image, whatever its batch.
  Plan runs() const { return {channels_last ? 1 : d.n, channels_last ? pixels() : d.h * d.w, 1, d.c, channels_last}; }
  Plan row_pairs() const { return {d.n, h(), 2 * d.w, d.c, channels_last}; }
  int64_t scratch() const { return kernels().scratch_bytes[type](run_channels()); }
  bool streams(int64_t maps_moved) const { return exceeds_cache(maps_moved * d.numel() * size); }
  Tensor like() const { return empty4(d, x.scalar_type(), x, channels_last); }
};

// Sums [2][channels] over all steps, in their order; `f(item, sums [2][run_channels])` adds one item's.
template <class F>
Numbers sum_steps(const Map& map, const Plan& plan, int64_t scratch, const F& f) {
  const int64_t channels = map.d.c;
  Numbers partial(plan.steps() * 2 * channels), total(2 * channels);
  for_items(plan, map.d.numel(), scratch, true, [&](const Item& item) {
    double* const out = partial.data() + item.step * 2 * channels;
    if (map.channels_last) return f(item, out);
    double own[2] = {};
    f(item, own);
    out[item.channel] = own[0], out[channels + item.channel] = own[1];
  });
  for (int64_t step = 0; step < plan.steps(); ++step) {
    for (int64_t i = 0; i < 2 * channels; ++i) total[i] += partial[step * 2 * channels + i];
  }
  return total;
}

// Mean and biased variance of each channel of the batch. Each step sums around a value near its own mean, and the
// steps are joined in double, so a mean far from zero costs no digits.
void batch_statistics(const Map& map, Numbers& mean, Numbers& var) {
  const int64_t channels = map.d.c;
  const Plan plan = map.runs();
  Numbers first(plan.steps() * channels), sums(plan.steps() * 2 * channels);
  const auto kernel = kernels().statistics[map.type];
  for_items(plan, map.d.numel(), map.scratch(), true, [&](const Item& item) {
    const int64_t c = map.run_channels(), size = (item.end - item.begin) * c;
    const void* const x = at(map.data(), (item.plane * plan.units + item.begin) * c, map.size);
    double* const to = sums.data() + item.step * 2 * channels;
    if (map.channels_last) return kernel(x, size, c, first.data() + item.step * channels, to, item.scratch);
    double own[2] = {};
    kernel(x, size, c, first.data() + item.step * channels + item.channel, own, item.scratch);
    to[item.channel] = own[0], to[channels + item.channel] = own[1];
  });
  double seen = 0;
  for (int64_t step = 0; step < plan.steps(); ++step) {
    const int64_t begin = step % plan.pieces() * plan.piece;
    const auto count = static_cast<double>(std::min(begin + plan.piece, plan.units) - begin);
    const double share = count / (seen + count);
    const double *s = sums.data() + step * 2 * channels, *from = first.data() + step * channels;
    for (int64_t c = 0; c < channels; ++c) {
      const double shift = s[c] / count;
      join(mean[c], var[c], from[c] + shift, s[channels + c] - shift * s[c], share, seen);
    }
    seen += count;
  }
  for (double& v : var) v = std::max(v / seen, 0.0) + (v != v ? v : 0);  // rounding may fall below 0; NaN stays
}

struct Statistics {
  Numbers mean, var;
};

Statistics statistics(const Map& map, const std::optional<Tensor>& running_mean,
                      const std::optional<Tensor>& running_var, bool training) {
  Statistics s;
  if (training) {
    s = {Numbers(map.d.c, 0), Numbers(map.d.c, map.d.numel() ? 0 : 1)};
    if (map.d.numel()) batch_statistics(map, s.mean, s.var);
  } else {
    check(running_mean.has_value(), "running_mean", "a tensor when not training", "None");
    check(running_var.has_value(), "running_var", "a tensor when not training", "None");
    s = {numbers(running_mean, map.d.c, 0, "running_mean"), numbers(running_var, map.d.c, 1, "running_var")};
  }
  round_as(sums_type(map.x), s.mean);
  round_as(sums_type(map.x), s.var);
  return s;
}

// (x, weight, bias, running statistics, training, eps, relu) -> (y, mean, variance)
std::tuple<Tensor, Tensor, Tensor> bn_relu(const Tensor& x, std::optional<Tensor> weight, std::optional<Tensor> bias,
                                           std::optional<Tensor> running_mean, std::optional<Tensor> running_var,
                                           bool training, double eps, bool relu) {
  const Map map(x);
  const Statistics s = statistics(map, running_mean, running_var, training);
  const Parameters parameters(map.x, map.d.c, weight, bias, s.mean, s.var, eps, relu);
  Tensor y = map.like();
  const Plan plan = map.runs();
  const auto kernel = kernels().forward[map.type];
  const bool stream = map.streams(2);
  if (map.d.numel()) for_items(plan, map.d.numel(), map.scratch(), false, [&](const Item& item) {
    const int64_t c = map.run_channels(), offset = (item.plane * plan.units + item.begin) * c;
    kernel(at(map.data(), offset, map.size), at(y.mutable_data_ptr(), offset, map.size), (item.end - item.begin) * c,
           parameters.from(item.channel, c), stream, item.scratch);
  });
  return {y, tensor_of(s.mean, map.x), tensor_of(s.var, map.x)};
}

using Gradients = std::tuple<Tensor, Tensor, Tensor>;

Gradients gradients(const Map& map, const Tensor& dx, const Parameters& parameters, const Numbers& sums) {
  const int64_t channels = map.d.c;
  Numbers dbias(sums.begin(), sums.begin() + channels), dweight(sums.begin() + channels, sums.end());
  for (int64_t c = 0; c < channels; ++c) dweight[c] *= parameters.inverse_deviation[c];
  return {dx, tensor_of(dweight, map.x), tensor_of(dbias, map.x)};
}

// The gradient of y as dense as x, in x's layout and dtype.
Tensor gradient_like(const Map& map, const Tensor& dy, const char* name, const Dims& expected) {
  check(dims4(dy, name) == expected, name, "the shape of the result", shape_string(dy));
  check(dy.scalar_type() == map.x.scalar_type(), name, "the dtype of x", "another dtype");
  return dense(dy, map.channels_last);
}

// (dy, x, weight, bias, mean, variance, training, eps, relu) -> (dx, dweight, dbias)
Gradients bn_relu_backward(const Tensor& dy_in, const Tensor& x, std::optional<Tensor> weight,
                           std::optional<Tensor> bias, const Tensor& mean, const Tensor& var, bool training, double eps,
                           bool relu) {
  const Map map(x);
  const Tensor dy = gradient_like(map, dy_in, "dy", map.d);
  Parameters parameters(map.x, map.d.c, weight, bias, numbers(mean, map.d.c, 0, "mean"),
                        numbers(var, map.d.c, 1, "var"), eps, relu);
  Tensor dx = map.like();
  if (map.d.numel() == 0) return gradients(map, dx, parameters, Numbers(2 * map.d.c));
  const Plan plan = map.runs();
  const auto reduce = kernels().reduce[map.type];
  const auto backward = kernels().backward[map.type];
  const int64_t c = map.run_channels();
  const auto offset = [&](const Item& item) { return (item.plane * plan.units + item.begin) * c; };
  const Numbers sums = sum_steps(map, plan, map.scratch(), [&](const Item& item, double* out) {
    reduce(at(dy.const_data_ptr(), offset(item), map.size), at(map.data(), offset(item), map.size),
           (item.end - item.begin) * c, parameters.from(item.channel, c), out, item.scratch);
  });
  if (training) parameters.vary(sums, static_cast<double>(map.pixels()));
  const bool stream = map.streams(3);
  for_items(plan, map.d.numel(), map.scratch(), false, [&](const Item& item) {
    backward(at(dy.const_data_ptr(), offset(item), map.size), at(map.data(), offset(item), map.size),
             at(dx.mutable_data_ptr(), offset(item), map.size), (item.end - item.begin) * c,
             parameters.from(item.channel, c), stream, item.scratch);
  });
  return gradients(map, dx, parameters, sums);
}

// ---- with the pool ---------------------------------------------------------------------------------------

// The rows of an item. An odd last row belongs to no window; it comes with the last item of its plane.
struct Pairs {
  int64_t large, small, last;  // offsets in elements: first row, first pooled row, the odd last row or -1
  int64_t count;

  Pairs(const Map& map, const Item& item) {
    const int64_t c = map.run_channels(), row = map.d.w * c;
    large = (item.plane * map.d.h + 2 * item.begin) * row;
    small = (item.plane * map.h() + item.begin) * map.w() * c;
    last = item.is_last && map.d.h % 2 ? (item.plane * map.d.h + map.d.h - 1) * row : -1;
    count = item.end - item.begin;
  }
};

// A plane goes through a block of whole rows that stays in the first-level cache. Calls f(large, rows) for each block.
int64_t block_pairs(const Map& map) { return std::max<int64_t>(8192 / (2 * map.d.w), 1); }

template <class F>
void for_blocks(const Map& map, const Pairs& pairs, void* pooled, uint8_t* code, const F& f) {
  for (int64_t pair = 0; pair < pairs.count; pair += block_pairs(map)) {
    const int64_t small = pairs.small + pair * map.w();
    f(pairs.large + 2 * pair * map.d.w,
      Rows{map.d.w, std::min(block_pairs(map), pairs.count - pair), at(pooled, small, map.size), code + small});
  }
}

// (x, ..., full) -> (y or nothing, pooled, code, mean, variance)
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> pool(const Tensor& x, std::optional<Tensor> weight,
                                                        std::optional<Tensor> bias, std::optional<Tensor> running_mean,
                                                        std::optional<Tensor> running_var, bool training, double eps,
                                                        bool relu, bool full) {
  const Map map(x);
  const Statistics s = statistics(map, running_mean, running_var, training);
  const Parameters parameters(map.x, map.d.c, weight, bias, s.mean, s.var, eps, relu);
  const Dims small{map.d.n, map.d.c, map.h(), map.w()};
  Tensor y = full ? map.like() : empty_dense({0}, map.x.scalar_type(), map.x);
  Tensor pooled = empty4(small, map.x.scalar_type(), map.x, map.channels_last);
  Tensor code = empty4(small, ScalarType::Byte, map.x, map.channels_last);
  if (map.d.numel()) {
    const Plan plan = map.row_pairs();
    const Kernels& k = kernels();
    const bool stream = map.streams(2);
    void* const py = full ? y.mutable_data_ptr() : nullptr;
    void* const ppooled = pooled.mutable_data_ptr();
    auto* const pcode = static_cast<uint8_t*>(code.mutable_data_ptr());
    const int64_t c = map.run_channels(), block = 2 * block_pairs(map) * map.d.w * map.size;
    const int64_t own = (map.scratch() + 63) / 64 * 64;
    for_items(plan, map.d.numel(), own + block, false, [&](const Item& item) {
      const Pairs pairs(map, item);
      const Channels channels = parameters.from(item.channel, c);
      if (map.channels_last) {
        k.pool_forward[map.type](at(map.data(), pairs.large, map.size), at(py, pairs.large, map.size),
                                 {map.d.w, pairs.count, at(ppooled, pairs.small, map.size), pcode + pairs.small},
                                 channels, stream, item.scratch);
      } else {
        for_blocks(map, pairs, ppooled, pcode, [&](int64_t large, const Rows& rows) {
          void* const to = full ? at(py, large, map.size) : item.scratch + own;
          k.forward[map.type](at(map.data(), large, map.size), to, 2 * rows.pairs * map.d.w, channels, false,
                              item.scratch);
          k.pool_plane[map.type](to, rows);
        });
      }
      if (full && pairs.last >= 0) {
        k.forward[map.type](at(map.data(), pairs.last, map.size), at(py, pairs.last, map.size), map.d.w * c, channels,
                            false, item.scratch);
      }
    });
  }
  return {y, pooled, code, tensor_of(s.mean, map.x), tensor_of(s.var, map.x)};
}

// (dpooled, dy or nothing, code, x, ...) -> (dx, dweight, dbias). A code above 3 gets no gradient.
Gradients pool_backward(const Tensor& dpooled_in, std::optional<Tensor> dy_in, const Tensor& code_in, const Tensor& x,
                        std::optional<Tensor> weight, std::optional<Tensor> bias, const Tensor& mean, const Tensor& var,
                        bool training, double eps, bool relu) {
  const Map map(x);
  const Dims small{map.d.n, map.d.c, map.h(), map.w()};
  const Tensor dpooled = gradient_like(map, dpooled_in, "dpooled", small);
  check(code_in.scalar_type() == ScalarType::Byte, "code", "dtype uint8", "another dtype");
  check(dims4(code_in, "code") == small, "code", "the shape of the pooled map", shape_string(code_in));
  const Tensor code = dense(code_in, map.channels_last);
  std::optional<Tensor> dy;
  if (dy_in) dy = gradient_like(map, *dy_in, "dy", map.d);
  Parameters parameters(map.x, map.d.c, weight, bias, numbers(mean, map.d.c, 0, "mean"),
                        numbers(var, map.d.c, 1, "var"), eps, relu);
  Tensor dx = map.like();
  if (map.d.numel() == 0) return gradients(map, dx, parameters, Numbers(2 * map.d.c));
  const Plan plan = map.row_pairs();
  const Kernels& k = kernels();
  const void* const pdy = dy ? dy->const_data_ptr() : nullptr;
  void* const pdx = dx.mutable_data_ptr();
  // Rows is for both directions; these kernels only read from it.
  void* const ppooled = const_cast<void*>(dpooled.const_data_ptr());
  auto* const pcode = const_cast<uint8_t*>(static_cast<const uint8_t*>(code.const_data_ptr()));
  const int64_t c = map.run_channels(), block = 2 * block_pairs(map) * map.d.w * map.size;
  const int64_t own = (map.scratch() + 63) / 64 * 64;
  const Numbers sums = sum_steps(map, plan, own + block, [&](const Item& item, double* out) {
    const Pairs pairs(map, item);
    const Channels channels = parameters.from(item.channel, c);
    if (map.channels_last) {
      k.pool_reduce[map.type](at(pdy, pairs.large, map.size), at(map.data(), pairs.large, map.size),
                              {map.d.w, pairs.count, at(ppooled, pairs.small, map.size), pcode + pairs.small}, channels,
                              out, item.scratch);
    } else {
      for_blocks(map, pairs, ppooled, pcode, [&](int64_t large, const Rows& rows) {
        void* const sum = item.scratch + own;
        k.unpool_plane[map.type](at(pdy, large, map.size), rows, sum);
        k.reduce[map.type](sum, at(map.data(), large, map.size), 2 * rows.pairs * map.d.w, channels, out, item.scratch);
      });
    }
    if (pdy && pairs.last >= 0) {
      k.reduce[map.type](at(pdy, pairs.last, map.size), at(map.data(), pairs.last, map.size), map.d.w * c, channels,
                         out, item.scratch);
    }
  });
  if (training) parameters.vary(sums, static_cast<double>(map.pixels()));
  const bool stream = map.streams(dy ? 3 : 2);
  const std::vector<char> zeros(!dy && map.d.h % 2 ? map.d.w * c * map.size : 0);  // dy of the odd last row
  for_items(plan, map.d.numel(), own + block, false, [&](const Item& item) {
    const Pairs pairs(map, item);
    const Channels channels = parameters.from(item.channel, c);
    if (map.channels_last) {
      k.pool_backward[map.type](at(pdy, pairs.large, map.size), at(map.data(), pairs.large, map.size),
                                at(pdx, pairs.large, map.size),
                                {map.d.w, pairs.count, at(ppooled, pairs.small, map.size), pcode + pairs.small},
                                channels, stream, item.scratch);
    } else {
      for_blocks(map, pairs, ppooled, pcode, [&](int64_t large, const Rows& rows) {
        void* const sum = item.scratch + own;
        k.unpool_plane[map.type](at(pdy, large, map.size), rows, sum);
        k.backward[map.type](sum, at(map.data(), large, map.size), at(pdx, large, map.size),
                             2 * rows.pairs * map.d.w, channels, stream, item.scratch);
      });
    }
    if (pairs.last >= 0) {
      k.backward[map.type](pdy ? at(pdy, pairs.last, map.size) : zeros.data(), at(map.data(), pairs.last, map.size),
                           at(pdx, pairs.last, map.size), map.d.w * c, channels, false, item.scratch);
    }
  });
  return gradients(map, dx, parameters, sums);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(asegnet_fast, CPU, m) {
  m.impl("bn_relu", TORCH_BOX(&bn_relu));
  m.impl("bn_relu_backward", TORCH_BOX(&bn_relu_backward));
  m.impl("bn_relu_max_pool2x2", TORCH_BOX(&pool));
  m.impl("bn_relu_max_pool2x2_backward", TORCH_BOX(&pool_backward));
}

}  // namespace asegnet::bn_relu
