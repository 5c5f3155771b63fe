#pragma once

// What the lists of a block mask cost a chunk of queries, before any of it is run.

#include <cstdint>

#include "core/params.h"

namespace fa2::cpu {

// Packed queries [first, first + count) of KV heads [head_begin, head_end) of one sequence.
struct ListedQueries {
  int32_t batch;
  int32_t head_begin;
  int32_t head_end;
  int64_t first;
  int64_t count;
};

// Scores that they are made of, for one KV head: the mean where heads have lists of their own.
int64_t listed_scores(FwdParams const& params, ListedQueries const& queries);

// Most key blocks that one of them lists.
int64_t most_listed(FwdParams const& params, ListedQueries const& queries);

}  // namespace fa2::cpu
