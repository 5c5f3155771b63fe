// What the runtime gives of the driver: the function that makes tensor maps.

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstring>

#include "calls.h"
#include "emu/api.h"
#include "limits.h"
#include "tensor_map.h"

namespace emu {

namespace {

constexpr char kEncodeTiled[] = "cuTensorMapEncodeTiled";
constexpr unsigned kFirstVersion = 12000;  // that has it

CUresult encode_tiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* base,
                      cuuint64_t const* sizes, cuuint64_t const* outer_strides,
                      cuuint32_t const* box, cuuint32_t const* element_strides,
                      CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                      CUtensorMapL2promotion, CUtensorMapFloatOOBfill fill) {
  count_call(kEncodeTiled);
  if (options().device != Device::kSm90) return CUDA_ERROR_NOT_SUPPORTED;
  return encode_tensor_map(
      {type, rank, base, sizes, outer_strides, box, element_strides, interleave, swizzle, fill},
      map);
}

}  // namespace

}  // namespace emu

extern "C" {

cudaError_t cudaGetDriverEntryPointByVersion(char const* symbol, void** function, unsigned version,
                                             unsigned long long,
                                             cudaDriverEntryPointQueryResult* found) {
  emu::count_call(__func__);
  bool const is_known = std::strcmp(symbol, emu::kEncodeTiled) == 0;
  bool const is_there = is_known && version >= emu::kFirstVersion;
  *function = is_there ? reinterpret_cast<void*>(emu::encode_tiled) : nullptr;
  if (found != nullptr) {
    *found = is_there   ? cudaDriverEntryPointSuccess
             : is_known ? cudaDriverEntryPointVersionNotSufficent
                        : cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
  }
  return emu::remember_error(is_there ? cudaSuccess : cudaErrorSymbolNotFound);
}

cudaError_t cudaGetDriverEntryPoint(char const* symbol, void** function, unsigned long long flags,
                                    cudaDriverEntryPointQueryResult* found) {
  return cudaGetDriverEntryPointByVersion(symbol, function, CUDART_VERSION, flags, found);
}

}  // extern "C"
