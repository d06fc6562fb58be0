// The attention gate's scalar formulas, forward and derivative (Budak et al. 2021, Eq. 1 and 2).
//
//     s = relu(Wx x (+) up(Wg g + b_g)),  alpha = sigmoid(w_psi . s + b_psi),  out = alpha x
//
#pragma once

#include <cmath>
#include <cstdint>

#include "common/host_device.h"

namespace asegnet::attention_gate {

// alpha of a logit. exp overflows to infinity for a very negative logit, which gives the right 0.
template <typename A>
ASEGNET_HOST_DEVICE A sigmoid(A logit) {
  return A(1) / (A(1) + std::exp(-logit));
}

// dL/d(logit) from dL/d(alpha), for values or vectors of A.
template <typename A, class V>
ASEGNET_HOST_DEVICE V logit_gradient(V dalpha, V alpha) {
  return dalpha * (A(1) - alpha) * alpha;
}

// Where a fine position reads the coarse grid: (1 - upper_weight) * u[lower] + upper_weight * u[upper].
template <typename A>
struct Tap {
  int64_t lower;
  int64_t upper;
  A upper_weight;
};

// torch.nn.functional.interpolate(mode="bilinear", align_corners=False), one axis. In double for every type: float
// leaves an error of fine_index times the unit roundoff in the weight.
template <typename A>
ASEGNET_HOST_DEVICE Tap<A> bilinear_tap(int64_t fine_index, int64_t fine, int64_t coarse) {
  const double scale = static_cast<double>(coarse) / static_cast<double>(fine);
  const double position = scale * (static_cast<double>(fine_index) + 0.5) - 0.5;
  const double source = position < 0 ? 0 : position;
  int64_t lower = static_cast<int64_t>(source);
  lower = lower < coarse - 1 ? lower : coarse - 1;
  const int64_t upper = lower < coarse - 1 ? lower + 1 : lower;
  const double weight = source - static_cast<double>(lower);
  return {lower, upper, static_cast<A>(weight < 1 ? weight : 1)};
}

// torch.nn.functional.interpolate(mode="nearest"), one axis. torch rounds the scale to float for every dtype,
// which decides the index where fine_index * coarse / fine is a whole number.
template <typename A>
ASEGNET_HOST_DEVICE Tap<A> nearest_tap(int64_t fine_index, int64_t fine, int64_t coarse) {
  const float scale = static_cast<float>(coarse) / static_cast<float>(fine);
  int64_t index = static_cast<int64_t>(static_cast<float>(fine_index) * scale);
  index = index < coarse - 1 ? index : coarse - 1;
  return {index, index, A(0)};
}

}  // namespace asegnet::attention_gate
