// Raw-pointer kernels of bn_relu: a run of contiguous memory whose element i belongs to channel i % channels.
// A part of a channels_last map is such a run of all channels; a part of an NCHW plane is one of a single channel.
#pragma once

#include <cstdint>

#include "common/half.h"
#include "common/isa.h"

namespace asegnet::bn_relu {

// One number per channel of the run, see math.h. Backward alone needs slope and offset, which are null where
// the statistics are constants.
struct Channels {
  int64_t count;
  const double *scale, *mean, *bias, *slope, *offset;
  bool relu;
};

// `pairs` times two rows above each other, of a channels_last map or of a plane, `width` columns each, and their
// windows: pooled and code have width / 2 columns. There y is null where it is not wanted, dy where it does not exist.
struct Rows {
  int64_t width, pairs;
  void* pooled;
  uint8_t* code;
};

struct Kernels {
  // Chooses `first` [channels], values near the means, and adds to sums [2][channels] x - first and (x - first)^2.
  void (*statistics[4])(const void* x, int64_t size, int64_t channels, double* first, double* sums, void* scratch);
  void (*forward[4])(const void* x, void* y, int64_t size, const Channels& c, bool stream, void* scratch);
  // Adds to sums [2][channels] those of g and g (x - mean).
  void (*reduce[4])(const void* dy, const void* x, int64_t size, const Channels& c, double* sums, void* scratch);
  void (*backward[4])(const void* dy, const void* x, void* dx, int64_t size, const Channels& c, bool stream,
                      void* scratch);
  // The same over two rows and their windows; an odd last column belongs to no window.
  void (*pool_forward[4])(const void* x, void* y, const Rows& rows, const Channels& c, bool stream,
                          void* scratch);
  void (*pool_reduce[4])(const void* dy, const void* x, const Rows& rows, const Channels& c, double* sums,
                         void* scratch);
  void (*pool_backward[4])(const void* dy, const void* x, void* dx, const Rows& rows, const Channels& c, bool stream,
                           void* scratch);
  // NCHW: the pool of two rows, and dy plus the pool's gradient of two rows of one plane.
  void (*pool_plane[4])(const void* y, const Rows& rows);
  void (*unpool_plane[4])(const void* dy, const Rows& rows, void* sum);
  // Bytes of scratch memory for runs of so many channels.
  int64_t (*scratch_bytes[4])(int64_t channels);
};

ASEGNET_DECLARE_KERNELS(Kernels)

}  // namespace asegnet::bn_relu
