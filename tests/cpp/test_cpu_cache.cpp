// KV caches on the CPU: splits of the keys, pages, lengths of a cache, and appending to it.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "check.h"
#include "core/seq_info.h"
#include "cpu_problem.h"

namespace {

using namespace fa2;
using namespace fa2::testing;

bool same_results(Problem& a, Problem& b) {
  size_t const bytes = (a.out.words.size() - 1) * element_bytes(a.p.dtype);
  return std::memcmp(a.out.words.data(), b.out.words.data(), bytes) == 0 &&
         std::memcmp(a.lse.data(), b.lse.data(), a.lse.size() * sizeof(float)) == 0;
}

TEST(splits_of_the_keys) {
  static float const slopes[4] = {0.5f, 0.25f, 0.125f, 1.f};
  static float const sink[4] = {0.5f, -1.f, 2.f, -std::numeric_limits<float>::infinity()};
  for_levels([](DType dtype, std::string const& what) {
    for (int const seqlen_q : {1, 3, 20}) {
      for (int const num_splits : {0, 2, 128}) {
        for (bool const modified : {false, true}) {
          Problem x(dtype, 1, 4, 2, seqlen_q, 1301, 20);
          x.p.num_splits = num_splits;
          x.p.window = modified ? Window{1190, 3} : Window{Window::kUnlimited, 0};
          if (modified) {
            x.p.score_mod = {.softcap = 2.f, .alibi_slopes = slopes};
            x.p.sink = sink;
          }
          run_and_check(x, what + " splits " + std::to_string(num_splits));
        }
      }
    }
  });
}

// As many splits as are asked for, whatever the threads and the rest of the batch.
TEST(splits_are_reproducible) {
  for_levels([](DType dtype, std::string const& what) {
    for (int const num_splits : {0, 3}) {
      int32_t const used[] = {1500, 0, 7, 1301};
      Problem batch(dtype, 4, 4, 2, 2, 1500, 16);
      batch.p.num_splits = num_splits;
      batch.p.seqs_k.seqused = used;
      execute(batch.p, 5);
      size_t const rows = 4 * 2 * 16 * element_bytes(dtype);
      for (int b = 0; b < 4; ++b) {
        Problem one(dtype, 4, 4, 2, 2, 1500, 16);
        one.p.num_splits = num_splits;
        one.p.seqs_k.seqused = used + b;
        one.p.batch = 1;
        for (TensorRef* t : {&one.p.q, &one.p.k, &one.p.v, &one.p.out}) {
          t->data = static_cast<char*>(t->data) + b * t->batch_stride * element_bytes(dtype);
        }
        execute(one.p, 1);
        EXPECT(std::memcmp(batch.out.as<char>() + b * rows, one.out.as<char>() + b * rows, rows) ==
               0)
            << what << " sequence " << b << " splits " << num_splits;
      }
    }
  });
}

// The keys of a dense problem in pages, in reverse order and among others that hold NaN. Entries
// of the table that no key needs lead nowhere.
struct Pages {
  Tensor k, v;
  std::vector<int32_t> table;

