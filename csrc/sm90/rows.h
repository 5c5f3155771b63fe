#pragma once

#include "core/params.h"

namespace fa2::sm90 {

// Whether sequences end where the tensor does not: its map then begins before it (forward/args.h).
inline bool is_ragged(SeqLens const& seqs) {
  return seqs.cu_seqlens != nullptr || seqs.seqused != nullptr;
}

}  // namespace fa2::sm90
