#pragma once

// The products of a handful of queries where there are 16 vector registers: 8 accumulators, and
// rows that are worked on two vectors at a time. The loops over the keys of a turn are functions of
// their own: inlined into one, they leave no registers for their addresses.

#include "cpu/level/few_rows.h"

namespace fa2::cpu::FA2_CPU_LEVEL {

// Fetches rows of all heads in the order in which they lie in memory, while others are worked on.
class LineFetcher {
 public:
  template <class Storage>
  explicit LineFetcher(KeyBlock<Storage> const& block)
      : row_(reinterpret_cast<char const* const*>(block.rows + block.ahead)),
        end_(row_ + block.num_keys) {
    int64_t const entries = (block.num_heads - 1) * block.head_stride + block.head_dim;
    lines_ = int(round_up(int(entries * sizeof(Storage)), kCacheLine) / kCacheLine);
  }

  // The next `count` lines, to be fetched one after the other, if they are of one row; else fetches
  // them and returns null.
  __attribute__((noinline)) char const* next(int count) {
    find_row();
    if (left_ >= count) {
      char const* const first = at_;
      at_ += count * kCacheLine;
      left_ -= count;
      return first;
    }
    for (; count > 0 && left_ > 0; --count, --left_, at_ += kCacheLine, find_row()) fetch_line(at_);
    return nullptr;
  }

 private:
  void find_row() {
    if (left_ > 0 || row_ == end_) return;
    at_ = *row_++;
    left_ = lines_;
    if (row_ + kRowsLookedUp <= end_) fetch_line(row_[kRowsLookedUp - 1]);
  }

  char const* const* row_;
  char const* const* end_;
  int lines_;  // of a row
  int left_ = 0;
  char const* at_ = nullptr;
};

// Fetches part `index` of lines that are fetched in parts of kBytes.
template <int kBytes>
FA2_CPU_INLINE void fetch_part(char const* lines, int index) {
  if (lines == nullptr || index * kBytes % kCacheLine != 0) return;
#pragma GCC unroll 8
  for (int i = 0; i < kBytes; i += kCacheLine) fetch_line(lines + index * kBytes + i);
}

template <class E>
class NarrowProducts {
  using Real = typename E::Real;
  using Storage = typename E::Storage;

  static constexpr int kSize = kLanes<Real>;
  static constexpr int kPair = 2 * kSize;  // entries of a row that are worked on at a time
  static constexpr int kAccumulators = 8;

 public:
  // What the number of keys is rounded up to that there are pointers to, and room for scores of.
  static constexpr int kKeyMultiple = larger(kSize, kAccumulators);

  // Scores of all queries: one row of `scores` each, one entry per key.
  static void multiply_keys(KeyBlock<Storage> const& keys, QueryRows<Real> const& queries,
                            QueryRows<Real> const& scores) {
    for_turns(keys, queries.num_queries,
              [&]<int kQueries>(Turn turn, int head, int query) FA2_CPU_INLINE_LAMBDA {
                // Turns of fewer keys than a product takes: the turn before had these, too.
                if (turn.begin % (kAccumulators / kQueries) != 0) return;
                score_turn<kQueries>(turn, keys.head_dim, queries.at(head, query), queries.stride,
                                     scores.at(head, query) + turn.begin, scores.stride);
              });
  }

  // sums += P V: one row of `probs` and of `sums` for each query.
  static void multiply_values(KeyBlock<Storage> const& values, QueryRows<Real> const& probs,
                              QueryRows<Real> const& sums) {
    for_turns(values, sums.num_queries,
              [&]<int kQueries>(Turn turn, int head, int query) FA2_CPU_INLINE_LAMBDA {
                weigh_turn<kQueries>(turn, values.head_dim, probs.at(head, query) + turn.begin,
                                     probs.stride, sums.at(head, query), sums.stride);
              });
  }

 private:
  // Keys of one head.
  struct Turn {
    int begin;
    int num_keys;
    Storage const* const* rows;
    int64_t offset;        // of the head in a row
    LineFetcher* fetcher;  // of rows that come later, or null

    // `parts` times kBytes of rows that come later.
    template <int kBytes>
    FA2_CPU_INLINE char const* lines(int parts) const {
      if (fetcher == nullptr) return nullptr;
      return fetcher->next((parts * kBytes + kCacheLine - 1) / kCacheLine);
    }
  };

  // Calls step.operator()<queries>(turn, head, first query) for turns of keys, all heads of each,
  // and groups of queries.
  template <class Step>
  static FA2_CPU_INLINE void for_turns(KeyBlock<Storage> const& block, int num_queries,
                                       Step const& step) {
    LineFetcher fetcher(block);
    int const most_keys = block.step(num_queries);
    for (int begin = 0; begin < block.num_keys; begin += most_keys) {
      int const num_keys = smaller(most_keys, block.num_keys - begin);
      for (int head = 0; head < block.num_heads; ++head) {
        Turn turn = {begin, num_keys, block.rows + begin, head * block.head_stride, &fetcher};
        for_row_groups<kFewTogether>(num_queries,
                                     [&]<int kQueries>(int query) FA2_CPU_INLINE_LAMBDA {
                                       step.template operator()<kQueries>(turn, head, query);
                                       turn.fetcher = nullptr;
                                     });
      }
    }
  }

