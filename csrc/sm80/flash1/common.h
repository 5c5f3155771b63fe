#pragma once

// What both directions are made of: copies of rows, and results that all warps have a share of.

#include "sm80/flash1/args.h"
#include "tile/copy.h"
#include "tile/fragments.h"

namespace fa2::sm80::flash1 {

using Element = half_t;
using Four = cutlass::AlignedArray<float, 4>;

CUTE_DEVICE int lane() { return int(threadIdx.x) % 32; }
CUTE_DEVICE int warp() { return int(threadIdx.x) / 32; }

// Where a row of a tensor begins, of this CTA's batch and head.
CUTE_DEVICE int64_t row_offset(Args const& args, int row) {
  int const batch = blockIdx.x / args.heads, head = blockIdx.x % args.heads;
  return ((int64_t(batch) * args.seqlen + row) * args.heads + head) * kHeadDim;
}

// Starts the copy of rows from `first_row` on; those past the end become zero.
template <class Copies, class Smem>
CUTE_DEVICE void load_rows(Args const& args, void const* tensor, int first_row, Element* tile) {
  int const thread = threadIdx.x;
  auto const* const from = static_cast<Element const*>(tensor) +
                           row_offset(args, first_row + Copies::row(thread)) + Copies::col(thread);
  int64_t const pass_bytes =
      int64_t(args.heads) * kHeadDim * Copies::kRowsPerPass * int64_t(sizeof(Element));
  copy_tile<Copies, Smem>(reinterpret_cast<char const*>(from), pass_bytes, args.seqlen - first_row,
                          kHeadDim, tile);
}

// Results of a block of queries, by warps, to be added up.
struct Shares {
  static constexpr int kPitch = kHeadDim + 8;  // floats of a row: keeps rows in different banks
  using Fragment = decltype(make_tensor<float>(AccumulatorLayout<1, kHeadDim / 8>{}));

  alignas(128) float rows[kWarps][kBlockM][kPitch];

  CUTE_DEVICE void store(Fragment const& share) {
    CUTE_UNROLL
    for (int n = 0; n < kHeadDim / 8; ++n) {
      CUTE_UNROLL
      for (int half = 0; half < 2; ++half) {
        cutlass::AlignedArray<float, 2> const pair{share(make_coord(0, half), 0, n),
                                                   share(make_coord(1, half), 0, n)};
        float* const row = rows[warp()][lane_row(lane()) + 8 * half];
        *reinterpret_cast<uint64_t*>(row + 8 * n + lane_col(lane())) =
            reinterpret_cast<uint64_t const&>(pair);
      }
    }
  }

  // Of all warps: four columns from `col` on.
  CUTE_DEVICE Four sum(int row, int col) const {
    Four sum = *reinterpret_cast<Four const*>(&rows[0][row][col]);
    CUTE_UNROLL
    for (int w = 1; w < kWarps; ++w) {
      Four const more = *reinterpret_cast<Four const*>(&rows[w][row][col]);
      CUTE_UNROLL
      for (int e = 0; e < 4; ++e) sum[e] += more[e];
    }
    return sum;
  }
};

CUTE_DEVICE void store_rounded(void* tensor, int64_t offset, Four const& x) {
  uint64_t const low = pack<Element>(x[0], x[1]), high = pack<Element>(x[2], x[3]);
  *reinterpret_cast<uint64_t*>(static_cast<Element*>(tensor) + offset) = low | high << 32;
}

// The block of keys, of so many, that the queries of block i see last.
CUTE_DEVICE int last_key_block(Args const& args, int i, int block_n) {
  int const end = args.causal ? min(i * kBlockM + kBlockM, args.seqlen) : args.seqlen;
  return (end - 1) / block_n;
}

}  // namespace fa2::sm80::flash1
