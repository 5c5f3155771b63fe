#pragma once

// One attention problem, as every family receives it. Pointers are device pointers for CUDA
// families and host pointers for the CPU. All strides count elements.

#include <cstdint>

#include "core/macros.h"

namespace fa2 {

enum class DType : int32_t { kFloat16, kBFloat16, kFloat32, kFloat64 };

// (batch, seqlen, num_heads, head_dim), or packed (total, num_heads, head_dim) with
// batch_stride 0. The last stride is 1.
struct TensorRef {
  void* data = nullptr;
  int64_t batch_stride = 0;
  int64_t row_stride = 0;
  int64_t head_stride = 0;
};

// Lengths of the sequences on one side (queries, or keys and values).
struct SeqLens {
  int32_t const* cu_seqlens = nullptr;  // (batch + 1,) for packed tensors, else null
  int32_t const* seqused = nullptr;     // (batch,) rows that count, or null for all of them
  int32_t max_seqlen = 0;               // dense: rows of every sequence; packed: an upper bound
  int64_t total = 0;                    // packed: rows of the tensor (bounds cu_seqlens); else 0
};

// Sliding window around the bottom-right diagonal; causal is right = 0. kUnlimited: no bound.
struct Window {
  static constexpr int32_t kUnlimited = 1 << 30;
  int32_t left = kUnlimited;
  int32_t right = kUnlimited;
};

// The window as keys see it, with the roles of queries and keys exchanged.
FA2_HD Window mirrored(Window const& window) { return {window.right, window.left}; }

// Longest sequence: keeps row + offset + window inside 32 bits.
inline constexpr int32_t kMaxSeqlen = (1 << 29) - 1;

// Score modifications that come before the softmax.
struct ScoreMod {
  float softcap = 0.f;                  // 0: none
  float const* alibi_slopes = nullptr;  // (num_heads,) or (batch, num_heads), or null
  int64_t alibi_batch_stride = 0;       // 0 for (num_heads,)
};

struct Dropout {
  float drop_prob = 0.f;               // 0: none
  int64_t const* rng_state = nullptr;  // (2,) = {seed, offset}; read where the kernel runs
};

struct FwdParams {
  DType dtype = DType::kFloat16;
  int32_t batch = 0;
  int32_t num_heads = 0;
  int32_t num_heads_kv = 0;  // divides num_heads; query head h reads head h / group
  int32_t head_dim = 0;

  TensorRef q;           // (batch, seqlen_q, num_heads, head_dim) or (total_q, num_heads, head_dim)
  TensorRef k;           // (batch, seqlen_k, num_heads_kv, head_dim) or (total_k, ...)
  TensorRef v;           // as k
  TensorRef out;         // as q
  float* lse = nullptr;  // (batch, num_heads, seqlen_q) or (num_heads, total_q), contiguous

  SeqLens seqs_q;
  SeqLens seqs_k;
  double softmax_scale = 1;  // double: the CPU family also computes in it
  Window window;
  ScoreMod score_mod;
  float const* sink = nullptr;  // (num_heads,) logits that join the denominator, or null
  Dropout dropout;

  FA2_HD int32_t group() const { return num_heads / num_heads_kv; }
};

// The gradient of a problem, by recomputation from what its forward pass left.
struct BwdParams {
  FwdParams forward;  // the problem; `out` and `lse` hold its results

  TensorRef grad_out;               // as out
  float const* grad_lse = nullptr;  // as lse, or null for zeros
  TensorRef grad_q;                 // as q. Of packed gradients, rows that belong to no sequence
  TensorRef grad_k;                 // as k  (and keys past seqused) are left as they are.
  TensorRef grad_v;                 // as v
  float* grad_sink = nullptr;       // (num_heads,), or null

  bool deterministic = false;  // bitwise the same in every run
  void* workspace = nullptr;   // as many bytes as the family asks for, aligned to 256
};

}  // namespace fa2
