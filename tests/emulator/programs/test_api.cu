// Options, limits, errors and the order of things on the host's side.

#include <thread>

#include "arrays.h"
#include "launch.h"

namespace {

using selftest::Array;
using selftest::launch;

__global__ void fill(int* out, int value) { out[blockIdx.x * blockDim.x + threadIdx.x] = value; }

__global__ void use_shared() {
  extern __shared__ __align__(128) char smem[];
  smem[threadIdx.x] = 1;
}

__constant__ int table[] = {2, 3, 5, 7};

__global__ void read_table(int* out) { out[threadIdx.x] = table[threadIdx.x % 4]; }
__global__ void read(int const* in, int* out) { out[threadIdx.x] = *in; }

// Each of two CTAs waits for the other one.
__global__ void meet(int* flags) {
  if (threadIdx.x == 0) atomicExch(&flags[blockIdx.x], 1);
  int volatile* const other = &flags[1 - blockIdx.x];
  while (*other == 0) continue;
}

__global__ void first_come(int* order, int* next) {
  if (threadIdx.x == 0) order[atomicAdd(next, 1)] = int(blockIdx.x);
}

emu::Options with_ctas(int ctas_in_flight) {
  emu::Options options;
  options.ctas_in_flight = ctas_in_flight;
  return options;
}

int attribute(cudaDeviceAttr which) {
  int value = 0;
  CHECK_EQUAL(cudaDeviceGetAttribute(&value, which, 0), cudaSuccess);
  return value;
}

std::string error_of(char const* options) {
  try {
    emu::parse_options(options);
  } catch (std::invalid_argument const& error) {
    return error.what();
  }
  return "";
}

// Which CTAs came when.
std::string arrival_order(emu::Options const& options) {
  selftest::WithOptions const scope(options);
  Array<int> order(8), next(1);
  emu::ScopedBuffers const buffers{order.writable("order"), next.writable("next")};
  CHECK_EQUAL(launch(8, 32, 0, first_come, order.data(), next.data()), "");
  std::string text;
  for (int i = 0; i < 8; ++i) text += std::to_string(order[i]);
  return text;
}

}  // namespace

TEST(options_have_a_text_form) {
  std::string const text =
      "seed=7,order=linear,ctas_order=linear,async=random,poison=off,races=off,sums=ordered,"
      "ctas=4,device=sm86,approx=worst,elect=first,launches=off";
  CHECK_EQUAL(emu::to_string(emu::parse_options(text)), text);
  CHECK_EQUAL(emu::to_string(emu::parse_options("")), emu::to_string(emu::Options()));
  CHECK_CONTAINS(error_of("seed=x"), "seed=x");
  CHECK_CONTAINS(error_of("ctas=0"), "ctas=0");
  CHECK_CONTAINS(error_of("async=never"), "async=late|early|random");
  CHECK_CONTAINS(error_of("sede=1"), "sede=1");
  CHECK_CONTAINS(error_of("poison"), "poison");
}

TEST(device_has_limits) {
  CHECK_EQUAL(attribute(cudaDevAttrMultiProcessorCount), 108);
  CHECK_EQUAL(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin), 163 << 10);
  CHECK_EQUAL(attribute(cudaDevAttrL2CacheSize), 40 << 20);
  auto const opt_in = [](int bytes) {
    return cudaFuncSetAttribute(use_shared, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  };
  std::string const invalid = cudaGetErrorString(cudaErrorInvalidValue);
  CHECK_EQUAL(launch(1, 32, 48 << 10, use_shared), "");
  CHECK_EQUAL(launch(1, 32, (48 << 10) + 16, use_shared), invalid);
  CHECK_EQUAL(cudaGetLastError(), cudaErrorInvalidValue);
  CHECK_EQUAL(cudaGetLastError(), cudaSuccess);
  CHECK_EQUAL(opt_in(163 << 10), cudaSuccess);
  CHECK_EQUAL(launch(1, 32, 163 << 10, use_shared), "");
  CHECK_EQUAL(opt_in((163 << 10) + 1), cudaErrorInvalidValue);
  emu::Options small;
  small.device = emu::Device::kSm86;
  selftest::WithOptions const scope(small);
  CHECK_EQUAL(attribute(cudaDevAttrComputeCapabilityMinor), 6);
  CHECK_EQUAL(launch(1, 32, 163 << 10, use_shared), invalid);
  cudaGetLastError();
}

