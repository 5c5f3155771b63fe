#pragma once

// What is wrong with a block mask, in every CUDA family, as far as the host sees it.

#include "core/block_mask.h"
#include "host/error.h"

namespace fa2 {

inline void check_block_mask(FwdParams const& p) {
  if (p.block_mask.row_offsets == nullptr) return;
  char const* const wrong = wrong_block_mask(p);
  FA2_CHECK(wrong == nullptr, "{}", wrong);
  bool const whole = p.seqs_q.seqused == nullptr && p.seqs_k.seqused == nullptr &&
                     p.seqs_k.leftpad == nullptr && p.num_splits <= 1;
  FA2_CHECK(whole, "a block mask is for whole sequences that are not split");
  FA2_CHECK(p.window.left == Window::kUnlimited && p.window.right == Window::kUnlimited,
            "a block mask goes without a window, which it can say itself");
  FA2_CHECK(p.positions.q_start % BlockMask::kBlock == 0,
            "queries under a block mask begin with one of its blocks of {}, got those from {} on",
            BlockMask::kBlock, p.positions.q_start);
  int32_t const heads = p.block_mask.heads;
  FA2_CHECK(heads == 1 || heads == p.num_heads_kv || heads == p.num_heads,
            "a block mask of {} heads for {} query heads and {} KV heads", heads, p.num_heads,
            p.num_heads_kv);
}

}  // namespace fa2