  Pages(Problem& x, int page_size, std::vector<int> const& lengths)
      : k(x.p.dtype, 0), v(x.p.dtype, 0) {
    FwdParams& p = x.p;
    int const columns = (p.seqs_k.max_seqlen + page_size - 1) / page_size;
    int const num_pages = p.batch * columns + 1;
    int64_t const row = p.num_heads_kv * p.head_dim;
    for (Tensor* t : {&k, &v}) {
      *t = Tensor(p.dtype, size_t(num_pages) * page_size * row);
      for (int64_t i = 0; i < num_pages * page_size * row; ++i) t->set(i, kNan);
    }
    table.assign(size_t(p.batch) * columns, -123456789);
    int page = num_pages;
    size_t const bytes = row * element_bytes(p.dtype);
    for (int b = 0; b < p.batch; ++b) {
      for (int position = 0; position < lengths[b]; ++position) {
        int32_t& entry = table[b * columns + position / page_size];
        if (position % page_size == 0) entry = --page;
        auto copy = [&](Tensor& to, Tensor& from) {
          int64_t const at = int64_t(entry) * page_size + position % page_size;
          std::memcpy(to.as<char>() + at * bytes,
                      from.as<char>() + (int64_t(b) * p.seqs_k.max_seqlen + position) * bytes,
                      bytes);
        };
        copy(k, x.k);
        copy(v, x.v);
      }
    }
    p.pages = {table.data(), columns, page_size, num_pages};
    p.k = {k.words.data(), page_size * row, row, p.head_dim};
    p.v = {v.words.data(), page_size * row, row, p.head_dim};
  }
};

TEST(pages_change_nothing) {
  for_levels([](DType dtype, std::string const& what) {
    int32_t const used[] = {397, 0, 64};
    for (int const seqlen_q : {1, 4, 70}) {
      Problem dense(dtype, 3, 4, 2, seqlen_q, 400, 24);
      dense.p.seqs_k.seqused = used;
      dense.p.window.right = 0;
      execute(dense.p, 2);
      for (int const page_size : {1, 3, 16, 200}) {
        Problem paged(dtype, 3, 4, 2, seqlen_q, 400, 24);
        paged.p.seqs_k.seqused = used;
        paged.p.window.right = 0;
        Pages const pages(paged, page_size, {397, 0, 64});
        execute(paged.p, 2);
        EXPECT(same_results(dense, paged)) << what << " pages of " << page_size;
      }
    }
  });
}

// Rows in front of and behind those that count hold NaN; what counts is as if it stood alone.
TEST(lengths_of_a_cache) {
  for_levels([](DType dtype, std::string const& what) {
    constexpr int kDim = 24;
    int32_t const leftpad[] = {5};
    int32_t const used[] = {200};
    int32_t const cu_appended[] = {10, 13};
    for (bool const by_offsets : {false, true}) {
      for (int const seqlen_q : {2, 40}) {
        Problem cache(dtype, 1, 2, 1, seqlen_q, 300, kDim);
        cache.p.window = {150, 0};
        Problem alone(dtype, 1, 2, 1, seqlen_q, 198, kDim);
        alone.p.window = {150, 0};
        std::memcpy(alone.q.words.data(), cache.q.words.data(),
                    seqlen_q * 2 * kDim * element_bytes(dtype));
        for (int i = 0; i < 300 * kDim; ++i) {
          int const row = i / kDim - leftpad[0];
          for (auto const& [from, to] : {std::pair{&cache.k, &alone.k}, {&cache.v, &alone.v}}) {
            if (row >= 0 && row < 198) {
              to->set(row * kDim + i % kDim, from->get(i));
            } else {
              from->set(i, kNan);
            }
          }
        }
        SeqLens& seqs = cache.p.seqs_k;
        seqs.leftpad = leftpad;
        seqs.seqused = used;
        seqs.appended = by_offsets ? 0 : 3;
        seqs.cu_appended = by_offsets ? cu_appended : nullptr;
        execute(cache.p, 2);
        execute(alone.p, 2);
        EXPECT(same_results(cache, alone)) << what;
      }
    }
  });
}

// A cache, new rows for it, and queries, all of them small integers.
struct Append {
  static constexpr int kBatch = 3, kHeads = 4, kHeadsKv = 2, kDim = 10, kCapacity = 20, kNew = 5;
  AppendParams p;
  Tensor k, v, new_k, new_v, q, rotated_q, cos, sin;
  std::vector<int32_t> used{0, 7, 17};  // the last sequence has no room for two of its rows

  explicit Append(DType dtype)
      : k(dtype, kBatch * kCapacity * kHeadsKv * kDim),
        v(k),
        new_k(dtype, kBatch * kNew * kHeadsKv * kDim),
        new_v(new_k),
        q(dtype, kBatch * kNew * kHeads * kDim),
        rotated_q(q),
        cos(dtype, kCapacity * kDim / 2),
        sin(cos) {
    for (Tensor* t : {&k, &v, &new_k, &new_v, &q, &cos, &sin}) {
      for (size_t i = 0; i + 1 < t->words.size(); ++i) {
        t->set(i, int(i * 2654435761u >> 20) % 3 - 1 + (t == &v || t == &new_v));
      }
    }
    auto dense = [](Tensor& t, int rows, int heads) {
      return TensorRef{t.words.data(), rows * heads * kDim, heads * kDim, kDim};
    };
    p = {.dtype = dtype,
         .batch = kBatch,
         .num_heads = kHeads,
         .num_heads_kv = kHeadsKv,
         .head_dim = kDim,
         .head_dim_v = kDim,
         .k = dense(k, kCapacity, kHeadsKv),
         .v = dense(v, kCapacity, kHeadsKv),
         .seqs_k = {.seqused = used.data(), .max_seqlen = kCapacity},
         .new_k = dense(new_k, kNew, kHeadsKv),
         .new_v = dense(new_v, kNew, kHeadsKv),
         .seqs_new = {.max_seqlen = kNew},
         .rotary = {cos.words.data(), sin.words.data(), kCapacity, 6, false},
         .q = dense(q, kNew, kHeads),
         .rotated_q = dense(rotated_q, kNew, kHeads),
         .seqs_q = {.max_seqlen = kNew}};
  }