  // The ends of rows, which do not fill a vector: to[row][lane], followed by zeros.
  static __attribute__((noinline)) void copy_ends(Storage* to, Storage const* const* rows,
                                                  int num_rows, int64_t offset, int count) {
    for (int i = 0; i < num_rows; ++i) {
      PartialRow<Storage, kSize> const end(rows[i] + offset, count);
      __builtin_memcpy(to + i * kSize, end.entries, sizeof(end.entries));
    }
  }

  // Scores of kQueries queries and the keys of a turn, rounded up to as many as a product takes.
  template <int kQueries>
  static __attribute__((noinline)) void score_turn(Turn const& turn, int head_dim,
                                                   Real const* queries, int query_stride,
                                                   Real* scores, int score_stride) {
    constexpr int kKeys = kAccumulators / kQueries;
    for (int key = 0; key < turn.num_keys; key += kKeys) {
      Vec<Real> sums[kAccumulators];
#pragma GCC unroll 8
      for (int i = 0; i < kAccumulators; ++i) sums[i] = Vec<Real>{};
      dot_products<kQueries>(turn, key, head_dim, queries, query_stride, sums);
      Real products[kAccumulators];
#pragma GCC unroll 2
      for (int i = 0; i < kAccumulators; i += kSize) {
        Vec<Real> block[kSize];
#pragma GCC unroll 8
        for (int j = 0; j < kSize; ++j) block[j] = sums[i + j];
        store(products + i, sum_lanes<Real>(block));
      }
#pragma GCC unroll 4
      for (int i = 0; i < kQueries; ++i) {
        __builtin_memcpy(scores + i * score_stride + key, products + i * kKeys,
                         kKeys * sizeof(Real));
      }
    }
  }

  // sums[i * keys + r] += query i . key r, lane by lane.
  template <int kQueries>
  static FA2_CPU_INLINE void dot_products(Turn const& turn, int key, int head_dim,
                                          Real const* queries, int query_stride,
                                          Vec<Real> (&sums)[kAccumulators]) {
    constexpr int kKeys = kAccumulators / kQueries;
    constexpr int kBytes = kKeys * kPair * int(sizeof(Storage));
    Storage const* const* const rows = turn.rows + key;
    Storage const* row[kKeys];
#pragma GCC unroll 8
    for (int r = 0; r < kKeys; ++r) row[r] = rows[r] + turn.offset;
    char const* const lines = turn.template lines<kBytes>((head_dim + kPair - 1) / kPair);
    int d = 0;
    for (; d + kPair <= head_dim; d += kPair) {
      add_vectors<kQueries, 2>(row, d, queries + d, query_stride, lines, d, sums);
    }
    if (d < head_dim) fetch_part<kBytes>(lines, d / kPair);
    Storage ends[kKeys * kSize];
    for (int at = d; d < head_dim; d += kSize, at += kSize) {
      if (d + kSize > head_dim) {
        copy_ends(ends, rows, kKeys, turn.offset + d, head_dim - d);
#pragma GCC unroll 8
        for (int r = 0; r < kKeys; ++r) row[r] = ends + r * kSize;
        at = 0;
      }
      add_vectors<kQueries, 1>(row, at, queries + d, query_stride, nullptr, d, sums);
    }
  }

  // The same for kVectors vectors from head dim d on, which lie at `at` in `rows`. Where queries
  // are many, keys are few, and wait for them in registers; else it is the other way round. Of
  // `lines`, each key's share is fetched apart: two lines at once are slower.
  template <int kQueries, int kVectors, int kKeys>
  static FA2_CPU_INLINE void add_vectors(Storage const* const (&rows)[kKeys], int at,
                                         Real const* queries, int query_stride, char const* lines,
                                         int d, Vec<Real> (&sums)[kAccumulators]) {
    constexpr int kBytes = kPair * int(sizeof(Storage));
    int const part = d / kPair * kKeys;
    if constexpr (kQueries > kKeys) {
      Vec<Real> k[kKeys][kVectors];
#pragma GCC unroll 8
      for (int r = 0; r < kKeys; ++r) load_columns<E, kVectors>(rows[r], nullptr, at, k[r]);
#pragma GCC unroll 2
      for (int n = 0; n < kVectors; ++n) {
        fetch_part<kBytes>(lines, part + n);
#pragma GCC unroll 4
        for (int i = 0; i < kQueries; ++i) {
          Vec<Real> const q = load_once<Real>(queries + i * query_stride + n * kSize);
#pragma GCC unroll 8
          for (int r = 0; r < kKeys; ++r) {
            sums[i * kKeys + r] = E::multiply_add(sums[i * kKeys + r], k[r][n], q);
          }
        }
      }
    } else {
#pragma GCC unroll 8
      for (int r = 0; r < kKeys; ++r) {
        fetch_part<kBytes>(lines, part + r);
        Vec<Real> k[kVectors];
        load_columns<E, kVectors>(rows[r], nullptr, at, k);
#pragma GCC unroll 4
        for (int i = 0; i < kQueries; ++i) {
#pragma GCC unroll 2
          for (int n = 0; n < kVectors; ++n) {
            Vec<Real> const q = load<Real>(queries + i * query_stride + n * kSize);
            sums[i * kKeys + r] = E::multiply_add(sums[i * kKeys + r], k[n], q);
          }
        }
      }
    }
  }

