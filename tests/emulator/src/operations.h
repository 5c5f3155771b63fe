#pragma once

// What threads do other than computing in registers; a function for each thing. `site` is the
// instruction, which a report names. Addresses in shared memory are offsets.

#include <cstdint>

#include "emu/atomics.h"

namespace emu {

// ---- warp
void sync_warp(void const* site, uint32_t mask);
uint32_t ballot(void const* site, uint32_t mask, bool predicate);
uint64_t shuffle(void const* site, uint32_t mask, uint64_t value, int source_lane);
uint32_t active_lanes();

// ---- barriers of a CTA
enum class Reduction { kNone, kOr, kAnd, kCount };

inline constexpr int kWholeCta = 0;  // as a thread count

int barrier_sync(void const* site, int id, int threads, bool predicate = false,
                 Reduction reduction = Reduction::kNone);
void barrier_arrive(void const* site, int id, int threads);

// ---- tensor cores
struct MmaOperands {
  uint32_t a[4];
  uint32_t b[2];
  float c[4];  // becomes the result
};

enum class MmaType { kHalf, kBFloat16 };

void mma(void const* site, MmaOperands& operands, MmaType type, int k);  // m16n8k16, m16n8k8
void load_matrix(void const* site, uint64_t row, uint32_t* registers, int matrices,
                 bool transposed);
uint32_t transpose_matrix(void const* site, uint32_t fragment);  // movmatrix

// ---- asynchronous copies; of `source_bytes`, the rest becomes zero
void copy_async(void const* site, void const* source, uint64_t target, uint32_t bytes,
                uint32_t source_bytes);
void copy_async_commit();
void copy_async_wait_group(int pending);
void copy_async_wait_all();

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
uint64_t atomic(void const* site, void* address, Atomic const& what);
uint64_t atomic_shared(void const* site, uint64_t offset, Atomic const& what);

}  // namespace emu
