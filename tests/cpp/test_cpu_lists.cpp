// Unit tests of how the lists of a block mask are planned for.

#include <algorithm>
#include <vector>

#include "check.h"
#include "cpu_lists.h"
#include "cpu_problem.h"
#include "played.h"

namespace {

using namespace fa2;
using namespace fa2::testing;

int64_t cost_of_all(cpu::FwdPlan const& plan) {
  int64_t cost = 0;
  for (cpu::FwdPlan::Unit const& unit : *plan.units) cost += unit.chunk.cost * unit.chunk.num_heads;
  return cost;
}

TEST(costs_come_from_the_lists) {
  Problem x(DType::kFloat32, 1, 2, 2, 8 * 64, 10 * 64, 16);
  Lists const lists({rows_of_first({1, 1, 1, 10, 1, 1, 1, 1})}, x.p);
  cpu::FwdPlan const plan = cpu::plan_forward(x.p, 4);
  EXPECT_EQ(cost_of_all(plan), int64_t(2 * 17 * 64 * 64));
  // The most expensive comes first.
  cpu::ScheduledChunk const& first = (*plan.units)[0].chunk;
  EXPECT(first.first <= 3 * 64 && 3 * 64 < first.first + first.count);
  for (size_t i = 1; i < plan.units->size(); ++i) {
    EXPECT((*plan.units)[i - 1].chunk.cost >= (*plan.units)[i].chunk.cost);
  }
}

TEST(heads_with_lists_of_their_own_have_costs_of_their_own) {
  Problem x(DType::kFloat32, 1, 2, 2, 2 * 64, 10 * 64, 16);
  Lists const lists({rows_of_first({1, 1}), rows_of_first({9, 9})}, x.p);
  cpu::FwdPlan const plan = cpu::plan_forward(x.p, 1);
  EXPECT_EQ(cost_of_all(plan), int64_t(20 * 64 * 64));
  EXPECT_EQ((*plan.units)[0].chunk.first_head, 1);
  BwdParams backward{.forward = x.p};
  Tensor grads(DType::kFloat32, 10 * 64 * 2 * 16);
  for (TensorRef* t : {&backward.grad_out, &backward.grad_q, &backward.grad_k, &backward.grad_v}) {
    *t = x.p.k;
    t->data = grads.words.data();
  }
  cpu::BwdPlan const plan_back = cpu::plan_backward(backward, 1);
  EXPECT_EQ((*plan_back.tasks)[0].head_kv, 1);
  EXPECT_EQ(plan_back.multiply_adds, int64_t(20 * 64 * 64) * 16 * 5);
}

// Where the keys of a tile are cut depends on its own list, not on threads or other tiles.
TEST(tiles_that_list_many_are_cut) {
  int const blocks = 300;
  for (int threads : {1, 2, 7}) {
    Problem x(DType::kFloat32, 1, 4, 2, 5 * 64, blocks * 64, 8);
    Lists const lists({rows_of_first({2, blocks, 257, 256, 3})}, x.p);
    cpu::FwdPlan const plan = cpu::plan_forward(x.p, threads);
    int const group = x.p.group();
    std::vector<int> splits(5);
    for (cpu::FwdPlan::Unit const& unit : *plan.units) {
      int64_t const end = unit.chunk.first + unit.chunk.count;
      for (int64_t q = unit.chunk.first; q < end; ++q) {
        splits[size_t(q / (64 * group))] = unit.splits.count;
        EXPECT(unit.splits.count == 1 || unit.splits.length % plan.kernel.key_block == 0);
      }
    }
    EXPECT((splits == std::vector<int>{1, 3, 3, 1, 1}));
  }
}

TEST(heads_are_cut_by_their_own_lists) {
  int const blocks = 300;
  Problem x(DType::kFloat32, 1, 2, 2, 3 * 64, blocks * 64, 8);
  Lists const lists({rows_of_first({2, 2, 2}), rows_of_first({2, blocks, 2})}, x.p);
  cpu::FwdPlan const plan = cpu::plan_forward(x.p, 2);
  for (cpu::FwdPlan::Unit const& unit : *plan.units) {
    bool const holds = unit.chunk.first < 128 && 64 < unit.chunk.first + unit.chunk.count;
    EXPECT_EQ(unit.splits.count > 1, holds && unit.chunk.first_head == 1);
  }
}

// A row of global tokens among rows of eleven blocks.
TEST(threads_end_at_the_same_time) {
  for (int const blocks : {256, 1024}) {
    for (int const heads : {1, 12}) {
      for (int const global : {0, blocks / 2, blocks - 1}) {
        for (int const threads : {2, 8}) {
          Problem x(DType::kBFloat16, 1, heads, heads, blocks * 64, blocks * 64, 1);
          std::vector<int> rows(size_t(blocks), 11);
          rows[size_t(global)] = blocks;
          Lists const lists({rows_of_first(rows)}, x.p);
          double const most = heads == 1 && threads == 8 ? 1.3 : 1.05;
          EXPECT(makespan(cpu::plan_forward(x.p, threads)) <= most)
              << blocks << " blocks, " << heads << " heads, " << threads
              << " threads: " << makespan(cpu::plan_forward(x.p, threads));
        }
      }
    }
  }
}

// What the rows of hostile offsets say is bounded by what they can mean.
TEST(costs_of_hostile_lists_are_bounded) {
  Problem x(DType::kFloat32, 1, 1, 1, 4 * 64, 4 * 64, 8);
  Lists lists({rows_of_first({1, 1, 1, 1})}, x.p);
  lists.offsets = {-5, int64_t(1) << 62, 3, -1, int64_t(1) << 60};
  x.p.block_mask.row_offsets = lists.offsets.data();
  cpu::FwdPlan const plan = cpu::plan_forward(x.p, 2);
  EXPECT(cost_of_all(plan) <= 4 * 4 * 64 * 64);
}

}  // namespace
