#pragma once

// The operations of emu/device.h for callers that know where the instruction is: `site` is what a
// report names. Addresses in shared memory are offsets.

#include <cstdint>

#include "emu/device.h"

namespace emu::at {

// ---- warp
void sync_warp(void const* site, uint32_t mask);
uint32_t ballot(void const* site, uint32_t mask, bool predicate);
uint64_t shuffle(void const* site, uint32_t mask, uint64_t value, int source_lane);

// ---- barriers of a CTA
int barrier_sync(void const* site, int id, int threads, bool predicate = false,
                 Reduction reduction = Reduction::kNone);
void barrier_arrive(void const* site, int id, int threads);

// ---- tensor cores
void mma(void const* site, MmaOperands& operands, MmaType type, int k);
void load_matrix(void const* site, uint64_t row, uint32_t* registers, int matrices,
                 bool transposed);
uint32_t transpose_matrix(void const* site, uint32_t fragment);

// ---- asynchronous copies; of `source_bytes`, the rest becomes zero
void copy_async(void const* site, void const* source, uint64_t target, uint32_t bytes,
                uint32_t source_bytes);

// ---- atomics
struct Atomic {
  AtomicOp op;
  AtomicType type;
  uint64_t operand;
  uint64_t compare = 0;  // of kCas
  Order order = Order::kRelaxed;
  Scope scope = Scope::kGpu;
  bool has_result = true;  // else no thread can learn from it or spin on it
};
uint64_t atomic(void const* site, void* address, Atomic const& atomic);
uint64_t atomic_shared(void const* site, uint64_t offset, Atomic const& atomic);

}  // namespace emu::at
