// Gradients of the CPU family at every instruction-set level of this machine against their
// definition in double precision.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "core/mask.h"
#include "cpu_problem.h"

namespace {

using namespace fa2;
using namespace fa2::testing;

constexpr float kUntouched = 3.f;

// A problem and its gradients, all contiguous.
struct GradProblem : Problem {
  BwdParams grads;
  Tensor grad_out, grad_q, grad_k, grad_v;
  std::vector<float> grad_lse, grad_sink;
  std::vector<uint64_t> workspace;

  template <class... Args>
  explicit GradProblem(DType dtype, Args... args)
      : Problem(dtype, args...),
        grad_out(dtype, out.words.size() - 1),
        grad_q(dtype, q.words.size() - 1),
        grad_k(dtype, k.words.size() - 1),
        grad_v(dtype, v.words.size() - 1),
        grad_lse(lse.size()),
        grad_sink(p.num_heads, kUntouched) {
    std::mt19937 random(7);
    std::normal_distribution<double> normal;
    for (size_t i = 0; i + 1 < grad_out.words.size(); ++i) grad_out.set(i, normal(random));
    for (float& x : grad_lse) x = float(normal(random));
    for (Tensor* t : {&grad_q, &grad_k, &grad_v}) {
      for (size_t i = 0; i + 1 < t->words.size(); ++i) t->set(i, kUntouched);
    }
  }

  // Fills in where everything lies; `p` may have been changed since.
  void prepare(bool deterministic = false) {
    auto like = [](TensorRef ref, Tensor& t) {
      ref.data = t.words.data();
      return ref;
    };
    grads.forward = p;
    grads.grad_out = like(p.out, grad_out);
    grads.grad_q = like(p.q, grad_q);
    grads.grad_k = like(p.k, grad_k);
    grads.grad_v = like(p.v, grad_v);
    grads.grad_sink = p.sink != nullptr ? grad_sink.data() : nullptr;
    grads.deterministic = deterministic;
  }

  void run(int num_threads, bool deterministic = false) {
    execute(p, num_threads);
    prepare(deterministic);
    size_t const bytes = size_t(cpu::plan_backward(grads, num_threads).workspace_bytes);
    workspace.assign(bytes / 8 + 1, ~uint64_t(0));  // NaN, however it is read
    grads.workspace = {workspace.data(), int64_t(bytes)};
    execute(grads, num_threads);
  }
};

// The gradients by definition, laid out as the tensors.
struct Reference {
  std::vector<double> q, k, v, sink;

  explicit Reference(GradProblem& x)
      : q(x.q.words.size()), k(x.k.words.size()), v(x.v.words.size()), sink(size_t(x.p.num_heads)) {
    for (int b = 0; b < x.p.batch; ++b) {
      for (int head = 0; head < x.p.num_heads; ++head) {
        for (int row = 0; row < x.p.seqs_q.max_seqlen; ++row) add_row(x, b, head, row);
      }
    }
  }

 private:
  struct Entry {
    int col;
    double prob;
    double weight;  // of dropout
    double grad;    // of the prob
    double slope;
  };

