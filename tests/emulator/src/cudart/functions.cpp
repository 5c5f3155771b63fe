// What the CUDA runtime API says of kernels. Registers and occupancy are not modelled: as many CTAs
// are resident as threads and shared memory let.

#include <cuda_runtime.h>

#include <algorithm>

#include "calls.h"
#include "limits.h"
#include "registration.h"

namespace emu {

namespace {

constexpr int kThreadsOfMultiprocessor = 2048, kBlocksOfMultiprocessor = 32;
constexpr size_t kReservedSharedBytes = 1024;  // of each CTA

int resident_blocks(void const* function, int threads, size_t dynamic_bytes) {
  if (threads <= 0) return 0;
  ptx::Entry const* const entry = registered_entry(function);
  size_t const own = dynamic_bytes + (entry == nullptr ? 0 : entry->shared_bytes);
  size_t const by_shared = shared_bytes_of_multiprocessor() / (own + kReservedSharedBytes);
  return std::min({kBlocksOfMultiprocessor, kThreadsOfMultiprocessor / threads, int(by_shared)});
}

}  // namespace

}  // namespace emu

extern "C" {

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, void const* function) {
  emu::count_call(__func__);
  emu::ptx::Entry const* const entry = emu::registered_entry(function);
  if (entry == nullptr) return emu::remember_error(cudaErrorInvalidDeviceFunction);
  *attributes = {};
  attributes->sharedSizeBytes = entry->shared_bytes;
  attributes->maxDynamicSharedSizeBytes = emu::dynamic_shared_limit(entry, entry->shared_bytes);
  attributes->maxThreadsPerBlock =
      entry->max_threads == 0 ? int(emu::kMaxThreads) : int(entry->max_threads);
  attributes->ptxVersion = attributes->binaryVersion = 80;
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks,
                                                                   void const* function,
                                                                   int threads,
                                                                   size_t dynamic_bytes, unsigned) {
  emu::count_call(__func__);
  *blocks = emu::resident_blocks(function, threads, dynamic_bytes);
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void const* function,
                                                          int threads, size_t dynamic_bytes) {
  emu::count_call(__func__);
  *blocks = emu::resident_blocks(function, threads, dynamic_bytes);
  return cudaSuccess;
}

}  // extern "C"
