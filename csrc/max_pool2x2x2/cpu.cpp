// Tensors in, tensors out: layouts, threads over rows of windows, and the words of an error.
#include <algorithm>
#include <atomic>

#include "common/tensor.h"
#include "max_pool2x2x2/kernels.h"
#include "max_pool2x2x2/math.h"

namespace asegnet::max_pool2x2x2 {
namespace {

struct Dims5 {
  int64_t n, c, side[3];  // depth, height, width
  int64_t numel() const { return times(times(n, c), times(times(side[0], side[1]), side[2])); }
  bool operator==(const Dims5&) const = default;
};

Dims5 dims5(const Tensor& t, const char* name) {
  check(t.dim() == 5, name, "a 5-D tensor", shape_string(t));
  return {t.size(0), t.size(1), {t.size(2), t.size(3), t.size(4)}};
}

// torch's rule, as is_channels_last of common/tensor.h has it for 4-D; _layout.py has the Python twin.
bool is_channels_last_3d(const Tensor& t) {
  if (t.dim() != 5 || t.stride(1) == 0) return false;
  int64_t least = 0;
  for (int64_t d : {1, 4, 3, 2, 0}) {
    if (t.size(d) == 0 || t.stride(d) < least) return false;
    if (d == 0 && least == t.stride(1)) return false;
    least = t.stride(d);
    if (t.size(d) > 1 && __builtin_mul_overflow(least, t.size(d), &least)) return false;
  }
  return true;
}

Tensor dense5(const Tensor& t, bool channels_last) {
  return torch::stable::contiguous(t, channels_last ? MemoryFormat::ChannelsLast3d : MemoryFormat::Contiguous);
}

Tensor empty5(const Dims5& d, ScalarType dtype, const Tensor& like, bool channels_last) {
  const int64_t sizes[] = {d.n, d.c, d.side[0], d.side[1], d.side[2]};
  int64_t strides[5], stride = 1;
  constexpr int kOrder[2][5] = {{4, 3, 2, 1, 0}, {1, 4, 3, 2, 0}};
  for (int axis : kOrder[channels_last]) {
    strides[axis] = stride;
    stride = times(stride, std::max<int64_t>(sizes[axis], 1));
  }
  return empty_strided(5, sizes, strides, dtype, like);
}

Geometry geometry(const Tensor& large, const Dims5& pooled, bool channels_last) {
  const Dims5 full = dims5(large, "the large map");
  Geometry g{};
  for (int i = 0; i < 3; ++i) g.pooled[i] = pooled.side[i], g.full[i] = full.side[i], g.stride[i] = large.stride(2 + i);
  g.inner = channels_last ? full.c : 1;
  g.channels = channels_last ? 1 : full.c;
  g.image = large.stride(0), g.channel = channels_last ? 0 : large.stride(1);
  return g;
}

// Calls f(begin, end) on ranges of rows, in threads where there is enough to do.
template <class F>
void in_threads(const Geometry& g, int64_t images, const F& f) {
  const int64_t rows = times(times(images, g.channels), times(g.pooled[0], g.pooled[1]));
  parallel_for(0, rows, grain(kElements * g.pooled[2] * g.inner), f);
}

// Runs again over the codes, on one thread, only to say where the first bad one is.
[[noreturn]] void report_bad_code(const Tensor& code, const Dims5& full, const Dims5& pooled, bool channels_last) {
  const auto* p = static_cast<const uint8_t*>(code.const_data_ptr());
  for (int64_t i = 0; i < pooled.numel(); ++i) {
    int64_t rest = i, c = 0, at[3];
    const auto take = [&](int64_t size) { const int64_t v = rest % size; rest /= size; return v; };
    if (channels_last) c = take(pooled.c);
    for (int d = 2; d >= 0; --d) at[d] = take(pooled.side[d]);
    if (!channels_last) c = take(pooled.c);
    bool inside = is_code(p[i]);
    for (int d = 0; d < 3; ++d) inside = inside && 2 * at[d] + (p[i] >> (2 - d) & 1) < full.side[d];
    if (inside) continue;
    std::ostringstream got;
    got << static_cast<int>(p[i]) << " at [" << rest << ", " << c << ", " << at[0] << ", " << at[1] << ", " << at[2] << "]";
    fail("code", "positions 0..7 that lie inside the unpooled map", got.str());
  }
  fail("code", "tensors that no other thread writes to", "codes that changed during the call");
}

void check_code(const Tensor& code, const Dims5& pooled) {
  check(code.scalar_type() == ScalarType::Byte, "code", "dtype uint8", "another dtype");
  check(dims5(code, "code") == pooled, "code", "the shape of the pooled map", shape_string(code));
}

int log2_element_size(const Tensor& t) {
  switch (t.element_size()) {
    case 1: return 0;
    case 2: return 1;
    case 4: return 2;
    case 8: return 3;
    default: fail("y", "elements of 1, 2, 4 or 8 bytes", t.element_size());
  }
}

// (x [N, C, D, H, W], ceil_mode) -> (y [N, C, d, h, w], code uint8 [N, C, d, h, w])
std::tuple<Tensor, Tensor> pool(const Tensor& x_in, bool ceil_mode) {
  Dims5 pooled = dims5(x_in, "x");
  const bool channels_last = is_channels_last_3d(x_in);
  const Tensor x = dense5(x_in, channels_last);
  for (int64_t& side : pooled.side) side = pooled_size(side, ceil_mode);
  Tensor y = empty5(pooled, x.scalar_type(), x, channels_last);
  Tensor code = empty5(pooled, ScalarType::Byte, x, channels_last);
  const auto kernel = kernels().pool[float_of(x, "x")];
  if (pooled.numel() == 0) return {y, code};
  const Geometry g = geometry(x, pooled, channels_last);
  const void* px = x.const_data_ptr();
  void* py = y.mutable_data_ptr();
  auto* pcode = static_cast<uint8_t*>(code.mutable_data_ptr());
  in_threads(g, pooled.n, [&](int64_t begin, int64_t end) { kernel(px, py, pcode, g, begin, end); });
  return {y, code};
}

// (y [N, C, d, h, w], code, D, H, W) -> [N, C, D, H, W]
Tensor unpool(const Tensor& y_in, const Tensor& code_in, int64_t depth, int64_t height, int64_t width) {
  const Dims5 pooled = dims5(y_in, "y");
  check_code(code_in, pooled);
  const Dims5 full{pooled.n, pooled.c, {depth, height, width}};
  for (int d = 0; d < 3; ++d) {
    check(is_unpooled_size(full.side[d], pooled.side[d]), "output_size",
          "2 h - 1, 2 h or 2 h + 1 for a pooled side h", full.side[d]);
  }
  const bool channels_last = is_channels_last_3d(y_in);
  const Tensor y = dense5(y_in, channels_last), code = dense5(code_in, channels_last);
  Tensor out = empty5(full, y.scalar_type(), y, channels_last);
  if (full.numel() == 0) return out;
  if (pooled.numel() == 0) return torch::stable::zero_(out);
  const Geometry g = geometry(out, pooled, channels_last);
  const auto kernel = kernels().unpool[log2_element_size(y)];
  const void* py = y.const_data_ptr();
  const auto* pcode = static_cast<const uint8_t*>(code.const_data_ptr());
  void* pout = out.mutable_data_ptr();
  std::atomic<bool> bad{false};
  in_threads(g, full.n, [&](int64_t begin, int64_t end) {
    if (!kernel(py, pcode, pout, g, begin, end)) bad = true;
  });
  if (bad) report_bad_code(code, full, pooled, channels_last);
  return out;
}

// (grad [N, C, D, H, W], code [N, C, d, h, w]) -> gradient of y [N, C, d, h, w]
Tensor unpool_backward(const Tensor& grad_in, const Tensor& code_in) {
  const Dims5 full = dims5(grad_in, "grad"), pooled = dims5(code_in, "code");
  check_code(code_in, {full.n, full.c, {pooled.side[0], pooled.side[1], pooled.side[2]}});
  for (int d = 0; d < 3; ++d) {
    check(is_unpooled_size(full.side[d], pooled.side[d]), "grad", "sides 2 h - 1, 2 h or 2 h + 1 for pooled sides h",
          shape_string(grad_in));
  }
  const bool channels_last = is_channels_last_3d(code_in);
  const Tensor grad = dense5(grad_in, channels_last), code = dense5(code_in, channels_last);
  Tensor out = empty5(pooled, grad.scalar_type(), grad, channels_last);
  if (pooled.numel() == 0) return out;
  const Geometry g = geometry(grad, pooled, channels_last);
  const auto kernel = kernels().unpool_backward[log2_element_size(grad)];
  const void* pgrad = grad.const_data_ptr();
  const auto* pcode = static_cast<const uint8_t*>(code.const_data_ptr());
  void* pout = out.mutable_data_ptr();
  std::atomic<bool> bad{false};
  in_threads(g, full.n, [&](int64_t begin, int64_t end) {
    if (!kernel(pgrad, pcode, pout, g, begin, end)) bad = true;
  });
  if (bad) report_bad_code(code, full, pooled, channels_last);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(asegnet_fast, CPU, m) {
  m.impl("max_pool2x2x2", TORCH_BOX(&pool));
  m.impl("max_unpool2x2x2", TORCH_BOX(&unpool));
  m.impl("max_unpool2x2x2_backward", TORCH_BOX(&unpool_backward));
}

}  // namespace asegnet::max_pool2x2x2
