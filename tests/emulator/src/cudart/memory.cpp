// Device memory of the CUDA runtime API: the host's, registered as buffers that kernels may access.
// What is allocated starts as NaN.

#include <cuda_runtime.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "calls.h"
#include "emu/api.h"
#include "limits.h"
#include "registration.h"

namespace emu {

namespace {

struct Free {
  void operator()(char* data) const { std::free(data); }
};

struct Allocation {
  std::unique_ptr<char, Free> data;
  std::unique_ptr<ScopedBuffers> buffers;
};

std::mutex allocations_mutex;
std::map<void*, Allocation> allocations;
int allocation_count = 0;

constexpr size_t kAlignment = 256;

cudaError_t allocate(void** pointer, size_t bytes) {
  *pointer = nullptr;
  if (bytes == 0) return cudaSuccess;
  size_t const rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  std::unique_ptr<char, Free> data(static_cast<char*>(std::aligned_alloc(kAlignment, rounded)));
  if (data == nullptr) return remember_error(cudaErrorMemoryAllocation);
  std::memset(data.get(), 0xff, bytes);
  std::lock_guard const lock(allocations_mutex);
  std::string const name = "allocation " + std::to_string(allocation_count++);
  *pointer = data.get();
  auto buffers = std::make_unique<ScopedBuffers>(
      std::vector<Buffer>{{.data = data.get(), .bytes = bytes, .name = name, .writable = true}});
  allocations[*pointer] = {std::move(data), std::move(buffers)};
  return cudaSuccess;
}

cudaError_t release(void* pointer) {
  if (pointer == nullptr) return cudaSuccess;
  std::lock_guard const lock(allocations_mutex);
  bool const known = allocations.erase(pointer) != 0;
  return known ? cudaSuccess : remember_error(cudaErrorInvalidValue);
}

cudaError_t copy(void* to, void const* from, size_t bytes) {
  std::memmove(to, from, bytes);
  return cudaSuccess;
}

// Copies into or out of a variable of a kernel's file.
cudaError_t copy_symbol(void const* symbol, size_t offset, size_t bytes, void* to,
                        void const* from) {
  ptx::Variable const* const variable = registered_variable(symbol);
  if (variable == nullptr) return remember_error(cudaErrorInvalidSymbol);
  if (offset + bytes > variable->bytes) return remember_error(cudaErrorInvalidValue);
  ptx::u8* const data = variable->data + offset;
  return copy(to == nullptr ? data : to, from == nullptr ? data : from, bytes);
}

}  // namespace

}  // namespace emu

extern "C" {

cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  emu::count_call(__func__);
  return emu::allocate(pointer, bytes);
}
cudaError_t cudaMallocAsync(void** pointer, size_t bytes, cudaStream_t) {
  emu::count_call(__func__);
  return emu::allocate(pointer, bytes);
}
cudaError_t cudaMallocManaged(void** pointer, size_t bytes, unsigned) {
  return emu::allocate(pointer, bytes);
}
cudaError_t cudaFree(void* pointer) {
  emu::count_call(__func__);
  return emu::release(pointer);
}
cudaError_t cudaFreeAsync(void* pointer, cudaStream_t) {
  emu::count_call(__func__);
  return emu::release(pointer);
}

cudaError_t cudaMallocHost(void** pointer, size_t bytes) {
  emu::count_call(__func__);
  *pointer = std::malloc(bytes);
  return *pointer == nullptr ? emu::remember_error(cudaErrorMemoryAllocation) : cudaSuccess;
}
cudaError_t cudaFreeHost(void* pointer) {
  std::free(pointer);
  return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, void const* from, size_t bytes, cudaMemcpyKind) {
  emu::count_call(__func__);
  return emu::copy(to, from, bytes);
}
cudaError_t cudaMemcpyAsync(void* to, void const* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t) {
  emu::count_call(__func__);
  return emu::copy(to, from, bytes);
}
cudaError_t cudaMemcpyToSymbol(void const* symbol, void const* from, size_t bytes, size_t offset,
                               cudaMemcpyKind) {
  return emu::copy_symbol(symbol, offset, bytes, nullptr, from);
}
cudaError_t cudaMemcpyFromSymbol(void* to, void const* symbol, size_t bytes, size_t offset,
                                 cudaMemcpyKind) {
  return emu::copy_symbol(symbol, offset, bytes, to, nullptr);
}
cudaError_t cudaGetSymbolAddress(void** pointer, void const* symbol) {
  emu::ptx::Variable const* const variable = emu::registered_variable(symbol);
  if (variable == nullptr) return emu::remember_error(cudaErrorInvalidSymbol);
  *pointer = variable->data;
  return cudaSuccess;
}

cudaError_t cudaMemset(void* target, int value, size_t bytes) {
  emu::count_call(__func__);
  std::memset(target, value, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* target, int value, size_t bytes, cudaStream_t) {
  emu::count_call(__func__);
  return cudaMemset(target, value, bytes);
}

}  // extern "C"
