// What each device operation computes, against plain loops.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cute/tensor.hpp>

#include <cmath>
#include <random>

#include "arrays.h"
#include "device_functions.h"
#include "launch.h"

namespace {

using selftest::Array;
using selftest::launch;

constexpr unsigned kAll = 0xffffffffu;

// ---- mma, by CuTe: C (16 x 8) = A (16 x k) B' (8 x k)

template <class Mma, class Element>
__global__ void multiply(Element const* a, Element const* b, float* c) {
  using namespace cute;
  auto const mma = make_tiled_mma(Mma{}).get_slice(int(threadIdx.x));
  constexpr int kDepth = size<2>(typename MMA_Traits<Mma>::Shape_MNK{});
  auto const tA = mma.partition_A(make_tensor(a, Shape<_16, Int<kDepth>>{}, LayoutRight{}));
  auto const tB = mma.partition_B(make_tensor(b, Shape<_8, Int<kDepth>>{}, LayoutRight{}));
  auto tC = mma.partition_C(make_tensor(c, Shape<_16, _8>{}, LayoutRight{}));
  auto rA = mma.make_fragment_A(tA);
  auto rB = mma.make_fragment_B(tB);
  auto rC = mma.make_fragment_C(tC);
  copy(tA, rA);
  copy(tB, rB);
  copy(tC, rC);
  gemm(MMA_Atom<Mma>{}, rA(_, 0, 0), rB(_, 0, 0), rC(_, 0, 0));
  copy(rC, tC);
}

template <class Mma, class Element>
void check_multiply(int depth) {
  Array<Element> a(16 * depth), b(8 * depth);
  Array<float> c(16 * 8);
  std::mt19937 random(1);
  for (int i = 0; i < a.size(); ++i) a[i] = Element(float(int(random() % 33) - 16) / 8.f);
  for (int i = 0; i < b.size(); ++i) b[i] = Element(float(int(random() % 33) - 16) / 8.f);
  for (int i = 0; i < c.size(); ++i) c[i] = float(i);
  emu::ScopedBuffers const buffers{a.read_only("a"), b.read_only("b"), c.writable("c")};
  CHECK_EQUAL(launch(1, 32, 0, multiply<Mma, Element>, a.data(), b.data(), c.data()), "");
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 8; ++j) {
      float expected = float(i * 8 + j);
      for (int k = 0; k < depth; ++k) expected += float(a[i * depth + k]) * float(b[j * depth + k]);
      CHECK_EQUAL(c[i * 8 + j], expected);
    }
  }
}

// ---- ldmatrix and movmatrix: element (i, j) of matrix m is 64 m + 8 i + j

template <int kMatrices, bool kTransposed, class Op>
__global__ void load(uint32_t* out) {
  extern __shared__ __align__(128) char smem[];
  auto* const elements = reinterpret_cast<uint16_t*>(smem);
  int const lane = int(threadIdx.x);
  for (int i = lane; i < 64 * kMatrices; i += 32) elements[i] = uint16_t(i);
  __syncwarp();
  auto const& row =
      *reinterpret_cast<cute::uint128_t const*>(elements + lane % (8 * kMatrices) * 8);
  uint32_t r[4] = {};
  if constexpr (kMatrices == 1) Op::copy(row, r[0]);
  if constexpr (kMatrices == 2) Op::copy(row, r[0], r[1]);
  if constexpr (kMatrices == 4) Op::copy(row, r[0], r[1], r[2], r[3]);
  for (int m = 0; m < kMatrices; ++m) out[m * 32 + lane] = r[m];
}

template <int kMatrices, bool kTransposed, class Op>
void check_load() {
  Array<uint32_t> out(32 * kMatrices);
  emu::ScopedBuffers const buffers{out.writable("out")};
  CHECK_EQUAL(launch(1, 32, 128 * kMatrices, load<kMatrices, kTransposed, Op>, out.data()), "");
  for (int m = 0; m < kMatrices; ++m) {
    for (int lane = 0; lane < 32; ++lane) {
      int const i = lane / 4, j = lane % 4 * 2;
      int const low = kTransposed ? j * 8 + i : i * 8 + j;
      int const high = kTransposed ? (j + 1) * 8 + i : i * 8 + j + 1;
      CHECK_EQUAL(out[m * 32 + lane], uint32_t((64 * m + high) << 16 | (64 * m + low)));
    }
  }
}

