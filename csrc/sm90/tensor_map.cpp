#include "sm90/tensor_map.h"

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <iterator>

#include "host/error.h"
#include "sm90/rows.h"

namespace fa2::sm90 {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

constexpr int kElementBytes = 2;
constexpr int64_t kUnit = 16;  // of strides, in bytes

// The driver's function, found through the runtime; null where the driver has none.
Encode encode_function() {
  static Encode const function = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result{};
#if CUDART_VERSION >= 12050
    constexpr unsigned kSinceCuda12 = 12000;
    cudaError_t const status = cudaGetDriverEntryPointByVersion(
        "cuTensorMapEncodeTiled", &found, kSinceCuda12, cudaEnableDefault, &result);
#else
    cudaError_t const status =
        cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found, cudaEnableDefault, &result);
#endif
    bool const is_there = status == cudaSuccess && result == cudaDriverEntryPointSuccess;
    return is_there ? reinterpret_cast<Encode>(found) : nullptr;
  }();
  return function;
}

// A dimension of one entry may come with any stride.
cuuint64_t stride_of(int64_t elements, int64_t entries) {
  return cuuint64_t(entries > 1 ? elements * kElementBytes : kUnit);
}

}  // namespace

bool makes_tensor_maps() { return encode_function() != nullptr; }

TensorMap make_tensor_map(TensorRef const& t, MappedRows const& of, Box const& box) {
  SeqLens const& seqs = of.seqs;
  bool const packed = seqs.cu_seqlens != nullptr;
  bool const ragged = is_ragged(seqs);
  bool const one_entry = packed || t.batch_stride == 0;
  int64_t const rows = seqs.max_seqlen;
  int64_t const batch = one_entry ? 1 : of.batch;
  int64_t const outer = ragged ? (packed ? seqs.total : rows) + 1 : 1;

  TensorMap result{};
  result.shift = ragged ? int32_t(rows) : 0;
  result.batch_step = one_entry ? 0 : 1;
  // A number: in front of a tensor there is nothing to point to.
  auto const begin =
      reinterpret_cast<uintptr_t>(t.data) - uintptr_t(result.shift * t.row_stride * kElementBytes);
  cuuint64_t const sizes[] = {cuuint64_t(of.head_dim), cuuint64_t(of.heads), cuuint64_t(rows),
                              cuuint64_t(outer), cuuint64_t(batch)};
  int64_t const all_rows = std::max(rows, outer);
  cuuint64_t const strides[] = {
      stride_of(t.head_stride, of.heads), stride_of(t.row_stride, all_rows),
      stride_of(t.row_stride, all_rows), stride_of(t.batch_stride, batch)};
  cuuint32_t const extents[] = {cuuint32_t(box.cols), cuuint32_t(box.heads), cuuint32_t(box.rows),
                                1, 1};
  cuuint32_t const steps[] = {1, 1, 1, 1, 1};
  auto const type = of.dtype == DType::kFloat16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                                : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  bool const wide = box.cols * kElementBytes == 128;
  Encode const encode = encode_function();
  FA2_CHECK(encode != nullptr,
            "the driver has no cuTensorMapEncodeTiled: it is older than CUDA 12");
  // In a variable of its own: a result's place need not be aligned as its type is (gcc 12).
  CUtensorMap map;
  CUresult const status = encode(
      &map, type, std::size(sizes), reinterpret_cast<void*>(begin), sizes, strides, extents, steps,
      CU_TENSOR_MAP_INTERLEAVE_NONE, wide ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  FA2_CHECK(status == CUDA_SUCCESS, "cuTensorMapEncodeTiled failed: {}", int(status));
  result.map = map;
  return result;
}

}  // namespace fa2::sm90
