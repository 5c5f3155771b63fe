#pragma once

// What the kernels' side of the emulator calls; one function for each thing that a GPU thread does
// other than computing in registers. Implemented in ../src.

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <string>

#include "emu/atomics.h"

namespace emu {

// ---- warp
void sync_warp(uint32_t mask);
uint64_t shuffle(uint32_t mask, uint64_t value, int source_lane);
uint32_t ballot(uint32_t mask, bool predicate);
uint32_t active_lanes();
int lane();

template <class T>
T shuffle_value(uint32_t mask, T value, int source_lane) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = shuffle(mask, bits, source_lane);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

// ---- barriers of a CTA
enum class Reduction { kNone, kOr, kAnd, kCount };

inline constexpr int kWholeCta = 0;  // as a thread count

int barrier_sync(int id, int threads, bool predicate = false,
                 Reduction reduction = Reduction::kNone);
void barrier_arrive(int id, int threads);

// ---- tensor cores
struct MmaOperands {
  uint32_t a[4];
  uint32_t b[2];
  float c[4];  // becomes the result
};

enum class MmaType { kHalf, kBFloat16 };

void mma(MmaOperands& operands, MmaType type, int k);  // m16n8k16, m16n8k8
void load_matrix(void const* row, uint32_t* registers, int matrices, bool transposed);
uint32_t transpose_matrix(uint32_t fragment);  // movmatrix

// ---- asynchronous copies
void copy_async(void const* source, void* target, int bytes, bool predicate);
void copy_async_commit();
void copy_async_wait_group(int pending);
void copy_async_wait_all();

// ---- plain accesses that the compiler could split
void copy_vector(void const* source, void* target, int bytes);

// A variable of the host that library code reads inside kernels; there is only one.
void declare_host_constant(void const* address, size_t bytes);

// ---- atomics and fences
uint64_t atomic(void* address, AtomicOp op, AtomicType type, uint64_t operand,
                uint64_t compare = 0);
// Without a result, so that no thread can learn from it or spin on it.
void reduce(float* address, float operand);        // red.add
void release_add(int32_t* flag, int32_t operand);  // red.release.gpu.add
int32_t load_acquire(int32_t const* flag);         // ld.acquire.gpu
void fence();                                      // __threadfence
void fence_block();                                // __threadfence_block
void pause();                                      // __nanosleep: lets others run

// ---- launch
[[noreturn]] void unsupported(char const* what);

struct Kernel {
  void const* function;
  void (*run)(void const* arguments);  // one thread
  void const* arguments;               // readable by the kernel, as constant memory is
  size_t arguments_bytes;
  // Of a kernel that comes from PTX: its static shared memory, at the start of what a launch has,
  // and the most threads of a CTA, if not 0.
  bool is_translated = false;
  uint32_t static_shared_bytes = 0;
  uint32_t max_threads = 0;
};

// Runs the grid to its end. Returns what CUDA would for an impossible configuration; throws
// emu::Error when the kernel breaks a rule.
cudaError_t launch(cudaLaunchConfig_t const& config, Kernel const& kernel);

// The same for an entry of translated PTX, by its mangled name, with the addresses of its
// arguments.
cudaError_t launch(cudaLaunchConfig_t const& config, std::string const& entry, void** arguments);

}  // namespace emu
