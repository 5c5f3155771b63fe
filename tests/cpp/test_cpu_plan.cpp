// Unit tests of csrc/cpu/plan: problem and threads -> tasks, rounds and memory.

#include <string>

#include "check.h"
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

}  // namespace