  void add_row(GradProblem& x, int b, int head, int row) {
    FwdParams const& p = x.p;
    int const seqlen_q = p.seqs_q.max_seqlen;
    int const head_kv = head / p.group();
    auto grad_out = [&](int d) { return x.grad_out.get(x.index(p.out, b, row, head, d)); };
    ColRange const cols = visible_cols(row, seqlen_q, p.seqs_k.max_seqlen, p.window);
    double const sink_weight = p.sink != nullptr ? std::exp(double(p.sink[head])) : 0;
    double sum = sink_weight;
    std::vector<Entry> entries;
    for (int col = cols.begin; col < cols.end; ++col) {
      Score const s = score(x, b, head, row, col);
      double const weight = keep_weight(x, b, head, row, col);
      double grad = 0;
      for (int d = 0; d < p.head_dim_v; ++d) {
        grad += grad_out(d) * x.v.get(x.index(p.v, b, col, head_kv, d)) * weight;
      }
      entries.push_back({col, std::exp(s.value), weight, grad, s.slope});
      sum += entries.back().prob;
    }
    if (sum == 0) return;
    double delta = 0;
    if (x.grads.grad_lse != nullptr) {
      delta = -x.grads.grad_lse[(size_t(b) * p.num_heads + head) * seqlen_q + row];
    }
    for (Entry& e : entries) delta += (e.prob /= sum) * e.grad;
    sink[head] -= sink_weight / sum * delta;
    for (Entry const& e : entries) {
      double const grad_score = e.prob * (e.grad - delta) * e.slope;
      for (int d = 0; d < p.head_dim; ++d) {
        size_t const at_q = x.index(p.q, b, row, head, d);
        size_t const at_k = x.index(p.k, b, e.col, head_kv, d);
        q[at_q] += grad_score * x.k.get(at_k);
        k[at_k] += grad_score * x.q.get(at_q);
      }
      for (int d = 0; d < p.head_dim_v; ++d) {
        v[x.index(p.v, b, e.col, head_kv, d)] += e.prob * e.weight * grad_out(d);
      }
    }
  }
};

double tolerance_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat64: return 2e-12;
    case DType::kFloat32: return 1e-5;
    case DType::kFloat16: return 1e-2;
    default: return 6e-2;
  }
}

// Largest difference, relative to the largest entry or 1.
double difference(Tensor& got, std::vector<double> const& expected) {
  double worst = 0;
  double largest = 1;
  for (size_t i = 0; i + 1 < expected.size(); ++i) {
    double const x = got.get(i);
    if (std::isnan(x)) return kInf;
    worst = std::max(worst, std::fabs(x - expected[i]));
    largest = std::max(largest, std::fabs(expected[i]));
  }
  return worst / largest;
}

void run_and_check(GradProblem& x, std::string const& what) {
  x.run(2);
  Reference const expected(x);
  double const tolerance = tolerance_of(x.p.dtype);
  EXPECT(difference(x.grad_q, expected.q) < tolerance) << what << " grad_q";
  EXPECT(difference(x.grad_k, expected.k) < tolerance) << what << " grad_k";
  EXPECT(difference(x.grad_v, expected.v) < tolerance) << what << " grad_v";
  for (int head = 0; x.p.sink != nullptr && head < x.p.num_heads; ++head) {
    double const sink_tolerance = std::max(tolerance, 1e-6);  // it is a float
    EXPECT_NEAR(x.grad_sink[head], expected.sink[head], sink_tolerance) << what << " grad_sink";
  }
}

TEST(shapes) {
  struct Shape {
    int heads, heads_kv, seqlen_q, seqlen_k, dim;
  };
  for_levels([](DType dtype, std::string const& what) {
    for (Shape const s : {Shape{2, 1, 33, 70, 40}, Shape{4, 2, 5, 103, 3}, Shape{3, 1, 35, 19, 33},
                          Shape{1, 1, 40, 200, 7}, Shape{1, 1, 9, 11, 256}}) {
      for (Window const window : {Window{}, Window{Window::kUnlimited, 0}, Window{4, 2}}) {
        GradProblem x(dtype, 2, s.heads, s.heads_kv, s.seqlen_q, s.seqlen_k, s.dim);
        x.p.window = window;
        run_and_check(x, what + " dim " + std::to_string(s.dim));
      }
    }
  });
}

TEST(widths) {
  struct Shape {
    int heads, heads_kv, seqlen_q, seqlen_k, dim, dim_v;
  };
  for_levels([](DType dtype, std::string const& what) {
    for (Shape const s : {Shape{2, 1, 33, 70, 40, 24}, Shape{4, 2, 5, 103, 3, 70},
                          Shape{3, 1, 35, 19, 33, 1}, Shape{1, 1, 9, 11, 576, 512}}) {
      for (Window const window : {Window{}, Window{Window::kUnlimited, 0}}) {
        GradProblem x(dtype, 2, s.heads, s.heads_kv, s.seqlen_q, s.seqlen_k, s.dim, s.dim_v);
        x.p.window = window;
        run_and_check(x, what + " dims " + std::to_string(s.dim) + ", " + std::to_string(s.dim_v));
      }
    }
  });
}

