// Tensors in, tensors out: axes that merge, threads over a fixed number of chunks, and the words of an error.
#include <algorithm>
#include <atomic>
#include <memory>

#include "common/tensor.h"
#include "tversky/kernels.h"
#include "tversky/math.h"

namespace asegnet::tversky {
namespace {

Label label_of(const Tensor& target) {
  switch (target.scalar_type()) {
    case ScalarType::Bool:
    case ScalarType::Byte: return kUInt8;
    case ScalarType::Char: return kInt8;
    case ScalarType::Short: return kInt16;
    case ScalarType::Int: return kInt32;
    case ScalarType::Long: return kInt64;
    default: fail("target", "dtype uint8, int8, int16, int32, int64 or bool", "another dtype");
  }
}

int64_t label_at(const Target& t, int64_t offset) {
  switch (t.type) {
    case kUInt8: return static_cast<const uint8_t*>(t.data)[offset];
    case kInt8: return static_cast<const int8_t*>(t.data)[offset];
    case kInt16: return static_cast<const int16_t*>(t.data)[offset];
    case kInt32: return static_cast<const int32_t*>(t.data)[offset];
    default: return static_cast<const int64_t*>(t.data)[offset];
  }
}

ScalarType sums_type(const Tensor& logits) {
  return logits.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Calls f with a typed pointer to a dense tensor of sums.
template <class F>
auto with_sums(const Tensor& t, const char* name, F f) {
  if (t.scalar_type() == ScalarType::Double) return f(static_cast<const double*>(t.const_data_ptr()));
  check(t.scalar_type() == ScalarType::Float, name, "dtype float32 or float64", "another dtype");
  return f(static_cast<const float*>(t.const_data_ptr()));
}

// Writes `count` doubles into a dense tensor of sums.
void store_sums(const Tensor& t, const double* from, int64_t count) {
  if (t.scalar_type() == ScalarType::Double) std::copy_n(from, count, static_cast<double*>(t.mutable_data_ptr()));
  else std::copy_n(from, count, static_cast<float*>(t.mutable_data_ptr()));
}

// The problem with its strides, which the raw-pointer structs borrow: neither copied nor moved.
struct Geometry {
  int64_t images, pixels = 1;
  std::vector<int64_t> sizes, logit_strides, target_strides, grad_strides;
  Problem problem;
  Logits grad{};

  Geometry(const Geometry&) = delete;

  Geometry(const Tensor& logits, const Tensor& target, std::optional<int64_t> ignore, const Tensor* gradient) {
    const int64_t spatial = logits.dim() - 2;
    check(spatial >= 0, "logits", "shape [N, C, *spatial]", shape_string(logits));
    check(logits.size(1) > 0, "logits", "at least one channel", shape_string(logits));
    bool fits = target.dim() == spatial + 1 && target.size(0) == logits.size(0);
    for (int64_t d = 0; fits && d < spatial; ++d) fits = target.size(d + 1) == logits.size(d + 2);
    check(fits, "target", "shape [N, *spatial] of the logits", shape_string(target));
    images = logits.size(0);
    for (int64_t d = 0; d < spatial; ++d) {
      pixels = times(pixels, logits.size(d + 2));
      add_axis(logits.size(d + 2), logits.stride(d + 2), target.stride(d + 1),
               gradient ? gradient->stride(d + 2) : logits.stride(d + 2));
    }
    if (sizes.empty()) add_axis_at_end(1, 1, 1, 1);
    problem.channels = logits.size(1);
    problem.pixels = {static_cast<int64_t>(sizes.size()), sizes.data()};
    problem.logits = {const_cast<void*>(logits.const_data_ptr()), logits.stride(0), logits.stride(1),
                      logit_strides.data()};
    problem.target = {target.const_data_ptr(), label_of(target),      target.stride(0),
                      target_strides.data(),   ignore.has_value(),    ignore.value_or(0)};
    if (gradient) {
      grad = {gradient->mutable_data_ptr(), gradient->stride(0), gradient->stride(1), grad_strides.data()};
    }
  }

  void add_axis_at_end(int64_t size, int64_t logit, int64_t target, int64_t gradient) {
    sizes.push_back(size);
    logit_strides.push_back(logit);
    target_strides.push_back(target);
    grad_strides.push_back(gradient);
  }

  void add_axis(int64_t size, int64_t logit, int64_t target, int64_t gradient) {
    if (size == 1) return;
    if (!sizes.empty() && logit_strides.back() == logit * size && target_strides.back() == target * size &&
        grad_strides.back() == gradient * size) {
      sizes.back() *= size;
      logit_strides.back() = logit;
      target_strides.back() = target;
      grad_strides.back() = gradient;
    } else {
      add_axis_at_end(size, logit, target, gradient);
    }
  }

  // A function of the shape alone, never of the number of threads: the same chunks give the same bits.
  int64_t chunk_pixels() const {
    constexpr int64_t kChunks = 64, kLeast = 4096;
    const int64_t wanted = std::max(kLeast, (images * pixels + kChunks - 1) / kChunks);
    return (wanted + kBlock - 1) / kBlock * kBlock;
  }
  int64_t chunks() const { return (pixels + chunk_pixels() - 1) / chunk_pixels(); }  // of one image

  // Calls f(image, chunk, begin, end, scratch) for each chunk, on many threads.
  template <class F>
  void for_chunks(F f) const {
    const int64_t size = chunk_pixels(), per_image = chunks(), classes = problem.classes();
    const int64_t work = std::min(size, pixels) * classes;
    parallel_for(0, images * per_image, grain(work), [&](int64_t first, int64_t last) {
      const std::unique_ptr<char[]> memory(new char[scratch_bytes(classes) + 64]);  // unlike a vector, not cleared
      void* const scratch = memory.get() + (64 - reinterpret_cast<uintptr_t>(memory.get()) % 64);
      for (int64_t i = first; i < last; ++i) {
        const int64_t begin = i % per_image * size;
        f(i / per_image, i % per_image, begin, std::min(begin + size, pixels), scratch);
      }
    });
  }
};

// Looks again, on one thread, only to say where the first undefined label is.
[[noreturn]] void report_undefined_label(const Geometry& g, const Tensor& target) {
  const Target& t = g.problem.target;
  std::vector<int64_t> index(target.dim(), 0);
  for (int64_t left = g.images * g.pixels; left > 0; --left) {
    int64_t offset = 0;
    for (int64_t d = 0; d < target.dim(); ++d) offset += index[d] * target.stride(d);
    const int64_t label = label_at(t, offset);
    if ((label < 0 || label >= g.problem.classes()) && !(t.has_ignore && label == t.ignore)) {
      std::ostringstream expected, got;
      expected << "labels 0.." << g.problem.classes() - 1;
      if (t.has_ignore) expected << " or ignore_index " << t.ignore;
      got << label << " at [";
      for (size_t d = 0; d < index.size(); ++d) got << (d ? ", " : "") << index[d];
      got << "]";
      fail("target", expected.str(), got.str());
    }
    for (int64_t d = target.dim() - 1; d >= 0 && ++index[d] == target.size(d); --d) index[d] = 0;
  }
  fail("target", "a tensor that no other thread writes to", "labels that changed during the call");
}

// (logits [N, C, *spatial], target [N, *spatial]) -> sums [6, N, classes]
Tensor sum_regions(const Tensor& logits, const Tensor& target, std::optional<int64_t> ignore, Rows rows) {
  Geometry g(logits, target, ignore, nullptr);
  g.problem.rows = rows;
  const auto kernel = kernels().sums[float_of(logits, "logits")];
  const int64_t classes = g.problem.classes(), row = g.images * classes;
  Tensor sums = empty_dense({ROWS, g.images, classes}, sums_type(logits), logits);
  const int64_t chunks = g.chunks();
  std::vector<double> partials(g.images * chunks * ROWS * classes), totals(ROWS * row);
  std::atomic<bool> undefined{false};
  g.for_chunks([&](int64_t image, int64_t chunk, int64_t begin, int64_t end, void* scratch) {
    double* const partial = partials.data() + (image * chunks + chunk) * ROWS * classes;
    if (!kernel(g.problem, image, begin, end, partial, scratch)) undefined = true;
  });
  if (undefined) report_undefined_label(g, target);
  for (int64_t image = 0; image < g.images; ++image) {
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const double* const partial = partials.data() + (image * chunks + chunk) * ROWS * classes;
      for (int64_t r = 0; r < ROWS; ++r)
        for (int64_t c = 0; c < classes; ++c) totals[r * row + image * classes + c] += partial[r * classes + c];
    }
  }
  store_sums(sums, totals.data(), ROWS * row);
  return sums;
}

// scale * (coefficients [6, N, classes] . d sums / d logits), in the dtype and memory format of the logits
Tensor differentiate(const Tensor& coefficients_in, double scale, const Tensor& logits, const Tensor& target,
                     std::optional<int64_t> ignore) {
  Tensor out = torch::stable::empty_like(logits);
  Geometry g(logits, target, ignore, &out);
  const auto kernel = kernels().gradient[float_of(logits, "logits")];
  const int64_t classes = g.problem.classes(), row = g.images * classes;
  const Tensor coefficients = torch::stable::contiguous(coefficients_in);
  check(coefficients.dim() == 3 && coefficients.size(0) == ROWS && coefficients.size(1) == g.images &&
            coefficients.size(2) == classes,
        "coefficients", "shape [6, N, classes]", shape_string(coefficients));
  std::vector<double> k(ROWS * row);  // [N][6][classes]
  with_sums(coefficients, "coefficients", [&](const auto* p) {
    for (int64_t r = 0; r < ROWS; ++r)
      for (int64_t image = 0; image < g.images; ++image)
        for (int64_t c = 0; c < classes; ++c)
          k[(image * ROWS + r) * classes + c] = scale * static_cast<double>(p[r * row + image * classes + c]);
  });
  bool used[ROWS] = {};
  for (size_t i = 0; i < k.size(); ++i) used[i / classes % ROWS] |= k[i] != 0;
  const bool errors = used[TP] || used[FP] || used[FN];
  g.problem.rows = used[CE] ? (errors || used[SUM_P2] ? kAllRows : kCrossEntropyRows)
                            : (used[SUM_P2] ? kGeneralizedRows : kTverskyRows);
  std::atomic<bool> undefined{false};
  g.for_chunks([&](int64_t image, int64_t, int64_t begin, int64_t end, void* scratch) {
    if (!kernel(g.problem, g.grad, image, begin, end, k.data() + image * ROWS * classes, scratch)) undefined = true;
  });
  if (undefined) report_undefined_label(g, target);
  return out;
}

Tensor region_sums(const Tensor& logits, const Tensor& target, std::optional<int64_t> ignore_index) {
  return sum_regions(logits, target, ignore_index, kAllRows);
}

Tensor region_sums_backward(const Tensor& grad_sums, const Tensor& logits, const Tensor& target,
                            std::optional<int64_t> ignore_index) {
  return differentiate(grad_sums, 1, logits, target, ignore_index);
}

Kind kind_of(int64_t kind) {
  check(kind >= 0 && kind < KINDS, "kind", "0..3", kind);
  return static_cast<Kind>(kind);
}

Rows rows_of(Kind kind) {
  switch (kind) {
    case GENERALIZED_DICE: return kGeneralizedRows;
    case CROSS_ENTROPY: return kCrossEntropyRows;
    default: return kTverskyRows;
  }
}

// sums [6, N, classes] -> (loss, d loss / d sums)
std::tuple<Tensor, Tensor> loss_from_sums(const Tensor& sums_in, std::optional<Tensor> weight, int64_t kind,
                                          double alpha, double beta, double gamma, double eps, bool pool_batch,
                                          bool include_background) {
  const LossOptions options{kind_of(kind), alpha, beta, gamma, eps};
  check(sums_in.dim() == 3 && sums_in.size(0) == ROWS && sums_in.size(2) > 0, "sums",
        "shape [6, N, classes] with at least one class", shape_string(sums_in));
  const Tensor sums = torch::stable::contiguous(sums_in);
  const int64_t images = sums.size(1), classes = sums.size(2), row = images * classes;
  std::vector<double> w(classes, 1.0), d(ROWS * row);
  if (weight) {
    check(weight->dim() == 1 && weight->size(0) == classes, "weight", "one number per class", shape_string(*weight));
    const Tensor dense_weight = torch::stable::contiguous(*weight);
    with_sums(dense_weight, "weight", [&](const auto* p) { std::copy_n(p, classes, w.begin()); });
  }
  if (!include_background) w[0] = 0;
  double loss = 0;
  with_sums(sums, "sums", [&](const auto* s) {
    if (pool_batch || options.kind == CROSS_ENTROPY) {
      std::vector<double> pooled(ROWS * classes), one(ROWS * classes);
      for (int64_t i = 0; i < ROWS * row; ++i) pooled[i / row * classes + i % classes] += static_cast<double>(s[i]);
      loss = loss_of_sums(pooled.data(), classes, classes, w.data(), options, one.data());
      for (int64_t i = 0; i < ROWS * row; ++i) d[i] = one[i / row * classes + i % classes];
      if (images == 0) loss = 0;
    } else {
      for (int64_t image = 0; image < images; ++image) {
        const int64_t at = image * classes;
        loss += loss_of_sums(s + at, row, classes, w.data(), options, d.data() + at);
      }
      if (images) loss /= static_cast<double>(images);
      for (double& v : d) v /= static_cast<double>(images);
    }
  });
  Tensor out = empty_dense({}, sums.scalar_type(), sums);
  Tensor coefficients = empty_dense({ROWS, images, classes}, sums.scalar_type(), sums);
  store_sums(out, &loss, 1);
  store_sums(coefficients, d.data(), ROWS * row);
  return {out, coefficients};
}

// Sums, loss and coefficients in one call.
std::tuple<Tensor, Tensor> region_loss(const Tensor& logits, const Tensor& target, std::optional<Tensor> weight,
                                       std::optional<int64_t> ignore_index, int64_t kind, double alpha, double beta,
                                       double gamma, double eps, bool pool_batch, bool include_background) {
  const Tensor sums = sum_regions(logits, target, ignore_index, rows_of(kind_of(kind)));
  return loss_from_sums(sums, weight, kind, alpha, beta, gamma, eps, pool_batch, include_background);
}

// The loss options are for the derivative of this op alone, which differentiates the whole loss again.
Tensor region_loss_backward(const Tensor& grad, const Tensor& logits, const Tensor& target,
                            const Tensor& coefficients, std::optional<Tensor>, std::optional<int64_t> ignore_index,
                            int64_t, double, double, double, double, bool, bool) {
  check(grad.numel() == 1, "grad", "one number", shape_string(grad));
  const double scale = with_sums(grad, "grad", [](const auto* p) { return static_cast<double>(*p); });
  return differentiate(coefficients, scale, logits, target, ignore_index);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(asegnet_fast, CPU, m) {
  m.impl("region_sums", TORCH_BOX(&region_sums));
  m.impl("region_sums_backward", TORCH_BOX(&region_sums_backward));
  m.impl("loss_from_sums", TORCH_BOX(&loss_from_sums));
  m.impl("region_loss", TORCH_BOX(&region_loss));
  m.impl("region_loss_backward", TORCH_BOX(&region_loss_backward));
}

}  // namespace asegnet::tversky
