// Boxes of tensors, moved by bulk copies: right for all ranks, swizzles and edges, under all
// schedules; every fault is caught, and for the right reason.

#include <cstring>

#include "arrays.h"
#include "launch.h"
#include "tensor_functions.h"

namespace {

using selftest::Array;
using selftest::Coordinates;
using selftest::TensorLayout;

enum class Fault {
  kNone,
  kNoWait,
  kTooFewExpected,
  kTooManyExpected,
  kMisalignedBox,
  kBeyondSharedMemory,
  kWrongRank,
  kNoMap,
  kNoFence,
  kNoBarrier,
  kNoWaitForReading,
  kNoWaitAtEnd,
};

constexpr int kThreads = 64;
constexpr int kRoom = 16 << 10;  // for a box, in shared memory
constexpr emu::Device kDevice = emu::Device::kSm90;

struct Params {
  int rank;
  Coordinates first;
  int bytes;
  Fault fault;
};

// A box, as it lies in shared memory, to `out`.
__global__ void load_box(__grid_constant__ CUtensorMap const map, Params p, uint32_t* out) {
  __shared__ alignas(1024) uint32_t box[kRoom / 4];
  __shared__ uint64_t mbarrier;
  auto const is = [&p](Fault fault) { return p.fault == fault; };
  int const thread = int(threadIdx.x);
  if (thread == 0) {
    selftest::mbarrier_init(&mbarrier, 1);
    selftest::fence_mbarrier_init();
  }
  __syncthreads();
  if (thread == 0) {
    int const error = is(Fault::kTooFewExpected) ? -16 : is(Fault::kTooManyExpected) ? 16 : 0;
    selftest::mbarrier_arrive_expect_tx(&mbarrier, p.bytes + error);
    int const shift = is(Fault::kMisalignedBox) ? 16 : is(Fault::kBeyondSharedMemory) ? kRoom : 0;
    void const* const source = is(Fault::kNoMap) ? out : static_cast<void const*>(&map);
    selftest::tensor_load(p.rank - is(Fault::kWrongRank), box + shift / 4,
                          static_cast<CUtensorMap const*>(source), p.first, &mbarrier);
  }
  if (!is(Fault::kNoWait)) selftest::mbarrier_wait(&mbarrier, 0);
  for (int i = thread; i < p.bytes / 4; i += kThreads) out[i] = box[i];
}

// From `in`, as it is to lie in shared memory, to a box, or added to one.
__global__ void store_box(__grid_constant__ CUtensorMap const map, Params p, bool adds,
                          uint32_t const* in) {
  __shared__ alignas(1024) uint32_t box[kRoom / 4];
  auto const is = [&p](Fault fault) { return p.fault == fault; };
  int const thread = int(threadIdx.x);
  for (int i = thread; i < p.bytes / 4; i += kThreads) box[i] = in[i];
  if (!is(Fault::kNoFence)) selftest::fence_proxy_async();
  if (!is(Fault::kNoBarrier)) __syncthreads();
  if (thread == 0) {
    if (adds) {
      selftest::tensor_add(p.rank, &map, p.first, box);
    } else {
      selftest::tensor_store(p.rank, &map, p.first, box);
    }
    selftest::bulk_store_commit();
    if (is(Fault::kNoWaitForReading)) box[0] = 0;
    if (!is(Fault::kNoWaitAtEnd)) selftest::bulk_store_wait<0>();
  }
}

struct Case {
  TensorLayout layout;
  Coordinates first;
};

constexpr auto kHalf = CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
constexpr auto kNoSwizzle = CU_TENSOR_MAP_SWIZZLE_NONE;
constexpr auto kSwizzle32 = CU_TENSOR_MAP_SWIZZLE_32B;
constexpr auto kSwizzle64 = CU_TENSOR_MAP_SWIZZLE_64B;
constexpr auto kSwizzle128 = CU_TENSOR_MAP_SWIZZLE_128B;

// Inside, over each edge, and wholly outside; rows that are padded, dimensions out of order.
constexpr Case kCases[] = {
    {{kHalf, 2, 1, {100}, {}, {64}, kNoSwizzle}, {{8}}},
    {{kHalf, 2, 1, {100}, {}, {64}, kNoSwizzle}, {{-3}}},
    {{kHalf, 2, 1, {100}, {}, {64}, kNoSwizzle}, {{77}}},
    {{kHalf, 2, 2, {64, 20}, {128}, {64, 16}, kSwizzle128}, {{0, 2}}},
    {{kHalf, 2, 2, {60, 20}, {144}, {64, 32}, kSwizzle128}, {{0, -5}}},
    {{kHalf, 2, 2, {40, 20}, {80}, {32, 9}, kSwizzle64}, {{16, 14}}},
    {{kHalf, 2, 2, {40, 20}, {80}, {16, 7}, kSwizzle32}, {{-8, 3}}},
    {{kHalf, 2, 2, {40, 20}, {80}, {16, 7}, kSwizzle32}, {{8, 25}}},
    {{CU_TENSOR_MAP_DATA_TYPE_FLOAT32, 4, 2, {33, 9}, {144}, {32, 8}, kSwizzle128}, {{2, 4}}},
    {{CU_TENSOR_MAP_DATA_TYPE_UINT8, 1, 2, {100, 9}, {112}, {48, 5}, kNoSwizzle}, {{60, 6}}},
    {{kHalf, 2, 3, {64, 3, 11}, {1408, 128}, {64, 2, 4}, kSwizzle128}, {{0, 1, 9}}},
    {{kHalf, 2, 4, {16, 5, 4, 3}, {32, 160, 640}, {16, 3, 2, 2}, kNoSwizzle}, {{0, 3, -1, 2}}},
    {{kHalf, 2, 5, {64, 2, 6, 2, 3}, {128, 512, 256, 3072}, {64, 2, 5, 1, 1}, kSwizzle128},
     {{0, 0, 3, 1, 2}}},
};

int bytes_of(TensorLayout const& layout) {
  Coordinates last = {};
  for (int d = 0; d < layout.rank; ++d) last.at[d] = int(layout.sizes[d]) - 1;
  return int(layout.offset(last)) + layout.element_bytes;
}

// Launches load_box on a tensor of random bytes; "" where shared memory holds what it should.
std::string load(Case const& of, Fault fault = Fault::kNone) {
  TensorLayout const& layout = of.layout;
  Array<unsigned char> tensor(bytes_of(layout));
  Array<uint32_t> out(kRoom / 4);
  for (int i = 0; i < tensor.size(); ++i) tensor[i] = static_cast<unsigned char>(i * 37 + i / 256);
  emu::ScopedBuffers const buffers{tensor.read_only("tensor"), out.writable("out")};
  CUtensorMap map;
  if (selftest::make_map(&map, layout, tensor.data()) != CUDA_SUCCESS) return "no map";
  int const bytes = layout.box_bytes();
  std::string const report = selftest::launch(
      1, kThreads, 0, load_box, map, Params{layout.rank, of.first, bytes, fault}, out.data());
  if (!report.empty()) return report;
  std::string result;
  layout.for_box(of.first, [&](Coordinates const& at, int place) {
    char const zeros[8] = {};
    void const* const want =
        layout.contains(at) ? static_cast<void*>(tensor.data() + layout.offset(at)) : zeros;
    void const* const got = reinterpret_cast<char const*>(out.data()) + place;
    if (std::memcmp(want, got, size_t(layout.element_bytes)) != 0) result = "wrong element";
  });
  return result;
}

// Launches store_box; "" where the tensor holds the box, and what it held elsewhere.
std::string store(Case const& of, Fault fault = Fault::kNone) {
  TensorLayout const& layout = of.layout;
  Array<unsigned char> tensor(bytes_of(layout));
  Array<uint32_t> in(kRoom / 4);
  for (int i = 0; i < in.size(); ++i) in[i] = uint32_t(i) * 2654435761u;
  emu::ScopedBuffers const buffers{tensor.writable("tensor"), in.read_only("in")};
  CUtensorMap map;
  if (selftest::make_map(&map, layout, tensor.data()) != CUDA_SUCCESS) return "no map";
  Params const params{layout.rank, of.first, layout.box_bytes(), fault};
  std::string const report =
      selftest::launch(1, kThreads, 0, store_box, map, params, false, in.data());
  if (!report.empty()) return report;
  std::vector<unsigned char> want(size_t(tensor.size()));
  layout.for_box(of.first, [&](Coordinates const& at, int place) {
    if (!layout.contains(at)) return;
    std::memcpy(want.data() + layout.offset(at), reinterpret_cast<char const*>(in.data()) + place,
                size_t(layout.element_bytes));
  });
  return std::memcmp(want.data(), tensor.data(), want.size()) == 0 ? "" : "wrong tensor";
}

struct FaultCase {
  Fault fault;
  char const* name;
  char const* report;  // part of it
};

#define FAULT(name, report) {Fault::name, #name, report}
constexpr FaultCase kLoadFaults[] = {
    FAULT(kNoWait, "race in shared memory"),
    FAULT(kTooFewExpected, "16 bytes more than it was told to expect"),
    FAULT(kTooManyExpected, "0 of 1 arrivals and 16 bytes are missing"),
    FAULT(kMisalignedBox, "is not 128-byte aligned"),
    FAULT(kBeyondSharedMemory, "out of bounds: cp.async.bulk of 2048 bytes at shared memory"),
    FAULT(kWrongRank, "1 coordinates of a tensor map of 2 dimensions"),
    FAULT(kNoMap, "no tensor map at out + 0"),
};
constexpr FaultCase kStoreFaults[] = {
    FAULT(kNoFence, "without a fence.proxy.async after the write of"),
    FAULT(kNoBarrier, "race in shared memory"),
    FAULT(kNoWaitForReading, "write while a bulk copy or wgmma reads there"),
    FAULT(kNoWaitAtEnd, "the thread ends without a wait for the end of its reading"),
};
#undef FAULT

constexpr Case kPlainCase = {{kHalf, 2, 2, {64, 20}, {128}, {64, 16}, kSwizzle128}, {{0, 2}}};

template <class Run>
void for_schedules(Run run) {
  uint64_t seed = 0;
  for (emu::AsyncMode async : selftest::kAsyncModes) {
    selftest::WithOptions const options(selftest::schedule(++seed, 1, async, kDevice));
    run();
  }
}

}  // namespace

