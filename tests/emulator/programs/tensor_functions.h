#pragma once

// Bulk copies of boxes of tensors: the instructions, a function for each, and the maps.

#include <cuda.h>
#include <cuda_runtime.h>

#include "bulk_functions.h"

namespace selftest {

inline constexpr int kMaxRank = 5;

// Of the first element of a box, innermost first.
struct Coordinates {
  int at[kMaxRank];
};

#define FA2_SELFTEST_COORDINATES(c) \
  "r"(c.at[0]), "r"(c.at[1]), "r"(c.at[2]), "r"(c.at[3]), "r"(c.at[4])

// The instruction of each rank has as many coordinates, of which %2 is the first.
#define FA2_SELFTEST_OF_RANK(rank, INSTRUCTION)                \
  switch (rank) {                                              \
    case 1: INSTRUCTION("1d", "{%2}"); break;                  \
    case 2: INSTRUCTION("2d", "{%2, %3}"); break;              \
    case 3: INSTRUCTION("3d", "{%2, %3, %4}"); break;          \
    case 4: INSTRUCTION("4d", "{%2, %3, %4, %5}"); break;      \
    default: INSTRUCTION("5d", "{%2, %3, %4, %5, %6}"); break; \
  }

#define FA2_SELFTEST_LOAD(rank, coordinates)                                                  \
  asm volatile("cp.async.bulk.tensor." rank                                                   \
               ".shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, " coordinates \
               "], [%7];" ::"r"(shared_address(to)),                                          \
               "l"(map), FA2_SELFTEST_COORDINATES(first), "r"(shared_address(mbarrier))       \
               : "memory")
__device__ inline void tensor_load(int rank, void* to, CUtensorMap const* map, Coordinates first,
                                   uint64_t* mbarrier){
    FA2_SELFTEST_OF_RANK(rank, FA2_SELFTEST_LOAD)}
#undef FA2_SELFTEST_LOAD

#define FA2_SELFTEST_STORE(rank, coordinates)                                                  \
  asm volatile("cp.async.bulk.tensor." rank ".global.shared::cta.bulk_group [%1, " coordinates \
               "], [%0];" ::"r"(shared_address(from)),                                         \
               "l"(map), FA2_SELFTEST_COORDINATES(first)                                       \
               : "memory")
__device__
    inline void tensor_store(int rank, CUtensorMap const* map, Coordinates first,
                             void const* from){FA2_SELFTEST_OF_RANK(rank, FA2_SELFTEST_STORE)}
#undef FA2_SELFTEST_STORE

#define FA2_SELFTEST_ADD(rank, coordinates)                           \
  asm volatile("cp.reduce.async.bulk.tensor." rank                    \
               ".global.shared::cta.add.bulk_group [%1, " coordinates \
               "], [%0];" ::"r"(shared_address(from)),                \
               "l"(map), FA2_SELFTEST_COORDINATES(first)              \
               : "memory")
__device__
    inline void tensor_add(int rank, CUtensorMap const* map, Coordinates first, void const* from) {
  FA2_SELFTEST_OF_RANK(rank, FA2_SELFTEST_ADD)
}
#undef FA2_SELFTEST_ADD
#undef FA2_SELFTEST_OF_RANK
#undef FA2_SELFTEST_COORDINATES

// A tensor and the box that a map of it moves; strides are in bytes, from the second dimension on.
struct TensorLayout {
  CUtensorMapDataType type;
  int element_bytes;
  int rank;
  cuuint64_t sizes[kMaxRank];
  cuuint64_t strides[kMaxRank - 1];
  cuuint32_t box[kMaxRank];
  CUtensorMapSwizzle swizzle;

  int box_bytes() const {
    int bytes = element_bytes;
    for (int d = 0; d < rank; ++d) bytes *= int(box[d]);
    return bytes;
  }
  // From the tensor's first element, in bytes.
  int64_t offset(Coordinates const& c) const {
    int64_t result = int64_t(c.at[0]) * element_bytes;
    for (int d = 1; d < rank; ++d) result += c.at[d] * int64_t(strides[d - 1]);
    return result;
  }
  bool contains(Coordinates const& c) const {
    for (int d = 0; d < rank; ++d) {
      if (c.at[d] < 0 || cuuint64_t(c.at[d]) >= sizes[d]) return false;
    }
    return true;
  }
  // Calls visit(coordinates, bytes from the start of the box in shared memory).
  template <class Visit>
  void for_box(Coordinates const& first, Visit visit) const {
    constexpr int kChunk = 16, kRow = 128;
    int const chunks = swizzle == CU_TENSOR_MAP_SWIZZLE_NONE  ? 1
                       : swizzle == CU_TENSOR_MAP_SWIZZLE_32B ? 2
                       : swizzle == CU_TENSOR_MAP_SWIZZLE_64B ? 4
                                                              : 8;  // that change places
    int const count = box_bytes() / element_bytes;
    for (int i = 0; i < count; ++i) {
      Coordinates at = first;
      int rest = i;
      for (int d = 0; d < rank; ++d) {
        at.at[d] += rest % int(box[d]);
        rest /= int(box[d]);
      }
      int const place = i * element_bytes;
      int const chunk = place / kChunk ^ place / kRow % chunks;
      visit(at, chunk * kChunk + place % kChunk);
    }
  }
};

using EncodeTiled = decltype(&cuTensorMapEncodeTiled);

// As programs find it that do not link with the driver.
inline EncodeTiled encode_tiled() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
  cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault,
                                   &found);
  return reinterpret_cast<EncodeTiled>(function);
}

inline CUresult make_map(CUtensorMap* map, TensorLayout const& layout, void* base) {
  cuuint32_t const steps[kMaxRank] = {1, 1, 1, 1, 1};
  return encode_tiled()(map, layout.type, cuuint32_t(layout.rank), base, layout.sizes,
                        layout.strides, layout.box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                        layout.swizzle, CU_TENSOR_MAP_L2_PROMOTION_NONE,
                        CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

}  // namespace selftest
