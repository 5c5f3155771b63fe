// CUDA C++ of all kinds, as nvcc compiles it for the device and the host compiler for the host: the
// same functions, bit for bit.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <unistd.h>

#include <cassert>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

#include "test_frame.h"

namespace {

struct Numbers {
  uint32_t a, b;
  uint64_t c;
  float x, y;
  double u;
};

// ---- what both sides compute

__host__ __device__ uint64_t integers(Numbers n) {
  int32_t const a = int32_t(n.a), b = int32_t(n.b) | 1;
  uint64_t hash = 17;
  auto const add = [&](uint64_t v) { hash = hash * 0x100000001b3ull + v; };
  add(uint64_t(a / b));
  add(uint64_t(a % b));
  add(n.c / (n.a | 1));
  add(uint64_t(int64_t(n.c) % b));
  add(uint64_t(int64_t(a) * b));
  add(uint64_t((unsigned __int128)(n.c) * (n.c ^ n.a) >> 64));
  add(uint64_t(a >> (n.b & 31)) + (n.c << (n.a & 63)));
  add(uint64_t(int16_t(n.a)) * uint8_t(n.b));
  return hash;
}

__host__ __device__ float floats(Numbers n) {
  float const s = fmaf(n.x, n.y, 1.f) / (fabsf(n.y) + 0.25f);
  float const t = fmaxf(s, n.x) - fminf(n.y, NAN) + sqrtf(fabsf(s));
  return floorf(t * 8.f) + ceilf(n.x) + rintf(n.y * 3.f) + float(int(n.x * 1000.f)) + float(n.c);
}

__host__ __device__ double doubles(Numbers n) {
  double const v = n.u / 3. + sqrt(fabs(n.u)) * double(n.x);
  return fma(v, n.u, double(int64_t(n.u * 1e6))) + double(n.c);
}

__host__ __device__ __noinline__ uint32_t collatz(uint64_t n) {
  uint32_t steps = 0;
  for (; n > 1 && steps < 300; ++steps) n = n % 2 == 0 ? n / 2 : 3 * n + 1;
  return steps;
}

__host__ __device__ __noinline__ double continued(int depth, double x) {
  return depth == 0 ? x : 1. / (depth + continued(depth - 1, x));
}

__host__ __device__ uint32_t branches(Numbers n) {
  switch (n.b % 9) {
    case 0: return n.a + 1;
    case 1: return n.a * 7;
    case 2: return n.a ^ n.b;
    case 3: return collatz(n.a % 5000 + 1);
    case 4: return ~n.a;
    case 5: return n.b - n.a;
    case 6: return n.a / 3;
    case 7: return collatz(n.c % 100000 + 1);
    default: return 42;
  }
}

// An array that is indexed by what is known only at run time lies in local memory.
__host__ __device__ float indexed(Numbers n) {
  float values[11];
  for (int i = 0; i < 11; ++i) values[i] = n.x * float(i);
  values[n.a % 11] += 1.f;
  float sum = 0;
  for (uint32_t i = 0; i < n.b % 11; ++i) sum += values[(i * 5) % 11];
  return sum;
}

__host__ __device__ uint32_t halves(Numbers n) {
  uint16_t const h = __half_as_ushort(__float2half(n.x)),
                 l = __half_as_ushort(__float2half(n.y * 1e-6f));
  uint16_t const b = __bfloat16_as_ushort(__float2bfloat16(n.x));
  float const back = __half2float(__ushort_as_half(l));
  return (uint32_t(h) << 16 | b) + uint32_t(back == 0.f) + l;
}

struct Results {
  uint64_t integers;
  double doubles, continued;
  float floats, indexed;
  uint32_t branches, halves;
};

__host__ __device__ Results results_of(Numbers n) {
  return {integers(n), doubles(n), continued(int(n.a % 7), n.u), floats(n), indexed(n),
          branches(n), halves(n)};
}

// ---- kernels

__global__ void compute(Numbers const* in, Results* out) {
  int const i = int(blockIdx.x * blockDim.x + threadIdx.x);
  out[i] = results_of(in[i]);
}

__constant__ int weights[4];
__device__ unsigned total = 5;

// Static and dynamic shared memory, atomics in both memories, a warp's and a CTA's sums.
__global__ void histogram(Numbers const* in, int* counts, double* sum, int buckets) {
  extern __shared__ int dynamic_counts[];
  __shared__ double parts[4];
  int const t = int(threadIdx.x);
  for (int i = t; i < buckets; i += int(blockDim.x)) dynamic_counts[i] = 0;
  __syncthreads();
  Numbers const n = in[blockIdx.x * blockDim.x + threadIdx.x];
  atomicAdd(&dynamic_counts[n.a % unsigned(buckets)], weights[n.a % 4]);
  double v = t;
  for (int offset = 16; offset > 0; offset /= 2) v += __shfl_xor_sync(~0u, v, offset);
  if (t % 32 == 0) parts[t / 32] = v;
  unsigned const odd = __ballot_sync(~0u, n.b & 1);
  unsigned const most = __reduce_max_sync(~0u, n.b & 0xffff);
  if (t % 32 == 0) atomicAdd(&total, __popc(odd) + (most > 0xffff));
  __syncthreads();
  for (int i = t; i < buckets; i += int(blockDim.x)) atomicAdd(&counts[i], dynamic_counts[i]);
  if (t < 4) atomicAdd(sum, parts[t]);
}

__global__ void race(int* out) {
  __shared__ int cells[64];
  cells[threadIdx.x] = out[threadIdx.x];
  out[threadIdx.x] = cells[63 - threadIdx.x];  // no barrier in between
}

__global__ void talk(double x) {
  unsigned const t = threadIdx.x;
  printf("thread %u: %5.2f %s 100%% %lld|%c\n", t, x, "text", 1ll << 40, 'a' + int(t));
}

__global__ void claim(int const* x) { assert(x[threadIdx.x] < 3); }

std::vector<Numbers> random_numbers(size_t count) {
  std::mt19937_64 generator(3);
  std::normal_distribution<float> normal;
  std::vector<Numbers> numbers(count);
  for (Numbers& n : numbers) {
    n = {uint32_t(generator()), uint32_t(generator()), generator() >> generator() % 60,
         normal(generator),     normal(generator),     normal(generator) * 1e3};
  }
  return numbers;
}

// Device memory for the time of a test.
template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(std::vector<T> const& values) : size_(values.size()) {
    cudaMalloc(&data_, size_ * sizeof(T));
    cudaMemcpy(data_, values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice);
  }
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(DeviceArray const&) = delete;
  T* data() const { return data_; }
  std::vector<T> values() const {
    std::vector<T> result(size_);
    cudaMemcpy(result.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost);
    return result;
  }