__global__ void transpose(uint32_t* out) {
  int const i = int(threadIdx.x) / 4, j = int(threadIdx.x) % 4 * 2;
  uint32_t result;
  cute::SM75_U32x1_MOVM_T::copy(uint32_t((8 * i + j + 1) << 16 | (8 * i + j)), result);
  out[threadIdx.x] = result;
}

// ---- shuffles and votes

__global__ void shuffle(int* out) {
  int const lane = int(threadIdx.x);
  out[lane] = __shfl_sync(kAll, lane, 5);
  out[32 + lane] = __shfl_sync(kAll, lane, 3, 8);
  out[64 + lane] = __shfl_xor_sync(kAll, lane, 6);
  out[96 + lane] = __shfl_down_sync(kAll, lane, 3, 16);
  out[128 + lane] = __shfl_up_sync(kAll, lane, 3, 16);
  double const wide = __shfl_xor_sync(kAll, lane + 0.5, 1);
  out[160 + lane] = int(2 * wide);
  unsigned const mine = lane < 10 ? 0x000003ffu : ~0x000003ffu;
  out[192 + lane] = lane < 10 ? __shfl_sync(mine, lane, 9) : __shfl_sync(mine, lane, 10);
}

__global__ void vote(unsigned* out) {
  unsigned const lane = threadIdx.x;
  out[lane] = __ballot_sync(kAll, lane % 3 == 0);
  out[32 + lane] =
      unsigned(__any_sync(kAll, lane == 7)) << 1 | unsigned(__all_sync(kAll, lane < 32));
  out[64 + lane] =
      unsigned(__any_sync(kAll, lane > 31)) << 1 | unsigned(__all_sync(kAll, lane < 31));
}

// ---- barriers

__global__ void reduce(int* out) {
  int const thread = int(threadIdx.x);
  out[thread] = __syncthreads_count(thread % 5 == 0);
  out[96 + thread] = __syncthreads_or(thread == 70) | __syncthreads_and(thread >= 0) << 1;
  out[192 + thread] = __syncthreads_or(thread > 95) | __syncthreads_and(thread > 0) << 1;
}

// Warp 0 produces, warps 1 and 2 consume; it waits for them before it writes again.
__global__ void produce(int* out) {
  extern __shared__ __align__(128) char smem[];
  int* const item = reinterpret_cast<int*>(smem);
  int const thread = int(threadIdx.x), lane = thread % 32;
  constexpr int kFull = 1, kEmpty = 2;
  for (int round = 0; round < 4; ++round) {
    if (thread < 32) {
      if (round > 0) selftest::named_barrier_sync(kEmpty, 96);
      item[lane] = round * 100 + lane;
      selftest::named_barrier_arrive(kFull, 96);
    } else {
      selftest::named_barrier_sync(kFull, 96);
      out[round * 64 + thread - 32] = item[31 - lane];
      if (round < 3) selftest::named_barrier_arrive(kEmpty, 96);
    }
  }
}

// ---- atomics

__global__ void add_up(float* sum, int* counts, unsigned long long* wide, unsigned* locked) {
  atomicAdd(sum, 0.5f);
  atomicAdd(&counts[0], 1);
  atomicMax(&counts[1], int(threadIdx.x + blockIdx.x));
  atomicMin(&counts[2], -int(threadIdx.x));
  atomicAdd(wide, 1ull << 33);
  unsigned old = 0, seen;
  while ((seen = atomicCAS(locked, old, old + 3)) != old) old = seen;
}

// ---- cp.async

struct alignas(16) Wide {
  Wide() = default;
  explicit Wide(uint64_t low) : parts{low, ~low} {}
  bool operator==(Wide const&) const = default;
  uint64_t parts[2];
};

template <class T>
__global__ void copy_in(T const* in, T* out) {
  extern __shared__ __align__(128) char smem[];
  T* const staged = reinterpret_cast<T*>(smem);
  int const lane = int(threadIdx.x);
  cute::SM80_CP_ASYNC_CACHEALWAYS_ZFILL<T>::copy(in[lane], staged[lane], lane % 2 == 0);
  cute::cp_async_fence();
  cute::SM80_CP_ASYNC_CACHEALWAYS<T>::copy(in[32 + lane], staged[32 + lane]);
  cute::cp_async_fence();
  cute::cp_async_wait<1>();
  out[lane] = staged[lane];
  selftest::cp_async_wait_group<0>();
  out[32 + lane] = staged[32 + lane];
  cute::SM80_CP_ASYNC_CACHEALWAYS<T>::copy(in[lane], staged[lane]);
  cute::cp_async_wait<0>();  // wait_all: without a commit
  out[64 + lane] = staged[lane];
}

