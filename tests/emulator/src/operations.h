#pragma once

// What threads do other than computing in registers; a function for each thing. `site` is the
// instruction, which a report names. Addresses in shared memory are offsets.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "emu/atomics.h"

namespace emu {

// ---- warp
void sync_warp(void const* site, uint32_t mask);
uint32_t ballot(void const* site, uint32_t mask, bool predicate);
uint64_t shuffle(void const* site, uint32_t mask, uint64_t value, int source_lane);
uint32_t active_lanes();
uint32_t elect(void const* site, uint32_t mask);  // one of these lanes, always the same

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
// wgmma of 64 x `columns`, depth 16. A and B are descriptors of matrices in shared memory.
struct Wgmma {
  int columns;
  MmaType type;
  bool adds;  // to what the sums are
  bool negates_a, negates_b;
  bool transposes_a, transposes_b;
  bool a_in_registers;
  uint64_t a, b;
};
// `a`: four registers, or null; `sums`: half as many as there are columns.
void wgmma(void const* site, Wgmma const& op, uint32_t const* a, float* sums);
void wgmma_fence(void const* site);
void wgmma_commit(void const* site);
void wgmma_wait(void const* site, int pending);

void load_matrix(void const* site, uint64_t row, uint32_t* registers, int matrices,
                 bool transposed);
void store_matrix(void const* site, uint64_t row, uint32_t const* registers, int matrices,
                  bool transposed);
uint32_t transpose_matrix(void const* site, uint32_t fragment);  // movmatrix

// ---- asynchronous copies; of `source_bytes`, the rest becomes zero
void copy_async(void const* site, void const* source, uint64_t target, uint32_t bytes,
                uint32_t source_bytes);
void copy_async_commit();
void copy_async_wait_group(int pending);
void copy_async_wait_all();

// ---- mbarriers, by offset
struct MbarrierArrival {
  uint32_t count = 1;
  uint32_t bytes = 0;    // that it says are to come
  bool releases = true;  // hands over what comes before
  bool drops = false;    // not expected again in the phases to come
};
// The one that a thread waits for: by its number, or by parity: the present one is meant where it
// is of this parity, else the one before.
struct MbarrierPhase {
  uint32_t phase;
  bool by_parity;
  bool acquires = true;  // takes over what others have handed over
};
void mbarrier_init(void const* site, uint64_t offset, uint32_t arrivals);
void mbarrier_invalidate(void const* site, uint64_t offset);
void mbarrier_expect(void const* site, uint64_t offset, uint32_t bytes);
// The number of the phase.
uint64_t mbarrier_arrive(void const* site, uint64_t offset, MbarrierArrival const& arrival);
// Whether the phase is complete; lets others go on before it says no.
bool mbarrier_test(void const* site, uint64_t offset, MbarrierPhase wanted);

// ---- bulk copies; `offset` is in shared memory
void bulk_load(void const* site, uint64_t offset, void const* source, uint32_t bytes,
               uint64_t mbarrier);
// With a type, the target's elements of it become sums.
void bulk_store(void const* site, void* target, uint64_t offset, uint32_t bytes,
                std::optional<AtomicType> sum = {});
// Of a box of a tensor, by the address of its map and the coordinates of its first element.
void bulk_load_box(void const* site, uint64_t offset, void const* map, std::span<int const> first,
                   uint64_t mbarrier);
void bulk_store_box(void const* site, void const* map, std::span<int const> first, uint64_t offset,
                    bool adds);
void bulk_store_commit();
void bulk_store_wait(int pending, bool reading_only);

// ---- registers: has so many from here on, `more` than before or less
void set_registers(void const* site, int wanted, bool more);

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
bool is_float(AtomicType type);
// To the elements of this type at `target`, what is at `values`.
void add_elements(AtomicType type, char* target, char const* values, size_t bytes);

}  // namespace emu
