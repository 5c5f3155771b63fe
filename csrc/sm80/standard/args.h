#pragma once

// Standard attention, whose products and softmax are kernels of their own, to be compared with the
// kernels beside it: nothing of the product launches it. Float16.

#include <cstdint>

namespace fa2::sm80::standard {

// Of each batch and head a matrix with rows of neighbours: (batch, rows, heads, cols), or (batch,
// heads, rows, cols).
struct Matrix {
  void* data;
  int64_t batch_stride;
  int64_t head_stride;
  int64_t row_stride;
};

// Which way the factors of C = A B lie.
enum class Form : int32_t {
  kByRows,       // A (rows, depth), B transposed (cols, depth)
  kByCols,       // A (rows, depth), B (depth, cols)
  kTransposedA,  // A transposed (depth, rows), B (depth, cols)
};

struct ProductArgs {
  Matrix a, b, c;
  int32_t batch, heads;
  int32_t rows, cols, depth;
  float scale;  // of C
};

// P = softmax(S), or dS = P * (dP - rowsum(P * dP)), by rows. One warp, a CTA, has a row.
struct SoftmaxArgs {
  Matrix in;    // S, or P
  Matrix grad;  // dP; unused forward
  Matrix out;   // P, or dS
  int32_t batch, heads, seqlen;
  bool causal;
};

inline constexpr int kTileRows = 128, kTileDepth = 64;
inline constexpr int kMostSeqlen = 32768;  // a row is held in shared memory

}  // namespace fa2::sm80::standard