 private:
  T* data_ = nullptr;
  size_t size_;
};

constexpr int kBlocks = 6, kThreads = 128, kCount = kBlocks * kThreads;

TEST(device_code_computes_what_the_host_does) {
  std::vector<Numbers> const in = random_numbers(kCount);
  DeviceArray<Numbers> const from(in);
  DeviceArray<Results> const to{std::vector<Results>(kCount)};
  compute<<<kBlocks, kThreads>>>(from.data(), to.data());
  CHECK_EQUAL(cudaDeviceSynchronize(), cudaSuccess);
  std::vector<Results> const got = to.values();
  int different[7] = {};
  for (int i = 0; i < kCount; ++i) {
    Results const want = results_of(in[size_t(i)]), is = got[size_t(i)];
    different[0] += want.integers != is.integers;
    different[1] += want.doubles != is.doubles;
    different[2] += want.continued != is.continued;
    different[3] += want.floats != is.floats;
    different[4] += want.indexed != is.indexed;
    different[5] += want.branches != is.branches;
    different[6] += want.halves != is.halves;
  }
  for (int count : different) CHECK_EQUAL(count, 0);
}

TEST(shared_memory_and_atomics) {
  constexpr int kBuckets = 13;
  std::vector<Numbers> const in = random_numbers(kCount);
  int const values[4] = {1, 2, -3, 10};
  cudaMemcpyToSymbol(weights, values, sizeof(values));
  for (unsigned seed = 1; seed <= 4; ++seed) {
    selftest::WithOptions const options({.seed = seed, .ctas_in_flight = 3});
    unsigned before = 0, after = 0;
    cudaMemcpyFromSymbol(&before, total, sizeof(before));
    DeviceArray<Numbers> const from(in);
    DeviceArray<int> const counts{std::vector<int>(kBuckets)};
    DeviceArray<double> const sum{std::vector<double>(1)};
    histogram<<<kBlocks, kThreads, kBuckets * sizeof(int)>>>(from.data(), counts.data(), sum.data(),
                                                             kBuckets);
    CHECK_EQUAL(cudaGetLastError(), cudaSuccess);
    cudaMemcpyFromSymbol(&after, total, sizeof(after));
    std::vector<int> want(kBuckets);
    unsigned odd = 0;
    for (Numbers const& n : in) {
      want[n.a % kBuckets] += values[n.a % 4];
      odd += n.b & 1;
    }
    CHECK(counts.values() == want);
    CHECK_EQUAL(sum.values()[0], kBlocks * kThreads * (kThreads - 1) / 2.);
    CHECK_EQUAL(after - before, odd);
  }
}

