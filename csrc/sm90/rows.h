#pragma once

#include "core/params.h"

namespace fa2::sm90 {

// Whether sequences end where the tensor does not: its map then begins before it (forward/args.h).
inline bool is_ragged(SeqLens const& seqs) {
  return seqs.cu_seqlens != nullptr || seqs.seqused != nullptr;
}

inline bool has_rows(SeqLens const& seqs) {
  return seqs.max_seqlen > 0 && (seqs.cu_seqlens == nullptr || seqs.total > 0);
}

}  // namespace fa2::sm90
