#pragma once

// Where queries and keys stand, if the call is a part of longer sequences: what is masked, how far
// a key is, which entries are dropped and in which way a row is computed follows from these.

#include "core/macros.h"
#include "core/mask.h"
#include "core/params.h"
#include "core/seq_info.h"

namespace fa2 {

FA2_HD bool is_part(FwdParams const& p) { return p.positions.seqlen_q != 0; }

// Lengths of the whole sequences.
FA2_HD int32_t whole_seqlen_q(FwdParams const& p, SeqInfo const& q_seq) {
  return is_part(p) ? p.positions.seqlen_q : q_seq.length;
}
FA2_HD int32_t whole_seqlen_k(FwdParams const& p, SeqInfo const& k_seq) {
  return is_part(p) ? p.positions.seqlen_k : k_seq.length;
}

// The key that the first query stands on, counted from the first key of the call; row r stands on
// the r-th after it.
FA2_HD int32_t first_diagonal(FwdParams const& p, SeqInfo const& q_seq, SeqInfo const& k_seq) {
  Positions const& at = p.positions;
  return whole_seqlen_k(p, k_seq) - whole_seqlen_q(p, q_seq) + at.q_start - at.k_start;
}

// KV heads of all of the problem, of which the call may have some.
FA2_HD int32_t whole_num_heads_kv(FwdParams const& p) {
  return p.num_heads_total == 0 ? p.num_heads_kv : p.num_heads_total / p.group();
}

}  // namespace fa2
