// The CPU family at every instruction-set level of this machine against a scalar reference.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "check.h"
#include "cpu/isa.h"
#include "cpu_problem.h"

namespace {

using namespace fa2;
using namespace fa2::testing;

TEST(shapes) {
  struct Shape {
    int heads, heads_kv, seqlen_q, seqlen_k, dim;
  };
  for_levels([](DType dtype, std::string const& what) {
    for (Shape const s : {Shape{2, 1, 33, 70, 40}, Shape{1, 1, 1, 200, 64}, Shape{4, 2, 5, 3, 3},
                          Shape{3, 1, 1, 19, 33}, Shape{1, 1, 70, 200, 17}, Shape{5, 1, 1, 1, 1}}) {
      for (Window const window : {Window{}, Window{Window::kUnlimited, 0}, Window{4, 2}}) {
        Problem x(dtype, 2, s.heads, s.heads_kv, s.seqlen_q, s.seqlen_k, s.dim);
        x.p.window = window;
        run_and_check(x, what + " dim " + std::to_string(s.dim));
      }
    }
  });
}

// Values of another width than keys, on the ways of tiles and of few queries.
TEST(widths) {
  struct Shape {
    int heads, heads_kv, seqlen_q, seqlen_k, dim, dim_v;
  };
  for_levels([](DType dtype, std::string const& what) {
    for (Shape const s :
         {Shape{2, 1, 33, 70, 40, 24}, Shape{2, 2, 1, 200, 24, 64}, Shape{4, 2, 5, 3, 3, 9},
          Shape{3, 1, 1, 230, 33, 1}, Shape{2, 1, 70, 200, 1, 17}, Shape{1, 1, 3, 9, 576, 512}}) {
      for (Window const window : {Window{}, Window{Window::kUnlimited, 0}}) {
        Problem x(dtype, 2, s.heads, s.heads_kv, s.seqlen_q, s.seqlen_k, s.dim, s.dim_v);
        x.p.window = window;
        run_and_check(x, what + " dims " + std::to_string(s.dim) + ", " + std::to_string(s.dim_v));
      }
    }
  });
}

// A handful of queries of each KV head: groups of 4, 2 and 1, keys that fill no turn of 16, rows
// that end within a vector, within a pair of them and at a cache line, heads side by side and
// alone.
TEST(few_queries) {
  struct Shape {
    int group, heads_kv, seqlen_q, seqlen_k, dim, dim_v;
  };
  for_levels([](DType dtype, std::string const& what) {
    for (Shape const s :
         {Shape{1, 3, 1, 211, 8, 40}, Shape{2, 8, 1, 193, 16, 72}, Shape{3, 1, 1, 200, 24, 20},
          Shape{4, 2, 1, 405, 72, 24}, Shape{4, 8, 1, 230, 64, 48}, Shape{1, 2, 3, 197, 132, 36},
          Shape{7, 2, 1, 195, 44, 12}, Shape{2, 3, 4, 209, 80, 96}}) {
      int const heads = s.group * s.heads_kv;
      Problem x(dtype, 1, heads, s.heads_kv, s.seqlen_q, s.seqlen_k, s.dim, s.dim_v);
      run_and_check(x, what + " group " + std::to_string(s.group) + " dims " +
                           std::to_string(s.dim) + ", " + std::to_string(s.dim_v));
    }
  });
}

TEST(options) {
  static float const slopes[4] = {0.5f, 0.25f, 0.125f, 1.f};
  static float const sink[4] = {0.5f, -1.f, 2.f, -std::numeric_limits<float>::infinity()};
  for_levels([](DType dtype, std::string const& what) {
    for (int const option : {0, 1, 2, 3, 4}) {
      for (int const seqlen_q : {3, 40}) {
        Problem x(dtype, 1, 4, 2, seqlen_q, 60, 24);
        if (option == 0 || option == 4) x.p.score_mod.softcap = 2.f;
        if (option == 1 || option == 4) x.p.score_mod.alibi_slopes = slopes;
        if (option == 2 || option == 4) x.p.sink = sink;
        if (option == 3 || option == 4) x.p.dropout = {0.25f, Problem::kRng};
        if (option == 4) x.p.window = {20, 5};
        run_and_check(x, what + " option " + std::to_string(option));
      }
    }
  });
}

// Rows that see nothing, no keys at all, and no queries at all.
TEST(empty_rows) {
  for_levels([](DType dtype, std::string const& what) {
    Problem causal(dtype, 1, 1, 1, 50, 20, 8);
    causal.p.window.right = 0;
    run_and_check(causal, what);
    Problem no_keys(dtype, 1, 2, 1, 3, 0, 8);
    run_and_check(no_keys, what);
    Problem no_queries(dtype, 1, 2, 1, 0, 5, 8);
    execute(no_queries.p, 1);
    Problem no_batch(dtype, 0, 2, 1, 4, 5, 8);
    execute(no_batch.p, 1);
  });
}

TEST(nan_spreads_as_in_standard_attention) {
  for_levels([](DType dtype, std::string const& what) {
    Problem x(dtype, 1, 1, 1, 40, 70, 16);
    x.q.set(x.index(x.p.q, 0, 7, 0, 3), kNan);
    x.v.set(x.index(x.p.v, 0, 9, 0, 5), kNan);
    execute(x.p, 1);
    for (int row = 0; row < 40; ++row) {
      for (int d = 0; d < 16; ++d) {
        bool const expected = row == 7 || d == 5;
        EXPECT_EQ(std::isnan(x.out.get(x.index(x.p.out, 0, row, 0, d))), expected) << what;
      }
    }
  });
}

// Neither threads nor neighbours in the batch change a single bit.
TEST(results_do_not_depend_on_company) {
  for_levels([](DType dtype, std::string const& what) {
    int32_t const cu[] = {0, 130, 131, 135, 400};
    Problem packed(dtype, 1, 4, 2, 400, 400, 24);
    packed.p.window = {100, 0};
    auto as_varlen = [&](Problem& x, int32_t const* offsets, int batch, int most) {
      x.p.batch = batch;
      x.p.q.batch_stride = x.p.k.batch_stride = x.p.v.batch_stride = x.p.out.batch_stride = 0;
      x.p.seqs_q = x.p.seqs_k = {offsets, nullptr, most, 400};
    };
    as_varlen(packed, cu, 4, 265);
    execute(packed.p, 3);
    for (int i = 0; i < 4; ++i) {
      Problem alone(dtype, 1, 4, 2, 400, 400, 24);
      alone.p.window = {100, 0};
      as_varlen(alone, &cu[i], 1, 265);
      execute(alone.p, 1);
      size_t const row_bytes = 4 * 24 * element_bytes(dtype);
      EXPECT(std::memcmp(packed.out.as<char>() + cu[i] * row_bytes,
                         alone.out.as<char>() + cu[i] * row_bytes,
                         (cu[i + 1] - cu[i]) * row_bytes) == 0)
          << what << " sequence " << i;
    }
  });
}

TEST(unknown_level_is_refused) {
  bool refused = false;
  try {
    cpu::set_isa("x86-64-v9");
  } catch (std::exception const& error) {
    refused = std::string(error.what()).find("baseline") != std::string::npos;
  }
  EXPECT(refused);
}

}  // namespace