template <class T>
void check_copy() {
  Array<T> in(64), out(96);
  for (int i = 0; i < 64; ++i) in[i] = T(uint64_t(i + 1));
  emu::ScopedBuffers const buffers{in.read_only("in"), out.writable("out")};
  for (auto async : {emu::AsyncMode::kLate, emu::AsyncMode::kEarly, emu::AsyncMode::kRandom}) {
    emu::Options options;
    options.async = async;
    selftest::WithOptions const scope(options);
    CHECK_EQUAL(launch(1, 32, 64 * sizeof(T), copy_in<T>, in.data(), out.data()), "");
    for (int i = 0; i < 32; ++i) {
      CHECK(out[i] == (i % 2 == 0 ? in[i] : T{}));
      CHECK(out[32 + i] == T(uint64_t(33 + i)));
      CHECK(out[64 + i] == T(uint64_t(i + 1)));
    }
  }
}

// Not covered by the wait: committed to no group.
__global__ void copy_uncommitted(int const* in, int* out) {
  extern __shared__ __align__(128) char smem[];
  int* const staged = reinterpret_cast<int*>(smem);
  cute::SM80_CP_ASYNC_CACHEALWAYS<int>::copy(in[threadIdx.x], staged[threadIdx.x]);
  selftest::cp_async_wait_group<0>();
  out[threadIdx.x] = staged[threadIdx.x];
}

__global__ void read_poison(float* out) {
  extern __shared__ __align__(128) char smem[];
  out[32 * blockIdx.x + threadIdx.x] = reinterpret_cast<float const*>(smem)[threadIdx.x];
}

__global__ void use_builtins(unsigned* out, unsigned a, unsigned b) {
  out[0] = __byte_perm(0x33221100u * a, 0x77665544u, 0x7531u);
  out[1] = __byte_perm(0x80000000u * a, 0u, 0x444bu);
  out[2] = unsigned(__popc(0xf0f0u * a));
  out[3] = unsigned(__clz(int(a - 1)));
  out[4] = unsigned(__ffs(int(8 * a)));
  out[5] = __umulhi(0u - a, 0u - a);
  out[6] = __funnelshift_l(0x80000000u * a, a, b);
  out[7] = __funnelshift_r(2 * a, a, b);
}

__global__ void where_am_i(int* out) {
  int const linear =
      int(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) +
      int(blockDim.x * blockDim.y * blockDim.z) * int(blockIdx.x + gridDim.x * blockIdx.y);
  out[linear] = linear;
}

}  // namespace

TEST(mma_multiplies) {
  check_multiply<cute::SM80_16x8x16_F32F16F16F32_TN, cute::half_t>(16);
  check_multiply<cute::SM80_16x8x16_F32BF16BF16F32_TN, cute::bfloat16_t>(16);
  check_multiply<cute::SM80_16x8x8_F32F16F16F32_TN, cute::half_t>(8);
  check_multiply<cute::SM80_16x8x8_F32BF16BF16F32_TN, cute::bfloat16_t>(8);
}

TEST(ldmatrix_loads_fragments) {
  check_load<1, false, cute::SM75_U32x1_LDSM_N>();
  check_load<2, false, cute::SM75_U32x2_LDSM_N>();
  check_load<4, false, cute::SM75_U32x4_LDSM_N>();
  check_load<1, true, cute::SM75_U16x2_LDSM_T>();
  check_load<2, true, cute::SM75_U16x4_LDSM_T>();
  check_load<4, true, cute::SM75_U16x8_LDSM_T>();
}

TEST(movmatrix_transposes) {
  Array<uint32_t> out(32);
  emu::ScopedBuffers const buffers{out.writable("out")};
  CHECK_EQUAL(launch(1, 32, 0, transpose, out.data()), "");
  for (int lane = 0; lane < 32; ++lane) {
    int const i = lane / 4, j = lane % 4 * 2;
    CHECK_EQUAL(out[lane], uint32_t((8 * (j + 1) + i) << 16 | (8 * j + i)));
  }
}

TEST(shuffles_move_values) {
  Array<int> out(224);
  emu::ScopedBuffers const buffers{out.writable("out")};
  CHECK_EQUAL(launch(1, 32, 0, shuffle, out.data()), "");
  for (int lane = 0; lane < 32; ++lane) {
    CHECK_EQUAL(out[lane], 5);
    CHECK_EQUAL(out[32 + lane], lane / 8 * 8 + 3);
    CHECK_EQUAL(out[64 + lane], lane ^ 6);
    CHECK_EQUAL(out[96 + lane], lane % 16 + 3 < 16 ? lane + 3 : lane);
    CHECK_EQUAL(out[128 + lane], lane % 16 >= 3 ? lane - 3 : lane);
    CHECK_EQUAL(out[160 + lane], 2 * (lane ^ 1) + 1);
    CHECK_EQUAL(out[192 + lane], lane < 10 ? 9 : 10);
  }
}

