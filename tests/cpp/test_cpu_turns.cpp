// Unit tests of the turns in which chunks of the backward pass add to keys, and of the schedule
// that comes of them.

#include <algorithm>
#include <map>
#include <tuple>
#include <utility>
#include <vector>

#include "check.h"
#include "cpu/turns.h"
#include "cpu_lists.h"
#include "cpu_problem.h"

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

// Plays the tasks of a plan, each taken by the thread that is free first, with the waiting of
// turns.h. A product of a tile and a block of keys takes a unit of time.
class Schedule {
 public:
  // All heads see `rows`.
  Schedule(BwdPlan const& plan, ListedRows const& rows, int num_threads)
      : tasks_(*plan.tasks),
        rows_(rows),
        left_(plan.tasks->size()),
        released_(size_t(plan.num_cuts)),
        threads_(size_t(num_threads)) {
    for (size_t i = 0; i < tasks_.size(); ++i) {
      double& thread = *std::min_element(threads_.begin(), threads_.end());
      thread = run(i, thread);
    }
  }

  // Share of the time of all threads in which they are at work.
  double busy() const {
    double const end = *std::max_element(threads_.begin(), threads_.end());
    return work_ / (end * double(threads_.size()));
  }

 private:
  using Events = std::vector<std::pair<double, int32_t>>;  // when, and the first key that is left

  static constexpr int kGroup = 3;
  static constexpr int kProductsOfTile = 3;
  static constexpr int kProductsOfChunk = 2;

  int32_t left_at(size_t task, double time) const {
    int32_t key = kNothing;
    for (auto const& [when, left] : left_[task]) {
      if (when <= time) key = left;
    }
    return key;
  }

  double when_left(size_t task, int32_t key, double time) const {
    for (auto const& [when, left] : left_[task]) {
      if (left <= key) return std::max(time, when);
    }
    EXPECT(false) << "a link never leaves a key";
    return time;
  }

  static LinkProgress progress(BwdPlan::Link const& link, int32_t* left = nullptr) {
    return {left, link.splits, link.split_keys};
  }

  double wait_for(BwdPlan::Link const& before, int32_t split, int32_t key, double time) const {
    return before.first_task < 0 ? time : when_left(size_t(before.first_task + split), key, time);
  }
  double wait_for_all(BwdPlan::Link const& before, int32_t key, double time) const {
    for (int32_t split = 0; split < before.splits; ++split) {
      time = wait_for(before, split, key, time);
    }
    return time;
  }

  int32_t left_below(BwdPlan::Link const& before, int32_t end, double time) const {
    if (before.first_task < 0) return 0;
    std::vector<int32_t> left;
    for (int32_t split = 0; split < before.splits; ++split) {
      left.push_back(left_at(size_t(before.first_task + split), time));
    }
    return progress(before, left.data()).left_below(end);
  }

  // The tiles of a chunk that list a block of keys, as bits.
  std::vector<uint32_t> tiles_by_block(BwdPlan::Task const& task, ColRange keys) const {
    std::vector<uint32_t> tiles(rows_.size());
    int64_t const end = std::min(int64_t(rows_.size()), (task.first + task.count + 63) / 64);
    for (int64_t row = task.first / 64; row < end; ++row) {
      for (int const block : rows_[size_t(row)]) {
        if (block * 64 < keys.begin || block * 64 >= keys.end) continue;
        tiles[size_t(block)] |= 1u << (row - task.first / 64);
      }
    }
    return tiles;
  }

  double run(size_t index, double time) {
    BwdPlan::Task const& task = tasks_[index];
    LinkProgress const own = progress(task.link);
    ColRange const keys = {own.begin_of(task.split), own.end_of(task.split)};
    if (task.opens) time = wait_for_all(task.before, LinkProgress::kSumsReleased, time);
    if (task.cut_before >= 0) time = std::max(time, released_[size_t(task.cut_before)]);
    std::vector<uint32_t> const tiles = tiles_by_block(task, keys);
    for (int end = int(tiles.size()); end > 0;) {
      if (tiles[size_t(end - 1)] == 0) {
        --end;
        continue;
      }
      int begin = end - 1;
      while (begin % kGroup != 0 && tiles[size_t(begin - 1)] != 0) --begin;
      time = run_blocks(index, begin, end, tiles, time);
      end = begin;
    }
    time = own.splits == 1 ? wait_for_all(task.before, 0, time)
                           : wait_for(task.before, progress(task.before).split_of(keys.begin),
                                      keys.begin, time);
    left_[index].emplace_back(time, LinkProgress::kAllKeysLeft);
    if (task.closes) left_[index].emplace_back(time, LinkProgress::kSumsReleased);
    if (task.cut >= 0) {
      double& released = released_[size_t(task.cut)];
      released = std::max(released, time);
    }
    return time;
  }

  double run_blocks(size_t index, int begin, int end, std::vector<uint32_t> const& tiles,
                    double time) {
    BwdPlan::Task const& task = tasks_[index];
    leave(index, end * 64, time);
    uint32_t any = 0;
    for (int block = begin; block < end; ++block) {
      uint32_t const listed = tiles[size_t(block)];
      any |= listed;
      time = worked(time, __builtin_popcount(listed) * kProductsOfTile);
    }
    int32_t const key = begin * 64;
    time = wait_for(task.before, progress(task.before).split_of(key), key, time);
    int const span = 32 - __builtin_clz(any) - __builtin_ctz(any);
    double const start = time;
    time = worked(time, (end - begin) * span * kProductsOfChunk);
    for (int block = begin; block < end; ++block) {
      double const before = std::exchange(added_[{task.key_sums, block}], time);
      EXPECT(start >= before) << "a link adds to keys that one before it has not left";
    }
    leave(index, key, time);
    return time;
  }

  void leave(size_t index, int32_t key, double time) {
    BwdPlan::Task const& task = tasks_[index];
    int32_t const end = progress(task.link).end_of(task.split);
    left_[index].emplace_back(time, std::max(key, left_below(task.before, end, time)));
  }

  double worked(double time, int units) {
    work_ += units;
    return time + units;
  }

  std::vector<BwdPlan::Task> const& tasks_;
  ListedRows const& rows_;
  std::vector<Events> left_;                         // of every task
  std::map<std::pair<int64_t, int>, double> added_;  // when the sums of a block last changed
  std::vector<double> released_;
  std::vector<double> threads_;
  double work_ = 0;
};

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
  EXPECT_EQ(plan.num_cuts, 2);  // one for each sequence
  for (BwdPlan::Task const& task : *plan.tasks) {
    EXPECT_EQ(task.link.splits > 1, task.head_kv == 1 && task.first == 64);
  }
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
