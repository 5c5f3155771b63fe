// The subset of the CUDA runtime API that the product calls, for one emulated device.

#include <cuda_runtime.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <unordered_map>

#include "cuda_limits.h"
#include "machine.h"

namespace emu {

namespace {

struct DeviceSize {
  int minor;  // of compute capability 8
  int multiprocessors;
  int l2_bytes;
  int shared_bytes;  // that a CTA may opt in to
  int shared_bytes_per_multiprocessor;
};

constexpr DeviceSize kSm80 = {0, 108, 40 << 20, kSharedBytesMax, 164 << 10};  // A100
constexpr DeviceSize kSm86 = {6, 82, 6 << 20, 99 << 10, 100 << 10};           // RTX 3090

DeviceSize const& device_size() { return options().device == Device::kSm80 ? kSm80 : kSm86; }

constexpr unsigned kMaxThreads = 1024, kMaxThreadsZ = 64;
constexpr unsigned kMaxGridX = 0x7fffffff, kMaxGridYZ = 65535;

std::mutex mutex;
std::unordered_map<void const*, int> shared_limits;  // where a kernel has opted in to more
thread_local cudaError_t last_error = cudaSuccess;

cudaError_t result(cudaError_t status) {
  if (status != cudaSuccess) last_error = status;
  return status;
}

int shared_limit(void const* kernel) {
  std::lock_guard const lock(mutex);
  auto const found = shared_limits.find(kernel);
  return found == shared_limits.end() ? kSharedBytesDefault : found->second;
}

}  // namespace

cudaError_t check_launch(cudaLaunchConfig_t const& config, void const* kernel) {
  dim3 const g = config.gridDim, b = config.blockDim;
  bool const grid_ok = g.x - 1 < kMaxGridX && g.y - 1 < kMaxGridYZ && g.z - 1 < kMaxGridYZ;
  bool const block_ok = b.x > 0 && b.y > 0 && b.x <= kMaxThreads && b.y <= kMaxThreads &&
                        b.z - 1 < kMaxThreadsZ && b.x * b.y * b.z <= kMaxThreads;
  if (!grid_ok || !block_ok) return result(cudaErrorInvalidConfiguration);
  size_t const limit = size_t(std::min(shared_limit(kernel), device_size().shared_bytes));
  if (config.dynamicSmemBytes > limit) return result(cudaErrorInvalidValue);
  return cudaSuccess;
}

}  // namespace emu

extern "C" {

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  return emu::result(device == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device != 0) return emu::result(cudaErrorInvalidDevice);
  emu::DeviceSize const& size = emu::device_size();
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = 8; break;
    case cudaDevAttrComputeCapabilityMinor: *value = size.minor; break;
    case cudaDevAttrMultiProcessorCount: *value = size.multiprocessors; break;
    case cudaDevAttrL2CacheSize: *value = size.l2_bytes; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = emu::kSharedBytesDefault; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = size.shared_bytes; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = size.shared_bytes_per_multiprocessor;
      break;
    case cudaDevAttrWarpSize: *value = emu::kWarpSize; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = int(emu::kMaxThreads); break;
    default: return emu::result(cudaErrorInvalidValue);
  }
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(void const* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || value > emu::device_size().shared_bytes)
    return emu::result(cudaErrorInvalidValue);
  std::lock_guard const lock(emu::mutex);
  emu::shared_limits[kernel] = value;
  return cudaSuccess;
}

cudaError_t cudaGetLastError() { return std::exchange(emu::last_error, cudaSuccess); }

cudaError_t cudaPeekAtLastError() { return emu::last_error; }

char const* cudaGetErrorName(cudaError_t status) {
  switch (status) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorInvalidConfiguration: return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
    default: return "cudaError (emulated)";
  }
}

char const* cudaGetErrorString(cudaError_t status) { return cudaGetErrorName(status); }

cudaError_t cudaMemsetAsync(void* target, int value, size_t bytes, cudaStream_t) {
  std::memset(target, value, bytes);
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }

cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }

}  // extern "C"
