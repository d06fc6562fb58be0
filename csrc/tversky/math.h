// Region losses: the formulas, once for every device.
//
// Per pixel, the two-class case of softmax is written on V, which may be a scalar or a vector of lanes.
// Per image, the loss and its derivative with respect to the sums are written in double.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/host_device.h"

namespace asegnet::tversky {

// Rows of a sums tensor and of the coefficients d loss / d sums; as reference.Sums.
enum Row : int { TP, FP, FN, COUNT, SUM_P2, CE, ROWS };

// Loss kinds; as in reference.py.
enum Kind : int64_t { TVERSKY, LITERAL_DICE, GENERALIZED_DICE, CROSS_ENTROPY, KINDS };

struct LossOptions {
  Kind kind;
  double alpha;  // weight of false positives
  double beta;   // weight of false negatives
  double gamma;  // exponent 1 / gamma
  double eps;
};

// d logit of class 1 in two-class softmax; class 0 gets the negative.
//   p0, p1   probabilities
//   d01      d loss / d p1 - d loss / d p0 at this pixel
//   d_ce     d loss / d(-log p[label]);  ce_slope is p1 - [label = 1]
template <class V>
ASEGNET_HOST_DEVICE V binary_gradient(V p0, V p1, V d01, V d_ce, V ce_slope) {
  return p0 * p1 * d01 + d_ce * ce_slope;
}

// Loss of one image (or of one pooled batch) and, in d, its derivative.
// s[row * row_stride + c] are the sums of class c, w[c] the class weights; d has the layout of s.
template <class S>
ASEGNET_HOST_DEVICE double loss_of_sums(const S* s, int64_t row_stride, int64_t classes, const double* w,
                                       const LossOptions& o, double* d) {
  auto at = [&](int row, int64_t c) { return static_cast<double>(s[row * row_stride + c]); };
  auto put = [&](int row, int64_t c) -> double& { return d[row * row_stride + c]; };
  for (int row = 0; row < ROWS; ++row)
    for (int64_t c = 0; c < classes; ++c) put(row, c) = 0;

  if (o.kind == CROSS_ENTROPY) {
    double total = 0, sum = 0;
    for (int64_t c = 0; c < classes; ++c) {
      total += w[c] * at(COUNT, c);
      sum += w[c] * at(CE, c);
    }
    if (total == 0) return 0;  // every pixel ignored: no loss, no gradient
    for (int64_t c = 0; c < classes; ++c) {
      put(CE, c) = w[c] / total;
      put(COUNT, c) = -w[c] * (sum / total) / total;
    }
    return sum / total;
  }

  if (o.kind == GENERALIZED_DICE) {
    auto bounded = [&](double count) { return count * count < o.eps ? o.eps : count * count; };
    double numerator = o.eps, denominator = o.eps;
    for (int64_t c = 0; c < classes; ++c) {
      const double wc = w[c] / bounded(at(COUNT, c));
      numerator += 2 * wc * at(TP, c);
      denominator += wc * (at(SUM_P2, c) + at(COUNT, c));
    }
    const double ratio = numerator / denominator;
    for (int64_t c = 0; c < classes; ++c) {
      const double count = at(COUNT, c), wc = w[c] / bounded(count);
      const double dw = count * count < o.eps || count == 0 ? 0 : -2 * wc / count;
      put(TP, c) = -2 * wc / denominator;
      put(SUM_P2, c) = ratio * wc / denominator;
      put(COUNT, c) = (ratio * (dw * (at(SUM_P2, c) + count) + wc) - 2 * dw * at(TP, c)) / denominator;
    }
    return 1 - ratio;
  }

  // Tversky: u = 1 - TS as a quotient of sums, so that a good prediction loses no digits to 1 - TS.
  // The printed Dice, without its factor 2, is the same quotient with tp among the errors.
  const bool literal = o.kind == LITERAL_DICE;
  const double alpha = literal ? 1 : o.alpha, beta = literal ? 1 : o.beta;
  double loss = 0;
  for (int64_t c = 0; c < classes; ++c) {
    const double tp = at(TP, c);
    const double errors = alpha * at(FP, c) + beta * at(FN, c) + (literal ? tp : 0);
    const double denominator = tp + errors + o.eps;
    const double u = errors / denominator;
    double value = u, slope = 1;
    if (o.gamma != 1) {
      // The slope of u^(1/gamma) is infinite at u = 0; it is defined as 0 there.
      value = u == 0 ? 0 : std::pow(u, 1 / o.gamma);
      slope = u == 0 ? 0 : std::pow(u, 1 / o.gamma - 1) / o.gamma;
    }
    const double d_errors = w[c] * slope * ((tp + o.eps) / denominator) / denominator;
    loss += w[c] * value;
    put(TP, c) = (literal ? d_errors : 0) - w[c] * slope * u / denominator;
    put(FP, c) = alpha * d_errors;
    put(FN, c) = beta * d_errors;
  }
  return loss;
}

}  // namespace asegnet::tversky
