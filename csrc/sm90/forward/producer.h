#pragma once

// The producer: one thread that hands out work, and has boxes copied for it.

#include "sm90/forward/config.h"
#include "sm90/forward/pages.h"
#include "sm90/load_rows.h"

namespace fa2::sm90 {

template <class Config>
class FwdProducer {
  using Element = typename Config::Element;
  using Smem = typename Config::Smem;
  using KeyTile = typename Config::KeyTile;
  static constexpr FwdTile kTile = Config::kTile;

 public:
  CUTE_DEVICE FwdProducer(FwdArgs const& args, Smem& smem) : args_(args), smem_(smem) {}

  CUTE_DEVICE void run() {
    prefetch_map(args_.q.map);
    prefetch_map(args_.k.map);
    prefetch_map(args_.v.map);
    CUTE_NO_UNROLL
    for (int index = blockIdx.x; index < args_.num_tiles; index = next(index)) {
      WorkPlace const place = work_place(args_, index);
      if (!Config::kListed && !takes_sequence(args_, place.batch)) continue;
      WorkTile work = work_tile(args_, place, kTile.block_n);
      if (work.query_begin >= work.seqlen_q) continue;  // shorter than the longest
      if constexpr (Config::kListed) {
        smem_.walk[0].start(args_, work);
        work.tiles = {0, 0, 0, find_step(work, step_) ? 1 : 0};
      }
      hand_out(work);
      if (work.tiles.begin >= work.tiles.end) continue;
      load_queries(work);
      if constexpr (Config::kListed) {
        load_listed(work);
      } else {
        load_range(work);
      }
    }
    WorkTile end;
    end.batch = -1;
    hand_out(end);
  }

 private:
  CUTE_DEVICE int next(int index) const {
    return gridDim.x + (args_.next_tile == nullptr ? index : atomicAdd(args_.next_tile, 1));
  }

  CUTE_DEVICE void hand_out(WorkTile const& work) {
    wait_empty(smem_.work_ring, work_at_);
    smem_.work[work_at_.stage] = work;
    mbarrier_arrive(smem_.work_ring.full[work_at_.stage]);
    work_at_.advance();
  }

  // In the order in which consumers wait: the values of a tile after the keys of the next one.
  CUTE_DEVICE void load_range(WorkTile const& work) {
    int n = work.tiles.end - 1;
    load_keys(work, n);
    CUTE_NO_UNROLL
    for (; n > work.tiles.begin; --n) {
      load_keys(work, n - 1);
      load_values(work, n);
    }
    load_values(work, n);
  }

  // The same of the steps that a block mask lists, of which the first has been found.
  CUTE_DEVICE void load_listed(WorkTile const& work) {
    uint32_t values = step_;
    load_next_keys(work);
    CUTE_NO_UNROLL
    while (!smem_.steps[values].is_last) {
      uint32_t const keys = step_;
      load_next_keys(work);
      load_values(work, smem_.steps[values]);
      values = keys;
    }
    load_values(work, smem_.steps[values]);
  }

  // Consumers find in a step whether another one follows: that is known before its keys are.
  CUTE_DEVICE void load_next_keys(WorkTile const& work) {
    typename Config::Step& step = smem_.steps[step_];
    step_ = (step_ + 1) % kListedSteps;
    step.is_last = !find_step(work, step_);
    load_keys(work, step);
  }
  CUTE_DEVICE bool find_step(WorkTile const& work, uint32_t at) {
    return smem_.walk[0].find(args_, work, smem_.steps[at]);
  }

  CUTE_DEVICE void load_queries(WorkTile const& work) {
    uint64_t& full = smem_.q_ring.full[0];
    wait_empty(smem_.q_ring, q_at_);
    mbarrier_arrive_expect(full, Config::TileQ::kElements * int(sizeof(Element)));
    load_rows<typename Config::TileQ>(
        args_.q, full, smem_.q,
        {work.head, work.query_begin, work.seqlen_q, work.first_row_q, work.batch});
    q_at_.advance();
  }

  CUTE_DEVICE void load_keys(WorkTile const& work, KeyTile n) {
    load_tile<typename Config::TileK>(args_.k, smem_.k_ring, k_at_, smem_.k[k_at_.stage], work, n);
  }
  CUTE_DEVICE void load_values(WorkTile const& work, KeyTile n) {
    load_tile<typename Config::TileV>(args_.v, smem_.v_ring, v_at_, smem_.v[v_at_.stage], work, n);
  }

  // Tile n of keys or values.
  template <class Tile>
  CUTE_DEVICE void load_tile(TensorMap const& tensor, Ring<Config::kStages>& ring,
                             RingPosition<Config::kStages>& at, Element* to, WorkTile const& work,
                             KeyTile n) {
    uint64_t& full = ring.full[at.stage];
    wait_empty(ring, at);
    mbarrier_arrive_expect(full, Tile::kElements * int(sizeof(Element)));
    int const head = work.head / args_.problem.group();
    if constexpr (Config::kListed) {
      CUTE_UNROLL
      for (int i = 0; i < Config::kParts; ++i) {
        constexpr int kBlock = BlockMask::kBlock;
        load_rows<Tile>(tensor, full, to + i * kBlock * Tile::kBoxCols,
                        {head, n.block[i] * kBlock, work.seqlen_k, work.first_row_k, work.batch});
      }
    } else {
      SequenceRows const rows{head, n * kTile.block_n, work.seqlen_k, work.first_row_k, work.batch};
      if (args_.problem.pages.block_table != nullptr) {
        load_paged_rows<Tile>(tensor, args_, full, to, rows);
      } else {
        load_rows<Tile>(tensor, full, to, rows);
      }
    }
    at.advance();
  }

  FwdArgs const& args_;
  Smem& smem_;
  RingPosition<1> q_at_;
  RingPosition<Config::kStages> k_at_, v_at_;
  RingPosition<2> work_at_;
  uint32_t step_ = 0;  // under a block mask: the place of the step whose keys come next
};

}  // namespace fa2::sm90
