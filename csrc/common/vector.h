// Vectors of the width the including file is compiled for. For simd.cpp only: the anonymous namespace gives each
// instruction set its own copy.
#pragma once

#include <cstdint>

namespace asegnet {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <typename A>
struct Lane;
template <>
struct Lane<float> {
  typedef int32_t Integer;
  typedef float Vector __attribute__((vector_size(kVectorBytes)));
  typedef int32_t Mask __attribute__((vector_size(kVectorBytes)));
};
template <>
struct Lane<double> {
  typedef int64_t Integer;
  typedef double Vector __attribute__((vector_size(kVectorBytes)));
  typedef int64_t Mask __attribute__((vector_size(kVectorBytes)));
};
template <typename A>
using Vector = typename Lane<A>::Vector;
template <typename A>
using Mask = typename Lane<A>::Mask;  // also a vector of integers as wide as A
template <typename A>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(A));

}  // namespace
}  // namespace asegnet
