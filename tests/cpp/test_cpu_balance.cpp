// How busy threads are with one problem: plans, played.

#include <numeric>
#include <string>

#include "check.h"
#include "cpu_lists.h"
#include "cpu_problem.h"
#include "played.h"

namespace {

using namespace fa2;
using namespace fa2::testing;

// Tensors that are planned for, and not read.
Problem planned(int heads, int heads_kv, int seqlen_q, int seqlen_k, int head_dim) {
  Problem x(DType::kFloat32, 1, heads, heads_kv, seqlen_q, seqlen_k, 1);
  x.p.head_dim = x.p.head_dim_v = head_dim;
  return x;
}

void expect_busy(double busy, double least, std::string const& what, int threads) {
  EXPECT(busy >= least) << what << ", " << threads << " threads: " << busy;
}

// 256 tiles are 2.7 for each of 96 threads.
TEST(forward_of_a_few_heads) {
  for (int const threads : {8, 32, 96}) {
    for (bool const causal : {false, true}) {
      for (int const heads : {4, 32}) {
        Problem x = planned(heads, heads, 4096, 4096, 64);
        if (causal) x.p.window.right = 0;
        double const least = threads < 96 ? 0.95 : (heads == 4 ? 0.88 : 0.94);
        double const busy = 1 / makespan(cpu::plan_forward(x.p, threads));
        expect_busy(busy, least, std::to_string(heads) + " heads", threads);
      }
    }
  }
}

TEST(decoding_of_one_sequence) {
  struct Case {
    int length, threads;
    double least;
  };
  for (Case const& x : {Case{1000, 8, 0.98},
                        {5000, 8, 0.98},
                        {4096, 8, 0.98},
                        {8192, 8, 0.98},
                        {32768, 8, 0.9},
                        {4096, 32, 0.98},
                        {32768, 32, 0.9}}) {
    Problem const problem = planned(32, 8, 1, x.length, 128);
    double const busy = 1 / makespan(cpu::plan_forward(problem.p, x.threads));
    expect_busy(busy, x.least, std::to_string(x.length) + " keys", x.threads);
  }
}

double busy_backward(int length, int heads, int threads, bool deterministic) {
  Problem x = planned(heads, heads, length, length, 64);
  x.p.window.right = 0;
  BwdParams grads{.forward = x.p, .deterministic = deterministic};
  for (TensorRef* t : {&grads.grad_out, &grads.grad_q, &grads.grad_k, &grads.grad_v}) *t = x.p.q;
  std::vector<int> blocks(size_t(length / 64));
  std::iota(blocks.begin(), blocks.end(), 1);
  return Schedule(cpu::plan_backward(grads, threads), rows_of_first(blocks), threads).busy();
}

// Chunks of one head wait for each other.
TEST(backward_of_causal_heads) {
  struct Case {
    int length, heads, threads;
    double least, least_deterministic;
  };
  for (Case const& x : {Case{4096, 1, 2, 0.93, 0.96},
                        {4096, 1, 8, 0.87, 0.78},
                        {8192, 1, 8, 0.88, 0.88},
                        {4096, 4, 8, 0.93, 0.93},
                        {4096, 4, 32, 0.87, 0.78}}) {
    for (bool const deterministic : {false, true}) {
      expect_busy(busy_backward(x.length, x.heads, x.threads, deterministic),
                  deterministic ? x.least_deterministic : x.least,
                  std::to_string(x.heads) + " heads of " + std::to_string(x.length), x.threads);
    }
  }
}

}  // namespace
