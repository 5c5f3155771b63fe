// The counters, against numbers worked out by hand.

#include <cuda_fp16.h>
#include <cute/arch/copy_sm75.hpp>
#include <cute/arch/copy_sm80.hpp>
#include <cute/numeric/numeric_types.hpp>

#include "arrays.h"
#include "device_functions.h"
#include "launch.h"

namespace {

using selftest::Array;
using selftest::launch;

template <class... Params, class... Args>
emu::Counters count(dim3 grid, dim3 block, size_t shared_bytes, void (*kernel)(Params...),
                    Args&&... args) {
  emu::reset_counters();
  CHECK_EQUAL(launch(grid, block, shared_bytes, kernel, std::forward<Args>(args)...), "");
  return emu::counters();
}

// Each lane loads one T, `stride` apart from `offset` on, if its bit in `mask` is set.
template <class T>
__global__ void load_global(T const* in, T* out, int stride, int offset, unsigned mask) {
  if (mask >> threadIdx.x & 1) out[threadIdx.x] = in[int(threadIdx.x) * stride + offset];
}

template <class T>
emu::Traffic loads(int stride, int offset, unsigned mask = 0xffffffffu) {
  Array<T> in(1100), out(32);
  emu::ScopedBuffers const buffers{in.read_only("in"), out.writable("out")};
  return count(1, 32, 0, load_global<T>, in.data(), out.data(), stride, offset, mask).reads["in"];
}

void check_traffic(emu::Traffic const& actual, emu::Traffic const& expected) {
  CHECK_EQUAL(actual.bytes, expected.bytes);
  CHECK_EQUAL(actual.requests, expected.requests);
  CHECK_EQUAL(actual.sectors, expected.sectors);
  CHECK_EQUAL(actual.distinct_sectors, expected.distinct_sectors);
}

// Each lane stores one T to shared memory, `stride` elements apart.
template <class T>
__global__ void store_shared(int stride) {
  extern __shared__ __align__(128) char smem[];
  reinterpret_cast<T*>(smem)[int(threadIdx.x) * stride] = T{};
}

template <class T>
emu::BankUse stores(int stride) {
  return count(1, 32, 32 * sizeof(T) * size_t(stride), store_shared<T>, stride).shared_stores;
}

void check_banks(emu::BankUse const& actual, uint64_t wavefronts, uint64_t ideal) {
  CHECK_EQUAL(actual.requests, 1u);
  CHECK_EQUAL(actual.wavefronts, wavefronts);
  CHECK_EQUAL(actual.ideal_wavefronts, ideal);
}

// As above, by seven of every eight lanes: they are served with their neighbours of eight.
__global__ void store_most() {
  extern __shared__ __align__(128) char smem[];
  if (threadIdx.x % 8 != 7) reinterpret_cast<double2*>(smem)[threadIdx.x] = double2{};
}

__global__ void broadcast_shared(int* out) {
  extern __shared__ __align__(128) char smem[];
  auto* const word = reinterpret_cast<int*>(smem);
  if (threadIdx.x == 0) *word = 5;
  __syncwarp();
  out[threadIdx.x] = *word;
}

// ldmatrix.x4 with rows of `row_bytes`.
__global__ void load_rows(int row_bytes) {
  extern __shared__ __align__(128) char smem[];
  uint32_t r[4];
  auto const& row = *reinterpret_cast<cute::uint128_t const*>(smem + int(threadIdx.x) * row_bytes);
  cute::SM75_U32x4_LDSM_N::copy(row, r[0], r[1], r[2], r[3]);
}

// Every CTA reads three quarters of `in`: in the second round every other lane is predicated off,
// and writes zeros.
__global__ void copy_all(cute::uint128_t const* in) {
  extern __shared__ __align__(128) char smem[];
  auto* const staged = reinterpret_cast<cute::uint128_t*>(smem);
  using Copy = cute::SM80_CP_ASYNC_CACHEGLOBAL_ZFILL<cute::uint128_t>;
  Copy::copy(in[threadIdx.x], staged[threadIdx.x], true);
  Copy::copy(in[32 + threadIdx.x], staged[32 + threadIdx.x], threadIdx.x % 2 == 0);
  cute::cp_async_wait<0>();
}

__global__ void busy(int* out) {
  for (int i = 0; i < 3; ++i) __syncthreads();
  int const value = __shfl_xor_sync(0xffffffffu, int(threadIdx.x), 1);
  __syncwarp();
  if (__any_sync(0xffffffffu, value == 7)) atomicAdd(out, 1);
}

// The three steps of a sum over CTAs, each a launch: zero, add, convert.
__global__ void zero(float* sums) { sums[threadIdx.x] = 0.f; }
__global__ void add(float const* in, float* sums) {
  selftest::red_add(&sums[threadIdx.x], in[64 * blockIdx.x + threadIdx.x]);
}
template <class T>
__global__ void convert(float const* sums, T* out) {
  out[threadIdx.x] = T(sums[threadIdx.x]);
}

// In step only where the lanes of a warp take the same branch.
__global__ void ragged(int* out, int n) {
  for (int i = int(threadIdx.x); i < n; i += 32) out[i] = i;
}

}  // namespace

