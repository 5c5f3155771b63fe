#pragma once

// What is wrong with a part of longer sequences, in every family.

#include "core/positions.h"
#include "host/error.h"

namespace fa2 {

inline void check_positions(FwdParams const& params) {
  FA2_CHECK(params.partial_lse == nullptr || params.sink == nullptr,
            "a sink counts once and not in each part");
  if (!is_part(params)) return;
  bool const dense = params.seqs_q.cu_seqlens == nullptr && params.seqs_k.cu_seqlens == nullptr &&
                     params.pages.block_table == nullptr;
  FA2_CHECK(dense, "parts of sequences are dense queries and keys");
  Positions const& at = params.positions;
  auto const check = [](char const* name, int32_t start, int32_t rows, int32_t seqlen) {
    FA2_CHECK(start >= 0 && seqlen <= kMaxSeqlen && start <= seqlen - rows,
              "{} rows of {} from {} on are no part of {}", rows, name, start, seqlen);
  };
  check("q", at.q_start, params.seqs_q.max_seqlen, at.seqlen_q);
  check("k", at.k_start, params.seqs_k.max_seqlen, at.seqlen_k);
  bool const listed = params.block_mask.row_offsets != nullptr;
  FA2_CHECK(!listed || params.seqs_k.max_seqlen == at.seqlen_k,
            "a block mask needs all keys, got {} of {}", params.seqs_k.max_seqlen, at.seqlen_k);
}

}  // namespace fa2
