#include "sm80/append.h"

#include <limits>

#include "core/append.h"
#include "host/error.h"
#include "sm80/registry.h"

namespace fa2::sm80 {

void append(AppendParams const& p, cudaStream_t stream) {
  int32_t const rows = append_rows(p);
  int64_t const grid = int64_t(p.batch) * rows;
  if (grid == 0) return;
  FA2_CHECK(grid <= std::numeric_limits<int32_t>::max(),
            "{} rows to append or rotate; a launch holds at most 2^31 - 1", grid);
  find_cache(p.dtype).append({p, rows}, int(grid), stream);
}

}  // namespace fa2::sm80
