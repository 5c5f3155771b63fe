#pragma once

// How the gradient of one bias is divided. Its entries lie in tiles of kBlock queries and kBlock
// keys. A unit owns the entries of one tile, as far as the bias has its dimensions: without
// queries, say, a unit has kBlock entries, of a block of keys and all queries. It walks over all
// tiles of scores whose gradients add to its entries, one on top of the other, so that a CTA sums
// them in registers; what lies in one tile and has the same entry is added up in the end. Diagonals
// are no exception: a unit walks down a band of tiles, in all of which a diagonal takes the same
// place. A unit's walk may be cut into splits, whose sums another kernel adds up in their order.

#include <cstdint>

#include "core/params.h"
#include "core/score_mod.h"

namespace fa2::sm80 {

inline constexpr int32_t kBiasBwdCtasPerSm = 3;

struct Span {
  int32_t begin;
  int32_t count;
};

// A tile of the scores of a (batch, head).
struct ScoreTile {
  int32_t batch;
  int32_t head;
  int32_t row;  // in blocks
  int32_t col;
};

// Tiles of scores in their order.
struct TileWalk {
  Span batches;
  Span heads;
  Span rows;
  Span cols;  // by diagonals: one, counted from that of the row's number
  bool by_diagonals;

  FA2_HD int64_t steps() const {
    return int64_t(batches.count) * heads.count * rows.count * cols.count;
  }

  FA2_HD ScoreTile at(int64_t step) const {
    ScoreTile tile;
    auto const next = [&](Span const& span) {
      int32_t const index = int32_t(step % span.count);
      step /= span.count;
      return span.begin + index;
    };
    tile.col = next(cols);
    tile.row = next(rows);
    tile.head = next(heads);
    tile.batch = next(batches);
    if (by_diagonals) tile.col += tile.row;
    return tile;
  }
};

// Which entries a unit owns; 0 along what the bias does not tell apart. By diagonals, `col` is that
// of the band's tile in row 0 and may be negative.
using BiasUnit = ScoreTile;

struct BiasPass {
  static constexpr int32_t kBlock = 64;
  static constexpr int32_t kDiagonals = 2 * kBlock;  // places for those of a tile; one stays empty

  Bias sums;
  bool by_diagonals = false;
  int32_t batch = 0;
  int32_t num_heads = 0;
  int32_t seqlen_q = 0;
  int32_t seqlen_k = 0;
  int32_t splits = 1;

  FA2_HD static int32_t blocks(int32_t length) { return (length + kBlock - 1) / kBlock; }
  FA2_HD int32_t row_blocks() const { return blocks(seqlen_q); }
  FA2_HD int32_t col_blocks() const { return blocks(seqlen_k); }

  // What is told apart.
  FA2_HD bool has_rows() const { return !by_diagonals && sums.row_stride != 0; }
  FA2_HD bool has_cols() const { return !by_diagonals && sums.col_stride != 0; }
  FA2_HD int32_t batches() const { return sums.batch_stride != 0 ? batch : 1; }
  FA2_HD int32_t heads() const { return sums.head_stride != 0 ? num_heads : 1; }
  FA2_HD int32_t bands() const { return row_blocks() + col_blocks() - 1; }

  FA2_HD int64_t units() const {
    if (sums.data == nullptr) return 0;
    int64_t const tiles =
        by_diagonals ? bands()
                     : int64_t(has_rows() ? row_blocks() : 1) * (has_cols() ? col_blocks() : 1);
    return tiles * batches() * heads();
  }

  FA2_HD BiasUnit unit(int64_t index) const {
    auto const next = [&](int32_t count) {
      int32_t const place = int32_t(index % count);
      index /= count;
      return place;
    };
    BiasUnit unit;
    if (by_diagonals) {
      unit.row = 0;
      unit.col = next(bands()) - (row_blocks() - 1);
    } else {
      unit.col = has_cols() ? next(col_blocks()) : 0;
      unit.row = has_rows() ? next(row_blocks()) : 0;
    }
    unit.head = next(heads());
    unit.batch = next(batches());
    return unit;
  }

  // The inverse.
  FA2_HD int64_t index_of(BiasUnit const& unit) const {
    int64_t const outer = int64_t(unit.batch) * heads() + unit.head;
    if (by_diagonals) return outer * bands() + unit.col + row_blocks() - 1;
    int64_t const row = has_rows() ? outer * row_blocks() + unit.row : outer;
    return has_cols() ? row * col_blocks() + unit.col : row;
  }

  FA2_HD TileWalk walk(BiasUnit const& unit) const {
    auto const span = [](bool apart, int32_t own, int32_t all) {
      return apart ? Span{own, 1} : Span{0, all};
    };
    TileWalk walk;
    walk.batches = span(sums.batch_stride != 0, unit.batch, batch);
    walk.heads = span(sums.head_stride != 0, unit.head, num_heads);
    walk.by_diagonals = by_diagonals;
    if (by_diagonals) {
      int32_t const begin = unit.col < 0 ? -unit.col : 0;
      int32_t const end = col_blocks() - unit.col;
      walk.rows = {begin, (end < row_blocks() ? end : row_blocks()) - begin};
      walk.cols = {unit.col, 1};
    } else {
      walk.rows = span(has_rows(), unit.row, row_blocks());
      walk.cols = span(has_cols(), unit.col, col_blocks());
    }
    return walk;
  }

  // Entries of a unit: rows by columns of those that are told apart, or diagonals of a tile, of
  // which number kBlock - 1 is that of the corner.
  FA2_HD int32_t unit_rows() const { return has_rows() ? kBlock : 1; }
  FA2_HD int32_t unit_cols() const { return has_cols() ? kBlock : 1; }
  FA2_HD int32_t entries() const { return by_diagonals ? kDiagonals : unit_rows() * unit_cols(); }

  // Where an entry goes; null where the bias ends before.
  FA2_HD float* place(BiasUnit const& unit, int32_t entry) const {
    int32_t const row = unit.row * kBlock + entry / unit_cols();
    int32_t const col = unit.col * kBlock + entry % unit_cols();
    if (row >= seqlen_q || col >= seqlen_k) return nullptr;
    return at(unit, row, col);
  }

  // The same of a diagonal, whose key is so far behind its query.
  FA2_HD float* place_of_diagonal(BiasUnit const& unit, int32_t distance) const {
    if (distance <= -seqlen_q || distance >= seqlen_k) return nullptr;
    return at(unit, 0, distance);
  }

 private:
  FA2_HD float* at(BiasUnit const& unit, int32_t row, int32_t col) const {
    return static_cast<float*>(sums.data) + bias_offset(sums, unit.batch, unit.head, row) +
           col * sums.col_stride;
  }
};

}  // namespace fa2::sm80