TEST(boxes_of_tensors_are_loaded) {
  for_schedules([] {
    for (Case const& of : kCases) CHECK_EQUAL(load(of), "");
  });
}

TEST(boxes_of_tensors_are_stored) {
  for_schedules([] {
    for (Case const& of : kCases) CHECK_EQUAL(store(of), "");
  });
}

TEST(every_fault_of_a_box_is_caught) {
  for_schedules([] {
    for (FaultCase const& of : kLoadFaults) {
      CHECK_CONTAINS(std::string(of.name) + ": " + load(kPlainCase, of.fault), of.report);
    }
    for (FaultCase const& of : kStoreFaults) {
      CHECK_CONTAINS(std::string(of.name) + ": " + store(kPlainCase, of.fault), of.report);
    }
  });
}

// A map may say more than there is, as long as no box goes there; here its base lies before the
// tensor, so that what ends at a row is filled with zeros exactly from there on.
TEST(a_map_may_start_before_the_tensor) {
  constexpr int kColumns = 64, kRows = 10, kShift = 8, kBytes = 2 * kColumns;
  TensorLayout const layout = {kHalf,     2, 2, {kColumns, kShift}, {kBytes}, {kColumns, kShift},
                               kNoSwizzle};
  Array<uint16_t> tensor(kRows * kColumns);
  Array<uint32_t> out(kRoom / 4);
  for (int i = 0; i < tensor.size(); ++i) tensor[i] = uint16_t(i + 1);
  emu::ScopedBuffers const buffers{tensor.read_only("tensor"), out.writable("out")};
  auto const* const words = reinterpret_cast<uint16_t const*>(out.data());
  selftest::WithOptions const options(selftest::schedule(1, 1, emu::AsyncMode::kLate, kDevice));
  for (int length : {1, 5, 8, 10}) {  // of the sequence that the box is to end with
    CUtensorMap map;
    CHECK(selftest::make_map(&map, layout, tensor.data() + (length - kShift) * kColumns) ==
          CUDA_SUCCESS);
    for (int row = std::max(0, length - kShift); row < length; row += 3) {
      Params const params{2, {{0, row - length + kShift}}, layout.box_bytes(), Fault::kNone};
      CHECK_EQUAL(selftest::launch(1, kThreads, 0, load_box, map, params, out.data()), "");
      for (int i = 0; i < kShift * kColumns; ++i) {
        int const at = row * kColumns + i;
        CHECK_EQUAL(words[i], at < length * kColumns ? tensor[at] : 0);
      }
    }
  }
  CUtensorMap map;
  CHECK(selftest::make_map(&map, layout, tensor.data() - kShift * kColumns) == CUDA_SUCCESS);
  Params const params{2, {{0, 4}}, layout.box_bytes(), Fault::kNone};
  CHECK_CONTAINS(selftest::launch(1, kThreads, 0, load_box, map, params, out.data()),
                 "out of bounds");
}

