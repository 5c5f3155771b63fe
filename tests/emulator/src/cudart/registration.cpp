// What nvcc's host code calls at the start of a program and at <<<>>>. Kernels go by the names
// under which they are registered: translated code with entries of those names must be linked in.

#include "registration.h"

#include <cuda_runtime.h>

#include <cstring>
#include <unordered_map>
#include <vector>

#include "emu/launch.h"
#include "launch.h"
#include "limits.h"
#include "ptx/modules.h"

namespace emu {

namespace {

using Names = std::unordered_map<void const*, std::string>;

Names& function_names() {
  static Names names;
  return names;
}

Names& variable_names() {
  static Names names;
  return names;
}

struct Call {
  dim3 grid, block;
  size_t shared_bytes;
  cudaStream_t stream;
};
thread_local std::vector<Call> pending_calls;

cudaError_t launch_entry(cudaLaunchConfig_t const& config, ptx::Entry const* entry,
                         void** arguments) {
  if (entry == nullptr) return remember_error(cudaErrorInvalidDeviceFunction);
  size_t bytes = 0;
  for (uint32_t i = 0; i < entry->num_params; ++i) {
    bytes = entry->params[i].offset + entry->params[i].bytes;
  }
  constexpr size_t kAlignment = 64;  // of a tensor map
  std::vector<char> room(bytes + kAlignment);
  auto* const values = reinterpret_cast<ptx::u8*>((uintptr_t(room.data()) + kAlignment - 1) /
                                                  kAlignment * kAlignment);
  for (uint32_t i = 0; i < entry->num_params; ++i) {
    std::memcpy(values + entry->params[i].offset, arguments[i], entry->params[i].bytes);
  }
  return launch(config, {.entry = entry, .arguments = values, .arguments_bytes = bytes});
}

}  // namespace

cudaError_t launch(cudaLaunchConfig_t const& config, std::string const& entry, void** arguments) {
  return launch_entry(config, ptx::find_entry(entry), arguments);
}

ptx::Entry const* registered_entry(void const* host_function) {
  auto const name = function_names().find(host_function);
  return name == function_names().end() ? nullptr : ptx::find_entry(name->second);
}

ptx::Variable const* registered_variable(void const* host_variable) {
  auto const name = variable_names().find(host_variable);
  return name == variable_names().end() ? nullptr : ptx::find_variable(name->second);
}

}  // namespace emu

extern "C" {

void** __cudaRegisterFatBinary(void*) {
  static void* handle = nullptr;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 1; }

void __cudaRegisterFunction(void**, char const* host_function, char*, char const* name, int, uint3*,
                            uint3*, dim3*, dim3*, int*) {
  emu::function_names()[host_function] = name;
}

void __cudaRegisterVar(void**, char* host_variable, char*, char const* name, int, size_t, int,
                       int) {
  emu::variable_names()[host_variable] = name;
}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared_bytes,
                                     cudaStream_t stream) {
  emu::pending_calls.push_back({grid, block, shared_bytes, stream});
  return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared_bytes,
                                       void* stream) {
  if (emu::pending_calls.empty()) return emu::remember_error(cudaErrorMissingConfiguration);
  emu::Call const call = emu::pending_calls.back();
  emu::pending_calls.pop_back();
  *grid = call.grid;
  *block = call.block;
  *shared_bytes = call.shared_bytes;
  *static_cast<cudaStream_t*>(stream) = call.stream;
  return cudaSuccess;
}

cudaError_t cudaLaunchKernelExC(cudaLaunchConfig_t const* config, void const* function,
                                void** arguments) {
  return emu::launch_entry(*config, emu::registered_entry(function), arguments);
}

cudaError_t cudaLaunchKernel(void const* function, dim3 grid, dim3 block, void** arguments,
                             size_t shared_bytes, cudaStream_t stream) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  return emu::launch_entry(config, emu::registered_entry(function), arguments);
}

// A kernel's handle is its function of the host.
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, void const* function) {
  *kernel = static_cast<cudaKernel_t>(const_cast<void*>(function));
  return cudaSuccess;
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments,
                               size_t shared_bytes, cudaStream_t stream) {
  return cudaLaunchKernel(kernel, grid, block, arguments, shared_bytes, stream);
}

}  // extern "C"
