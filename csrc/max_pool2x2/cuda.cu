// One thread owns one window of one channel; neighbours in a warp are neighbours in memory in both layouts.
// Bytes per window: 4 elements, 1 element and 1 code, each once. eager torch moves 8 bytes of index instead of
// the code, and fills with zeros before it scatters. Nothing is kept on chip.
// A code outside the map is dropped: its value is written nowhere, its gradient is zero.
#include "common/cuda.cuh"
#include "max_pool2x2/math.h"

namespace asegnet::max_pool2x2 {
namespace {

// Where a window lies. `inner` elements apart are horizontal neighbours: C for channels_last, 1 for NCHW.
struct Geometry {
  Dims full, pooled;
  int64_t inner;  // elements between columns
  int64_t outer;  // planes: N for channels_last, N*C for NCHW
};

Geometry geometry(const Dims& full, const Dims& pooled, bool channels_last) {
  return {full, pooled, channels_last ? full.c : 1, channels_last ? full.n : full.n * full.c};
}

struct Place {
  int64_t corner;  // offset of the window's first element in the large map
  int64_t row, column;
  bool has_right, has_below;
};

ASEGNET_HOST_DEVICE Place place_of(int64_t i, const Geometry& g) {
  const int64_t channel = i % g.inner, window = i / g.inner;
  const int64_t x = window % g.pooled.w, line = window / g.pooled.w;
  const int64_t y = line % g.pooled.h, plane = line / g.pooled.h;
  return {((plane * g.full.h + 2 * y) * g.full.w + 2 * x) * g.inner + channel, 2 * y, 2 * x,
          2 * x + 1 < g.full.w, 2 * y + 1 < g.full.h};
}

template <class Order>
__global__ void pool_kernel(const typename Order::Stored* __restrict__ x, typename Order::Stored* __restrict__ y,
                            uint8_t* __restrict__ code, Geometry g, int64_t count) {
  const int64_t row = g.full.w * g.inner;
  for (int64_t i = first_index(); i < count; i += index_step()) {
    const Place p = place_of(i, g);
    auto value = x[p.corner];
    uint8_t position = 0;
    const auto consider = [&](int64_t at, uint8_t here) {
      if (Order::wins(Order::key(x[at]), Order::key(value))) value = x[at], position = here;
    };
    if (p.has_right) consider(p.corner + g.inner, 1);
    if (p.has_below) consider(p.corner + row, 2);
    if (p.has_right && p.has_below) consider(p.corner + row + g.inner, 3);
    y[i] = value;
    code[i] = position;
  }
}

// The thread of the last window in a row or column also writes the odd line that belongs to no window.
template <class T>
__global__ void unpool_kernel(const T* __restrict__ y, const uint8_t* __restrict__ code, T* __restrict__ out,
                              Geometry g, int64_t count) {
  const int64_t row = g.full.w * g.inner;
  for (int64_t i = first_index(); i < count; i += index_step()) {
    const Place p = place_of(i, g);
    const int64_t columns = p.column + 2 == 2 * g.pooled.w ? g.full.w - p.column : 2;
    const int64_t rows = p.row + 2 == 2 * g.pooled.h ? g.full.h - p.row : 2;
    const T value = y[i];
    const int k = code[i];
    for (int64_t dy = 0; dy < rows; ++dy) {
      for (int64_t dx = 0; dx < columns; ++dx) {
        const bool here = dy < 2 && dx < 2 && k == 2 * dy + dx;
        out[p.corner + dy * row + dx * g.inner] = here ? value : T{0};
      }
    }
  }
}

template <class T>
__global__ void unpool_backward_kernel(const T* __restrict__ grad, const uint8_t* __restrict__ code,
                                       T* __restrict__ out, Geometry g, int64_t count) {
  const int64_t row = g.full.w * g.inner;
  for (int64_t i = first_index(); i < count; i += index_step()) {
    const Place p = place_of(i, g);
    const uint8_t k = code[i];
    const bool inside = is_code(k) && (p.has_right || !(k & 1)) && (p.has_below || !(k & 2));
    out[i] = inside ? grad[p.corner + (k >> 1) * row + (k & 1) * g.inner] : T{0};
  }
}

template <class Order>
void launch_pool(const Tensor& x, Tensor& y, Tensor& code, const Geometry& g, int64_t count) {
  using T = typename Order::Stored;
  pool_kernel<Order><<<blocks_for(count), kThreads, 0, current_stream(x)>>>(
      static_cast<const T*>(x.const_data_ptr()), static_cast<T*>(y.mutable_data_ptr()),
      static_cast<uint8_t*>(code.mutable_data_ptr()), g, count);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

template <class F>
void with_element(const Tensor& t, const F& f) {
  switch (t.element_size()) {
    case 2: return f(uint16_t{});
    case 4: return f(uint32_t{});
    case 8: return f(uint64_t{});
    default: fail("y", "elements of 2, 4 or 8 bytes", t.element_size());
  }
}

std::tuple<Tensor, Tensor> pool(const Tensor& x_in, bool ceil_mode) {
  const DeviceGuard guard(x_in.get_device_index());
  const Dims full = dims4(x_in, "x");
  const bool channels_last = is_channels_last(x_in);
  const Tensor x = dense(x_in, channels_last);
  const Dims pooled{full.n, full.c, pooled_size(full.h, ceil_mode), pooled_size(full.w, ceil_mode)};
  Tensor y = empty4(pooled, x.scalar_type(), x, channels_last);
  Tensor code = empty4(pooled, ScalarType::Byte, x, channels_last);
  const int64_t count = pooled.numel();
  if (count == 0) return {y, code};
  const Geometry g = geometry(full, pooled, channels_last);
  switch (float_of(x, "x")) {
    case kFloat32: launch_pool<ByValue<float>>(x, y, code, g, count); break;
    case kFloat64: launch_pool<ByValue<double>>(x, y, code, g, count); break;
    case kBFloat16: launch_pool<OrderBFloat16>(x, y, code, g, count); break;
    default: launch_pool<OrderFloat16>(x, y, code, g, count); break;
  }
  return {y, code};
}

void check_code(const Tensor& code, const Dims& pooled) {
  check(code.scalar_type() == ScalarType::Byte && code.is_cuda(), "code", "dtype uint8 on the GPU", "another tensor");
  check(dims4(code, "code") == pooled, "code", "the shape of the pooled map", shape_string(code));
}

Tensor unpool(const Tensor& y_in, const Tensor& code_in, int64_t height, int64_t width) {
  const DeviceGuard guard(y_in.get_device_index());
  const Dims pooled = dims4(y_in, "y");
  check_code(code_in, pooled);
  check(is_unpooled_size(height, pooled.h) && is_unpooled_size(width, pooled.w), "output_size",
        "sides of 2 h - 1 to 2 h + 1", std::to_string(height) + " x " + std::to_string(width));
  const bool channels_last = is_channels_last(y_in);
  const Tensor y = dense(y_in, channels_last), code = dense(code_in, channels_last);
  const Dims full{pooled.n, pooled.c, height, width};
  Tensor out = empty4(full, y.scalar_type(), y, channels_last);
  const int64_t count = pooled.numel();
  if (count == 0) return torch::stable::zero_(out);
  with_element(y, [&]<class T>(T) {
    unpool_kernel<T><<<blocks_for(count), kThreads, 0, current_stream(y)>>>(
        static_cast<const T*>(y.const_data_ptr()), static_cast<const uint8_t*>(code.const_data_ptr()),
        static_cast<T*>(out.mutable_data_ptr()), geometry(full, pooled, channels_last), count);
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

Tensor unpool_backward(const Tensor& grad_in, const Tensor& code_in) {
  const DeviceGuard guard(grad_in.get_device_index());
  const Dims full = dims4(grad_in, "grad"), pooled = dims4(code_in, "code");
  check_code(code_in, {full.n, full.c, pooled.h, pooled.w});
  check(is_unpooled_size(full.h, pooled.h) && is_unpooled_size(full.w, pooled.w), "grad",
        "sides of 2 h - 1 to 2 h + 1", shape_string(grad_in));
  const bool channels_last = is_channels_last(code_in);
  const Tensor grad = dense(grad_in, channels_last), code = dense(code_in, channels_last);
  Tensor out = empty4(pooled, grad.scalar_type(), grad, channels_last);
  const int64_t count = pooled.numel();
  if (count == 0) return out;
  with_element(grad, [&]<class T>(T) {
    unpool_backward_kernel<T><<<blocks_for(count), kThreads, 0, current_stream(grad)>>>(
        static_cast<const T*>(grad.const_data_ptr()), static_cast<const uint8_t*>(code.const_data_ptr()),
        static_cast<T*>(out.mutable_data_ptr()), geometry(full, pooled, channels_last), count);
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(asegnet_fast, CUDA, m) {
  m.impl("max_pool2x2", TORCH_BOX(&pool));
  m.impl("max_unpool2x2", TORCH_BOX(&unpool));
  m.impl("max_unpool2x2_backward", TORCH_BOX(&unpool_backward));
}

}  // namespace asegnet::max_pool2x2
