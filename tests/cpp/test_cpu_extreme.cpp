// Extreme values at every instruction-set level of this machine, threads' floating-point settings,
// and problems that the checks of Python would have refused.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <exception>
#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "cpu/float_environment.h"
#include "cpu_problem.h"

namespace {

using namespace fa2;
using namespace fa2::testing;

struct Shape {
  int seqlen_q, seqlen_k, num_splits;
};

// Few queries, whole and in parts, and tiles.
constexpr Shape kShapes[] = {{1, 1400, 0}, {2, 600, 3}, {17, 217, 0}};

// A problem whose raw scores are the small whole numbers that `raw` gives for each key.
Problem with_scores(DType dtype, Shape const& shape, std::function<int(int)> const& raw) {
  constexpr int kDim = 8;
  Problem x(dtype, 1, 2, 1, shape.seqlen_q, shape.seqlen_k, kDim);
  x.p.num_splits = shape.num_splits;
  for (size_t i = 0; i + 1 < x.q.words.size(); ++i) x.q.set(i, i % kDim == 0);
  for (size_t i = 0; i + 1 < x.k.words.size(); ++i) {
    x.k.set(i, i % kDim == 0 ? raw(int(i / kDim)) : 0);
  }
  return x;
}

TEST(large_logits_are_exact) {
  std::function<int(int)> const patterns[] = {
      [](int) { return 1; },                               // uniform
      [](int) { return -3; },                              //
      [](int key) { return key % 3 - 1; },                 // uniform over every third key
      [](int key) { return key / 64 - 3; },                // the largest come last,
      [](int key) { return 3 - key / 64; },                // or first
      [](int key) { return key == 100 ? -1 : -2; },        // one key
      [](int key) { return key / 200 == 1 ? 0 : -1; },     // small among large
      [](int key) { return key < 192 ? 0 : key < 200; }};  // large after small
  for_levels([&](DType dtype, std::string const& what) {
    for (int const exponent : {-60, 10, 20, 31, 100, 124}) {
      for (Shape const& shape : kShapes) {
        int number = 0;
        for (auto const& pattern : patterns) {
          auto const small = [&](int key) { return std::clamp(pattern(key), -3, 3); };
          Problem x = with_scores(dtype, shape, small);
          x.p.softmax_scale = std::ldexp(1, std::min(exponent, 100));
          // The rest goes into the queries, where the type has room for it.
          if (exponent > 100 && dtype != DType::kFloat16) {
            for (size_t i = 0; i + 1 < x.q.words.size(); i += 8) {
              x.q.set(i, std::ldexp(1, exponent - 100));
            }
          }
          run_and_check(x, what + " exponent " + std::to_string(exponent) + " keys " +
                               std::to_string(shape.seqlen_k) + " pattern " +
                               std::to_string(number++));
        }
      }
    }
  });
}

TEST(sink_among_large_logits) {
  for_levels([](DType dtype, std::string const& what) {
    for (int const exponent : {0, 19, 22, 100}) {
      for (Shape const& shape : kShapes) {
        for (float const factor : {-2.f, -1.f, 0.f, 1.f, 2.f}) {
          for (int const raw : {-1, 1}) {
            Problem x = with_scores(dtype, shape, [&](int) { return raw; });
            float const sink[2] = {std::ldexp(factor, exponent),
                                   -std::numeric_limits<float>::infinity()};
            x.p.sink = sink;
            x.p.softmax_scale = std::ldexp(1, exponent);
            run_and_check(x, what + " exponent " + std::to_string(exponent));
          }
        }
      }
    }
  });
}

// Whatever comes before the mask, a key that is not seen counts for nothing: its values are huge.
TEST(masked_keys_never_return) {
  static float const slopes[2] = {0.5f, 0.25f};
  for_levels([](DType dtype, std::string const& what) {
    for (int seqlen_k = 185; seqlen_k <= 225; seqlen_k += 4) {
      for (int const seqlen_q : {1, 2, 33}) {
        for (int const modifier : {0, 1, 2, 3, 4}) {
          Problem x = with_scores(dtype, {seqlen_q, seqlen_k, 0}, [](int) { return 0; });
          if (modifier % 2 == 1) x.p.score_mod.softcap = 1;
          if (modifier == 2 || modifier == 3) x.p.score_mod.alibi_slopes = slopes;
          if (modifier == 4) x.p.softmax_scale = 0;
          x.p.window = {30, modifier == 2 ? 0 : Window::kUnlimited};
          for (size_t i = 0; i + 1 < x.v.words.size(); ++i) {
            x.v.set(i, int(i / 8) < seqlen_k - seqlen_q - 30 ? 3.5 : 1);
          }
          execute(x.p, 1);
          for (size_t i = 0; i + 1 < x.out.words.size(); ++i) {
            EXPECT_NEAR(x.out.get(i), 1, tolerance_of(dtype))
                << what << " keys " << seqlen_k << " modifier " << modifier;
          }
        }
      }
    }
  });
}

TEST(scores_of_minus_infinity_attend_to_nothing) {
  for_levels([](DType dtype, std::string const& what) {
    if (dtype == DType::kFloat16) return;  // Tensor::set has no infinity there
    for (Shape const& shape : kShapes) {
      Problem x = with_scores(dtype, shape, [](int) { return 0; });
      for (size_t i = 0; i + 1 < x.k.words.size(); i += 8) x.k.set(i, -kInf);
      run_and_check(x, what);
    }
  });
}

TEST(environment_of_the_caller_holds_in_a_scope) {
#if defined(__x86_64__)
  using cpu::FloatEnvironment;
  FloatEnvironment const before = FloatEnvironment::current();
  _mm_setcsr(_mm_getcsr() | 0x8040);  // subnormals count as zero, and become it
  FloatEnvironment const flushing = FloatEnvironment::current();
  before.use();
  {
    cpu::FloatEnvironmentScope const scope(flushing);
    EXPECT(FloatEnvironment::current() == flushing);
  }
  EXPECT(FloatEnvironment::current() == before);
#endif
}

// They would take some 150 cycles each. In tiles, a handful of queries and gradients, on one thread
// and on several; the caller's own settings are what they were.
TEST(subnormal_results_are_zero) {
#if defined(__x86_64__)
  uint32_t const before = _mm_getcsr();
  for_levels([](DType dtype, std::string const& what) {
    if (dtype == DType::kFloat16) return;  // its subnormal numbers are none in a float
    double const tiny = dtype == DType::kFloat64 ? 0x1p-1030 : 0x1p-130;
    for (int const seqlen_q : {1, 70}) {
      for (int const threads : {1, 2}) {
        Problem x(dtype, 1, 2, 2, seqlen_q, 300, 32);
        for (size_t i = 0; i + 1 < x.v.words.size(); ++i) x.v.set(i, tiny);
        execute(x.p, threads);
        Tensor grad_out = x.out, grad_q = x.q, grad_k = x.k, grad_v = x.v;
        for (size_t i = 0; i + 1 < grad_out.words.size(); ++i) grad_out.set(i, tiny);
        BwdParams backward{
            .forward = x.p, .grad_out = x.p.out, .grad_q = x.p.q, .grad_k = x.p.k, .grad_v = x.p.v};
        backward.grad_out.data = grad_out.words.data();
        backward.grad_q.data = grad_q.words.data();
        backward.grad_k.data = grad_k.words.data();
        backward.grad_v.data = grad_v.words.data();
        for (size_t i = 0; i + 1 < x.out.words.size(); ++i) {
          EXPECT_EQ(x.out.get(i), 0) << what << " queries " << seqlen_q;
        }
        std::vector<uint64_t> workspace(
            size_t(cpu::plan_backward(backward, threads).workspace_bytes) / 8 + 1);
        backward.workspace = {workspace.data(), int64_t(workspace.size()) * 8};
        execute(backward, threads);
        for (size_t i = 0; i + 1 < grad_v.words.size(); ++i) {
          EXPECT_EQ(grad_v.get(i), 0) << what << " gradients, queries " << seqlen_q;
        }
      }
    }
  });
  EXPECT_EQ(_mm_getcsr() & ~0x3fu, before & ~0x3fu);
#endif
}

bool refused(std::function<void()> const& call, std::string const& word) {
  try {
    call();
  } catch (std::exception const& error) {
    return std::string(error.what()).find(word) != std::string::npos;
  }
  return false;
}

TEST(problems_that_nobody_means_are_refused) {
  static int32_t const kTable[1] = {0};
  using Change = std::function<void(FwdParams&)>;
  std::pair<char const*, Change> const changes[] = {
      {"q has", [](FwdParams& p) { p.q.data = nullptr; }},
      {"k has", [](FwdParams& p) { p.k.data = nullptr; }},
      {"v has", [](FwdParams& p) { p.v.data = nullptr; }},
      {"out has", [](FwdParams& p) { p.out.data = nullptr; }},
      {"lse has", [](FwdParams& p) { p.lse = nullptr; }},
      {"rng_state", [](FwdParams& p) { p.dropout.drop_prob = 0.5; }},
      {"head_dim", [](FwdParams& p) { p.head_dim = kMaxHeadDim + 1; }},
      {"head_dim_v", [](FwdParams& p) { p.head_dim_v = kMaxHeadDimV + 1; }},
      {"head_dim_v", [](FwdParams& p) { p.head_dim_v = 0; }},
      {"batch", [](FwdParams& p) { p.batch = -1; }},
      {"heads", [](FwdParams& p) { p.num_heads_kv = 0; }},
      {"heads", [](FwdParams& p) { p.num_heads_kv = 3; }},
      {"rows of q", [](FwdParams& p) { p.seqs_q.max_seqlen = -1; }},
      {"rows of k", [](FwdParams& p) { p.seqs_k.max_seqlen = kMaxSeqlen + 1; }},
      {"pages", [](FwdParams& p) { p.pages.block_table = kTable; }}};
  for (auto const& [word, change] : changes) {
    Problem x(DType::kFloat32, 1, 2, 1, 3, 5, 8);
    change(x.p);
    EXPECT(refused([&] { execute(x.p, 1); }, word)) << word;
    BwdParams grads;
    grads.forward = x.p;
    EXPECT(refused([&] { execute(grads, 1); }, word)) << word;
  }
  Problem x(DType::kFloat32, 1, 2, 1, 3, 5, 8);
  BwdParams grads;
  grads.forward = x.p;
  EXPECT(refused([&] { execute(grads, 1); }, "grad_out"));
  EXPECT(refused([&] { execute(x.p, 0); }, "num_threads"));
}

TEST(sink_gradient_without_queries_is_zero) {
  for (int const batch : {0, 1}) {
    Problem x(DType::kFloat32, batch, 2, 1, 0, 0, 8);
    float const sink[2] = {0.f, 1.f};
    float grad_sink[2] = {kNan, kNan};
    x.p.sink = sink;
    BwdParams grads;
    grads.forward = x.p;
    grads.grad_sink = grad_sink;
    std::vector<char> workspace(size_t(cpu::plan_backward(grads, 1).workspace_bytes) + 1);
    grads.workspace = {workspace.data(), int64_t(workspace.size())};
    execute(grads, 1);
    EXPECT_EQ(grad_sink[0], 0.f);
    EXPECT_EQ(grad_sink[1], 0.f);
  }
}

}  // namespace
