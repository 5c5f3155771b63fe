#pragma once

// What the threads of a warp and of a CTA do together, and who a thread is.

#include "ptx/module.h"

namespace emu::ptx {

// Of dimension 0, 1, 2.
u32 thread_index(int dimension);
u32 block_index(int dimension);
u32 block_size(int dimension);
u32 grid_size(int dimension);
u32 lane_id();
u32 warp_id();
u32 multiprocessors();
u64 clock_ticks();

enum class Shuffle : u8 { kUp, kDown, kBfly, kIdx };
struct Shuffled {
  u32 value;
  bool in_range;
};
// `segments` holds the clamp value and the mask of segments, as shfl's operand c does.
Shuffled shuffle(Site const* site, Shuffle mode, u32 value, u32 lane, u32 segments, u32 mask);

u32 active_mask();
bool vote_any(Site const* site, bool predicate, u32 mask);
bool vote_all(Site const* site, bool predicate, u32 mask);
bool vote_uni(Site const* site, bool predicate, u32 mask);
u32 vote_ballot(Site const* site, bool predicate, u32 mask);
u32 match_any(Site const* site, u64 value, u32 mask);
u32 match_all(Site const* site, u64 value, u32 mask);  // 0 where they differ
void sync_warp(Site const* site, u32 mask);
u32 elect(Site const* site, u32 mask);  // one of these lanes

u32 redux_add(Site const* site, u32 value, u32 mask);
u32 redux_min(Site const* site, u32 value, u32 mask);
u32 redux_max(Site const* site, u32 value, u32 mask);
s32 redux_add(Site const* site, s32 value, u32 mask);
s32 redux_min(Site const* site, s32 value, u32 mask);
s32 redux_max(Site const* site, s32 value, u32 mask);
u32 redux_and(Site const* site, u32 value, u32 mask);
u32 redux_or(Site const* site, u32 value, u32 mask);
u32 redux_xor(Site const* site, u32 value, u32 mask);

inline constexpr u32 kWholeCta = 0;  // as a thread count
void barrier_sync(Site const* site, u32 id, u32 threads);
void barrier_arrive(Site const* site, u32 id, u32 threads);
u32 barrier_popc(Site const* site, u32 id, u32 threads, bool predicate);
bool barrier_and(Site const* site, u32 id, u32 threads, bool predicate);
bool barrier_or(Site const* site, u32 id, u32 threads, bool predicate);

// setmaxnreg
void set_registers_inc(Site const* site, u32 registers);
void set_registers_dec(Site const* site, u32 registers);

void nanosleep(u32 duration);
[[noreturn]] void trap(Site const* site);
[[noreturn]] void bad_jump(Site const* site, u32 index);
[[noreturn]] void end_thread();

// __assertfail and vprintf, with the addresses of their parameters.
[[noreturn]] void assert_fail(u8* message, u8* file, u8* line, u8* function, u8* char_size);
void print_format(u8* result, u8* format, u8* values);

}  // namespace emu::ptx
