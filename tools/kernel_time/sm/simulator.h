#pragma once

// One SM, cycle by cycle. Four partitions issue an instruction each per cycle; which warp's is a
// policy. What an instruction waits for is what its control bits and the units say.

#include <algorithm>
#include <limits>
#include <queue>

#include "state.h"

namespace sm {

inline constexpr Cycle kNever = std::numeric_limits<Cycle>::max();

class Simulator {
 public:
  explicit Simulator(Program const& program)
      : program_(program),
        warps_(program.warps * program.slots),
        lives_(warps_.size()),
        partitions_(kPartitions),
        left_in_slot_(program.slots) {
    result_.cta_times.resize(program.ctas.size());
    for (int w = 0; w < int(warps_.size()); ++w) {
      // Warps of a CTA go to one partition after the other; small CTAs start where others end.
      int const slot = w / program.warps;
      int const shift = program.warps < kPartitions ? slot * program.warps : 0;
      warps_[w].slot = slot;
      warps_[w].partition = (w % program.warps + shift) % kPartitions;
      partitions_[warps_[w].partition].warps.push_back(w);
    }
  }

  Result run() {
    for (int slot = 0; slot < program_.slots; ++slot) {
      launch(slot, slot == 0 ? 0 : random() % uint32_t(slot_skew_));
    }
    while (done_ < program_.ctas.size()) {
      take_events();
      bool issued = false;
      soonest_ = kNever;
      for (Partition& partition : partitions_) {
        int const w = choose(partition);
        partition.yielded = false;
        if (w == kNone) continue;
        issued = true;
        issue(partition, w);
      }
      Cycle const next = issued ? now_ + 1 : next_change();
      account(next - now_);
      now_ = next;
    }
    result_.cycles = now_;
    return result_;
  }

 private:
  static constexpr Reason kFree = Reason::kNotSelected;

  // ---- which warp issues

  int choose(Partition& partition) {
    return greedy_ ? choose_greedily(partition) : choose_in_turn(partition);
  }

  // The first one behind the one that issued last.
  int choose_in_turn(Partition& partition) {
    auto const& warps = partition.warps;
    size_t const last = std::find(warps.begin(), warps.end(), partition.last) - warps.begin();
    size_t const begin = partition.last == kNone ? 0 : last + 1;
    for (size_t k = 0; k < warps.size(); ++k) {
      int const w = warps[(begin + k) % warps.size()];
      if (is_eligible(partition, w)) return w;
    }
    return kNone;
  }

  // The one that issued last, unless it gave way; otherwise the youngest.
  int choose_greedily(Partition& partition) {
    int const last = partition.last;
    if (last != kNone && !partition.yielded && is_eligible(partition, last)) return last;
    int best = kNone;
    for (int const w : partition.warps) {
      if (w == last || !is_eligible(partition, w)) continue;
      if (best == kNone || warps_[w].age > warps_[best].age) best = w;
    }
    if (best == kNone && last != kNone && partition.yielded && is_eligible(partition, last)) {
      return last;
    }
    return best;
  }

  bool is_eligible(Partition const& partition, int w) {
    Warp const& warp = warps_[w];
    if (!warp.live || warp.at_barrier || !is_over(warp.ready)) return false;
    Instruction const& i = next_of(warp);
    for (int s = 0; s < kScoreboards; ++s) {
      if ((i.waits_for >> s & 1) && warp.pending[s] > 0) return false;
    }
    if (i.reads > 0 && partition.registers > double(now_) + register_slack_) {
      return is_over(Cycle(partition.registers - register_slack_) + 1);
    }
    switch (i.unit) {
      case Unit::kTensor: return is_over(partition.tensor);
      case Unit::kFloat: return is_over(partition.floats);
      case Unit::kInteger: return is_over(partition.integers);
      case Unit::kUniform: return is_over(partition.uniform);
      case Unit::kSpecial: return partition.special_queue < special_queue_;
      case Unit::kShared:
      case Unit::kLocal:
      case Unit::kShuffle:
      case Unit::kCopy:
      case Unit::kLoad:
      case Unit::kStore:
      case Unit::kReduce: return partition.memory_queue < memory_queue_;
      case Unit::kWait: return warp.pending[i.extra >> 8] <= (i.extra & 255);
      default: return true;
    }
  }

