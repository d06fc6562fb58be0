// Tensors in, tensors out: layouts, threads over rows of windows, and the words of an error.
#include <algorithm>
#include <atomic>

#include "common/cache.h"
#include "common/tensor.h"
#include "max_pool2x2/kernels.h"
#include "max_pool2x2/math.h"

namespace asegnet::max_pool2x2 {
namespace {

// The rows of windows over a large map, N*h for channels_last and N*C*h for NCHW, as threads share them.
struct Rows {
  Geometry geometry;
  int64_t count;
  int64_t bytes;  // that the op moves: the large map, the small one and the codes, each once

  Rows(const Tensor& large, const Dims& pooled, bool channels_last) {
    const Dims full = dims4(large, "the large map");
    const int64_t image = large.stride(0), channel = large.stride(1), row = large.stride(2);
    geometry = {pooled.h, pooled.w, full.h, full.w, channels_last ? full.c : 1, channels_last ? 1 : full.c,
                image, channel, row, large.stride(3)};
    count = full.n * geometry.channels * pooled.h;
    bytes = (full.numel() + pooled.numel()) * static_cast<int64_t>(large.element_size()) + pooled.numel();
    const bool seamless = channels_last ? image == full.h * row
                                        : channel == full.h * row && image == full.c * channel;
    if (seamless && full.h == 2 * pooled.h) {  // all planes are one tall plane
      geometry.pooled_height = count, geometry.height = 2 * count, geometry.channels = 1;
    }
  }
};

// The large map as unpool_backward may read it: itself where what its kernel calls a column is contiguous (as in
// a slice of the channels, which the gradient of a concatenation is), else a dense copy.
Tensor readable(const Tensor& t, bool channels_last) {
  const int64_t inner = channels_last ? 1 : 3;
  return t.size(inner) <= 1 || t.stride(inner) == 1 ? t : dense(t, channels_last);
}

// Waking a thread takes some 10 us, in which one core moves about this many bytes.
constexpr int64_t kBytesPerThread = 256 << 10;

// Calls f(begin, end, stream) on ranges of rows, in threads where there is enough to do.
template <class F>
void in_threads(const Rows& rows, const F& f) {
  const int64_t rows_per_thread = std::max<int64_t>(1, kBytesPerThread * rows.count / rows.bytes);
  const bool stream = exceeds_cache(rows.bytes);
  parallel_for(0, rows.count, rows_per_thread, [&](int64_t begin, int64_t end) { f(begin, end, stream); });
}

// Runs again over the codes, on one thread, only to say where the first bad one is.
[[noreturn]] void report_bad_code(const Tensor& code, const Dims& full, const Dims& pooled, bool channels_last) {
  const auto* p = static_cast<const uint8_t*>(code.const_data_ptr());
  for (int64_t i = 0; i < pooled.numel(); ++i) {
    int64_t n, c, y, x, rest = i;
    const auto take = [&](int64_t size) { const int64_t v = rest % size; rest /= size; return v; };
    if (channels_last) {
      c = take(pooled.c), x = take(pooled.w), y = take(pooled.h), n = rest;
    } else {
      x = take(pooled.w), y = take(pooled.h), c = take(pooled.c), n = rest;
    }
    const bool inside = is_code(p[i]) && 2 * y + (p[i] >> 1) < full.h && 2 * x + (p[i] & 1) < full.w;
    if (inside) continue;
    std::ostringstream got;
    got << static_cast<int>(p[i]) << " at [" << n << ", " << c << ", " << y << ", " << x << "]";
    fail("code", "positions 0..3 that lie inside the unpooled map", got.str());
  }
  fail("code", "tensors that no other thread writes to", "codes that changed during the call");
}

void check_code(const Tensor& code, const Dims& pooled) {
  check(code.scalar_type() == ScalarType::Byte, "code", "dtype uint8", "another dtype");
  check(dims4(code, "code") == pooled, "code", "the shape of the pooled map", shape_string(code));
}

void check_size(int64_t size, int64_t pooled, const char* name) {
  check(is_unpooled_size(size, pooled), name, "2 h - 1, 2 h or 2 h + 1 for a pooled side h", size);
}

// 0, 1 and 2 for elements of 2, 4 and 8 bytes: the kernels move them, whatever they are.
int element_kind(const Tensor& t) {
  switch (t.element_size()) {
    case 2: return 0;
    case 4: return 1;
    case 8: return 2;
    default: fail("y", "elements of 2, 4 or 8 bytes", t.element_size());
  }
}

// (x [N, C, H, W], ceil_mode) -> (y [N, C, h, w], code uint8 [N, C, h, w])
std::tuple<Tensor, Tensor> pool(const Tensor& x_in, bool ceil_mode) {
  const Dims full = dims4(x_in, "x");
  const bool channels_last = is_channels_last(x_in);
  const Tensor x = dense(x_in, channels_last);
  const Dims pooled{full.n, full.c, pooled_size(full.h, ceil_mode), pooled_size(full.w, ceil_mode)};
  Tensor y = empty4(pooled, x.scalar_type(), x, channels_last);
  Tensor code = empty4(pooled, ScalarType::Byte, x, channels_last);
  const auto kernel = kernels().pool[float_of(x, "x")];
  if (pooled.numel() == 0) return {y, code};
  const Rows rows(x, pooled, channels_last);
  const void* px = x.const_data_ptr();
  void* py = y.mutable_data_ptr();
  auto* pcode = static_cast<uint8_t*>(code.mutable_data_ptr());
  in_threads(rows, [&](int64_t begin, int64_t end, bool stream) {
    kernel(px, py, pcode, rows.geometry, begin, end, stream);
  });
  return {y, code};
}

// (y [N, C, h, w], code, H, W) -> [N, C, H, W]
Tensor unpool(const Tensor& y_in, const Tensor& code_in, int64_t height, int64_t width) {
  const Dims pooled = dims4(y_in, "y");
  check_code(code_in, pooled);
  check_size(height, pooled.h, "height");
  check_size(width, pooled.w, "width");
  const bool channels_last = is_channels_last(y_in);
  const Tensor y = dense(y_in, channels_last), code = dense(code_in, channels_last);
  const Dims full{pooled.n, pooled.c, height, width};
  Tensor out = empty4(full, y.scalar_type(), y, channels_last);
  if (full.numel() == 0) return out;
  if (pooled.numel() == 0) return torch::stable::zero_(out);
  const Rows rows(out, pooled, channels_last);
  const auto kernel = kernels().unpool[element_kind(y)];
  const void* py = y.const_data_ptr();
  const auto* pcode = static_cast<const uint8_t*>(code.const_data_ptr());
  void* pout = out.mutable_data_ptr();
  std::atomic<bool> bad{false};
  in_threads(rows, [&](int64_t begin, int64_t end, bool stream) {
    if (!kernel(py, pcode, pout, rows.geometry, begin, end, stream)) bad = true;
  });
  if (bad) report_bad_code(code, full, pooled, channels_last);
  return out;
}

// (grad [N, C, H, W], code [N, C, h, w]) -> gradient of y [N, C, h, w]
Tensor unpool_backward(const Tensor& grad_in, const Tensor& code_in) {
  const Dims full = dims4(grad_in, "grad");
  const Dims pooled = dims4(code_in, "code");
  check_code(code_in, {full.n, full.c, pooled.h, pooled.w});
  check_size(full.h, pooled.h, "grad's height");
  check_size(full.w, pooled.w, "grad's width");
  const bool channels_last = is_channels_last(code_in);
  const Tensor grad = readable(grad_in, channels_last), code = dense(code_in, channels_last);
  Tensor out = empty4(pooled, grad.scalar_type(), grad, channels_last);
  if (pooled.numel() == 0) return out;
  const Rows rows(grad, pooled, channels_last);
  const auto kernel = kernels().unpool_backward[element_kind(grad)];
  const void* pgrad = grad.const_data_ptr();
  const auto* pcode = static_cast<const uint8_t*>(code.const_data_ptr());
  void* pout = out.mutable_data_ptr();
  std::atomic<bool> bad{false};
  in_threads(rows, [&](int64_t begin, int64_t end, bool stream) {
    if (!kernel(pgrad, pcode, pout, rows.geometry, begin, end, stream)) bad = true;
  });
  if (bad) report_bad_code(code, full, pooled, channels_last);
  return out;
}

// ---- torch's int64 indices -------------------------------------------------------------------------------

// Element strides of plane (n, c) and of a position within it.
struct Planes {
  Dims d;
  bool channels_last;
  int64_t start(int64_t n, int64_t c) const {
    return channels_last ? n * d.c * d.h * d.w + c : (n * d.c + c) * d.h * d.w;
  }
  int64_t step() const { return channels_last ? d.c : 1; }
};

// Calls f(plane of the small map, plane of the large one, threads' flag) for every plane; raises on a bad index.
template <class F>
void for_planes(const Planes& small, const Planes& large, const Tensor& indices, const F& f) {
  const auto* index = static_cast<const int64_t*>(indices.const_data_ptr());
  const int64_t count = small.d.h * small.d.w, size = large.d.h * large.d.w;
  std::atomic<int64_t> bad{-1};
  parallel_for(0, small.d.n * small.d.c, grain(size), [&](int64_t begin, int64_t end) {
    for (int64_t plane = begin; plane < end; ++plane) {
      const int64_t n = plane / small.d.c, c = plane % small.d.c;
      const int64_t from = small.start(n, c), to = large.start(n, c);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t at = from + i * small.step();
        if (index[at] < 0 || index[at] >= size) {
          bad = at;
        } else {
          f(at, to + index[at] * large.step());
        }
      }
    }
  });
  if (bad >= 0) fail("indices", "positions 0.." + std::to_string(size - 1) + " in the unpooled plane", index[bad.load()]);
}

template <class F>
void with_element_type(int kind, const F& f) {
  switch (kind) {
    case 0: return f(uint16_t{});
    case 1: return f(uint32_t{});
    default: return f(uint64_t{});
  }
}

void check_indices(const Tensor& indices, const Dims& pooled) {
  check(indices.scalar_type() == ScalarType::Long, "indices", "dtype int64", "another dtype");
  check(dims4(indices, "indices") == pooled, "indices", "the shape of the pooled map", shape_string(indices));
}

// (y [N, C, h, w], indices, H, W) -> [N, C, H, W]; of equal indices the last counts: a plane is one thread's.
Tensor unpool_indices(const Tensor& y_in, const Tensor& indices_in, int64_t height, int64_t width) {
  const Dims pooled = dims4(y_in, "y");
  check_indices(indices_in, pooled);
  check(height >= 0 && width >= 0, "output_size", "sides of at least 0", std::min(height, width));
  const bool channels_last = is_channels_last(y_in);
  const Tensor y = dense(y_in, channels_last), indices = dense(indices_in, channels_last);
  const Dims full{pooled.n, pooled.c, height, width};
  Tensor out = empty4(full, y.scalar_type(), y, channels_last);
  torch::stable::zero_(out);
  with_element_type(element_kind(y), [&]<class T>(T) {
    const auto* py = static_cast<const T*>(y.const_data_ptr());
    auto* pout = static_cast<T*>(out.mutable_data_ptr());
    for_planes({pooled, channels_last}, {full, channels_last}, indices,
               [&](int64_t at, int64_t target) { pout[target] = py[at]; });
  });
  return out;
}

// (grad [N, C, H, W], indices [N, C, h, w]) -> grad read at the indices
Tensor unpool_indices_backward(const Tensor& grad_in, const Tensor& indices_in) {
  const Dims full = dims4(grad_in, "grad"), pooled = dims4(indices_in, "indices");
  check_indices(indices_in, {full.n, full.c, pooled.h, pooled.w});
  const bool channels_last = is_channels_last(indices_in);
  const Tensor grad = dense(grad_in, channels_last), indices = dense(indices_in, channels_last);
  Tensor out = empty4(pooled, grad.scalar_type(), grad, channels_last);
  with_element_type(element_kind(grad), [&]<class T>(T) {
    const auto* pgrad = static_cast<const T*>(grad.const_data_ptr());
    auto* pout = static_cast<T*>(out.mutable_data_ptr());
    for_planes({pooled, channels_last}, {full, channels_last}, indices,
               [&](int64_t at, int64_t source) { pout[at] = pgrad[source]; });
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(asegnet_fast, CPU, m) {
  m.impl("max_pool2x2", TORCH_BOX(&pool));
  m.impl("max_unpool2x2", TORCH_BOX(&unpool));
  m.impl("max_unpool2x2_backward", TORCH_BOX(&unpool_backward));
  m.impl("max_unpool2d_indices", TORCH_BOX(&unpool_indices));
  m.impl("max_unpool2d_indices_backward", TORCH_BOX(&unpool_indices_backward));
}

}  // namespace asegnet::max_pool2x2
