// Blocks of pixels: labels checked and narrowed, logits of any strides copied into planes, and planes back. For
// simd.cpp only.
#pragma once

#include "common/half.h"
#include "tversky/access.h"
#include "tversky/kernels.h"

namespace asegnet::tversky {
namespace {

// Calls run(offset, at, count) for each piece of the pixels [begin, end) that one innermost row holds.
template <class F>
ASEGNET_HOST_DEVICE void for_rows(const Pixels& pixels, const int64_t* strides, int64_t begin, int64_t end, F run) {
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
ASEGNET_HOST_DEVICE void read_row(const S* __restrict from, int64_t stride, T* __restrict to, int64_t count) {
  int64_t i = 0;
  if (stride == 1) {
    for (; i + kLanes<T> <= count; i += kLanes<T>) store_as(to + i, load_wide(from + i));
  }
  for (; i < count; ++i) to[i] = to_acc(from[i * stride]);
}

template <class S, class T>
ASEGNET_HOST_DEVICE void write_row(const T* __restrict from, S* __restrict to, int64_t stride, int64_t count) {
  int64_t i = 0;
  if (stride == 1) {
    for (; i + kLanes<T> <= count; i += kLanes<T>) store_narrow(to + i, load_as<Vec<T>>(from + i));
  }
  for (; i < count; ++i) to[i * stride] = from_acc<S>(from[i]);
}

// The label where it is a class that counts, else -1. Returns whether a label was undefined; then any may be wrong.
template <class L>
ASEGNET_HOST_DEVICE bool read_label_row(const L* __restrict from, int64_t stride, int32_t* __restrict to, int64_t count,
                                        int64_t classes, bool has_ignore, int64_t ignore) {
  using Wide = decltype(L{} + int32_t{});
  // An ignore_index the label type cannot hold matches no label.
  const bool can_ignore = has_ignore && static_cast<int64_t>(static_cast<L>(ignore)) == ignore;
  const Wide ignored = static_cast<Wide>(ignore);
  const auto read = [&](int64_t step) {
    Wide seen = 0;  // the bits of all labels: negative where one is
    int32_t most = 0;
    if (can_ignore) {
      for (int64_t i = 0; i < count; ++i) {
        const Wide label = from[i * step];
        const Wide skip = -static_cast<Wide>(label == ignored), kept = label & ~skip;
        seen |= kept;
        const int32_t low = static_cast<int32_t>(kept);
        most = low > most ? low : most;
        to[i] = low | static_cast<int32_t>(skip);
      }
    } else {
      for (int64_t i = 0; i < count; ++i) {
        const Wide label = from[i * step];
        seen |= label;
        const int32_t low = static_cast<int32_t>(label);
        most = low > most ? low : most;
        to[i] = low;
      }
    }
    return (seen >> 31) != 0 || most >= classes;
  };
  return stride == 1 ? read(1) : read(stride);
}

// Reads `count` labels from pixel `begin` on, and pads with -1 up to `padded`.
inline bool read_labels(const Problem& p, int64_t image, int64_t begin, int64_t count, int64_t padded,
                        int32_t* labels) {
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
  for (int64_t i = count; i < padded; ++i) labels[i] = -1;
  return undefined;
}

// Whether the channels of a block of `count` pixels are planes, or interleaved, that a kernel can use where they lie.
template <class T>
bool has_planes(const Problem& p, const Logits& x, int64_t count) {
  return p.channels > 1 && p.pixels.axes == 1 && x.strides[0] == 1 && count % kLanes<T> == 0;
}
template <class T>
bool is_interleaved(const Problem& p, const Logits& x, int64_t count) {
  return (p.channels == 2 || p.channels == 4) && p.pixels.axes == 1 && x.strides[0] == p.channels &&
         x.channel_stride == 1 && count % kLanes<T> == 0;
}

// The logits of `count` pixels, padded with 0.
template <class S, class T>
void read_logits(const Problem& p, int64_t image, int64_t begin, int64_t count, int64_t padded,
                 const Access<T, false>& planes) {
  const Logits& x = p.logits;
  const S* const base = static_cast<const S*>(x.data) + image * x.image_stride;
  const int64_t absent = p.channels == 1;  // the logit 0 of class 0
  for (int64_t c = 0; c < p.channels; ++c) {
    T* const plane = planes.data + (c + absent) * planes.stride;
    for_rows(p.pixels, x.strides, begin, begin + count, [&](int64_t offset, int64_t at, int64_t n) {
      read_row(base + c * x.channel_stride + offset, x.strides[p.pixels.axes - 1], plane + at, n);
    });
    for (int64_t i = count; i < padded; ++i) plane[i] = 0;
  }
  if (absent) {
    for (int64_t i = 0; i < padded; ++i) planes.data[i] = 0;
  }
}

template <class S, class T>
void write_gradient(const Problem& p, const Logits& x, int64_t image, int64_t begin, int64_t count,
                    const Access<T, false>& planes) {
  S* const base = static_cast<S*>(x.data) + image * x.image_stride;
  const int64_t absent = p.channels == 1;
  for (int64_t c = 0; c < p.channels; ++c) {
    const T* const plane = planes.data + (c + absent) * planes.stride;
    for_rows(p.pixels, x.strides, begin, begin + count, [&](int64_t offset, int64_t at, int64_t n) {
      write_row(plane + at, base + c * x.channel_stride + offset, x.strides[p.pixels.axes - 1], n);
    });
  }
}

}  // namespace
}  // namespace asegnet::tversky