  // Notes when a time that is not over will be.
  bool is_over(Cycle time) {
    if (time <= now_) return true;
    soonest_ = std::min(soonest_, time);
    return false;
  }

  Instruction const& next_of(Warp const& warp) const {
    return program_.paths[program_.ctas[warp.cta][warp.part].path][warp.at];
  }

  // ---- what it does

  struct Times {
    Cycle result, operands;
  };

  void issue(Partition& partition, int w) {
    Warp& warp = warps_[w];
    Instruction const i = next_of(warp);
    partition.last = w;
    partition.yielded = i.yields;
    partition.registers =
        std::max(partition.registers, double(now_)) + i.reads / registers_per_cycle_;
    ++result_.issued;
    result_.busy[int(i.unit)] += i.busy;
    result_.register_reads += i.reads;

    Times const times = occupy(partition, warp, i);
    hold(w, i.result_at, i.unit, times.result);
    hold(w, i.operands_at, i.unit, times.operands);
    warp.ready = now_ + std::max(1, i.stall);
    if (i.unit == Unit::kBranch && i.extra != 0) warp.ready += branch_;
    if (random() < fetch_probability_) warp.ready += random() % uint32_t(fetch_);

    bool const finished = move_on(warp);
    if (i.unit == Unit::kBarrier && !finished) meet(w, i);
    if (finished) retire(warp);
  }

  Times occupy(Partition& partition, Warp& warp, Instruction const& i) {
    switch (i.unit) {
      case Unit::kTensor: partition.tensor = now_ + i.busy; break;
      case Unit::kFloat: partition.floats = now_ + i.busy; break;
      case Unit::kInteger: partition.integers = now_ + i.busy; break;
      case Unit::kUniform: partition.uniform = now_ + i.busy; break;
      case Unit::kSpecial: {
        Cycle const begin = std::max(now_ + 1, partition.special);
        partition.special = begin + i.busy;
        ++partition.special_queue;
        events_.push({begin, Event::kSpecialQueue, index_of(partition)});
        return {begin + i.latency, begin + operand_read_};
      }
      case Unit::kShared:
      case Unit::kLocal:
      case Unit::kShuffle: {
        Cycle const begin = enter_memory(partition, i.shared_cycles);
        return {begin + i.latency, begin + operand_read_};
      }
      case Unit::kCopy:
      case Unit::kLoad: return fetch_global(partition, warp, i);
      case Unit::kStore: {
        Cycle const begin = enter_memory(partition, i.shared_cycles);
        through_l2(begin, i.bytes);
        Cycle const read = begin + operand_read_ + i.shared_cycles;
        return {read, read};
      }
      case Unit::kReduce: return reduce(partition, i);
      case Unit::kCommit: return {std::max(now_ + 4, warp.copies_done), now_ + operand_read_};
      default: break;
    }
    return {now_ + i.latency, now_ + operand_read_};
  }

  // When an access to memory begins: addresses go through the partition, data through the SM.
  Cycle enter_memory(Partition& partition, Cycle data) {
    Cycle const begin = std::max({now_ + memory_first_, partition.memory, shared_});
    partition.memory = begin + address_;
    occupy_shared(begin, std::max(accept_, data));
    ++partition.memory_queue;
    events_.push({begin, Event::kMemoryQueue, index_of(partition)});
    return begin;
  }

  void occupy_shared(Cycle begin, Cycle cycles) {
    shared_ = std::max(shared_, begin) + cycles;
    result_.shared_busy += cycles;
  }

  // When bytes that wait from `begin` on have their turn.
  double through_l2(Cycle begin, int bytes) {
    double const turn = std::max(double(begin), l2_);
    l2_ = turn + bytes / l2_bytes_;
    return turn;
  }

