#pragma once

// Adds up what the pieces of a block of keys have left of dK and dV, in the order of its query
// heads and their queries.

#include <cute/tensor.hpp>

#include "core/seq_info.h"
#include "sm80/backward/args.h"
#include "sm80/lists/piece_shares.h"

namespace fa2::sm80 {

template <class Element>
struct SumColumnsKernel {
  using Args = BwdArgs;
  static constexpr int kThreads = 256;
  static constexpr int kCtasPerSm = 1;
  static constexpr int kSmemBytes = 0;

  CUTE_DEVICE void operator()(BwdArgs const& args, char*) const {
    for_each_piece(args.listed,
                   [&](int32_t copy, WorkItem const& item) { finish_share(args, copy, item); });
  }

 private:
  CUTE_DEVICE static void finish_share(BwdArgs const& args, int32_t copy, WorkItem const& item) {
    FwdParams const& p = args.problem.forward;
    ListedPair const pair = listed_kv_pair(p, item.unit, copy);
    SeqInfo const k = seq_info(p.seqs_k, pair.batch);
    int32_t const block_n = args.pieces.block_n, first_row = item.list * block_n;
    int32_t const rows = min(block_n, k.length - first_row);
    int64_t const slot = args.listed.slot(copy, item.slot - item.part);
    int64_t const rest =
        item.rest != 0 ? args.listed.slot(args.listed.copies, 0) + slot : int64_t(-1);

    auto const finish = [&](TensorRef const& grad, float const* sums, int width, float factor) {
      for_share<kThreads>(item, rows, width, [&](int32_t row, int32_t col) {
        ShareChunk const total =
            sum(sums + row * width + col, args.pieces.size(p), slot, item.parts, rest);
        int64_t const at = (first_row + row) * grad.row_stride + col;
        if (args.problem.accumulates) {
          add_scaled(head_ptr<float>(grad, pair.batch, k.first_row, pair.head) + at, total, factor);
        } else {
          store_scaled(head_ptr<Element>(grad, pair.batch, k.first_row, pair.head) + at, total,
                       factor);
        }
      });
    };
    float const* const sums = args.pieces.grads;
    finish(args.problem.grad_k, sums, p.head_dim, args.grad_scale);
    finish(args.problem.grad_v, sums + args.pieces.grad_k_size(p), p.head_dim_v,
           args.inv_keep_prob);
  }

  // Slots are `size` floats apart.
  CUTE_DEVICE static ShareChunk sum(float const* from, int64_t size, int64_t slot, int32_t parts,
                                    int64_t rest) {
    ShareChunk total;
    CUTE_UNROLL
    for (int i = 0; i < kShareColumns; ++i) total[i] = 0.f;
    auto const add = [&](ShareChunk const& part) {
      CUTE_UNROLL
      for (int i = 0; i < kShareColumns; ++i) total[i] += part[i];
    };
    if (rest >= 0) add(*reinterpret_cast<ShareChunk const*>(from + rest * size));
    constexpr int kLoadsInFlight = 4;
    CUTE_NO_UNROLL
    for (int32_t first = 0; first < parts; first += kLoadsInFlight) {
      ShareChunk loaded[kLoadsInFlight];
      CUTE_UNROLL
      for (int j = 0; j < kLoadsInFlight; ++j) {
        if (first + j >= parts) continue;
        loaded[j] = *reinterpret_cast<ShareChunk const*>(from + (slot + first + j) * size);
      }
      CUTE_UNROLL
      for (int j = 0; j < kLoadsInFlight; ++j) {
        if (first + j < parts) add(loaded[j]);
      }
    }
    return total;
  }
};

}  // namespace fa2::sm80
