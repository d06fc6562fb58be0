// Batch normalisation and its gradient: the scalar rules, once for CPU and CUDA.
//
//   v  = scale (x - mean) + bias, y = max(0, v)  scale = weight / sqrt(var + eps); a large mean costs no digits so
//   g  = dy where y > 0, else 0                  (NaN lets it pass, as in torch)
//   dx = scale g + slope (x - mean) + offset     slope and offset carry the gradient of the batch's own statistics
//   dbias = sum g, dweight = sum g (x - mean) / sqrt(var + eps)
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace asegnet::bn_relu {

template <class A>
ASEGNET_HOST_DEVICE A affine(A x, A scale, A mean, A bias) { return (x - mean) * scale + bias; }

// Whether the ReLU cuts this off; false for NaN.
template <class A>
ASEGNET_HOST_DEVICE bool is_cut(A v) { return v <= A{0}; }

template <class A>
ASEGNET_HOST_DEVICE A gradient(A g, A x, A scale, A mean, A slope, A offset) {
  return g * scale + ((x - mean) * slope + offset);
}

// Joins the mean and the sum of squared deviations of two sets of values (Chan, Golub and LeVeque 1983).
// `share`: part of the values that are in the second set.
ASEGNET_HOST_DEVICE void join(double& mean, double& deviations, double mean_b, double deviations_b, double share,
                              double count_a) {
  const double difference = mean_b - mean;
  mean += difference * share;
  deviations += deviations_b + difference * difference * share * count_a;
}

}  // namespace asegnet::bn_relu
