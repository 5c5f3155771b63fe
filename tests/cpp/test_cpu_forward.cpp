// The CPU family at every instruction-set level of this machine against a scalar reference.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "check.h"
#include "core/mask.h"
#include "cpu/forward.h"
#include "cpu/isa.h"
#include "cpu_problem.h"

namespace {

using namespace fa2;
using namespace fa2::testing;

// Compares one row of the output with its definition.
void check_row(Problem& x, int b, int head, int row, double tolerance, std::string const& what) {
  FwdParams const& p = x.p;
  int const seqlen_q = p.seqs_q.max_seqlen;
  ColRange const cols = visible_cols(row, seqlen_q, p.seqs_k.max_seqlen, p.window);
  double sum = p.sink != nullptr ? std::exp(double(p.sink[head])) : 0;
  std::vector<double> out(p.head_dim, 0);
  for (int col = cols.begin; col < cols.end; ++col) {
    double weight = std::exp(score(x, b, head, row, col).value);
    sum += weight;
    weight *= keep_weight(x, b, head, row, col);
    for (int d = 0; d < p.head_dim; ++d) {
      out[d] += weight * x.v.get(x.index(p.v, b, col, head / p.group(), d));
    }
  }
  float const lse = x.lse[(size_t(b) * p.num_heads + head) * seqlen_q + row];
  EXPECT_NEAR(lse, std::log(sum), 1e-5) << what << " row " << row;
  for (int d = 0; d < p.head_dim; ++d) {
    double const expected = sum == 0 ? 0 : out[d] / sum;
    EXPECT_NEAR(x.out.get(x.index(p.out, b, row, head, d)), expected, tolerance)
        << what << " row " << row << " dim " << d;
  }
}

double tolerance_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat64: return 1e-12;
    case DType::kFloat32: return 3e-6;
    case DType::kFloat16: return 3e-3;
    default: return 2e-2;
  }
}

void run_and_check(Problem& x, std::string const& what, int num_threads = 2) {
  cpu::forward(x.p, num_threads);
  for (int b = 0; b < x.p.batch; ++b) {
    for (int head = 0; head < x.p.num_heads; ++head) {
      for (int row = 0; row < x.p.seqs_q.max_seqlen; ++row) {
        check_row(x, b, head, row, tolerance_of(x.p.dtype), what);
      }
    }
  }
}

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
    cpu::forward(no_queries.p, 1);
    Problem no_batch(dtype, 0, 2, 1, 4, 5, 8);
    cpu::forward(no_batch.p, 1);
  });
}

TEST(nan_spreads_as_in_standard_attention) {
  for_levels([](DType dtype, std::string const& what) {
    Problem x(dtype, 1, 1, 1, 40, 70, 16);
    x.q.set(x.index(x.p.q, 0, 7, 0, 3), kNan);
    x.v.set(x.index(x.p.v, 0, 9, 0, 5), kNan);
    cpu::forward(x.p, 1);
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
    cpu::forward(packed.p, 3);
    for (int i = 0; i < 4; ++i) {
      Problem alone(dtype, 1, 4, 2, 400, 400, 24);
      alone.p.window = {100, 0};
      as_varlen(alone, &cu[i], 1, 265);
      cpu::forward(alone.p, 1);
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
