#pragma once

// Which keys a query sees. Every family asks here.

#include "core/macros.h"
#include "core/params.h"

namespace fa2 {

struct ColRange {
  int32_t begin;
  int32_t end;  // exclusive; not above begin when nothing is visible
};

// Keys visible to query `row`. Windows are aligned to the bottom-right corner: the last query
// stands on the diagonal of the last key.
FA2_HD ColRange visible_cols(int32_t row, int32_t seqlen_q, int32_t seqlen_k,
                             Window const& window) {
  int32_t const diagonal = row + seqlen_k - seqlen_q;
  int32_t const begin = diagonal - window.left;
  int32_t const end = diagonal + window.right + 1;
  return {begin < 0 ? 0 : begin, end < seqlen_k ? end : seqlen_k};
}

}  // namespace fa2
