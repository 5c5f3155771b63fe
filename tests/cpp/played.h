#pragma once

// Plans of the CPU family, played with a number of threads.

#include <algorithm>
#include <iterator>
#include <map>
#include <utility>
#include <vector>

#include "check.h"
#include "cpu/family.h"
#include "cpu/turns.h"
#include "cpu_lists.h"

namespace fa2::testing {

// Of the tasks of a plan, each taken by the thread that is free first, over an even share.
inline double makespan(cpu::FwdPlan const& plan) {
  double total = 0, time = 0;
  for (cpu::FwdPlan::Round const& round : *plan.rounds) {
    std::vector<double> threads(size_t(plan.num_threads), time);  // a round waits for the last one
    for (size_t i = round.begin; i < round.end; ++i) {
      cpu::FwdPlan::Unit const& unit = (*plan.units)[i];
      int const tasks = unit.splits.count * cpu::head_groups(unit);
      double const cost = double(unit.chunk.cost) * unit.chunk.num_heads / tasks;
      for (int task = 0; task < tasks; ++task) {
        *std::min_element(threads.begin(), threads.end()) += cost;
        total += cost;
      }
    }
    time = *std::max_element(threads.begin(), threads.end());
  }
  return time / (total / plan.num_threads);
}

// Plays the tasks of a plan, each taken by the thread that is free first, with the waiting of
// turns.h. A product of a tile and a block of keys takes a unit of time.
class Schedule {
 public:
  // All heads see `rows`.
  Schedule(cpu::BwdPlan const& plan, ListedRows const& rows, int num_threads)
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
  // When, and the first key that is left: times rise, keys fall.
  using Events = std::vector<std::pair<double, int32_t>>;

  static constexpr int kGroup = 3;
  static constexpr int kProductsOfTile = 3;
  static constexpr int kProductsOfChunk = 2;

  int32_t left_at(size_t task, double time) const {
    Events const& left = left_[task];
    auto const later = std::partition_point(left.begin(), left.end(),
                                            [=](auto const& event) { return event.first <= time; });
    return later == left.begin() ? cpu::LinkProgress::kNothingLeft : std::prev(later)->second;
  }

  double when_left(size_t task, int32_t key, double time) const {
    Events const& left = left_[task];
    auto const found = std::partition_point(left.begin(), left.end(),
                                            [=](auto const& event) { return event.second > key; });
    EXPECT(found != left.end()) << "a link never leaves a key";
    return found == left.end() ? time : std::max(time, found->first);
  }

  static cpu::LinkProgress progress(cpu::BwdPlan::Link const& link, int32_t* left = nullptr) {
    return {left, link.splits, link.split_keys};
  }

  double wait_for(cpu::BwdPlan::Link const& before, int32_t split, int32_t key, double time) const {
    return before.first_task < 0 ? time : when_left(size_t(before.first_task + split), key, time);
  }
  double wait_for_all(cpu::BwdPlan::Link const& before, int32_t key, double time) const {
    for (int32_t split = 0; split < before.splits; ++split) {
      time = wait_for(before, split, key, time);
    }
    return time;
  }

  int32_t left_below(cpu::BwdPlan::Link const& before, int32_t end, double time) const {
    if (before.first_task < 0) return 0;
    std::vector<int32_t> left;
    for (int32_t split = 0; split < before.splits; ++split) {
      left.push_back(left_at(size_t(before.first_task + split), time));
    }
    return progress(before, left.data()).left_below(end);
  }

  // The tiles of a chunk that list a block of keys, as bits.
  std::vector<uint32_t> tiles_by_block(cpu::BwdPlan::Task const& task, ColRange keys) const {
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
    cpu::BwdPlan::Task const& task = tasks_[index];
    cpu::LinkProgress const own = progress(task.link);
    ColRange const keys = {own.begin_of(task.split), own.end_of(task.split)};
    if (task.opens) time = wait_for_all(task.before, cpu::LinkProgress::kSumsReleased, time);
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
    left_[index].emplace_back(time, cpu::LinkProgress::kAllKeysLeft);
    if (task.closes) left_[index].emplace_back(time, cpu::LinkProgress::kSumsReleased);
    if (task.cut >= 0) {
      double& released = released_[size_t(task.cut)];
      released = std::max(released, time);
    }
    return time;
  }

  double run_blocks(size_t index, int begin, int end, std::vector<uint32_t> const& tiles,
                    double time) {
    cpu::BwdPlan::Task const& task = tasks_[index];
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
    cpu::BwdPlan::Task const& task = tasks_[index];
    int32_t const end = progress(task.link).end_of(task.split);
    left_[index].emplace_back(time, std::max(key, left_below(task.before, end, time)));
  }

  double worked(double time, int units) {
    work_ += units;
    return time + units;
  }

  std::vector<cpu::BwdPlan::Task> const& tasks_;
  ListedRows const& rows_;
  std::vector<Events> left_;                         // of every task
  std::map<std::pair<int64_t, int>, double> added_;  // when the sums of a block last changed
  std::vector<double> released_;
  std::vector<double> threads_;
  double work_ = 0;
};

}  // namespace fa2::testing