  // Entry d of a row that starts at x[first], rotated.
  double rotated(Tensor& x, int64_t first, int d, int position) {
    if (d >= p.rotary.dim) return x.get(first + d);
    int const pairs = p.rotary.dim / 2;
    int const pair = p.rotary.interleaved ? d / 2 : d % pairs;
    bool const second = p.rotary.interleaved ? d % 2 == 1 : d >= pairs;
    int const partner = p.rotary.interleaved ? d ^ 1 : second ? d - pairs : d + pairs;
    int64_t const at = std::min(position, p.rotary.rows - 1) * pairs + pair;
    return x.get(first + d) * cos.get(at) +
           (second ? 1 : -1) * x.get(first + partner) * sin.get(at);
  }
};

TEST(appended_rows_and_rotated_queries) {
  for (DType const dtype : {DType::kFloat16, DType::kBFloat16, DType::kFloat32, DType::kFloat64}) {
    for (int const option : {0, 1, 2, 3}) {
      Append x(dtype);
      x.p.rotary.interleaved = option % 2 == 1;
      x.p.q_advances = option >= 2;
      Append const before = x;
      execute(x.p, 1 + option);
      Append old = before;
      auto const cached = [&](int64_t row) { return x.used[row / Append::kCapacity]; };
      for (int64_t i = 0; i < Append::kBatch * Append::kCapacity * 2 * Append::kDim; ++i) {
        int64_t const row = i / (2 * Append::kDim);
        int const b = int(row / Append::kCapacity);
        int const position = int(row % Append::kCapacity);
        int const index = position - cached(row);
        int64_t const first =
            ((int64_t(b) * Append::kNew + index) * 2 + i / Append::kDim % 2) * Append::kDim;
        bool const is_new = index >= 0 && index < Append::kNew;
        int const d = int(i % Append::kDim);
        EXPECT_EQ(x.k.get(i), is_new ? x.rotated(x.new_k, first, d, position) : old.k.get(i));
        EXPECT_EQ(x.v.get(i), is_new ? x.new_v.get(first + d) : old.v.get(i));
      }
      for (int64_t i = 0; i < Append::kBatch * Append::kNew * Append::kHeads * Append::kDim; ++i) {
        int64_t const row = i / (Append::kHeads * Append::kDim);
        int const position =
            x.used[row / Append::kNew] + (x.p.q_advances ? int(row % Append::kNew) : 0);
        int const d = int(i % Append::kDim);
        EXPECT_EQ(x.rotated_q.get(i), x.rotated(x.q, i - d, d, position));
      }
    }
  }
}

// Wrong entries lead nowhere; the right ones into their page.
TEST(appending_to_pages) {
  Append dense(DType::kFloat32);
  Append paged(DType::kFloat32);
  constexpr int kPage = 4, kColumns = Append::kCapacity / kPage;
  std::vector<int32_t> table(Append::kBatch * kColumns);
  std::iota(table.begin(), table.end(), 0);
  table[kColumns + 2] = -1;           // positions 8 to 11 of sequence 1
  table[2 * kColumns + 4] = 1 << 20;  // and 16 to 19 of sequence 2
  paged.p.pages = {table.data(), kColumns, kPage, Append::kBatch * kColumns};
  int64_t const row = Append::kHeadsKv * Append::kDim;
  paged.p.k.batch_stride = paged.p.v.batch_stride = kPage * row;
  Append before(DType::kFloat32);
  execute(dense.p, 1);
  execute(paged.p, 2);
  for (int64_t i = 0; i < Append::kBatch * Append::kCapacity * row; ++i) {
    int64_t const at = i / row;
    bool const lost = (at >= Append::kCapacity + 8 && at < Append::kCapacity + 12) ||
                      at >= 2 * Append::kCapacity + 16;
    EXPECT_EQ(paged.k.get(i), (lost ? before : dense).k.get(i));
    EXPECT_EQ(paged.v.get(i), (lost ? before : dense).v.get(i));
  }
}

// Each product and each sum is rounded: no fused multiply-add.
TEST(rotation_rounds_every_step) {
  Append x(DType::kFloat32);
  for (Tensor* t : {&x.new_k, &x.cos, &x.sin}) {
    for (size_t i = 0; i + 1 < t->words.size(); ++i) t->set(i, 1.0 / (3 + double(i % 97)));
  }
  execute(x.p, 1);
  for (int d = 0; d < 3; ++d) {
    float const volatile a = float(x.new_k.get(d)) * float(x.cos.get(d));
    float const volatile b = float(x.new_k.get(d + 3)) * float(x.sin.get(d));
    float const volatile difference = a - b;
    EXPECT_EQ(float(x.k.get(d)), float(difference));
  }
}

TEST(too_many_splits_are_refused) {
  Problem x(DType::kFloat32, 1, 1, 1, 1, 8, 8);
  x.p.num_splits = 129;
  bool refused = false;
  try {
    execute(x.p, 1);
  } catch (std::exception const& error) {
    refused = std::string(error.what()).find("128") != std::string::npos;
  }
  EXPECT(refused);
}

}  // namespace
