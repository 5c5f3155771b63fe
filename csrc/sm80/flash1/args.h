#pragma once

// FlashAttention-1's schedule, to be compared with the kernels beside it: nothing of the product
// launches it. Float16, heads of 64, self-attention.

#include <cstdint>

namespace fa2::sm80::flash1 {

inline constexpr int kHeadDim = 64;
inline constexpr int kBlockM = 16;      // queries of a step
inline constexpr int kBlockN = 256;     // keys that stay in shared memory while queries go by
inline constexpr int kBwdBlockN = 128;  // likewise in the backward pass
inline constexpr int kWarps = 4;        // each takes a slice of the keys: "sliced K"
inline constexpr int kThreads = kWarps * 32;

// Tensors are (batch, seqlen, heads, 64) without gaps; `pair` counts batch and head.
struct Args {
  void const* q;
  void const* k;
  void const* v;
  void* out;
  float* lse;   // (pair, seqlen), natural log
  float* sums;  // (pair, seqlen, 64): the output, or dQ, of the blocks of keys so far
  float* max;   // (pair, seqlen): m of the paper, as powers of two
  float* sum;   // (pair, seqlen): l of the paper
  int32_t batch;
  int32_t heads;
  int32_t seqlen;
  bool causal;
  float scale_log2;  // softmax_scale * log2(e)
};

struct BwdArgs {
  Args forward;  // its results are read; max and sum are not used
  void const* grad_out;
  void* grad_q;
  void* grad_k;
  void* grad_v;
  float softmax_scale;
};

}  // namespace fa2::sm80::flash1