// Chunks of several tiles, and chains of several chunks.
TEST(long_sequences) {
  for_levels([](DType dtype, std::string const& what) {
    GradProblem x(dtype, 1, 3, 1, 211, 301, 4);
    x.p.window = {100, 10};
    run_and_check(x, what);
  });
}

TEST(options) {
  static float const slopes[4] = {0.5f, 0.25f, 0.125f, 1.f};
  static float const sink[4] = {0.5f, -1.f, 2.f, -std::numeric_limits<float>::infinity()};
  for_levels([](DType dtype, std::string const& what) {
    for (int const option : {0, 1, 2, 3, 4, 5}) {
      GradProblem x(dtype, 1, 4, 2, 40, 61, 24);
      if (option == 0 || option == 5) x.p.score_mod.softcap = 2.f;
      if (option == 1 || option == 5) x.p.score_mod.alibi_slopes = slopes;
      if (option == 2 || option == 5) x.p.sink = sink;
      if (option == 3 || option == 5) x.p.dropout = {0.25f, Problem::kRng};
      if (option == 4 || option == 5) x.grads.grad_lse = x.grad_lse.data();
      if (option == 5) x.p.window = {20, 5};
      run_and_check(x, what + " option " + std::to_string(option));
    }
  });
}

// Queries without keys, keys without queries, and neither: gradients are zeros, not left out.
TEST(empty_rows) {
  for_levels([](DType dtype, std::string const& what) {
    GradProblem causal(dtype, 1, 1, 1, 50, 20, 8);
    causal.p.window.right = 0;
    causal.grads.grad_lse = causal.grad_lse.data();
    std::fill_n(causal.grad_lse.begin(), 30, kNan);  // rows whose lse is -inf
    run_and_check(causal, what);
    GradProblem window(dtype, 1, 1, 1, 3, 120, 8);
    window.p.window = {2, 0};
    run_and_check(window, what);
    GradProblem no_keys(dtype, 1, 2, 1, 3, 0, 8);
    run_and_check(no_keys, what);
    GradProblem no_queries(dtype, 1, 2, 1, 0, 5, 8);
    run_and_check(no_queries, what);
    GradProblem no_batch(dtype, 0, 2, 1, 4, 5, 8);
    no_batch.run(1);
  });
}

// A packed problem of four sequences, one of them empty, with rows that belong to none and keys
// past seqused that hold NaN.
struct Packed : GradProblem {
  static constexpr int kHeads = 4, kHeadsKv = 2, kDim = 24, kRows = 410;
  static constexpr int32_t kCu[] = {0, 130, 131, 131, 400};
  static constexpr int32_t kUsed[] = {130, 1, 0, 200};

  explicit Packed(DType dtype) : GradProblem(dtype, 1, kHeads, kHeadsKv, kRows, kRows, kDim) {
    p.window = {100, 0};
    choose(0, 4);
    for (int row = 0; row < kRows; ++row) {
      bool const is_query = row < kCu[4];
      bool const is_key = row < kCu[3] + kUsed[3];
      for (int i = 0; i < kHeads * kDim; ++i) {
        if (!is_query) q.set(size_t(row) * kHeads * kDim + i, kNan);
        if (!is_query) grad_out.set(size_t(row) * kHeads * kDim + i, kNan);
        if (is_key || i >= kHeadsKv * kDim) continue;
        k.set(size_t(row) * kHeadsKv * kDim + i, kNan);
        v.set(size_t(row) * kHeadsKv * kDim + i, kNan);
      }
    }
  }
  // The sequences [first, first + count) alone.
  void choose(int first, int count) {
    p.batch = count;
    p.q.batch_stride = p.k.batch_stride = p.v.batch_stride = p.out.batch_stride = 0;
    p.seqs_q = {kCu + first, nullptr, 269, kRows};
    p.seqs_k = {kCu + first, kUsed + first, 269, kRows};
  }
  // Bytes of rows [begin, end) of a gradient.
  static std::vector<char> rows(Tensor& t, int begin, int end, int heads) {
    size_t const row_bytes = heads * kDim * element_bytes(t.dtype);
    return {t.as<char>() + begin * row_bytes, t.as<char>() + end * row_bytes};
  }
};

