#include "tensor_map.h"

#include <algorithm>
#include <cstring>

#include "global_memory.h"
#include "report.h"

namespace emu {

namespace {

constexpr uint64_t kMark = 0x70616d2d726f736eull;
constexpr uintptr_t kMapAlignment = 64;
constexpr uint64_t kUnit = 16;  // of addresses, strides and rows of boxes
constexpr uint64_t kMaxSize = uint64_t(1) << 32, kStrideLimit = uint64_t(1) << 40;
constexpr uint32_t kMaxBox = 256, kMaxElementStride = 8;

static_assert(sizeof(TensorMap) <= sizeof(CUtensorMap));

// 0 for types that do not exist, or that have no whole bytes.
uint32_t bytes_of(CUtensorMapDataType type) {
  switch (type) {
    case CU_TENSOR_MAP_DATA_TYPE_UINT8: return 1;
    case CU_TENSOR_MAP_DATA_TYPE_UINT16:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT16:
    case CU_TENSOR_MAP_DATA_TYPE_BFLOAT16: return 2;
    case CU_TENSOR_MAP_DATA_TYPE_UINT32:
    case CU_TENSOR_MAP_DATA_TYPE_INT32:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT32: return 4;
    case CU_TENSOR_MAP_DATA_TYPE_UINT64:
    case CU_TENSOR_MAP_DATA_TYPE_INT64:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT64: return 8;
    default: return 0;
  }
}

// 0 for those that the emulator does not know.
uint32_t span_of(CUtensorMapSwizzle swizzle) {
  switch (swizzle) {
    case CU_TENSOR_MAP_SWIZZLE_NONE: return kChunkBytes;
    case CU_TENSOR_MAP_SWIZZLE_32B: return 32;
    case CU_TENSOR_MAP_SWIZZLE_64B: return 64;
    case CU_TENSOR_MAP_SWIZZLE_128B: return 128;
    default: return 0;
  }
}

bool is_known(TensorMapArguments const& given) {
  bool const has_steps = std::any_of(given.element_strides + 1, given.element_strides + given.rank,
                                     [](uint32_t stride) { return stride != 1; });
  return bytes_of(given.type) != 0 && span_of(given.swizzle) != 0 && !has_steps &&
         given.interleave == CU_TENSOR_MAP_INTERLEAVE_NONE &&
         given.fill == CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE;
}

// The driver's rules, of what is_known().
bool is_valid(TensorMapArguments const& given) {
  if (given.base == nullptr || uintptr_t(given.base) % kUnit != 0) return false;
  for (uint32_t d = 0; d < given.rank; ++d) {
    if (given.sizes[d] == 0 || given.sizes[d] > kMaxSize) return false;
    if (given.box[d] == 0 || given.box[d] > kMaxBox) return false;
    if (d == 0) continue;
    uint64_t const stride = given.outer_strides[d - 1];
    if (stride % kUnit != 0 || stride >= kStrideLimit) return false;
  }
  uint32_t const row_bytes = given.box[0] * bytes_of(given.type);
  uint32_t const span_bytes = span_of(given.swizzle);
  return row_bytes % kUnit == 0 && (span_bytes == kChunkBytes || row_bytes <= span_bytes);
}

// Goes on where the last piece ends, on both sides, if it can.
void add_piece(std::vector<BulkPiece>& pieces, BulkPiece piece) {
  if (!pieces.empty()) {
    BulkPiece& last = pieces.back();
    if (last.global + last.bytes == piece.global && last.offset + last.bytes == piece.offset) {
      last.bytes += piece.bytes;
      return;
    }
  }
  pieces.push_back(piece);
}

}  // namespace

std::optional<AtomicType> TensorMap::addition() const {
  switch (type) {
    case CU_TENSOR_MAP_DATA_TYPE_UINT32: return AtomicType::kU32;
    case CU_TENSOR_MAP_DATA_TYPE_INT32: return AtomicType::kS32;
    case CU_TENSOR_MAP_DATA_TYPE_UINT64: return AtomicType::kU64;
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT16: return AtomicType::kF16;
    case CU_TENSOR_MAP_DATA_TYPE_BFLOAT16: return AtomicType::kBf16;
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT32: return AtomicType::kF32;
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT64: return AtomicType::kF64;
    default: return {};
  }
}

BulkBox TensorMap::box_at(std::span<int const> first) const {
  int64_t const inner_size = int64_t(sizes[0]);
  int64_t const begin = std::clamp<int64_t>(-int64_t(first[0]), 0, box[0]);
  int64_t const end = std::clamp<int64_t>(inner_size - first[0], begin, box[0]);
  uint32_t const row_bytes = box[0] * element_bytes();
  BulkBox result{{}, row_bytes, span_bytes};
  for (int d = 1; d < rank; ++d) result.bytes *= box[d];

  int at[kMaxRank] = {};  // of a row, in the box
  for (uint32_t offset = 0; offset < result.bytes; offset += row_bytes) {
    bool inside = begin < end;
    int64_t row = (first[0] + begin) * int64_t(element_bytes());  // from the base, in bytes
    for (int d = 1; d < rank; ++d) {
      int64_t const coordinate = int64_t(first[size_t(d)]) + at[d];
      inside = inside && coordinate >= 0 && uint64_t(coordinate) < sizes[d];
      row += coordinate * int64_t(strides[d]);
    }
    if (inside) {
      uint32_t const skipped = uint32_t(begin) * element_bytes();
      add_piece(result.pieces,
                {base + row, offset + skipped, uint32_t(end - begin) * element_bytes()});
    }
    for (int d = 1; d < rank && ++at[d] == box[d]; ++d) at[d] = 0;
  }
  return result;
}

CUresult encode_tensor_map(TensorMapArguments const& given, CUtensorMap* map) {
  if (uintptr_t(map) % kMapAlignment != 0 || given.rank < 1 || given.rank > TensorMap::kMaxRank) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  for (uint32_t d = 1; d < given.rank; ++d) {
    uint32_t const step = given.element_strides[d];
    if (step == 0 || step > kMaxElementStride) return CUDA_ERROR_INVALID_VALUE;
  }
  if (!is_known(given)) return CUDA_ERROR_NOT_SUPPORTED;
  if (!is_valid(given)) return CUDA_ERROR_INVALID_VALUE;
  uint32_t const span_bytes = span_of(given.swizzle);
  TensorMap made = {kMark,
                    static_cast<char*>(given.base),
                    {},
                    {},
                    {},
                    uint8_t(given.rank),
                    uint8_t(span_bytes),
                    given.type};
  // How rows that are shorter than the span lie in shared memory is not documented.
  bool const fills_span =
      span_bytes == kChunkBytes || given.box[0] * bytes_of(given.type) == span_bytes;
  if (!fills_span) return CUDA_ERROR_NOT_SUPPORTED;
  for (uint32_t d = 0; d < given.rank; ++d) {
    made.sizes[d] = given.sizes[d];
    made.strides[d] = d == 0 ? bytes_of(given.type) : given.outer_strides[d - 1];
    made.box[d] = uint16_t(given.box[d]);
  }
  *map = {};
  std::memcpy(map, &made, sizeof(made));
  return CUDA_SUCCESS;
}

TensorMap const& tensor_map_at(void const* site, void const* address) {
  check_global(address, sizeof(CUtensorMap), GlobalAccess::kLoad, site);
  auto const& map = *static_cast<TensorMap const*>(address);
  if (uintptr_t(address) % kMapAlignment != 0 || map.mark != kMark) {
    fail(site, "cp.async.bulk.tensor: no tensor map at %s", describe_address(address).text);
  }
  return map;
}

}  // namespace emu
