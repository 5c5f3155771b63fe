// The CUDA runtime API's view of the one emulated device, and errors.

#include <cuda_runtime.h>

#include <algorithm>
#include <mutex>
#include <span>
#include <unordered_map>

#include "calls.h"
#include "limits.h"
#include "machine.h"
#include "registration.h"

namespace emu {

namespace {

struct DeviceSize {
  int major, minor;  // compute capability
  int multiprocessors;
  int l2_bytes;
  int shared_bytes;  // that a CTA may opt in to
  int shared_bytes_per_multiprocessor;
};

constexpr DeviceSize kDevices[] = {
    {8, 0, 108, 40 << 20, 163 << 10, 164 << 10},  // A100
    {8, 6, 82, 6 << 20, 99 << 10, 100 << 10},     // RTX 3090
    {9, 0, 132, 50 << 20, 227 << 10, 228 << 10},  // H100
};

DeviceSize const& device_size() { return kDevices[int(options().device)]; }

constexpr unsigned kMaxThreadsZ = 64;
constexpr unsigned kMaxGridX = 0x7fffffff, kMaxGridYZ = 65535;

std::mutex mutex;
std::unordered_map<void const*, int> shared_limits;  // where a kernel has opted in to more
thread_local cudaError_t last_error = cudaSuccess;

// More than one CTA in a cluster.
bool has_clusters(cudaLaunchConfig_t const& config) {
  std::span const attributes(config.attrs, config.numAttrs);
  return std::ranges::any_of(attributes, [](cudaLaunchAttribute const& attribute) {
    auto const& dim = attribute.val.clusterDim;
    return attribute.id == cudaLaunchAttributeClusterDimension && dim.x * dim.y * dim.z > 1;
  });
}

}  // namespace

cudaError_t remember_error(cudaError_t status) {
  if (status != cudaSuccess) last_error = status;
  return status;
}

int dynamic_shared_limit(void const* kernel, uint32_t static_bytes) {
  std::lock_guard const lock(mutex);
  auto const found = shared_limits.find(kernel);
  int const left = std::max(0, device_size().shared_bytes - int(static_bytes));
  int const by_default = std::max(0, kSharedBytesDefault - int(static_bytes));
  return std::min(left, found == shared_limits.end() ? by_default : found->second);
}

int multiprocessors() { return device_size().multiprocessors; }

size_t shared_bytes_of_multiprocessor() {
  return size_t(device_size().shared_bytes_per_multiprocessor);
}

cudaError_t check_launch(cudaLaunchConfig_t const& config, ptx::Entry const& entry) {
  dim3 const g = config.gridDim, b = config.blockDim;
  unsigned const most = entry.max_threads == 0 ? kMaxThreads : entry.max_threads;
  bool const grid_ok = g.x - 1 < kMaxGridX && g.y - 1 < kMaxGridYZ && g.z - 1 < kMaxGridYZ;
  bool const block_ok = b.x > 0 && b.y > 0 && b.x <= kMaxThreads && b.y <= kMaxThreads &&
                        b.z - 1 < kMaxThreadsZ && b.x * b.y * b.z <= most;
  if (!grid_ok || !block_ok) return remember_error(cudaErrorInvalidConfiguration);
  if (has_clusters(config)) return remember_error(cudaErrorInvalidClusterSize);
  int const limit = dynamic_shared_limit(&entry, entry.shared_bytes);
  if (config.dynamicSmemBytes > size_t(limit)) return remember_error(cudaErrorInvalidValue);
  return cudaSuccess;
}

}  // namespace emu

extern "C" {

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  emu::count_call(__func__);
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  emu::count_call(__func__);
  return emu::remember_error(device == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  emu::count_call(__func__);
  if (device != 0) return emu::remember_error(cudaErrorInvalidDevice);
  emu::DeviceSize const& size = emu::device_size();
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = size.major; break;
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
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = 2048; break;
    case cudaDevAttrMaxGridDimX: *value = int(emu::kMaxGridX); break;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ: *value = int(emu::kMaxGridYZ); break;
    default: return emu::remember_error(cudaErrorInvalidValue);
  }
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(void const* kernel, cudaFuncAttribute attribute, int value) {
  emu::count_call(__func__);
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || value > emu::device_size().shared_bytes)
    return emu::remember_error(cudaErrorInvalidValue);
  std::lock_guard const lock(emu::mutex);
  // By what a launch knows the kernel by.
  emu::ptx::Entry const* const entry = emu::registered_entry(kernel);
  emu::shared_limits[entry == nullptr ? kernel : entry] = value;
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

}  // extern "C"
