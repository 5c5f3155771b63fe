#pragma once

// What is wrong with the biases of a problem, in every CUDA family.

#include "core/params.h"
#include "host/error.h"

namespace fa2 {

inline void check_bias(char const* name, Bias const& bias, FwdParams const& p) {
  if (bias.data == nullptr) return;
  bool const dense = p.seqs_q.cu_seqlens == nullptr && p.seqs_k.cu_seqlens == nullptr &&
                     p.seqs_k.seqused == nullptr && p.seqs_k.leftpad == nullptr &&
                     p.pages.block_table == nullptr && p.num_splits <= 1;
  FA2_CHECK(dense, "{} is for dense queries and keys that are not split", name);
  FA2_CHECK(bias.dtype == DType::kFloat32 || bias.dtype == p.dtype, "{} in {} for q in {}", name,
            to_string(bias.dtype), to_string(p.dtype));
}

inline void check_biases(FwdParams const& params) {
  check_bias("bias", params.score_mod.bias, params);
  check_bias("relative_bias", params.score_mod.relative_bias, params);
}

}  // namespace fa2