TEST(votes_count_lanes) {
  Array<unsigned> out(96);
  emu::ScopedBuffers const buffers{out.writable("out")};
  CHECK_EQUAL(launch(1, 32, 0, vote, out.data()), "");
  for (int lane = 0; lane < 32; ++lane) {
    CHECK_EQUAL(out[lane], 0x49249249u);
    CHECK_EQUAL(out[32 + lane], 3u);
    CHECK_EQUAL(out[64 + lane], 0u);
  }
}

TEST(barriers_reduce) {
  Array<int> out(288);
  emu::ScopedBuffers const buffers{out.writable("out")};
  CHECK_EQUAL(launch(1, 96, 0, reduce, out.data()), "");
  for (int i = 0; i < 96; ++i) {
    CHECK_EQUAL(out[i], 20);
    CHECK_EQUAL(out[96 + i], 3);
    CHECK_EQUAL(out[192 + i], 0);
  }
}

TEST(arrive_hands_over_without_waiting) {
  Array<int> out(256);
  emu::ScopedBuffers const buffers{out.writable("out")};
  for (uint64_t seed = 1; seed <= 8; ++seed) {
    emu::Options options;
    options.seed = seed;
    selftest::WithOptions const scope(options);
    CHECK_EQUAL(launch(1, 96, 128, produce, out.data()), "");
    for (int i = 0; i < 256; ++i) CHECK_EQUAL(out[i], i / 64 * 100 + 31 - i % 32);
  }
}

TEST(atomics_lose_nothing) {
  Array<float> sum(1);
  Array<int> counts(3);
  Array<unsigned long long> wide(1);
  Array<unsigned> locked(1);
  emu::ScopedBuffers const buffers{sum.writable("sum"), counts.writable("counts"),
                                   wide.writable("wide"), locked.writable("locked")};
  emu::Options options;
  options.ctas_in_flight = 3;
  selftest::WithOptions const scope(options);
  CHECK_EQUAL(launch(5, 64, 0, add_up, sum.data(), counts.data(), wide.data(), locked.data()), "");
  CHECK_EQUAL(sum[0], 160.f);
  CHECK_EQUAL(counts[0], 320);
  CHECK_EQUAL(counts[1], 67);
  CHECK_EQUAL(counts[2], -63);
  CHECK_EQUAL(wide[0], 320ull << 33);
  CHECK_EQUAL(locked[0], 960u);
}

TEST(async_copies_arrive_in_groups) {
  check_copy<uint32_t>();
  check_copy<uint64_t>();
  check_copy<Wide>();
}

TEST(wait_group_leaves_uncommitted_copies) {
  Array<int> in(32), out(32);
  emu::ScopedBuffers const buffers{in.read_only("in"), out.writable("out")};
  CHECK_CONTAINS(launch(1, 32, 128, copy_uncommitted, in.data(), out.data()),
                 "while a cp.async is in flight");
}

TEST(shared_memory_starts_as_nan) {
  Array<float> out(64);
  emu::ScopedBuffers const buffers{out.writable("out")};
  CHECK_EQUAL(launch(2, 32, 128, read_poison, out.data()), "");
  for (int i = 0; i < 64; ++i) CHECK(std::isnan(out[i]));
}

TEST(threads_know_their_place) {
  Array<int> out(4 * 3 * 2 * 6);
  for (int i = 0; i < out.size(); ++i) out[i] = -1;
  emu::ScopedBuffers const buffers{out.writable("out")};
  CHECK_EQUAL(launch(dim3(3, 2), dim3(4, 3, 2), 0, where_am_i, out.data()), "");
  for (int i = 0; i < out.size(); ++i) CHECK_EQUAL(out[i], i);
}

TEST(builtins_compute) {
  Array<unsigned> out(8);
  emu::ScopedBuffers const buffers{out.writable("out")};
  CHECK_EQUAL(launch(1, 1, 0, use_builtins, out.data(), 1u, 1u), "");
  constexpr unsigned kExpected[] = {0x77553311u, 0x00000080u, 8, 32,
                                    4,           0xfffffffeu, 3, 0x80000001u};
  for (int i = 0; i < 8; ++i) CHECK_EQUAL(out[i], kExpected[i]);
}
