#pragma once

// The producer warp: one thread has boxes copied for the consumers.

#include "sm90/backward/config.h"
#include "sm90/load_rows.h"

namespace fa2::sm90 {

template <class Config>
class BwdProducer {
  using Element = typename Config::Element;
  using Smem = typename Config::Smem;
  static constexpr BwdTile kTile = Config::kTile;

 public:
  CUTE_DEVICE BwdProducer(BwdArgs const& args, Smem& smem)
      : args_(args), smem_(smem), work_(smem.work) {}

  CUTE_DEVICE void run() {
    prefetch_map(args_.k.map);
    prefetch_map(args_.q.map);
    prefetch_map(args_.v.map);
    prefetch_map(args_.grad_out.map);
    if constexpr (Config::kListed) {
      load_listed();
    } else {
      load_range();
    }
  }

 private:
  CUTE_DEVICE void load_range() {
    int const group = args_.common.problem.forward.group();
    CUTE_NO_UNROLL
    for (int head = work_.head_kv * group; head < (work_.head_kv + 1) * group; ++head) {
      CUTE_NO_UNROLL
      for (int m = work_.tiles.begin; m < work_.tiles.end; ++m) {
        bool const first = head == work_.head_kv * group && m == work_.tiles.begin;
        if (first) load_keys();
        load_queries(head, m);
        load_grad_out(head, m);
      }
    }
  }

  // What a block mask lists. Each step is looked up behind the copies of the one before, which
  // consumers have not come to yet.
  CUTE_DEVICE void load_listed() {
    ListedQueryStep& next = smem_.next_step[0];
    smem_.walk[0].take(args_.common, work_, next);
    load_keys();
    while (true) {
      wait_empty(smem_.q_ring, at_);
      smem_.steps[at_.stage] = next;
      load_queries(next.head, next.queries.block);
      load_grad_out(next.head, next.queries.block);
      if (next.is_last) break;
      smem_.walk[0].take(args_.common, work_, next);
    }
  }

  CUTE_DEVICE void load_keys() {
    using TileK = typename Config::TileK;
    using TileV = typename Config::TileV;
    SequenceRows const rows{work_.head_kv, work_.col_begin, work_.seqlen_k, work_.first_row_k,
                            work_.batch};
    mbarrier_arrive_expect(smem_.keys_full, bytes(TileK::kElements + TileV::kElements));
    load_rows<TileK>(args_.k, smem_.keys_full, smem_.k, rows);
    load_rows<TileV>(args_.v, smem_.keys_full, smem_.v, rows);
  }

  // Of a tile, with what is known of its rows: where keys are shared -D comes with dO, which
  // another warpgroup waits for.
  CUTE_DEVICE void load_queries(int head, int m) {
    using TileQ = typename Config::TileQ;
    constexpr int kStatsBytes = (kTile.shares_keys() ? 1 : 2) * kRowBytes;
    uint64_t& full = smem_.q_ring.full[at_.stage];
    wait_empty(smem_.q_ring, at_);
    mbarrier_arrive_expect(full, bytes(TileQ::kElements) + kStatsBytes);
    load_rows<TileQ>(args_.q, full, smem_.q[at_.stage], queries(head, m));
    load_bytes(smem_.row_stats[at_.stage][0], row_stats(head, m), kStatsBytes, full);
  }

  CUTE_DEVICE void load_grad_out(int head, int m) {
    using TileGradOut = typename Config::TileGradOut;
    constexpr int kStatsBytes = kTile.shares_keys() ? kRowBytes : 0;
    uint64_t& full = smem_.grad_out_ring.full[at_.stage];
    wait_empty(smem_.grad_out_ring, at_);
    mbarrier_arrive_expect(full, bytes(TileGradOut::kElements) + kStatsBytes);
    load_rows<TileGradOut>(args_.grad_out, full, smem_.grad_out[at_.stage], queries(head, m));
    if constexpr (kTile.shares_keys()) {
      load_bytes(smem_.row_stats[at_.stage][1], row_stats(head, m) + BwdTile::kBlockM, kStatsBytes,
                 full);
    }
    at_.advance();
  }

  // Of a tile, the log-sum-exps and then -D.
  static constexpr int kRowBytes = BwdTile::kBlockM * int(sizeof(float));
  CUTE_DEVICE float const* row_stats(int head, int m) const {
    int64_t const tile = sm80::workspace_tile(args_.common, work_, m, head);
    return args_.common.workspace.row_stats + tile * 2 * BwdTile::kBlockM;
  }

  CUTE_DEVICE SequenceRows queries(int head, int m) const {
    return {head, m * BwdTile::kBlockM, work_.seqlen_q, work_.first_row_q, work_.batch};
  }

  CUTE_DEVICE static constexpr int bytes(int elements) { return elements * int(sizeof(Element)); }

  BwdArgs const& args_;
  Smem& smem_;
  sm80::BwdWorkTile const& work_;
  RingPosition<Config::kStages> at_;  // of both rings
};

}  // namespace fa2::sm90
