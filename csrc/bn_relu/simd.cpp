// Passes over memory: statistics read x; forward reads x and writes y; reduce reads x and dy; backward reads x and dy
// and writes dx.
#include "bn_relu/kernels.h"
#include "bn_relu/runs.h"
#include "bn_relu/windows.h"

namespace asegnet::bn_relu {
namespace {

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
