#pragma once

// What a backward CTA brings from global to shared memory: its keys and values once; for each step
// a tile of Q, of dO, and two numbers of each query (backward/rows.h).

#include "sm80/backward/config.h"

namespace fa2::sm80 {

template <class Config>
class BwdCopies {
  using Element = typename Config::Element;
  using Smem = typename Config::Smem;
  using OfScores = typename Config::OfScores;
  using OfValues = typename Config::OfValues;
  static constexpr BwdTile kTile = Config::kTile;

 public:
  CUTE_DEVICE BwdCopies(BwdArgs const& args, Smem& smem) : args_(args), smem_(smem) {}

  CUTE_DEVICE void copy_keys() const {
    FwdParams const& p = args_.problem.forward;
    copy_key_rows<OfScores>(p.k, p.head_dim, smem_.k);
    copy_key_rows<OfValues>(p.v, p.head_dim_v, smem_.v);
  }

  // Points the sources of Q and dO at a query tile of a head.
  CUTE_DEVICE void seek(int m, int head) {
    q_source_ = query_rows<OfScores>(args_.problem.forward.q, m, head);
    grad_out_source_ = query_rows<OfValues>(args_.problem.grad_out, m, head);
  }

  // Points them at the tile behind.
  CUTE_DEVICE void move_on() {
    q_source_ += args_.q_tile_bytes;
    grad_out_source_ += args_.grad_out_tile_bytes;
  }

  // Copies the tile that they point at.
  CUTE_DEVICE void copy_queries(int m, int head, int stage) const {
    int const rows = smem_.work.seqlen_q - m * kTile.block_m;
    FwdParams const& p = args_.problem.forward;
    copy_rows<OfScores>(q_source_, args_.q_pass_bytes, rows, p.head_dim, smem_.q[stage]);
    copy_rows<OfValues>(grad_out_source_, args_.grad_out_pass_bytes, rows, p.head_dim_v,
                        smem_.grad_out[stage]);
    int const thread = thread_index();
    if (thread < kTile.block_m / 2) {  // 16 bytes each
      float const* const stats =
          args_.workspace.row_stats +
          int64_t(workspace_tile(args_, smem_.work, m, head)) * (2 * kTile.block_m);
      SM80_CP_ASYNC_CACHEGLOBAL<uint128_t>::copy(
          reinterpret_cast<uint128_t const*>(stats)[thread],
          reinterpret_cast<uint128_t*>(smem_.row_stats[stage])[thread]);
    }
    cp_async_fence();
  }

 private:
  template <class Side>
  CUTE_DEVICE void copy_key_rows(TensorRef const& t, int width, Element* tile) const {
    using Copies = typename Side::CopiesKeys;
    BwdWorkTile const& work = smem_.work;
    int const thread = thread_index();
    Element const* const from =
        head_ptr<Element const>(t, work.batch, work.first_row_k, work.head_kv) +
        (work.col_begin + Copies::row(thread)) * t.row_stride + Copies::col(thread);
    copy_tile<Copies, typename Side::SmemKeys>(
        reinterpret_cast<char const*>(from),
        t.row_stride * Copies::kRowsPerPass * int64_t(sizeof(Element)),
        work.seqlen_k - work.col_begin, width, tile);
  }

  template <class Side>
  CUTE_DEVICE static void copy_rows(char const* source, int64_t pass_bytes, int rows, int width,
                                    Element* tile) {
    copy_tile<typename Side::CopiesQueries, typename Side::SmemQueries>(source, pass_bytes, rows,
                                                                        width, tile);
  }

  template <class Side>
  CUTE_DEVICE char const* query_rows(TensorRef const& t, int m, int head) const {
    using Copies = typename Side::CopiesQueries;
    BwdWorkTile const& work = smem_.work;
    int const thread = thread_index();
    int64_t const row = int64_t(m) * kTile.block_m + Copies::row(thread);
    return reinterpret_cast<char const*>(
        head_ptr<Element const>(t, work.batch, work.first_row_q, head) + row * t.row_stride +
        Copies::col(thread));
  }

  BwdArgs const& args_;
  Smem& smem_;
  char const* q_source_;
  char const* grad_out_source_;
};

}  // namespace fa2::sm80