TEST(faults_are_reported_with_their_lines) {
  DeviceArray<int> const out{std::vector<int>(64)};
  std::string report;
  try {
    race<<<1, 64>>>(out.data());
  } catch (emu::Error const& error) {
    report = error.what();
  }
  CHECK_CONTAINS(report, ": read without a");
  CHECK_CONTAINS(report, "at test_device_code.cu:");
  CHECK_CONTAINS(report, "(PTX line ");
  CHECK_CONTAINS(report, "kernel emulator: (anonymous namespace)::race(int*)");
}

// What is printed while `run` runs.
template <class Run>
std::string printed(Run run) {
  std::fflush(stdout);
  int const before = dup(STDOUT_FILENO);
  std::FILE* const file = std::tmpfile();
  dup2(fileno(file), STDOUT_FILENO);
  run();
  std::fflush(stdout);
  dup2(before, STDOUT_FILENO);
  close(before);
  std::string text(size_t(std::ftell(file)), ' ');
  std::rewind(file);
  text.resize(std::fread(text.data(), 1, text.size(), file));
  std::fclose(file);
  return text;
}

TEST(kernels_print_and_assert) {
  selftest::WithOptions const options({.random_order = false});
  CHECK_EQUAL(printed([] { talk<<<1, 2>>>(3.14159); }),
              "thread 0:  3.14 text 100% 1099511627776|a\n"
              "thread 1:  3.14 text 100% 1099511627776|b\n");
  DeviceArray<int> const x{std::vector<int>{1, 2, 3}};
  claim<<<1, 2>>>(x.data());
  std::string report;
  try {
    claim<<<1, 3>>>(x.data());
  } catch (emu::Error const& error) {
    report = error.what();
  }
  CHECK_CONTAINS(report, "assertion failed: x[threadIdx.x] < 3, in ");
  CHECK_CONTAINS(report, "test_device_code.cu:");
}

TEST(the_runtime_api_knows_the_kernels) {
  cudaFuncAttributes attributes;
  CHECK_EQUAL(cudaFuncGetAttributes(&attributes, histogram), cudaSuccess);
  CHECK_EQUAL(attributes.sharedSizeBytes, 32u);
  CHECK_EQUAL(attributes.maxDynamicSharedSizeBytes, (48 << 10) - 32);
  int blocks = 0;
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, histogram, 256, 32 << 10);
  CHECK_EQUAL(blocks, 4);
  DeviceArray<int> const out{std::vector<int>(64)};
  race<<<1, 64, 48 << 10>>>(out.data());  // and 256 bytes of its own
  CHECK_EQUAL(cudaGetLastError(), cudaErrorInvalidValue);
  CHECK_EQUAL(cudaFuncSetAttribute(race, cudaFuncAttributeMaxDynamicSharedMemorySize, 64 << 10),
              cudaSuccess);
  selftest::WithOptions const options({.races = false});
  race<<<1, 64, 48 << 10>>>(out.data());
  CHECK_EQUAL(cudaGetLastError(), cudaSuccess);
}

}  // namespace