TEST(impossible_configurations_are_refused) {
  std::string const invalid = cudaGetErrorString(cudaErrorInvalidConfiguration);
  CHECK_EQUAL(launch(0, 32, 0, use_shared), invalid);
  CHECK_EQUAL(launch(1, 0, 0, use_shared), invalid);
  CHECK_EQUAL(launch(1, 1025, 0, use_shared), invalid);
  CHECK_EQUAL(launch(dim3(1, 65536), 32, 0, use_shared), invalid);
  cudaGetLastError();
}

TEST(report_names_the_culprit) {
  Array<int> out(100);
  emu::ScopedBuffers const buffers{out.writable("out")};
  std::string const report = launch(2, 64, 0, fill, out.data(), 1);
  CHECK_CONTAINS(report, "fill");
  CHECK_CONTAINS(report, "grid (2,1,1) block (64,1,1), seed=1,order=random");
  CHECK_CONTAINS(report, "a buffer of 400 bytes");
  CHECK_CONTAINS(report, "CTA (1,0,0) warp 1 lane");
  CHECK_CONTAINS(report, "test_api.cu:");
}

TEST(unregistered_memory_is_out_of_bounds) {
  Array<int> out(64);
  {
    emu::ScopedBuffers const buffers{out.writable("out")};
  }
  CHECK_CONTAINS(launch(1, 64, 0, fill, out.data(), 1), "no buffers are registered");
}

TEST(constants_are_readable_and_the_rest_of_the_host_is_not) {
  Array<int> out(32);
  emu::ScopedBuffers const buffers{out.writable("out")};
  CHECK_EQUAL(launch(1, 32, 0, read_table, out.data()), "");
  CHECK_EQUAL(out[6], 5);
  int host_variable = 5;
  CHECK_CONTAINS(launch(1, 32, 0, read, &host_variable, out.data()),
                 "out of bounds: reads 4 bytes");
}

TEST(a_failed_launch_leaves_nothing_behind) {
  Array<int> out(64);
  CHECK(launch(1, 64, 0, fill, out.data(), 1) != "");
  emu::ScopedBuffers const buffers{out.writable("out")};
  CHECK_EQUAL(launch(1, 64, 0, fill, out.data(), 3), "");
  CHECK_EQUAL(out[63], 3);
}

TEST(interleaved_ctas_can_wait_for_each_other) {
  Array<int> flags(2);
  emu::ScopedBuffers const buffers{flags.writable("flags")};
  {
    selftest::WithOptions const scope(with_ctas(2));
    CHECK_EQUAL(launch(2, 32, 0, meet, flags.data()), "");
  }
  flags[0] = flags[1] = 0;
  emu::Options ascending = with_ctas(1);
  ascending.random_order = false;
  selftest::WithOptions const scope(ascending);
  std::string const report = launch(2, 32, 0, meet, flags.data());
  CHECK_CONTAINS(report, "deadlock");
  CHECK_CONTAINS(report, "polling a flag");
  CHECK_CONTAINS(report, "1 CTAs have not started");
}

TEST(the_seed_decides_the_order) {
  emu::Options options;
  std::string const first = arrival_order(options);
  CHECK_EQUAL(arrival_order(options), first);
  options.seed = 2;
  CHECK(arrival_order(options) != first);
  options.linear_ctas = true;
  CHECK_EQUAL(arrival_order(options), "01234567");
}

TEST(launches_of_several_threads_take_turns) {
  auto const work = [](int value, std::string* report) {
    Array<int> out(4 * 64);
    emu::ScopedBuffers const buffers{out.writable("out")};
    for (int i = 0; i < 20 && report->empty(); ++i) {
      *report = launch(4, 64, 0, fill, out.data(), value + i);
      if (out[255] != value + i) *report += "wrong result";
    }
  };
  std::string reports[2];
  std::thread one(work, 100, &reports[0]), two(work, 200, &reports[1]);
  one.join();
  two.join();
  CHECK_EQUAL(reports[0], "");
  CHECK_EQUAL(reports[1], "");
}
