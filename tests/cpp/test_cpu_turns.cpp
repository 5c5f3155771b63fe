// Unit tests of the turns in which chunks of the backward pass add to keys, and of the schedule
// that comes of them.

#include <algorithm>
#include <set>
#include <tuple>
#include <utility>
#include <vector>

#include "check.h"
#include "cpu/turns.h"
#include "cpu_lists.h"
#include "cpu_problem.h"
#include "played.h"

namespace {

using namespace fa2;
using namespace fa2::testing;
using cpu::BwdPlan;
using cpu::LinkProgress;
using cpu::SplitTurn;
using cpu::Turn;

constexpr int32_t kNothing = LinkProgress::kNothingLeft;

// A link that passes over keys has not left them before the link in front of it has.
TEST(a_link_that_passes_keys_waits_for_those_before_it) {
  int32_t first = kNothing, second = kNothing;
  Turn before({&first}, 0, {});
  Turn turn({&second}, 0, {&first});
  turn.leave(100);
  EXPECT_EQ(second, kNothing);
  before.leave(500);
  turn.leave(100);
  EXPECT_EQ(second, 500);
  before.leave(40);
  turn.leave(100);
  EXPECT_EQ(second, 100);
  before.leave(10);
  EXPECT_EQ(first, 10);
}

// Three splits of 192 keys: keys from 384 on are those of the first.
TEST(keys_of_a_split_have_been_left_where_all_behind_them_have) {
  int32_t left[3] = {kNothing, kNothing, kNothing};
  LinkProgress const link = {left, 3, 192};
  EXPECT_EQ(link.split_of(0), 2);
  EXPECT_EQ(link.split_of(191), 2);
  EXPECT_EQ(link.split_of(192), 1);
  EXPECT_EQ(link.split_of(500), 0);
  EXPECT_EQ(link.split_of(700), 0);  // the last one has all that are left
  EXPECT_EQ(link.left_below(kNothing), kNothing);
  left[1] = 192;
  EXPECT_EQ(link.left_below(kNothing), kNothing);
  EXPECT_EQ(link.left_below(384), 192);
  left[0] = 448;
  EXPECT_EQ(link.left_below(kNothing), 448);
  left[0] = 0;
  EXPECT_EQ(link.left_below(kNothing), 192);
  left[2] = 64;
  EXPECT_EQ(link.left_below(kNothing), 64);
  left[2] = 0;
  EXPECT_EQ(link.left_below(kNothing), 0);
}

// A link that adds to keys of one split of the link before it skips those of the others, which may
// not have been left.
TEST(a_link_that_adds_to_keys_of_one_split_has_left_no_others) {
  int32_t before_left[2] = {kNothing, kNothing}, left = kNothing;
  LinkProgress const before = {before_left, 2, 192};
  Turn turn({&left}, 0, before);
  before_left[1] = 64;
  turn.wait_for(64);
  turn.leave(64);
  EXPECT_EQ(left, kNothing);
  before_left[0] = 0;
  turn.leave(64);
  EXPECT_EQ(left, 64);
}

TEST(splits_leave_keys_of_their_own) {
  int32_t before_left = 300, own_left[2] = {kNothing, kNothing};
  LinkProgress const own = {own_left, 2, 192};
  Turn first(own, 0, {&before_left}), second(own, 1, {&before_left});
  first.leave(200);
  EXPECT_EQ(own_left[0], 300);
  second.leave(100);
  EXPECT_EQ(own_left[1], 300);
  EXPECT_EQ(own.left_below(192), 192);  // 300 says nothing about keys below 192
  before_left = 192;
  first.leave_all();  // does not wait for keys that are not its own
  EXPECT_EQ(own_left[0], 0);
  EXPECT_EQ(own.left_below(kNothing), 192);
  before_left = 0;
  second.leave_all();
  EXPECT_EQ(own.left_below(kNothing), 0);
  Turn({&before_left}, 0, own).leave_all();
}

TEST(the_last_split_reads_the_results_of_all) {
  SplitTurn::State before, own;
  SplitTurn first(own, &before, 0, 2, nullptr), second(own, &before, 1, 2, nullptr);
  EXPECT_EQ(second.finish(), false);
  EXPECT_EQ(first.finish(), true);
  first.release();
  SplitTurn(before, &own, 0, 1, nullptr).wait_for_memory();
  EXPECT_EQ(own.finished, SplitTurn::kReleased);
}

BwdPlan plan_of(Problem& x, int num_threads, bool deterministic = false) {
  BwdParams grads{.forward = x.p, .deterministic = deterministic};
  for (TensorRef* t : {&grads.grad_out, &grads.grad_q, &grads.grad_k, &grads.grad_v}) *t = x.p.q;
  return cpu::plan_backward(grads, num_threads);
}

// Under one mask for all heads.
double busy(ListedRows const& rows, int heads, int num_threads) {
  int const blocks = int(rows.size());
  Problem x(DType::kBFloat16, 1, heads, heads, blocks * 64, blocks * 64, 1);
  Lists const lists({rows}, x.p);
  return Schedule(plan_of(x, num_threads), rows, num_threads).busy();
}

// At 64k, with a row and a column of 64 global tokens.
TEST(threads_are_busy_under_masks_with_global_tokens) {
  struct Case {
    int heads, threads;
    double least;
  };
  int const blocks = 1024;
  for (int const global : {0, blocks / 2, blocks - 1}) {
    ListedRows const rows = bigbird_rows(blocks, global);
    for (Case const& x : {Case{12, 8, 0.98}, {12, 32, 0.96}, {2, 8, 0.93}, {1, 2, 0.97}}) {
      double const share = busy(rows, x.heads, x.threads);
      EXPECT(share >= x.least) << "block " << global << ", " << x.heads << " heads, " << x.threads
                               << " threads: " << share;
    }
  }
}

// What tells the tasks of two plans apart, but for their order and memory.
using TaskId = std::tuple<int, int, int64_t, int, int, int, int>;
std::vector<TaskId> task_ids(BwdPlan const& plan) {
  std::vector<TaskId> ids;
  for (BwdPlan::Task const& task : *plan.tasks) {
    ids.emplace_back(task.batch, task.head_kv, task.first, task.count, task.split, task.link.splits,
                     task.link.split_keys);
  }
  std::sort(ids.begin(), ids.end());
  return ids;
}

// Where the keys of a tile are cut depends on its own list, not on threads or other tiles.
TEST(tiles_that_list_many_are_cut_in_the_backward_pass) {
  int const blocks = 300;
  Problem x(DType::kFloat32, 1, 4, 2, 6 * 64, blocks * 64, 8);
  Lists const lists({rows_of_first({2, blocks, 257, 257, 256, 3})}, x.p);
  BwdPlan const plan = plan_of(x, 1, true);
  for (BwdPlan::Task const& task : *plan.tasks) {
    int64_t const first_row = task.first / (64 * x.p.group());
    bool const cut = first_row >= 1 && first_row <= 3;
    EXPECT_EQ(task.link.splits, cut ? 3 : 1) << first_row;
    EXPECT_EQ(task.cut >= 0, cut);
    EXPECT(!cut || task.link.split_keys % plan.kernel.key_block == 0);
    EXPECT(!cut || task.link.split_keys * 3 >= blocks * 64);
  }
  for (int const threads : {2, 7, 64})
    EXPECT(task_ids(plan_of(x, threads, true)) == task_ids(plan));
}

TEST(heads_are_cut_by_their_own_lists_in_the_backward_pass) {
  int const blocks = 300;
  Problem x(DType::kFloat32, 2, 2, 2, 3 * 64, blocks * 64, 8);
  Lists const lists({rows_of_first({2, 2, 2}), rows_of_first({2, blocks, 2})}, x.p);
  BwdPlan const plan = plan_of(x, 2);
  std::set<std::pair<int32_t, int64_t>> cut;  // a chunk or more of each sequence
  for (BwdPlan::Task const& task : *plan.tasks) {
    EXPECT_EQ(task.link.splits > 1, task.head_kv == 1 && task.first / 64 == 1);
    if (task.link.splits > 1) cut.insert({task.batch, task.first});
  }
  EXPECT_EQ(size_t(plan.num_cuts), cut.size());
  EXPECT(cut.contains({0, 64}) && cut.contains({1, 64}));
}

// Partial results of a few chunks of a chain, however many of them are cut.
TEST(memory_of_splits_is_bounded) {
  int const blocks = 260;
  auto bytes = [&](int rows) {
    Problem x(DType::kFloat32, 1, 1, 1, rows * 64, blocks * 64, 8);
    Lists const lists({rows_of_first(std::vector<int>(size_t(rows), blocks))}, x.p);
    return plan_of(x, 1, true).workspace_bytes;
  };
  Problem x(DType::kFloat32, 1, 1, 1, 64, blocks * 64, 8);
  int64_t const without = plan_of(x, 1, true).workspace_bytes;
  int64_t const of_two_rows = bytes(2) - without;
  EXPECT(of_two_rows > 0 && of_two_rows < 64 << 10);
  EXPECT_EQ(bytes(8) - without, 4 * of_two_rows);
  EXPECT_EQ(bytes(100), bytes(8));
}

}  // namespace
