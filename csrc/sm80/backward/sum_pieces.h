#pragma once

// Adds up what the pieces of a block of keys have left of dK and dV, in the order of its query
// heads and their queries. For each piece a CTA takes a share of the rows. There are more places
// than pieces, so CTAs go from place to place.

#include <cute/tensor.hpp>

#include "core/seq_info.h"
#include "sm80/backward/args.h"
#include "tile/fragments.h"

namespace fa2::sm80 {

template <class Element>
struct SumColumnsKernel {
  using Args = BwdArgs;
  static constexpr int kThreads = 256;
  static constexpr int kCtasPerSm = 1;
  static constexpr int kSmemBytes = 0;
  static constexpr int kChunk = 4;  // columns of a thread
  using Chunk = cutlass::AlignedArray<float, kChunk>;

  CUTE_DEVICE void operator()(BwdArgs const& args, char*) const {
    int32_t const places = args.listed.places();
    int64_t const all = int64_t(places) * args.listed.copies;
    for (int64_t i = blockIdx.x; i < all; i += gridDim.x) {
      WorkItem const item = args.listed.items[i % places];
      if (item.exists() && item.is_piece()) finish_share(args, int32_t(i / places), item);
    }
  }

 private:
  CUTE_DEVICE static void finish_share(BwdArgs const& args, int32_t copy, WorkItem const& item) {
    FwdParams const& p = args.problem.forward;
    ListedPair const pair = listed_kv_pair(p, item.unit, copy);
    SeqInfo const k = seq_info(p.seqs_k, pair.batch);
    int32_t const block_n = args.pieces.block_n, first_row = item.list * block_n;
    int32_t const rows = 2 * min(block_n, k.length - first_row);  // of dK, then of dV
    int64_t const slot = args.listed.slot(copy, item.slot - item.part);
    int64_t const rest =
        item.rest != 0 ? args.listed.slot(args.listed.copies, 0) + slot : int64_t(-1);

    int32_t const chunks = p.head_dim / kChunk;
    int32_t const begin = rows * item.part / item.parts, end = rows * (item.part + 1) / item.parts;
    for (int32_t i = begin * chunks + threadIdx.x; i < end * chunks; i += kThreads) {
      bool const of_values = i / chunks >= rows / 2;
      int32_t const row = i / chunks - (of_values ? rows / 2 : 0), col = i % chunks * kChunk;
      float const* const from =
          args.pieces.grads + ((of_values ? block_n : 0) + row) * p.head_dim + col;
      Chunk const total = sum(from, args.pieces.size(p.head_dim), slot, item.parts, rest);
      float const factor = of_values ? args.inv_keep_prob : args.grad_scale;
      TensorRef const& grad = of_values ? args.problem.grad_v : args.problem.grad_k;
      Element* const to = head_ptr<Element>(grad, pair.batch, k.first_row, pair.head) +
                          (first_row + row) * grad.row_stride + col;
      auto* const packed = reinterpret_cast<uint32_t*>(to);
      packed[0] = pack<Element>(total[0] * factor, total[1] * factor);
      packed[1] = pack<Element>(total[2] * factor, total[3] * factor);
    }
  }

  // Slots are `size` floats apart.
  CUTE_DEVICE static Chunk sum(float const* from, int64_t size, int64_t slot, int32_t parts,
                               int64_t rest) {
    Chunk total;
    CUTE_UNROLL
    for (int i = 0; i < kChunk; ++i) total[i] = 0.f;
    auto const add = [&](Chunk const& part) {
      CUTE_UNROLL
      for (int i = 0; i < kChunk; ++i) total[i] += part[i];
    };
    if (rest >= 0) add(*reinterpret_cast<Chunk const*>(from + rest * size));
    constexpr int kLoadsInFlight = 4;
    CUTE_NO_UNROLL
    for (int32_t first = 0; first < parts; first += kLoadsInFlight) {
      Chunk loaded[kLoadsInFlight];
      CUTE_UNROLL
      for (int j = 0; j < kLoadsInFlight; ++j) {
        if (first + j >= parts) continue;
        loaded[j] = *reinterpret_cast<Chunk const*>(from + (slot + first + j) * size);
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
