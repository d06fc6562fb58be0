// A small matrix product on tiles that lie in cache. For simd.cpp only.
#pragma once

#include <cstdint>

#include "attention_gate/kernels.h"
#include "attention_gate/vector.h"

namespace asegnet::attention_gate {
namespace {

// The lines of memory that the next tile will read, asked for while this one is computed: `rows` runs of `lines`
// cache lines each, `row_step` bytes apart.
struct Ahead {
  const char* row = nullptr;
  int64_t row_step = 0, lines = 0, rows = 0, line = 0;

  ASEGNET_HOST_DEVICE void step() {
    if (rows <= 0) return;
    __builtin_prefetch(row + line * 64);
    if (++line == lines) line = 0, row += row_step, --rows;
  }
};

template <typename A>
constexpr int64_t kPanel = kPanelBytes / static_cast<int64_t>(sizeof(A));

// One operand. An element (i, j), with j along k for `a` and along n for `b`, lies at
// i * row + j / kPanel * panel + j % kPanel * column; `b` has column 1.
template <typename A>
struct Operand {
  const A* data;
  int64_t row, column, panel;
};

// A packed `b` with k rows.
template <typename A>
ASEGNET_HOST_DEVICE Operand<A> panels(const A* data, int64_t k) {
  return {data, kPanel<A>, 1, k * kPanel<A>};
}

// c[M, N] = a[M, K] b[K, N] (+ c). Rows of c are contiguous, and N counts whole panels.
template <typename A>
struct Product {
  int64_t m, n, k;
  Operand<A> a, b;
  A* c;
  int64_t c_row;
  bool accumulate;
};

// R rows by V vectors of c stay in registers while k runs.
template <int R, int V, typename A>
ASEGNET_HOST_DEVICE void product_block(const Product<A>& p, int64_t row, int64_t column, Ahead& shared_ahead) {
  constexpr int L = kLanes<A>;
  constexpr int64_t W = kPanel<A>;
  const int64_t a_row = p.a.row, a_column = p.a.column, b_row = p.b.row, b_panel = p.b.panel;
  const A* __restrict b = p.b.data + column / W * b_panel + column % W;
  A* __restrict c = p.c + row * p.c_row + column;
  Ahead ahead = shared_ahead;
  Vector<A> sum[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) sum[r][v] = p.accumulate ? load(c + r * p.c_row + v * L) : Vector<A>{};
  }
  for (int64_t start = 0; start < p.k; start += W) {
    const A* __restrict a = p.a.data + row * a_row + start / W * p.a.panel;
    const int64_t steps = p.k - start < W ? p.k - start : W;
    const auto step = [&]() __attribute__((always_inline)) {
      Vector<A> right[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) right[v] = load(b + v * L / W * b_panel + v * L % W);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const Vector<A> left = broadcast(a[r * a_row]);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sum[r][v] += left * right[v];
      }
      a += a_column;
      b += b_row;
    };
    int64_t k = 0;
    for (; k + 4 <= steps; k += 4) {
      ahead.step();
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) step();
    }
    for (; k < steps; ++k) step();
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store(c + r * p.c_row + v * L, sum[r][v]);
  }
  shared_ahead = ahead;
}

template <int R, int V, typename A>
inline void product_columns(const Product<A>& p, int64_t column, Ahead& ahead) {
  int64_t row = 0;
  for (; row + R <= p.m; row += R) product_block<R, V>(p, row, column, ahead);
  if constexpr (R > 8) {
    for (; row + 8 <= p.m; row += 8) product_block<8, V>(p, row, column, ahead);
  }
  if constexpr (R > 4) {
    for (; row + 4 <= p.m; row += 4) product_block<4, V>(p, row, column, ahead);
  }
  if constexpr (R > 2) {
    for (; row + 2 <= p.m; row += 2) product_block<2, V>(p, row, column, ahead);
  }
  for (; row < p.m; ++row) product_block<1, V>(p, row, column, ahead);
}

// Block shapes that fill the registers: 32 with vectors of 64 bytes, 16 otherwise.
template <typename A>
inline void product(const Product<A>& p, Ahead& ahead) {
  constexpr int L = kLanes<A>;
  int64_t column = 0;
  if constexpr (kVectorBytes == 64) {
    for (; column + 2 * L <= p.n; column += 2 * L) product_columns<12, 2>(p, column, ahead);
    for (; column < p.n; column += L) product_columns<12, 1>(p, column, ahead);
  } else if constexpr (kVectorBytes == 32) {
    for (; column < p.n; column += 2 * L) product_columns<6, 2>(p, column, ahead);
  } else {
    for (; column < p.n; column += 2 * L) product_columns<4, 2>(p, column, ahead);
  }
}

template <typename A>
inline void product(const Product<A>& p) {
  Ahead nothing;
  product(p, nothing);
}

}  // namespace
}  // namespace asegnet::attention_gate
