#include "cpu/listed.h"

#include <algorithm>

#include "core/block_mask.h"

namespace fa2::cpu {

namespace {

// Calls body(packed queries, listed key blocks) for the rows of blocks that `queries` lie in, in
// each head of the mask.
template <class Body>
void for_rows(FwdParams const& params, ListedQueries const& queries, Body const& body) {
  if (queries.count == 0) return;
  int32_t const group = params.group();
  int64_t const row_queries = int64_t(BlockMask::kBlock) * group;
  int64_t const most = mask_blocks(params.seqs_k.max_seqlen);
  int32_t const first_head = mask_head(params, queries.head_begin * group);
  int32_t const last_head = mask_head(params, queries.head_end * group - 1);
  int64_t const start = queries.first + int64_t(params.positions.q_start) * group;
  int64_t const end = start + queries.count;
  for (int64_t first = start; first < end;) {
    int64_t const row = first / row_queries;
    int64_t const last = std::min(end, (row + 1) * row_queries);
    for (int32_t head = first_head; head <= last_head; ++head) {
      auto const [entry, entry_end] =
          listed_entries(params, queries.batch, head, static_cast<int32_t>(row));
      body(last - first, std::min(entry_end - entry, most));
    }
    first = last;
  }
}

}  // namespace

int64_t listed_scores(FwdParams const& params, ListedQueries const& queries) {
  int64_t scores = 0;
  int64_t rows = 0;  // of every head of the mask
  for_rows(params, queries, [&](int64_t count, int64_t blocks) {
    scores += count * blocks * BlockMask::kBlock;
    rows += count;
  });
  return rows == 0 ? 0 : scores / (rows / queries.count);
}

int64_t most_listed(FwdParams const& params, ListedQueries const& queries) {
  int64_t most = 0;
  for_rows(params, queries, [&](int64_t, int64_t blocks) { most = std::max(most, blocks); });
  return most;
}

}  // namespace fa2::cpu