  Times fetch_global(Partition& partition, Warp& warp, Instruction const& i) {
    Cycle const begin = enter_memory(partition, i.shared_cycles);
    double const turn = through_l2(begin, i.bytes);
    Cycle const jitter = l2_jitter_ > 0 ? random() % uint32_t(l2_jitter_) : 0;
    Cycle const landed = Cycle(turn) + l2_latency_ + Cycle(i.bytes / l2_bytes_) + jitter;
    warp.copies_done = std::max(warp.copies_done, landed);
    if (i.unit == Unit::kCopy) occupy_shared(begin, i.shared_cycles);  // again, as they land
    return {landed, begin + operand_read_};
  }

  // Sums wait where addresses do once there is a backlog.
  Times reduce(Partition& partition, Instruction const& i) {
    Cycle const begin = enter_memory(partition, i.shared_cycles);
    Cycle const turn = std::max(begin, reductions_);
    reductions_ = turn + Cycle(i.bytes / reduce_bytes_);
    if (turn > begin) partition.memory = std::max(partition.memory, turn - reduce_slack_);
    return {turn + l2_latency_, turn + operand_read_};
  }

  void hold(int w, int scoreboard, Unit unit, Cycle until) {
    if (scoreboard == kNone) return;
    ++warps_[w].pending[scoreboard];
    warps_[w].pending_unit[scoreboard] = unit;
    events_.push({std::max(until, now_ + 1), Event::kScoreboard, w, scoreboard, lives_[w]});
  }

  // To the next instruction; true if there is none.
  bool move_on(Warp& warp) const {
    auto const& parts = program_.ctas[warp.cta];
    if (++warp.at < program_.paths[parts[warp.part].path].size()) return false;
    warp.at = 0;
    if (++warp.repetition < parts[warp.part].repetitions) return false;
    warp.repetition = 0;
    return ++warp.part == parts.size();
  }

  // A barrier of warps side by side. With slack, a warp may be ahead of the others by as many
  // barriers: what splitting arrival and wait would allow.
  void meet(int w, Instruction const& i) {
    Warp& warp = warps_[w];
    int const together = i.shared_cycles > 0 ? i.shared_cycles : program_.warps;
    int const base = warp.slot * program_.warps;
    int const first = base + (w - base) / together * together;
    warp.at_barrier = true;
    warp.barrier_warps = together;
    ++warp.barriers;
    int64_t fewest = std::numeric_limits<int64_t>::max();
    for (int k = first; k < first + together; ++k) {
      if (warps_[k].live) fewest = std::min(fewest, warps_[k].barriers);
    }
    for (int k = first; k < first + together; ++k) {
      Warp& other = warps_[k];
      bool const passes = other.at_barrier && other.barrier_warps == together &&
                          other.barriers - barrier_slack_ <= fewest;
      if (!passes) continue;
      other.at_barrier = false;
      other.ready = std::max(other.ready, now_ + barrier_);
    }
  }

  void retire(Warp& warp) {
    warp.live = false;
    if (--left_in_slot_[warp.slot] > 0) return;
    result_.cta_times[warp.cta].second = now_;
    ++done_;
    launch(warp.slot, now_ + 1);
  }

  void launch(int slot, Cycle at) {
    if (next_cta_ == program_.ctas.size()) return;
    int const cta = int(next_cta_++);
    left_in_slot_[slot] = program_.warps;
    result_.cta_times[cta].first = at;
    for (int k = 0; k < program_.warps; ++k) {
      int const w = slot * program_.warps + k, partition = warps_[w].partition;
      ++lives_[w];
      warps_[w] = Warp{.live = true, .cta = cta, .slot = slot, .partition = partition};
      warps_[w].ready = at + cta_start_ + k / kPartitions * 8;
      warps_[w].age = at * 1000 + k;
    }
  }

  // ---- time

  void take_events() {
    for (; !events_.empty() && events_.top().time <= now_; events_.pop()) {
      Event const& event = events_.top();
      switch (event.kind) {
        case Event::kMemoryQueue: --partitions_[event.index].memory_queue; break;
        case Event::kSpecialQueue: --partitions_[event.index].special_queue; break;
        case Event::kScoreboard:
          if (event.life == lives_[event.index]) --warps_[event.index].pending[event.scoreboard];
      }
    }
  }