TEST(boxes_are_added) {
  constexpr TensorLayout layout = {
      CU_TENSOR_MAP_DATA_TYPE_FLOAT32, 4, 2, {40, 6}, {160}, {32, 4}, kNoSwizzle};
  constexpr int kCtas = 3;
  for_schedules([&layout] {
    Array<float> tensor(40 * 6), in(32 * 4);
    for (int i = 0; i < tensor.size(); ++i) tensor[i] = float(i);
    for (int i = 0; i < in.size(); ++i) in[i] = float(i % 7);
    emu::ScopedBuffers const buffers{tensor.writable("tensor"), in.read_only("in")};
    CUtensorMap map;
    CHECK(selftest::make_map(&map, layout, tensor.data()) == CUDA_SUCCESS);
    Params const params{2, {{16, 4}}, layout.box_bytes(), Fault::kNone};
    CHECK_EQUAL(selftest::launch(kCtas, kThreads, 0, store_box, map, params, true,
                                 reinterpret_cast<uint32_t const*>(in.data())),
                "");
    for (int i = 0; i < tensor.size(); ++i) {
      int const row = i / 40 - 4, column = i % 40 - 16;
      bool const is_in = row >= 0 && column >= 0;
      CHECK_EQUAL(tensor[i], float(i) + (is_in ? kCtas * ((row * 32 + column) % 7) : 0));
    }
  });
  Case bytes = kPlainCase;
  bytes.layout.type = CU_TENSOR_MAP_DATA_TYPE_UINT16;
  selftest::WithOptions const options(selftest::schedule(1, 1, emu::AsyncMode::kLate, kDevice));
  Array<uint16_t> tensor(64 * 20);
  Array<uint32_t> in(kRoom / 4);
  emu::ScopedBuffers const buffers{tensor.writable("tensor"), in.read_only("in")};
  CUtensorMap map;
  CHECK(selftest::make_map(&map, bytes.layout, tensor.data()) == CUDA_SUCCESS);
  Params const params{2, bytes.first, bytes.layout.box_bytes(), Fault::kNone};
  CHECK_CONTAINS(selftest::launch(1, kThreads, 0, store_box, map, params, true, in.data()),
                 "elements that cannot be added to");
}