  // sums += P V for kQueries queries over the keys of a turn.
  template <int kQueries>
  static __attribute__((noinline)) void weigh_turn(Turn const& turn, int head_dim,
                                                   Real const* probs, int prob_stride, Real* sums,
                                                   int sum_stride) {
    weigh_columns<kQueries, kAccumulators / kQueries>(turn, 0, head_dim, probs, prob_stride, sums,
                                                      sum_stride);
  }

  // The same for head dims from `dim` on, kColumns vectors at a time.
  template <int kQueries, int kColumns>
  static FA2_CPU_INLINE void weigh_columns(Turn const& turn, int dim, int head_dim,
                                           Real const* probs, int prob_stride, Real* sums,
                                           int sum_stride) {
    Storage const* const* rows = turn.rows;
    int64_t at = turn.offset + dim;
    auto add = [&] FA2_CPU_INLINE_LAMBDA {
      add_values<kQueries, kColumns>(turn, rows, at, probs, prob_stride, sums + dim, sum_stride);
      dim += kColumns * kSize;
      at += kColumns * kSize;
    };
    if constexpr (kColumns > 1) {
      while (dim + kColumns * kSize <= head_dim) add();
      weigh_columns<kQueries, kColumns / 2>(turn, dim, head_dim, probs, prob_stride, sums,
                                            sum_stride);
    } else {
      Storage ends[kLongStep * kSize];
      Storage const* end[kLongStep];
      while (dim < head_dim) {
        if (dim + kSize > head_dim) {
          copy_ends(ends, turn.rows, turn.num_keys, at, head_dim - dim);
          for (int i = 0; i < turn.num_keys; ++i) end[i] = ends + i * kSize;
          rows = end;
          at = 0;
        }
        add();
      }
    }
  }

  // to[query * stride + d] += P V for kQueries queries and kColumns vectors of head dims, which lie
  // at `at` in `rows`.
  template <int kQueries, int kColumns>
  static FA2_CPU_INLINE void add_values(Turn const& turn, Storage const* const* rows, int64_t at,
                                        Real const* probs, int prob_stride, Real* to, int stride) {
    constexpr int kBytes = kColumns * kSize * int(sizeof(Storage));
    int const num_keys = turn.num_keys;
    char const* const lines = turn.template lines<kBytes>(num_keys);
    Accumulators<E, kQueries, kColumns> sums;
#pragma GCC unroll 4
    for (int i = 0; i < kQueries; ++i) {
#pragma GCC unroll 8
      for (int n = 0; n < kColumns; ++n) sums[i][n] = load<Real>(to + i * stride + n * kSize);
    }
    // Two rows a turn of the loop, which is bound by the number of its instructions where another
    // thread shares the core; their lines apart, as in add_vectors.
    auto add_row = [&](int key) FA2_CPU_INLINE_LAMBDA {
      Vec<Real> v[kColumns];
      load_columns<E, kColumns>(rows[key] + at, nullptr, 0, v);
#pragma GCC unroll 4
      for (int i = 0; i < kQueries; ++i) {
        Vec<Real> const p = broadcast_from<Real>(probs + i * prob_stride + key);
#pragma GCC unroll 8
        for (int n = 0; n < kColumns; ++n) sums[i][n] = E::multiply_add(sums[i][n], v[n], p);
      }
    };
    int key = 0;
    for (; key + 2 <= num_keys; key += 2) {
      if constexpr (kBytes < kCacheLine) fetch_part<2 * kBytes>(lines, key / 2);
      if constexpr (kBytes >= kCacheLine) fetch_part<kBytes>(lines, key);
      add_row(key);
      if constexpr (kBytes >= kCacheLine) fetch_part<kBytes>(lines, key + 1);
      add_row(key + 1);
    }
    if (key < num_keys) {
      fetch_part<kBytes>(lines, key);
      add_row(key);
    }
#pragma GCC unroll 4
    for (int i = 0; i < kQueries; ++i) {
#pragma GCC unroll 8
      for (int n = 0; n < kColumns; ++n) store(to + i * stride + n * kSize, sums[i][n]);
    }
  }
};

}  // namespace fa2::cpu::FA2_CPU_LEVEL