void expect_same_gradients(Packed& a, Packed& b, int query_end, int begin, int key_end,
                           std::string const& what) {
  auto same = [&](Tensor& x, Tensor& y, int end, int heads) {
    return Packed::rows(x, begin, end, heads) == Packed::rows(y, begin, end, heads);
  };
  EXPECT(same(a.grad_q, b.grad_q, query_end, Packed::kHeads)) << what << " grad_q";
  EXPECT(same(a.grad_k, b.grad_k, key_end, Packed::kHeadsKv)) << what << " grad_k";
  EXPECT(same(a.grad_v, b.grad_v, key_end, Packed::kHeadsKv)) << what << " grad_v";
}

// Deterministic gradients depend neither on threads nor on neighbours in the batch, others at least
// not on how threads run.
TEST(results_do_not_depend_on_company) {
  for_levels([](DType dtype, std::string const& what) {
    Packed together(dtype);
    together.run(1, true);
    Packed threads(dtype);
    threads.run(3, true);
    expect_same_gradients(together, threads, Packed::kRows, 0, Packed::kRows, what + " threads");
    for (int i = 0; i < 4; ++i) {
      Packed alone(dtype);
      alone.choose(i, 1);
      alone.run(2, true);
      int const begin = Packed::kCu[i];
      expect_same_gradients(together, alone, Packed::kCu[i + 1], begin, begin + Packed::kUsed[i],
                            what + " sequence " + std::to_string(i));
    }
    Packed first(dtype);
    first.run(3);
    Packed again(dtype);
    again.run(3);
    expect_same_gradients(first, again, Packed::kRows, 0, Packed::kRows, what + " again");
  });
}

TEST(only_rows_of_sequences_are_read_and_written) {
  for_levels([](DType dtype, std::string const& what) {
    Packed x(dtype);
    x.run(2);
    for (int row = 0; row < Packed::kRows; ++row) {
      bool const is_query = row < Packed::kCu[4];
      bool const is_key = row < Packed::kCu[3] + Packed::kUsed[3];
      for (int i = 0; i < Packed::kHeadsKv * Packed::kDim; ++i) {
        double const gq = x.grad_q.get(size_t(row) * Packed::kHeads * Packed::kDim + i);
        double const gk = x.grad_k.get(size_t(row) * Packed::kHeadsKv * Packed::kDim + i);
        double const gv = x.grad_v.get(size_t(row) * Packed::kHeadsKv * Packed::kDim + i);
        EXPECT(is_query ? !std::isnan(gq) && gq != kUntouched : gq == kUntouched) << what << row;
        EXPECT(is_key ? !std::isnan(gk) && gk != kUntouched : gk == kUntouched) << what << row;
        EXPECT(is_key ? !std::isnan(gv) && gv != kUntouched : gv == kUntouched) << what << row;
      }
    }
  });
}

// Float32 sums of dK and dV at the size of the KV heads, of no more heads than threads can use.
TEST(workspace_is_bounded) {
  GradProblem x(DType::kBFloat16, 2, 8, 2, 4096, 256, 64);
  x.prepare();
  int64_t const one_head = 8 * 256 * 64;
  EXPECT_EQ(cpu::plan_backward(x.grads, 1).workspace_bytes, one_head);
  EXPECT(cpu::plan_backward(x.grads, 2).workspace_bytes <= 4 * one_head);
  EXPECT_EQ(cpu::plan_backward(x.grads, 64).workspace_bytes, 4 * one_head);
}

}  // namespace