TEST(sectors_of_loads) {
  check_traffic(loads<float>(1, 0), {128, 1, 4, 4});
  check_traffic(loads<float>(1, 1), {128, 1, 5, 5});
  check_traffic(loads<float>(8, 0), {128, 1, 32, 32});
  check_traffic(loads<float>(0, 0), {128, 1, 1, 1});
  check_traffic(loads<float>(1, 0, 0x0000ff00u), {32, 1, 1, 1});
  check_traffic(loads<__half>(1, 0), {64, 1, 2, 2});
  check_traffic(loads<double>(1, 0), {256, 1, 8, 8});
}

TEST(banks_of_shared_stores) {
  check_banks(stores<float>(1), 1, 1);
  check_banks(stores<float>(2), 2, 1);
  check_banks(stores<float>(32), 32, 1);
  check_banks(stores<float>(33), 1, 1);
  check_banks(stores<__half>(1), 1, 1);
  check_banks(stores<double>(1), 2, 2);
  check_banks(stores<double>(2), 4, 2);
}

TEST(inactive_lanes_keep_their_place) {
  check_banks(count(1, 32, 512, store_most).shared_stores, 4, 4);
}

TEST(broadcast_is_one_wavefront) {
  Array<int> out(32);
  emu::ScopedBuffers const buffers{out.writable("out")};
  check_banks(count(1, 32, 128, broadcast_shared, out.data()).shared_loads, 1, 1);
}

TEST(wavefronts_of_ldmatrix) {
  check_banks(count(1, 32, 32 * 16, load_rows, 16).ldmatrix, 4, 4);
  check_banks(count(1, 32, 32 * 128, load_rows, 128).ldmatrix, 32, 4);
  check_banks(count(1, 32, 32 * 32, load_rows, 32).ldmatrix, 8, 4);
  check_banks(count(1, 32, 32 * 144, load_rows, 144).ldmatrix, 4, 4);
}

TEST(traffic_of_async_copies) {
  Array<cute::uint128_t> in(64);
  emu::ScopedBuffers const buffers{in.read_only("in")};
  emu::Counters const c = count(3, 32, 1024, copy_all, in.data());
  CHECK_EQUAL(c.cp_async_bytes, 3u * 768);
  // Per CTA 512 + 256 bytes, the latter half of 16 sectors.
  check_traffic(c.reads.at("in"), {3 * 768, 3 * 2, 3 * 32, 32});
  CHECK_EQUAL(c.cp_async.wavefronts, 3u * (4 + 4));
  CHECK_EQUAL(c.cp_async.ideal_wavefronts, 3u * (4 + 4));
  CHECK_EQUAL(c.total_reads().bytes, 3u * 768);
}

TEST(operations_are_counted) {
  Array<int> out(1);
  emu::ScopedBuffers const buffers{out.writable("out")};
  emu::Counters const c = count(2, 96, 0, busy, out.data());
  CHECK_EQUAL(c.launches, 1u);
  CHECK_EQUAL(c.ctas, 2u);
  CHECK_EQUAL(c.barriers, 2u * 3);
  CHECK_EQUAL(c.shuffles, 2u * 3);
  CHECK_EQUAL(c.warp_syncs, 2u * 3);
  CHECK_EQUAL(c.votes, 2u * 3);
  CHECK_EQUAL(c.atomics, 2u * 32);
  CHECK_EQUAL(c.to_map().at("barriers"), 6.0);
  CHECK_CONTAINS(c.to_json(), "\"write.out.bytes\": 0");
}

TEST(predicated_lanes_are_one_request) {
  Array<int> out(40);
  emu::ScopedBuffers const buffers{out.writable("out")};
  check_traffic(count(1, 32, 0, ragged, out.data(), 40).writes.at("out"), {160, 2, 5, 5});
}

TEST(launches_are_ordered_and_add_up) {
  Array<float> in(3 * 64), sums(64);
  Array<double> out(64);
  for (int i = 0; i < in.size(); ++i) in[i] = float(i);
  emu::ScopedBuffers const buffers{in.read_only("in"), sums.writable("sums"), out.writable("out")};
  emu::reset_counters();
  for (int round = 0; round < 2; ++round) {
    CHECK_EQUAL(launch(1, 64, 0, zero, sums.data()), "");
    CHECK_EQUAL(launch(3, 64, 0, add, in.data(), sums.data()), "");
    CHECK_EQUAL(launch(1, 64, 0, convert<double>, sums.data(), out.data()), "");
    CHECK_EQUAL(out[5], 5. + 69. + 133.);
  }
  // `sums` has 8 sectors, which count anew in every launch.
  emu::Counters const all = emu::counters();
  CHECK_EQUAL(all.launches, 6u);
  CHECK_EQUAL(all.ctas, 2u * 5);
  CHECK_EQUAL(all.atomics, 2u * 3 * 64);
  check_traffic(all.writes.at("sums"), {2 * 256, 2 * 2, 2 * 8, 2 * 8});
  check_traffic(all.reads.at("sums"), {2 * 256, 2 * 2, 2 * 8, 2 * 8});
  check_traffic(all.atomic_updates.at("sums"), {2 * 768, 2 * 6, 2 * 24, 2 * 8});
  CHECK_EQUAL(all.to_map().at("atomic.sums.sectors"), 48.0);

  std::map<std::string, emu::Counters> const kernels = emu::counters_by_kernel();
  CHECK_EQUAL(kernels.size(), 3u);
  CHECK_EQUAL(kernels.at("zero").launches, 2u);
  CHECK_EQUAL(kernels.at("add").ctas, 2u * 3);
  CHECK_EQUAL(kernels.at("add").total_reads().bytes, 2u * 768);
  CHECK_EQUAL(kernels.at("convert").total_writes().bytes, 2u * 512);
}