TEST(boxes_are_counted_by_their_pieces) {
  selftest::WithOptions const options(selftest::schedule(1, 1, emu::AsyncMode::kLate, kDevice));
  emu::reset_counters();
  // 15 rows of 64 halves, each 144 bytes after the one before: every other one starts in the middle
  // of a sector.
  CHECK_EQUAL(load({{kHalf, 2, 2, {64, 20}, {144}, {64, 32}, kSwizzle128}, {{0, 5}}}), "");
  emu::Counters const counters = emu::counters();
  CHECK_EQUAL(counters.bulk_copies, 1u);
  emu::Traffic const reads = counters.reads.at("tensor");
  CHECK_EQUAL(reads.bytes, 15u * 128);
  CHECK_EQUAL(reads.requests, 1u);
  CHECK_EQUAL(reads.sectors, 7u * 4 + 8u * 5);
}

TEST(tensor_maps_that_the_driver_refuses) {
  selftest::WithOptions const options(selftest::schedule(1, 1, emu::AsyncMode::kLate, kDevice));
  Array<uint16_t> tensor(64 * 20);
  CUtensorMap map;
  auto const made = [&](auto change, void* base) {
    TensorLayout layout = kPlainCase.layout;
    change(layout);
    return selftest::make_map(&map, layout, base);
  };
  auto const nothing = [](TensorLayout&) {};
  CHECK(made(nothing, tensor.data()) == CUDA_SUCCESS);
  CHECK(made(nothing, nullptr) == CUDA_ERROR_INVALID_VALUE);
  CHECK(made(nothing, tensor.data() + 4) == CUDA_ERROR_INVALID_VALUE);
  void (*const invalid[])(TensorLayout&) = {
      [](TensorLayout& l) { l.rank = 0; },
      [](TensorLayout& l) { l.rank = 6; },
      [](TensorLayout& l) { l.sizes[1] = 0; },
      [](TensorLayout& l) { l.strides[0] = 120; },
      [](TensorLayout& l) { l.box[1] = 0; },
      [](TensorLayout& l) { l.box[1] = 257; },
      [](TensorLayout& l) { l.box[0] = 20; },
      [](TensorLayout& l) { l.box[0] = 72; },
      [](TensorLayout& l) { l.strides[0] = cuuint64_t(1) << 40; },
      [](TensorLayout& l) { l.sizes[0] = (cuuint64_t(1) << 32) + 1; },
  };
  for (auto const change : invalid) {
    CHECK(made(change, tensor.data()) == CUDA_ERROR_INVALID_VALUE);
  }
  CHECK(made([](TensorLayout& l) { l.box[0] = 32; }, tensor.data()) == CUDA_ERROR_NOT_SUPPORTED);

  void* function = &map;
  cudaDriverEntryPointQueryResult found;
  CHECK(cudaGetDriverEntryPointByVersion("cuNoSuchFunction", &function, 12000, cudaEnableDefault,
                                         &found) == cudaSuccess);
  CHECK(found == cudaDriverEntryPointSymbolNotFound && function == nullptr);
}

TEST(no_tensor_maps_before_sm90) {
  selftest::WithOptions const options(selftest::schedule(1, 1, emu::AsyncMode::kLate));
  Array<uint16_t> tensor(64 * 20);
  CUtensorMap map;
  CHECK(selftest::make_map(&map, kPlainCase.layout, tensor.data()) == CUDA_ERROR_NOT_SUPPORTED);
}
