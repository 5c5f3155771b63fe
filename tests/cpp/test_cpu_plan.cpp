// Unit tests of csrc/cpu/plan: problem and threads -> tasks, rounds and memory.

#include <algorithm>
#include <string>
#include <vector>

#include "check.h"
#include "cpu/processor.h"
#include "cpu_problem.h"

namespace {

using namespace fa2;
using namespace fa2::testing;

TEST(plans_say_how_a_problem_runs) {
  cpu::set_isa("baseline");
  Problem x(DType::kFloat32, 1, 4, 2, 300, 300, 16);
  EXPECT_EQ(to_string(cpu::plan_forward(x.p, 1)).substr(0, 17), std::string("forward baseline:"));
  EXPECT_EQ(to_string(cpu::plan_forward(x.p, 3)).find("3 threads") == std::string::npos, false);
}

// Every task belongs to one round, and every round's units and results follow each other.
TEST(rounds_hold_all_units) {
  Problem x(DType::kFloat32, 12, 8, 8, 128, 800, 64);
  x.p.num_splits = 8;
  cpu::FwdPlan const plan = cpu::plan_forward(x.p, 2);
  EXPECT(plan.rounds->size() > 1);
  size_t next = 0;
  for (cpu::FwdPlan::Round const& round : *plan.rounds) {
    EXPECT_EQ(round.begin, next);
    EXPECT(round.end > round.begin);
    int64_t tasks = 0, results = 0;
    for (size_t i = round.begin; i < round.end; ++i) {
      cpu::FwdPlan::Unit const& unit = (*plan.units)[i];
      EXPECT_EQ(unit.first_task, tasks);
      EXPECT_EQ(unit.first_result, results);
      tasks += int64_t(unit.splits.count) * cpu::head_groups(unit);
      results += int64_t(unit.splits.count) * unit.chunk.num_heads * unit.chunk.count;
    }
    EXPECT_EQ(round.num_tasks, tasks);
    EXPECT_EQ(round.num_results, results);
    next = round.end;
  }
  EXPECT_EQ(next, plan.units->size());
}

// A plan that is made while another one waits has memory of its own.
TEST(plans_do_not_share_memory) {
  Problem x(DType::kFloat32, 2, 2, 2, 20, 20, 8);
  Problem y(DType::kFloat32, 3, 2, 2, 50, 20, 8);
  cpu::FwdPlan const first = cpu::plan_forward(x.p, 1);
  std::string const before = to_string(first);
  cpu::FwdPlan const second = cpu::plan_forward(y.p, 1);
  EXPECT_EQ(to_string(first), before);
  EXPECT(first.units->data() != second.units->data());
}

using cpu::Processor;

constexpr Processor kZen5 = {1 << 20, true};
constexpr Processor kZen4 = {1 << 20, false};
constexpr Processor kRaptorCove = {2 << 20, false};
constexpr Processor kZen3 = {512 << 10, false};
constexpr Processor kSmall = {256 << 10, false};
constexpr Processor kUnknown = {};
constexpr Processor kMadeUp = {1 << 30, false};

TEST(chunks_follow_the_second_level_cache) {
  auto const forward_kib = [](Processor const& p) { return cpu::forward_chunk_bytes(p) >> 10; };
  EXPECT_EQ(forward_kib(kZen5), 256);
  EXPECT_EQ(forward_kib(kZen4), 768);
  EXPECT_EQ(forward_kib(kRaptorCove), 1536);
  EXPECT_EQ(forward_kib(kZen3), 1024);
  EXPECT_EQ(forward_kib(kSmall), 512);
  EXPECT_EQ(forward_kib(kUnknown), 1024);
  EXPECT_EQ(forward_kib(kMadeUp), 1536);
}

TEST(turns_in_decoding_are_short_where_the_second_level_cache_is_neither_large_nor_small) {
  for (Processor const& p : {kZen5, kZen4}) EXPECT_EQ(cpu::decode_turn_keys(p), 4);
  for (Processor const& p : {kRaptorCove, kMadeUp, kZen3, kSmall, kUnknown}) {
    EXPECT_EQ(cpu::decode_turn_keys(p), 16);
  }
}

TEST(chunks_of_the_backward_pass_grow_with_the_gradients_of_keys) {
  auto const queries = [](Processor const& p, int64_t mib) {
    return cpu::backward_chunk_queries(p, mib << 20);
  };
  for (int64_t const mib : {0, 1, 2, 64}) EXPECT_EQ(queries(kZen5, mib), 128);
  for (Processor const& p : {kZen4, kRaptorCove, kSmall, kUnknown, kMadeUp}) {
    EXPECT_EQ(queries(p, 0), 128);
    EXPECT_EQ(queries(p, 64), 512);
  }
  EXPECT_EQ(queries(kZen4, 1), 256);
  EXPECT_EQ(queries(kZen4, 2), 512);
  EXPECT_EQ(queries(kRaptorCove, 2), 256);
  EXPECT_EQ(queries(kSmall, 1), 512);
}

// Most queries of a chunk of each sequence, whose keys are so many.
std::vector<int32_t> backward_chunks(std::vector<int32_t> const& lengths, bool deterministic,
                                     int heads = 2, int threads = 1) {
  int const longest = *std::max_element(lengths.begin(), lengths.end());
  Problem x(DType::kFloat32, int(lengths.size()), heads, heads, longest, longest, 128);
  x.p.seqs_k.seqused = lengths.data();
  BwdParams grads{.forward = x.p, .deterministic = deterministic};
  for (TensorRef* t : {&grads.grad_out, &grads.grad_q, &grads.grad_k, &grads.grad_v}) *t = x.p.q;
  std::vector<int32_t> most(lengths.size());
  cpu::BwdPlan const plan = cpu::plan_backward(grads, threads);
  for (cpu::BwdPlan::Task const& task : *plan.tasks) {
    most[size_t(task.batch)] = std::max(most[size_t(task.batch)], task.count);
  }
  return most;
}

TEST(deterministic_chunks_are_the_same_everywhere) {
  Processor const before = cpu::active_processor();
  cpu::set_processor(kRaptorCove);
  EXPECT(backward_chunks({4000, 300, 1000}, false) == (std::vector{512, 128, 256}));
  EXPECT(backward_chunks({4000, 300, 1000}, true) == (std::vector{128, 128, 128}));
  EXPECT(backward_chunks({4000}, true, 1, 8) == (std::vector{128}));
  cpu::set_processor(before);
}

}  // namespace
