#pragma once

// Shared memory of a forward CTA, and the sizes that follow from its tile.

#include "sm80/forward/listed.h"
#include "sm80/forward/warps.h"
#include "sm80/forward/work_tile.h"
#include "sm80/tiles.h"
#include "tile/copy.h"
#include "tile/smem_tile.h"

namespace fa2::sm80 {

// What a row's outputs are multiplied by, and those that are there, to be added up.
struct MergeFactors {
  float own;
  float there;
};

template <class Element_, FwdTile kTile_, Variant kVariant_>
struct FwdConfig {
  using Args = FwdArgs;
  using Element = Element_;
  static constexpr FwdTile kTile = kTile_;
  static constexpr Variant kVariant = kVariant_;
  static constexpr bool kPairs = kTile.column_warps == 2 && !kTile.whole_scores;
  static constexpr bool kPacked = false;  // a row is a query, not a query and a head
  static constexpr bool kModified = kVariant != Variant::kPlain;
  static constexpr bool kDropout = has_dropout(kVariant);
  static constexpr bool kListed = is_listed(kVariant);
  static constexpr bool kCodes = kVariant == Variant::kCodes;
  static constexpr bool kLatents = kVariant == Variant::kLatents;

  // Scores of a tile are multiplied during the exponentials of the one before. There are registers
  // for the scores of both where pairs of warps share rows. At 128 warps do so alone with steps of
  // 32 keys: what can be read anew takes no register, then.
  static constexpr bool kOverlapsAlone =
      kVariant == Variant::kPlain && kTile.head_dim == 128 && kTile.block_n == 32;
  static constexpr bool kOverlaps = kOverlapsAlone || (kPairs && kVariant == Variant::kPlain);

  // No register is left to count the columns of values apart from those of keys: heads with two
  // widths have other kernels (forward_key in plan_forward.cpp).
  static constexpr bool kOneWidth = (kPairs && kOverlaps && kTile.head_dim <= 256) ||
                                    (kVariant == Variant::kListed && kTile.head_dim == 128);
  static_assert(!kOneWidth || kTile.head_dim == kTile.head_dim_v);

  using Warps = FwdWarps<kTile>;

  // One warp's blocks: rows (16), columns of S (8), depth of S = Q K' and O = P V (16), and
  // columns of O (8).
  static constexpr int kWarpKeys = kTile.block_n / Warps::kKeyParts;
  static constexpr int kM = Warps::kRows / 16;
  static constexpr int kNumS = kWarpKeys / 8;
  static constexpr int kDepthS = kTile.head_dim / 16;
  static constexpr int kDepthO = kWarpKeys / 16;
  static constexpr int kNumO = kTile.head_dim_v / (8 * kTile.column_warps);

  template <int kRows, int kCols>
  using CopyOf = CopyShape<kRows, kCols, kTile.threads()>;
  static constexpr int kPadQK = CopyOf<kTile.block_n, kTile.head_dim>::kSmemPad;
  static constexpr int kPadVO = CopyOf<kTile.block_n, kTile.head_dim_v>::kSmemPad;

  // Where 99 KiB are just enough, Q and O do without padding: they are copied once.
  static constexpr int kRowsBytes =
      int(sizeof(Element)) *
      (kTile.block_m * kTile.head_dim + kTile.block_n * (kTile.head_dim + kTile.head_dim_v));
  static constexpr bool kPadsRows = kTile.head_dim <= 256 || kRowsBytes != 96 * 1024;
  static constexpr int kPadQ = kPadsRows ? kPadQK : 0, kPadO = kPadsRows ? kPadVO : 0;

  using StreamQ = TileStream<Element, kTile.block_m, kTile.head_dim, kTile.threads(), kPadQ>;
  using StreamK = TileStream<Element, kTile.block_n, kTile.head_dim, kTile.threads(), kPadQK>;
  using StreamV =
      TileStream<Element, kTile.block_n, kTile.head_dim_v, kTile.threads(), kPadVO, kOverlapsAlone>;
  using SmemQ = SmemTile<kTile.block_m, kTile.head_dim, kPadQ>;
  using SmemO = SmemTile<kTile.block_m, kTile.head_dim_v, kPadO>;
  using SmemP = SmemTile<kTile.block_m, kTile.block_n, 16>;

  struct Smem {
    union {
      alignas(128) Element q[SmemQ::kElements];
      Element out[SmemO::kElements];        // staged when all of Q has been read, or
      RowState states[kTile.block_m];       // what is merged into other results,
      MergeFactors factors[kTile.block_m];  // and how
    };
    alignas(128) Element k[StreamK::Smem::kElements];
    alignas(128) Element v[StreamV::Smem::kElements];
    alignas(128) Element probs[kPairs ? SmemP::kElements : 0];
    float row_exchange[kPairs ? 2 : 0][kTile.block_m];  // row maxima and sums of a pair's halves
    WorkTile work;
    ForwardSteps<kListed ? kTile.block_m : BlockMask::kBlock,
                 kListed ? kTile.block_n : BlockMask::kBlock>
        steps[kListed ? 1 : 0];
    ListedTile listed[kListed ? 1 : 0];
  };

  CUTE_DEVICE static int query_of(FwdArgs const&, int row) { return row; }

  // The key tiles that a CTA visits.
  CUTE_DEVICE static StreamK keys(FwdArgs const& args, Smem& smem) {
    TensorRef const& k = args.problem.k;
    return {rows_of(k, args, smem.work), k.row_stride, args.k_pass_bytes, args.problem.head_dim,
            smem.work.tiles.end - 1,     smem.k};
  }
  CUTE_DEVICE static StreamV values(FwdArgs const& args, Smem& smem) {
    FwdParams const& p = args.problem;
    int32_t const& width = kOneWidth ? p.head_dim : p.head_dim_v;
    return {rows_of(p.v, args, smem.work), p.v.row_stride, args.v_pass_bytes, width,
            smem.work.tiles.end - 1,       smem.v};
  }

 private:
  CUTE_DEVICE static Element const* rows_of(TensorRef const& t, FwdArgs const& args,
                                            WorkTile const& work) {
    return head_ptr<Element const>(t, work.batch, work.first_row_k,
                                   work.head / args.problem.group());
  }
};

}  // namespace fa2::sm80
