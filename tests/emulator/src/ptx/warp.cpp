// What the threads of translated kernels do together.

#include "ptx/warp.h"

#include <chrono>

#include "collectives.h"
#include "cudart/limits.h"
#include "machine.h"
#include "operations.h"
#include "report.h"

namespace emu::ptx {

namespace {

template <class Triple>
u32 component(Triple const& v, int dimension) {
  return dimension == 0 ? v.x : dimension == 1 ? v.y : v.z;
}

// The lane that a shuffle reads, and whether it is in range (PTX ISA, shfl.sync).
struct Source {
  int lane;
  bool in_range;
};
Source shuffle_source(Shuffle mode, u32 b, u32 c) {
  int const lane = current->lane, n = int(b & 31), clamp = int(c & 31), segment = int(c >> 8 & 31);
  int const last = (lane & segment) | (clamp & ~segment), first = lane & segment;
  int from = 0;
  switch (mode) {
    case Shuffle::kUp: from = lane - n; break;
    case Shuffle::kDown: from = lane + n; break;
    case Shuffle::kBfly: from = lane ^ n; break;
    case Shuffle::kIdx: from = first | (n & ~segment); break;
  }
  bool const in_range = mode == Shuffle::kUp ? from >= last : from <= last;
  return {in_range ? from : lane, in_range};
}

// All lanes of the mask give a value, and get one of execute(values, lane).
template <class Execute>
u64 exchange(Site const* site, Operation operation, u32 mask, u64 value, Execute execute) {
  Warp& warp = current_warp();
  int const lane = current->lane;
  warp.shuffle.value[lane] = value;
  converge(operation, mask, mask, {site}, [&](Warp& w) {
    u64 results[kWarpSize] = {};
    for (int l = 0; l < kWarpSize; ++l) {
      if (mask >> l & 1) results[l] = execute(w.shuffle.value, l);
    }
    for (int l = 0; l < kWarpSize; ++l) {
      if (mask >> l & 1) w.shuffle.value[l] = results[l];
    }
    return true;
  });
  return warp.shuffle.value[lane];
}

template <class T, class Combine>
T reduce(Site const* site, T value, u32 mask, Combine combine) {
  return T(exchange(site, Operation::kReduce, mask, u64(u32(value)), [&](u64 const* values, int) {
    int const first = __builtin_ctz(mask);
    T result = T(values[first]);
    for (int l = first + 1; l < kWarpSize; ++l) {
      if (mask >> l & 1) result = combine(result, T(values[l]));
    }
    return u64(u32(result));
  }));
}

}  // namespace

u32 thread_index(int dimension) { return component(current->thread_index, dimension); }
u32 block_index(int dimension) { return component(current_cta().index, dimension); }
u32 block_size(int dimension) { return component(grid.block_dim, dimension); }
u32 grid_size(int dimension) { return component(grid.grid_dim, dimension); }
u32 lane_id() { return u32(current->lane); }
u32 warp_id() { return u32(current_warp().index); }
u32 multiprocessors() { return u32(emu::multiprocessors()); }
u64 clock_ticks() { return u64(std::chrono::steady_clock::now().time_since_epoch().count()); }

Shuffled shuffle(Site const* site, Shuffle mode, u32 value, u32 lane, u32 segments, u32 mask) {
  Source const source = shuffle_source(mode, lane, segments);
  return {u32(emu::shuffle(site, mask, value, source.lane)), source.in_range};
}

u32 active_mask() { return active_lanes(); }
u32 vote_ballot(Site const* site, bool predicate, u32 mask) {
  return emu::ballot(site, mask, predicate);
}
bool vote_any(Site const* site, bool predicate, u32 mask) {
  return vote_ballot(site, predicate, mask) != 0;
}
bool vote_all(Site const* site, bool predicate, u32 mask) {
  return vote_ballot(site, predicate, mask) == mask;
}
bool vote_uni(Site const* site, bool predicate, u32 mask) {
  u32 const votes = vote_ballot(site, predicate, mask);
  return votes == 0 || votes == mask;
}

u32 match_any(Site const* site, u64 value, u32 mask) {
  return u32(exchange(site, Operation::kMatch, mask, value, [mask](u64 const* values, int lane) {
    u32 same = 0;
    for (int l = 0; l < kWarpSize; ++l) {
      if ((mask >> l & 1) && values[l] == values[lane]) same |= 1u << l;
    }
    return u64(same);
  }));
}
u32 match_all(Site const* site, u64 value, u32 mask) {
  return match_any(site, value, mask) == mask ? mask : 0;
}
void sync_warp(Site const* site, u32 mask) { emu::sync_warp(site, mask); }
u32 elect(Site const* site, u32 mask) { return emu::elect(site, mask); }

#define EMU_REDUX(T)                                                               \
  T redux_add(Site const* site, T value, u32 mask) {                               \
    return reduce(site, value, mask, [](T a, T b) { return T(u32(a) + u32(b)); }); \
  }                                                                                \
  T redux_min(Site const* site, T value, u32 mask) {                               \
    return reduce(site, value, mask, [](T a, T b) { return a < b ? a : b; });      \
  }                                                                                \
  T redux_max(Site const* site, T value, u32 mask) {                               \
    return reduce(site, value, mask, [](T a, T b) { return a > b ? a : b; });      \
  }
EMU_REDUX(u32)
EMU_REDUX(s32)
#undef EMU_REDUX
u32 redux_and(Site const* site, u32 value, u32 mask) {
  return reduce(site, value, mask, [](u32 a, u32 b) { return a & b; });
}
u32 redux_or(Site const* site, u32 value, u32 mask) {
  return reduce(site, value, mask, [](u32 a, u32 b) { return a | b; });
}
u32 redux_xor(Site const* site, u32 value, u32 mask) {
  return reduce(site, value, mask, [](u32 a, u32 b) { return a ^ b; });
}

void barrier_sync(Site const* site, u32 id, u32 threads) {
  emu::barrier_sync(site, int(id), int(threads));
}
void barrier_arrive(Site const* site, u32 id, u32 threads) {
  emu::barrier_arrive(site, int(id), int(threads));
}
u32 barrier_popc(Site const* site, u32 id, u32 threads, bool predicate) {
  return u32(emu::barrier_sync(site, int(id), int(threads), predicate, Reduction::kCount));
}
bool barrier_and(Site const* site, u32 id, u32 threads, bool predicate) {
  return emu::barrier_sync(site, int(id), int(threads), predicate, Reduction::kAnd) != 0;
}
bool barrier_or(Site const* site, u32 id, u32 threads, bool predicate) {
  return emu::barrier_sync(site, int(id), int(threads), predicate, Reduction::kOr) != 0;
}

void set_registers_inc(Site const* site, u32 registers) {
  emu::set_registers(site, int(registers), true);
}
void set_registers_dec(Site const* site, u32 registers) {
  emu::set_registers(site, int(registers), false);
}

void nanosleep(u32) { give_way(); }

void trap(Site const* site) { fail(site, "trap"); }

void end_thread() { finish_thread(); }

void unwritten_predicate(Site const* site, char const* name) {
  fail(site, "reads the predicate %s, which is not written yet", name);
}

void registers_in_flight(Site const* site, char const* name) {
  fail(site, "comes to %s before the wait for the wgmma that has it", name);
}

void registers_without_fence(Site const* site) {
  fail(site, "wgmma without a wgmma.fence after the last use of its registers");
}

void bad_jump(Site const* site, u32 index) {
  fail(site, "brx.idx: its list has no target %u", index);
}

void assert_fail(u8* message, u8* file, u8* line, u8* function, u8*) {
  auto const text = [](u8* param) { return *reinterpret_cast<char const* const*>(param); };
  fail(nullptr, "assertion failed: %s, in %s at %s:%u", text(message), text(function), text(file),
       *reinterpret_cast<u32 const*>(line));
}

}  // namespace emu::ptx