  // Where no warp issues.
  Cycle next_change() const {
    Cycle const next = std::min(soonest_, events_.empty() ? kNever : events_.top().time);
    if (next == kNever) {
      std::cerr << "deadlock at cycle " << now_ << '\n';
      std::exit(3);
    }
    return std::max(next, now_ + 1);
  }

  void account(Cycle cycles) {
    for (Warp const& warp : warps_) result_.waits[reason(warp)] += cycles;
  }

  int reason(Warp const& warp) const {
    if (!warp.live) return int(Reason::kEmpty);
    if (warp.at_barrier) return int(Reason::kBarrier);
    if (warp.ready > now_) return int(Reason::kStall);
    Instruction const& i = next_of(warp);
    for (int s = 0; s < kScoreboards; ++s) {
      if ((i.waits_for >> s & 1) && warp.pending[s] > 0) {
        return int(Reason::kResult) + int(warp.pending_unit[s]);
      }
    }
    return int(obstacle(partitions_[warp.partition], i.unit));
  }

  Reason obstacle(Partition const& partition, Unit unit) const {
    switch (unit) {
      case Unit::kWait: return Reason::kCopies;
      case Unit::kTensor: return partition.tensor > now_ ? Reason::kTensorBusy : kFree;
      case Unit::kFloat: return partition.floats > now_ ? Reason::kFloatBusy : kFree;
      case Unit::kInteger: return partition.integers > now_ ? Reason::kIntegerBusy : kFree;
      case Unit::kSpecial:
        return partition.special_queue >= special_queue_ ? Reason::kSpecialQueue : kFree;
      default: return partition.memory_queue >= memory_queue_ ? Reason::kMemoryQueue : kFree;
    }
  }

  int index_of(Partition const& partition) const { return int(&partition - partitions_.data()); }

  // Alike on every machine, for the same seed.
  uint32_t random() {
    random_ ^= random_ << 13;
    random_ ^= random_ >> 7;
    random_ ^= random_ << 17;
    return uint32_t(random_ >> 32);
  }

  Cycle constant(char const* name) const { return Cycle(program_.machine[name]); }

  Program const& program_;
  std::vector<Warp> warps_;
  std::vector<int64_t> lives_;
  std::vector<Partition> partitions_;
  std::vector<int> left_in_slot_;
  std::priority_queue<Event> events_;
  size_t next_cta_ = 0, done_ = 0;
  Cycle now_ = 0, soonest_ = 0, shared_ = 0, reductions_ = 0;
  double l2_ = 0;
  Result result_;

  bool const greedy_ = constant("greedy") != 0;
  Cycle const cta_start_ = constant("cta_start");
  Cycle const slot_skew_ = constant("slot_skew");
  Cycle const barrier_ = constant("barrier");
  Cycle const barrier_slack_ = constant("barrier_slack");
  Cycle const branch_ = constant("branch");
  Cycle const operand_read_ = constant("operand_read");
  double const registers_per_cycle_ = program_.machine["registers_per_cycle"];
  double const register_slack_ = program_.machine["register_slack"];
  int const memory_queue_ = int(constant("memory_queue"));
  int const special_queue_ = int(constant("special_queue"));
  Cycle const memory_first_ = constant("memory_first");
  Cycle const address_ = constant("address");
  Cycle const accept_ = constant("accept");
  double const l2_bytes_ = program_.machine["l2_bytes_per_cycle"];
  Cycle const l2_latency_ = constant("l2_latency");
  Cycle const l2_jitter_ = constant("l2_jitter");
  double const reduce_bytes_ = program_.machine["reduce_bytes_per_cycle"];
  Cycle const reduce_slack_ = constant("reduce_slack");
  uint32_t const fetch_probability_ =
      uint32_t(program_.machine["fetch_probability"] * 4294967295.0);
  Cycle const fetch_ = constant("fetch");
  uint64_t random_ = 0x9E3779B97F4A7C15ull * uint64_t(1 + program_.machine["seed"]);
};

}  // namespace sm
