#include "sm80/append.h"

#include <algorithm>
#include <limits>

#include "host/error.h"
#include "sm80/registry.h"

namespace fa2::sm80 {

void append(AppendParams const& p, cudaStream_t stream) {
  int32_t const rows = std::max(p.new_k.data != nullptr ? p.seqs_new.max_seqlen : 0,
                                p.q.data != nullptr ? p.seqs_q.max_seqlen : 0);
  int64_t const grid = int64_t(p.batch) * rows;
  if (grid == 0) return;
  FA2_CHECK(grid <= std::numeric_limits<int32_t>::max(),
            "{} rows to append or rotate; a launch holds at most 2^31 - 1", grid);
  find_cache(p.dtype).append({p, rows}, int(grid), stream);
}

}  // namespace fa2::sm80
