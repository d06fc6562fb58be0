// Tensors of the stable ABI as the kernels see them: 4-D, in one of two dense layouts.
// Shapes and dtypes were checked in Python (op.py); what is checked here are values inside tensors, and the
// facts on which memory safety rests, for callers that reach the dispatcher directly.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace asegnet {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using torch::stable::parallel_for;

// "name: expected ..., got ...", the one form of every complaint. Becomes a Python RuntimeError.
template <class Got>
[[noreturn]] void fail(const std::string& name, const std::string& expected, const Got& got) {
  std::ostringstream message;
  message << name << ": expected " << expected << ", got " << got;
  throw std::runtime_error(message.str());
}

template <class Got>
void check(bool ok, const char* name, const char* expected, const Got& got) {
  if (!ok) fail(name, expected, got);
}

// A tensor's shape for a complaint, spelled only where there is one.
struct ShapeOf {
  const Tensor& tensor;
  friend std::ostream& operator<<(std::ostream& out, const ShapeOf& shape) {
    out << "[";
    for (int64_t d = 0; d < shape.tensor.dim(); ++d) out << (d ? ", " : "") << shape.tensor.size(d);
    return out << "]";
  }
};
inline ShapeOf shape_string(const Tensor& t) { return {t}; }

// A product of sizes, which must not wrap around: a small one would be allocated for it.
inline int64_t times(int64_t a, int64_t b) {
  int64_t product;
  if (__builtin_mul_overflow(a, b, &product)) {
    fail("size", "fewer than 2^63 elements", std::to_string(a) + " x " + std::to_string(b));
  }
  return product;
}

struct Dims {  // [N, C, H, W]
  int64_t n, c, h, w;
  int64_t numel() const { return n && c && h && w ? times(times(n, c), times(h, w)) : 0; }
  bool operator==(const Dims&) const = default;
};

inline Dims dims4(const Tensor& t, const char* name) {
  check(t.dim() == 4, name, "a 4-D tensor", shape_string(t));
  return {t.size(0), t.size(1), t.size(2), t.size(3)};
}

// torch's rule for the memory format a tensor's strides suggest; _layout.py has the Python twin.
inline bool is_channels_last(const Tensor& t) {
  if (t.dim() != 4 || t.stride(1) == 0) return false;
  int64_t least = 0;
  for (int64_t d : {1, 3, 2, 0}) {
    if (t.size(d) == 0 || t.stride(d) < least) return false;
    if (d == 0 && least == t.stride(1)) return false;  // [N, 1, 1, 1] and the like stay NCHW
    least = t.stride(d);
    if (t.size(d) > 1 && __builtin_mul_overflow(least, t.size(d), &least)) return false;
  }
  return true;
}

inline MemoryFormat memory_format(bool channels_last) {
  return channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

// Strides of a 4-D tensor, in elements.
struct Strides {
  int64_t image, channel, row, column;
};

inline Strides dense_strides(const Dims& d, bool channels_last) {  // as torch has them, empty sides counting 1
  const int64_t c = std::max<int64_t>(d.c, 1), h = std::max<int64_t>(d.h, 1), w = std::max<int64_t>(d.w, 1);
  const int64_t image = times(times(h, w), c);
  if (channels_last) return {image, 1, w * c, c};
  return {image, h * w, w, 1};
}

// `t`, which is 4-D, itself where it is dense in that layout already, else a copy that is.
inline Tensor dense(const Tensor& t, bool channels_last) {
  const Strides s = dense_strides({t.size(0), t.size(1), t.size(2), t.size(3)}, channels_last);
  const auto fits = [&](int64_t d, int64_t stride) { return t.size(d) == 1 || t.stride(d) == stride; };
  if (fits(0, s.image) && fits(1, s.channel) && fits(2, s.row) && fits(3, s.column)) return t;
  return torch::stable::contiguous(t, memory_format(channels_last));
}

// Uninitialised memory, not by way of the dispatcher, which costs a microsecond and, under
// torch.use_deterministic_algorithms, an extra write of all of it: kernels write every element.
inline Tensor empty_strided(int64_t dims, const int64_t* sizes, const int64_t* strides, ScalarType dtype,
                            const Tensor& like) {
  const auto device = like.device();
  const auto type = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(dims, sizes, strides, type,
                                                         static_cast<int32_t>(device.type()), device.index(), &handle));
  return Tensor(handle);
}

// In the usual order of dimensions, any number of them up to 8.
inline Tensor empty_dense(std::initializer_list<int64_t> sizes, ScalarType dtype, const Tensor& like) {
  int64_t strides[8], stride = 1, d = static_cast<int64_t>(sizes.size());
  for (const int64_t* size = sizes.end(); size != sizes.begin(); stride = times(stride, std::max<int64_t>(*size, 1))) {
    --size;
    strides[--d] = stride;
  }
  return empty_strided(static_cast<int64_t>(sizes.size()), sizes.begin(), strides, dtype, like);
}

inline Tensor empty4(const Dims& d, ScalarType dtype, const Tensor& like, bool channels_last) {
  const int64_t sizes[] = {d.n, d.c, d.h, d.w};
  const Strides s = dense_strides(d, channels_last);
  const int64_t strides[] = {s.image, s.channel, s.row, s.column};
  return empty_strided(4, sizes, strides, dtype, like);
}

// The float types every kernel table has one entry for, in this order.
enum Float { kFloat32, kFloat64, kBFloat16, kFloat16, kFloats };

inline Float float_of(const Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return kFloat32;
    case ScalarType::Double: return kFloat64;
    case ScalarType::BFloat16: return kBFloat16;
    case ScalarType::Half: return kFloat16;
    default: fail(name, "dtype float32, float64, bfloat16 or float16", "another dtype");
  }
}

// Rows are handed to threads in pieces of about this many elements; smaller work stays on one thread.
constexpr int64_t kGrain = 32768;

inline int64_t grain(int64_t elements_per_item) {
  return elements_per_item >= kGrain ? 1 : (kGrain + elements_per_item - 1) / (elements_per_item ? elements_per_item : 1);
}

}  // namespace asegnet
