// A small matrix product on tiles that lie in cache. For simd.cpp only.
#pragma once

#include <cstdint>

#include "attention_gate/vector.h"

namespace asegnet::attention_gate {
namespace {

// c[M, N] = a[M, K] b[K, N] (+ c). `a` has any strides; rows of b and c are contiguous, and N counts whole panels.
template <typename A>
struct Product {
  int64_t m, n, k;
  const A* a;
  int64_t a_row, a_column;
  const A* b;
  int64_t b_row;
  A* c;
  int64_t c_row;
  bool accumulate;
};

// R rows by V vectors of c stay in registers while k runs.
template <int R, int V, typename A>
ASEGNET_HOST_DEVICE void product_block(const Product<A>& p, int64_t row, int64_t column) {
  constexpr int L = kLanes<A>;
  Vector<A> sum[R][V];
  const A* __restrict a = p.a + row * p.a_row;
  const A* __restrict b = p.b + column;
  A* __restrict c = p.c + row * p.c_row + column;
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sum[r][v] = p.accumulate ? load(c + r * p.c_row + v * L) : Vector<A>{};
  }
  for (int64_t k = 0; k < p.k; ++k) {
    Vector<A> right[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) right[v] = load(b + v * L);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vector<A> left = broadcast(a[r * p.a_row]);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[r][v] += left * right[v];
    }
    a += p.a_column;
    b += p.b_row;
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store(c + r * p.c_row + v * L, sum[r][v]);
  }
}

template <int R, int V, typename A>
inline void product_columns(const Product<A>& p, int64_t column) {
  int64_t row = 0;
  for (; row + R <= p.m; row += R) product_block<R, V>(p, row, column);
  if constexpr (R > 4) {
    for (; row + 4 <= p.m; row += 4) product_block<4, V>(p, row, column);
  }
  if constexpr (R > 2) {
    for (; row + 2 <= p.m; row += 2) product_block<2, V>(p, row, column);
  }
  for (; row < p.m; ++row) product_block<1, V>(p, row, column);
}

// Block shapes that fill the registers: 32 with AVX-512, 16 otherwise.
template <typename A>
inline void product(const Product<A>& p) {
  constexpr int L = kLanes<A>;
  int64_t column = 0;
#if defined(__AVX512F__)
  for (; column + 4 * L <= p.n; column += 4 * L) product_columns<6, 4>(p, column);
  for (; column + 2 * L <= p.n; column += 2 * L) product_columns<8, 2>(p, column);
  for (; column < p.n; column += L) product_columns<8, 1>(p, column);
#elif defined(__AVX2__)
  for (; column < p.n; column += 2 * L) product_columns<6, 2>(p, column);
#else
  for (; column < p.n; column += 2 * L) product_columns<4, 2>(p, column);
#endif
}

}  // namespace
}  // namespace asegnet::attention_gate
