#pragma once

// Where keys lie in memory: one pointer each, so that nobody else needs to know about pages.

#include "core/paging.h"
#include "core/quantised.h"
#include "cpu/kernels.h"
#include "cpu/level/simd.h"
#include "cpu/level/tiles.h"

namespace fa2::cpu::FA2_CPU_LEVEL {

// rows[i] becomes the row of K or V of key begin + i of the chunk's KV head.
template <class Storage>
FA2_CPU_INLINE void find_rows(Storage const** rows, TensorRef const& tensor, PagedKV const& pages,
                              QueryChunk const& chunk, int32_t begin, int32_t end) {
  int64_t const position = chunk.k_seq.first_row + begin;
  int32_t const count = end - begin;
  if (pages.block_table == nullptr) {
    Storage const* const first = head_ptr<Storage>(tensor, chunk.batch, position, chunk.head_kv);
    for (int32_t i = 0; i < count; ++i) rows[i] = first + i * tensor.row_stride;
    return;
  }
  Storage const* const head = head_ptr<Storage>(tensor, 0, 0, chunk.head_kv);
  auto index = int32_t(position / pages.page_size);
  auto row = int32_t(position % pages.page_size);
  for (int32_t i = 0; i < count; ++index, row = 0) {
    int32_t const page = page_within(pages, table_entry(pages, chunk.batch, index));
    Storage const* const first = head + page * tensor.batch_stride;
    for (; i < count && row < pages.page_size; ++i, ++row) {
      rows[i] = first + row * tensor.row_stride;
    }
  }
}

// to[head * kKeyBlock + i] becomes what codes of key begin + i are to be multiplied by once E has
// widened them, for `num_heads` heads from the chunk's on, followed by zeros up to a whole vector.
// A factor that is none makes what it multiplies NaN.
template <class E>
__attribute__((noinline)) void read_factors(float* to, Scales const& scales, PagedKV const& pages,
                                            QueryChunk const& chunk, int num_heads, int32_t begin,
                                            int32_t end) {
  float const* rows[kKeyBlock];
  int32_t const count = end - begin;
  find_rows(rows, scales.factors, scale_pages(scales, pages), chunk, begin, end);
  for (int32_t i = 0; i < count; ++i) {
    for (int head = 0; head < num_heads; ++head) {
      float const factor = rows[i][head * scales.factors.head_stride];
      to[head * kKeyBlock + i] = factor > 0 ? factor * E::kFactor : __builtin_nanf("");
    }
  }
  for (int head = 0; head < num_heads; ++head) {
    for (int32_t i = count; i % kLanes<float> != 0; ++i) to[head * kKeyBlock + i] = 0;
  }
}

}  // namespace fa2::cpu::FA2_CPU_LEVEL
