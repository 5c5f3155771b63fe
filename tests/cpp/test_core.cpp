// Unit tests of csrc/core against brute force and independent formulae.

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <random>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "check.h"
#include "core/block_range.h"
#include "core/dropout.h"
#include "core/mask.h"
#include "core/online_softmax.h"
#include "core/paging.h"
#include "core/philox.h"
#include "core/rotary.h"
#include "core/score_mod.h"
#include "core/seq_info.h"

namespace {

using namespace fa2;

constexpr int32_t kIntMin = std::numeric_limits<int32_t>::min();
constexpr int32_t kIntMax = std::numeric_limits<int32_t>::max();

// ---- mask -------------------------------------------------------------------------------------

// The definition: query `row` stands on the diagonal row + seqlen_k - seqlen_q.
bool sees(int64_t row, int64_t col, int64_t seqlen_q, int64_t seqlen_k, Window const& window) {
  int64_t const distance = col - (row + seqlen_k - seqlen_q);
  return col >= 0 && col < seqlen_k && distance <= window.right && -distance <= window.left;
}

constexpr std::array<Window, 9> kWindows{{{},
                                          {Window::kUnlimited, 0},
                                          {0, 0},
                                          {3, 0},
                                          {0, 5},
                                          {7, 2},
                                          {16, 16},
                                          {1, Window::kUnlimited},
                                          {Window::kUnlimited, 9}}};
constexpr std::array<int32_t, 8> kLengths{0, 1, 2, 7, 16, 17, 33, 50};

template <class Body>
void for_each_shape(Body const& body) {
  for (int32_t const seqlen_q : kLengths) {
    for (int32_t const seqlen_k : kLengths) {
      for (Window const& window : kWindows) body(seqlen_q, seqlen_k, window);
    }
  }
}

TEST(visible_cols_agree_with_the_definition) {
  for_each_shape([](int32_t seqlen_q, int32_t seqlen_k, Window const& window) {
    for (int32_t row = 0; row < seqlen_q; ++row) {
      ColRange const cols = visible_cols(row, seqlen_q, seqlen_k, window);
      for (int32_t col = 0; col < seqlen_k; ++col) {
        EXPECT_EQ(cols.begin <= col && col < cols.end, sees(row, col, seqlen_q, seqlen_k, window));
      }
    }
  });
}

TEST(visible_cols_of_the_longest_sequences_do_not_overflow) {
  Window const unlimited;
  for (int32_t const row : {0, kMaxSeqlen - 1}) {
    ColRange const cols = visible_cols(row, kMaxSeqlen, kMaxSeqlen, unlimited);
    EXPECT_EQ(cols.begin, 0);
    EXPECT_EQ(cols.end, kMaxSeqlen);
  }
  EXPECT_EQ(visible_cols(0, kMaxSeqlen, 1, {Window::kUnlimited, 0}).end, 2 - kMaxSeqlen);
  EXPECT_EQ(visible_cols(0, 1, kMaxSeqlen, {3, 0}).begin, kMaxSeqlen - 4);
}

TEST(visible_rows_is_the_same_mask_by_columns) {
  for_each_shape([](int32_t seqlen_q, int32_t seqlen_k, Window const& window) {
    for (int32_t col = 0; col < seqlen_k + 3; ++col) {
      RowRange const rows = visible_rows(col, seqlen_q, seqlen_k, window);
      for (int32_t row = 0; row < seqlen_q; ++row) {
        EXPECT_EQ(rows.begin <= row && row < rows.end, sees(row, col, seqlen_q, seqlen_k, window))
            << "row " << row << ", col " << col << ", lengths " << seqlen_q << ", " << seqlen_k;
      }
    }
  });
}

// ---- block_range ------------------------------------------------------------------------------

// How many of a tile's entries are visible, rows past seqlen_q left out.
struct TileCount {
  int32_t visible;
  int32_t all;
};

struct TileRows {
  int32_t begin;
  int32_t end;
};

TileCount count_visible(TileRows rows, int32_t tile, int32_t block_n, int32_t seqlen_q,
                        int32_t seqlen_k, Window const& window) {
  TileCount count{0, (rows.end - rows.begin) * block_n};
  for (int32_t row = rows.begin; row < rows.end; ++row) {
    for (int32_t col = tile * block_n; col < (tile + 1) * block_n; ++col) {
      count.visible += sees(row, col, seqlen_q, seqlen_k, window);
    }
  }
  return count;
}

void check_tile_rows(TileRows rows, int32_t block_n, int32_t seqlen_q, int32_t seqlen_k,
                     Window const& window) {
  BlockRange const range = block_range(rows.begin, rows.end, seqlen_q, seqlen_k, window, block_n);
  EXPECT(range.begin <= range.full_begin && range.full_begin <= range.full_end &&
         range.full_end <= range.end);
  int32_t const num_tiles = (seqlen_k + block_n - 1) / block_n;
  EXPECT(0 <= range.begin && range.end <= num_tiles);
  for (int32_t tile = 0; tile < num_tiles; ++tile) {
    TileCount const count = count_visible(rows, tile, block_n, seqlen_q, seqlen_k, window);
    bool const visited = range.begin <= tile && tile < range.end;
    bool const full = range.full_begin <= tile && tile < range.full_end;
    EXPECT_EQ(visited, count.visible > 0)
        << "tile " << tile << " of rows " << rows.begin << ".." << rows.end << ", lengths "
        << seqlen_q << ", " << seqlen_k << ", window " << window.left << ", " << window.right;
    EXPECT_EQ(full, count.visible == count.all)
        << "tile " << tile << " of rows " << rows.begin << ".." << rows.end << ", lengths "
        << seqlen_q << ", " << seqlen_k << ", window " << window.left << ", " << window.right;
  }
}

TEST(block_range_visits_just_the_tiles_that_hold_something) {
  for_each_shape([](int32_t seqlen_q, int32_t seqlen_k, Window const& window) {
    for (int32_t const block_m : {1, 4, 16}) {
      for (int32_t const block_n : {1, 8, 16}) {
        for (int32_t row = 0; row < seqlen_q; row += block_m) {
          check_tile_rows({row, std::min(row + block_m, seqlen_q)}, block_n, seqlen_q, seqlen_k,
                          window);
        }
      }
    }
  });
}

// The backward pass walks over queries for a block of keys: both ways round, the same tiles meet.
TEST(query_block_range_is_block_range_by_columns) {
  for_each_shape([](int32_t seqlen_q, int32_t seqlen_k, Window const& window) {
    constexpr int32_t kBlockM = 4, kBlockN = 8;
    for (int32_t row = 0; row < seqlen_q; row += kBlockM) {
      BlockRange const keys =
          block_range(row, std::min(row + kBlockM, seqlen_q), seqlen_q, seqlen_k, window, kBlockN);
      for (int32_t col = 0; col < seqlen_k; col += kBlockN) {
        int32_t const m = row / kBlockM, n = col / kBlockN;
        BlockRange const queries = query_block_range(col, std::min(col + kBlockN, seqlen_k),
                                                     seqlen_q, seqlen_k, window, kBlockM);
        EXPECT_EQ(keys.begin <= n && n < keys.end, queries.begin <= m && m < queries.end);
        bool const whole = row + kBlockM <= seqlen_q && col + kBlockN <= seqlen_k;
        if (whole) {
          EXPECT_EQ(keys.full_begin <= n && n < keys.full_end,
                    queries.full_begin <= m && m < queries.full_end);
        }
      }
    }
  });
}

TEST(block_range_of_no_rows_or_no_keys_is_empty) {
  for (Window const& window : kWindows) {
    BlockRange const no_rows = block_range(16, 16, 16, 64, window, 8);
    EXPECT_EQ(no_rows.begin, no_rows.end);
    BlockRange const no_keys = block_range(0, 16, 16, 0, window, 8);
    EXPECT_EQ(no_keys.begin, no_keys.end);
  }
}

// ---- seq_info ---------------------------------------------------------------------------------

TEST(seq_info_of_dense_tensors) {
  SeqInfo const all = seq_info({.max_seqlen = 12}, 3);
  EXPECT_EQ(all.first_row, 0);
  EXPECT_EQ(all.length, 12);
  std::array<int32_t, 4> const used{5, 0, 99, -1};
  std::array<int32_t, 4> const expected{5, 0, 12, 0};
  for (int32_t batch = 0; batch < 4; ++batch) {
    EXPECT_EQ(seq_info({.seqused = used.data(), .max_seqlen = 12}, batch).length, expected[batch]);
  }
}

TEST(seq_info_of_packed_tensors) {
  std::array<int32_t, 5> const cu_seqlens{0, 3, 3, 10, 12};
  std::array<int32_t, 4> const used{2, 5, 6, 2};
  SeqLens seqs{.cu_seqlens = cu_seqlens.data(), .max_seqlen = 7, .total = 12};
  for (int32_t batch = 0; batch < 4; ++batch) {
    SeqInfo const info = seq_info(seqs, batch);
    EXPECT_EQ(info.first_row, cu_seqlens[batch]);
    EXPECT_EQ(info.length, cu_seqlens[batch + 1] - cu_seqlens[batch]);
  }
  seqs.seqused = used.data();
  std::array<int32_t, 4> const expected{2, 0, 6, 2};
  for (int32_t batch = 0; batch < 4; ++batch) {
    EXPECT_EQ(seq_info(seqs, batch).length, expected[batch]);
  }
}

TEST(seq_info_keeps_hostile_lengths_inside_the_tensor) {
  constexpr std::array<int32_t, 8> kHostile{kIntMin, -7, 0, 3, 20, 21, 1000, kIntMax};
  for (int32_t const begin : kHostile) {
    for (int32_t const end : kHostile) {
      for (int32_t const used : kHostile) {
        std::array<int32_t, 2> const cu_seqlens{begin, end};
        SeqInfo const info = seq_info({cu_seqlens.data(), &used, 15, 20}, 0);
        EXPECT(0 <= info.first_row && info.first_row <= 20);
        EXPECT(0 <= info.length && info.length <= 15);
        EXPECT(info.first_row + info.length <= 20);
      }
    }
  }
}

TEST(seq_info_counts_what_is_appended_and_leaves_out_the_padding) {
  std::array<int32_t, 3> const cached{10, 0, 98};
  std::array<int32_t, 4> const cu_appended{0, 5, 6, 10};
  std::array<int32_t, 3> const leftpad{3, 0, 99};
  SeqLens seqs{.seqused = cached.data(), .max_seqlen = 100, .leftpad = leftpad.data()};
  auto expect = [&](int32_t batch, int64_t first_row, int32_t length) {
    SeqInfo const info = seq_info(seqs, batch);
    EXPECT_EQ(info.first_row, first_row) << "sequence " << batch;
    EXPECT_EQ(info.length, length) << "sequence " << batch;
  };
  seqs.appended = 4;
  expect(0, 3, 11);
  expect(1, 0, 4);
  expect(2, 99, 1);  // what is beyond the cache does not count
  seqs.cu_appended = cu_appended.data();
  expect(0, 3, 12);
  expect(1, 0, 1);
  EXPECT_EQ(cached_rows(seqs, 2), 98);

  SeqLens const given{.max_seqlen = 17, .appended = 4};  // the caller counted
  EXPECT_EQ(seq_info(given, 0).length, 17);
  EXPECT_EQ(cached_rows(given, 0), 13);
}

TEST(seq_info_keeps_a_hostile_cache_inside_the_tensor) {
  constexpr std::array<int32_t, 7> kHostile{kIntMin, -7, 0, 3, 20, 1000, kIntMax};
  for (int32_t const used : kHostile) {
    for (int32_t const padding : kHostile) {
      for (int32_t const end : kHostile) {
        std::array<int32_t, 2> const cu_appended{3, end};
        SeqLens const seqs{.seqused = &used,
                           .max_seqlen = 20,
                           .leftpad = &padding,
                           .cu_appended = cu_appended.data()};
        SeqInfo const info = seq_info(seqs, 0);
        EXPECT(0 <= info.first_row && 0 <= info.length && info.first_row + info.length <= 20);
        EXPECT(0 <= cached_rows(seqs, 0) && cached_rows(seqs, 0) <= 20);
      }
    }
  }
}

// ---- paging -----------------------------------------------------------------------------------

TEST(rows_are_found_through_the_block_table) {
  std::array<int32_t, 6> const table{4, 2, 0, 1, 3, 4};  // two sequences of three pages
  TensorRef const tensor{.batch_stride = 1000, .row_stride = 10};
  PagedKV const pages{
      .block_table = table.data(), .table_stride = 3, .page_size = 7, .num_pages = 5};
  EXPECT_EQ(kv_row_offset(tensor, pages, 0, 0), 4000);
  EXPECT_EQ(kv_row_offset(tensor, pages, 0, 6), 4060);
  EXPECT_EQ(kv_row_offset(tensor, pages, 0, 7), 2000);
  EXPECT_EQ(kv_row_offset(tensor, pages, 1, 13), 3060);
  EXPECT_EQ(kv_row_offset(tensor, {}, 3, 12), 3120);
}

TEST(hostile_pages_are_read_inside_the_tensor_and_never_written) {
  PagedKV const pages{.num_pages = 5};
  for (int32_t const entry : {kIntMin, -1, 0, 4, 5, kIntMax}) {
    int32_t const page = page_within(pages, entry);
    EXPECT(0 <= page && page < 5);
    EXPECT_EQ(is_page(pages, entry), page == entry);
  }
}

// ---- rotary -----------------------------------------------------------------------------------

// Every entry turns with one other, by one angle, in opposite directions.
TEST(rotary_terms_are_pairs) {
  for (bool const interleaved : {false, true}) {
    Rotary const rotary{.rows = 10, .dim = 12, .interleaved = interleaved};
    std::set<int32_t> angles;
    for (int32_t d = 0; d < rotary.dim; ++d) {
      RotaryTerm const term = rotary_term(rotary, d), other = rotary_term(rotary, term.partner);
      EXPECT_EQ(other.partner, d);
      EXPECT_EQ(other.angle, term.angle);
      EXPECT_EQ(term.sign, d < term.partner ? -1 : 1);
      EXPECT_EQ(term.partner - d, -term.sign * (interleaved ? 1 : 6));
      angles.insert(term.angle);
    }
    EXPECT_EQ(angles.size(), 6u);
    EXPECT_EQ(rotary_row(rotary, 9), 9);
    EXPECT_EQ(rotary_row(rotary, int64_t{1} << 33), 9);
  }
}

TEST(addresses_are_64_bit) {
  FwdParams params{.batch = 4, .num_heads = 8, .num_heads_kv = 2, .head_dim = 64};
  params.seqs_q.max_seqlen = kMaxSeqlen;
  EXPECT_EQ(params.group(), 4);
  EXPECT_EQ(lse_index(params, 3, 0, 5), (int64_t{3} * 8 + 5) * kMaxSeqlen);
  int32_t const cu_seqlens = 0;
  params.seqs_q = {&cu_seqlens, nullptr, 10, int64_t{1} << 34};
  EXPECT_EQ(lse_index(params, 3, 100, 5), (int64_t{5} << 34) + 100);

  char storage = 0;
  TensorRef const tensor{&storage, int64_t{1} << 33, int64_t{1} << 20, 64};
  char* const address = head_ptr<char>(tensor, 3, 5000, 2);
  EXPECT_EQ(reinterpret_cast<intptr_t>(address) - reinterpret_cast<intptr_t>(&storage),
            (int64_t{3} << 33) + (int64_t{5000} << 20) + 128);
}

// ---- philox, dropout --------------------------------------------------------------------------

// Philox4x32 as its paper writes it, for any number of rounds.
using Words = std::array<uint32_t, 4>;

Words philox_by_the_paper(Words counter, std::array<uint32_t, 2> key, int rounds) {
  for (int round = 0; round < rounds; ++round) {
    auto const product0 = uint64_t{0xD2511F53} * counter[0];
    auto const product1 = uint64_t{0xCD9E8D57} * counter[2];
    auto const high = [](uint64_t x) { return static_cast<uint32_t>(x >> 32); };
    auto const low = [](uint64_t x) { return static_cast<uint32_t>(x); };
    counter = {high(product1) ^ counter[1] ^ key[0], low(product1),
               high(product0) ^ counter[3] ^ key[1], low(product0)};
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  return counter;
}

struct PhiloxVector {
  Words counter;
  std::array<uint32_t, 2> key;
  Words seven_rounds;
  Words ten_rounds;
};

// Published with Random123 (kat_vectors, philox4x32).
constexpr uint32_t kOnes = 0xffffffff;
constexpr std::array<PhiloxVector, 3> kPhiloxVectors{{
    {{0, 0, 0, 0},
     {0, 0},
     {0x5f6fb709, 0x0d893f64, 0x4f121f81, 0x4f730a48},
     {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
    {{kOnes, kOnes, kOnes, kOnes},
     {kOnes, kOnes},
     {0x5207ddc2, 0x45165e59, 0x4d8ee751, 0x8c52f662},
     {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
    {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
     {0xa4093822, 0x299f31d0},
     {0x4dfccaba, 0x190a87f0, 0xc47362ba, 0xb6b5242a},
     {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
}};

Words run_philox(Words const& counter, std::array<uint32_t, 2> const& key) {
  PhiloxCounter const r =
      philox({counter[0], counter[1], counter[2], counter[3]}, uint64_t{key[1]} << 32 | key[0]);
  return {r.x, r.y, r.z, r.w};
}

TEST(philox_gives_the_published_numbers) {
  for (PhiloxVector const& vector : kPhiloxVectors) {
    EXPECT(philox_by_the_paper(vector.counter, vector.key, 10) == vector.ten_rounds);
    EXPECT(philox_by_the_paper(vector.counter, vector.key, 7) == vector.seven_rounds);
    EXPECT(run_philox(vector.counter, vector.key) == vector.seven_rounds);
  }
}

TEST(dropout_bits_follow_the_documented_grouping) {
  constexpr int64_t kSeed = 0x123456789abcdef0;
  constexpr int64_t kOffset = 0x0fedcba987654321;
  constexpr uint32_t kStream = 0x87654321u ^ 0x0fedcba9u;
  constexpr uint32_t kBatchHead = 11;
  constexpr int32_t kRow = 77;
  std::set<int32_t> columns;
  for (uint32_t group = 0; group < 12; ++group) {
    Words const words =
        philox_by_the_paper({kRow, group, kBatchHead, kStream}, {0x9abcdef0, 0x12345678}, 7);
    for (int j = 0; j < 4; ++j) {
      for (int e = 0; e < 2; ++e) {
        int32_t const col = int32_t(group / 4) * 32 + 8 * j + 2 * int32_t(group % 4) + e;
        columns.insert(col);
        EXPECT_EQ(dropout_col_group(col), group);
        EXPECT_EQ(dropout_bits(kSeed, kOffset, kBatchHead, kRow, col),
                  (words[j] >> (16 * e)) & 0xffff);
      }
    }
  }
  EXPECT_EQ(columns.size(), 96u);
  EXPECT_EQ(*columns.rbegin(), 95);
}

TEST(dropout_bits_depend_on_every_coordinate) {
  std::set<uint32_t> words;
  auto const add = [&](int64_t seed, int64_t offset, uint32_t batch_head, int32_t row, int group) {
    words.insert(dropout_words(seed, offset, batch_head, row, group).x);
  };
  add(1, 2, 3, 4, 5);
  add(1 + (int64_t{1} << 32), 2, 3, 4, 5);
  add(2, 2, 3, 4, 5);
  add(1, 3, 3, 4, 5);
  add(1, 2 + (int64_t{1} << 40), 3, 4, 5);
  add(1, 2, 4, 4, 5);
  add(1, 2, 3, 5, 5);
  add(1, 2, 3, 4, 6);
  EXPECT_EQ(words.size(), 8u);
}

TEST(dropout_numbers_heads_of_the_whole_problem) {
  FwdParams p;
  p.num_heads = 3;
  EXPECT_EQ(dropout_batch_head(p, 2, 1), 7u);
  p.batch_start = 5;
  EXPECT_EQ(dropout_batch_head(p, 2, 1), 22u);
  p.head_start = 6;
  p.num_heads_total = 12;
  EXPECT_EQ(dropout_batch_head(p, 2, 1), 7u * 12u + 7u);
}

TEST(dropout_keeps_the_asked_share) {
  EXPECT_EQ(dropout_keep_threshold(0.5f), 32768u);
  EXPECT_EQ(dropout_keep_threshold(0.1f), 65536u - 6554u);
  EXPECT_EQ(dropout_keep_threshold(1e-9f), 65535u);
  EXPECT_EQ(dropout_keep_threshold(0.9999999f), 0u);

  uint32_t const threshold = dropout_keep_threshold(0.25f);
  int kept = 0;
  for (int32_t row = 0; row < 128; ++row) {
    for (int32_t col = 0; col < 512; ++col) kept += dropout_bits(42, 0, 0, row, col) < threshold;
  }
  EXPECT_NEAR(kept / (128. * 512.), 0.75, 0.01);  // about six standard deviations
}

// ---- scores, softmax --------------------------------------------------------------------------

TEST(score_scales_give_natural_scores_and_powers_of_two) {
  constexpr float kScore = 3.f;
  ScoreScales const plain = score_scales<float>(0.125, 0);
  EXPECT_EQ(kScore * plain.inner, kScore * 0.125f);
  EXPECT_EQ(plain.outer, 1.f);
  EXPECT_NEAR(std::exp2(kScore * plain.plain), std::exp(kScore * 0.125f), 1e-6);
  ScoreScales const capped = score_scales<float>(0.125, 20);
  EXPECT_NEAR(std::tanh(kScore * capped.inner) * capped.outer,
              20.f * std::tanh(kScore * 0.125f / 20.f), 1e-6);
}

double tanh_of(double x) { return std::tanh(x); }
double abs_of(double x) { return std::abs(x); }

TEST(capped_scores_have_their_derivative) {
  constexpr double kRaw = 3, kStep = 1e-5, kScale = 0.125, kCap = 0.5;
  auto const scales = score_scales<double>(kScale, kCap);
  auto const at = [&](double raw) { return cap_score(raw, scales, tanh_of); };
  EXPECT_NEAR(at(kRaw).score, kCap * std::tanh(kRaw * kScale / kCap), 1e-15);
  double const difference = (at(kRaw + kStep).score - at(kRaw - kStep).score) / (2 * kStep);
  EXPECT_NEAR(at(kRaw).slope * kScale, difference, 1e-9);
}

TEST(alibi_is_subtracted_on_both_sides_of_the_diagonal) {
  EXPECT_EQ(with_alibi(1.0, 0.5, 3.0, abs_of), -0.5);
  EXPECT_EQ(with_alibi(1.0, 0.5, -3.0, abs_of), -0.5);
}

TEST(alibi_slopes_are_read_by_head_and_batch) {
  std::array<float, 6> const slopes{0.5f, 0.25f, 0.125f, 1.f, 2.f, 4.f};
  EXPECT_EQ(alibi_slope({}, 1, 2), 0.f);
  EXPECT_EQ(alibi_slope({.alibi_slopes = slopes.data()}, 1, 2), 0.125f);
  EXPECT_EQ(alibi_slope({.alibi_slopes = slopes.data(), .alibi_batch_stride = 3}, 1, 2), 4.f);
}

TEST(scores_of_any_size_are_folded_in_order) {
  for (float const score : {0.f, 1.5f, -300.f, 0x1p100f, -0x1p126f}) {
    EXPECT_EQ(folded(score, kLog2e), score * kLog2e);  // which is not too large
    EXPECT_NEAR(unfolded(folded(score, kLog2e)) / (score == 0 ? 1 : score), score != 0, 1e-6);
  }
  std::vector<float> const scores{-FLT_MAX, -3e38f,  -2.4e38f, -1.2e38f, -1.1e38f, 0.f,
                                  1.1e38f,  1.2e38f, 2.4e38f,  3e38f,    FLT_MAX};
  float before = kEmptyBase;
  for (float const score : scores) {
    float const power = folded(score, kLog2e);
    EXPECT(power > before && power <= FLT_MAX);
    EXPECT(std::abs(unfolded(power) - score) <= 1e-6f * std::abs(score));
    before = power;
  }
  for (float const infinite : {INFINITY, -INFINITY}) EXPECT_EQ(folded(infinite, 2.f), infinite);
  EXPECT(std::isnan(folded(NAN, 2.f)));
  EXPECT(std::isnan(unfolded(NAN)));
}

float exp2_of(float x) { return std::exp2(x); }

TEST(rows_that_see_nothing_have_no_lse_and_scale_zero) {
  RowState const empty{kEmptyBase, 0.f};
  EXPECT_EQ(row_lse(empty), -INFINITY);
  EXPECT_EQ(row_scale(empty), 0.f);
  EXPECT_EQ(std::exp2(-INFINITY - kEmptyBase), 0.f);
}

TEST(lse_and_scale_of_a_row) {
  RowState const row{2.f, 5.f};
  EXPECT_NEAR(row_lse(row), std::log(5.0 * 4.0), 1e-6);
  EXPECT_NEAR(row_scale(row), 0.2, 1e-7);
  EXPECT(std::isnan(row_lse({2.f, NAN})));
  EXPECT(std::isnan(row_scale({2.f, NAN})));
  for (float const score : {FLT_MAX, -FLT_MAX}) {
    EXPECT_NEAR(row_lse({folded(score, kLog2e), 1.f}) / score, 1, 1e-6);
  }
}

// Any order and any grouping of the parts of a row gives the row.
TEST(merge_is_associative_and_commutative) {
  std::mt19937 random(7);
  std::uniform_real_distribution<float> uniform(-1.f, 1.f);
  for (int trial = 0; trial < 200; ++trial) {
    float const spread = trial % 2 == 0 ? 3.f : 60.f;
    std::vector<RowState> parts(1 + trial % 9);
    double sum = 0;
    for (RowState& part : parts) {
      bool const empty = uniform(random) < -0.7f;
      part = empty ? RowState{kEmptyBase, 0.f}
                   : RowState{spread * uniform(random), 1.f + uniform(random)};
      if (!empty) sum += part.sum * std::exp2(double(part.base));
    }
    double const lse = sum == 0 ? -INFINITY : std::log(sum);
    while (parts.size() > 1) {
      std::shuffle(parts.begin(), parts.end(), random);
      RowState const last = parts.back();
      parts.pop_back();
      parts.front() = merge(parts.front(), last, exp2_of);
    }
    EXPECT_NEAR(row_lse(parts.front()), lse, 1e-6);
  }
}

TEST(merge_takes_finished_rows) {
  RowState const merged = merge(finished_row(1.5f), finished_row(-2.f), exp2_of);
  EXPECT_NEAR(row_lse(merged), std::log(std::exp(1.5) + std::exp(-2.0)), 1e-6);
  RowState const nothing = finished_row(-INFINITY);
  EXPECT_NEAR(row_lse(merge(nothing, finished_row(3.f), exp2_of)), 3.0, 1e-6);
  EXPECT_EQ(row_lse(merge(nothing, nothing, exp2_of)), -INFINITY);
  EXPECT(std::isnan(row_lse(merge(finished_row(NAN), finished_row(0.f), exp2_of))));
}

TEST(sink_joins_the_denominator) {
  for (float const sink : {-30.f, 0.f, 1.5f, 80.f}) {
    RowState const merged = merge_sink({3.f, 2.5f}, sink, exp2_of);
    EXPECT_NEAR(row_lse(merged), std::log(2.5 * 8.0 + std::exp(double(sink))), 1e-6);
    RowState const alone = merge_sink({kEmptyBase, 0.f}, sink, exp2_of);
    EXPECT_NEAR(row_lse(alone), sink, 1e-6);
  }
  for (float const sink : {-3e38f, 3e38f}) {
    EXPECT_EQ(merge_sink({folded(sink, kLog2e), 3.f}, sink, exp2_of).sum, 4.f);
    EXPECT_EQ(merge_sink({folded(0.9f * sink, kLog2e), 3.f}, sink, exp2_of).sum,
              sink > 0 ? 1.f : 3.f);
  }
  RowState const no_sink = merge_sink({3.f, 2.5f}, -INFINITY, exp2_of);
  EXPECT_NEAR(row_lse(no_sink), std::log(20.0), 1e-6);
}

}  // namespace
