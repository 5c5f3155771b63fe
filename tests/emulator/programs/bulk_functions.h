#pragma once

// Instructions of sm_90a that CUDA C++ has no function for; a function for each.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace selftest {

__device__ inline uint32_t shared_address(void const* pointer) {
  return uint32_t(__cvta_generic_to_shared(pointer));
}

__device__ inline void mbarrier_init(uint64_t* mbarrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(mbarrier)),
               "r"(arrivals)
               : "memory");
}
__device__ inline void mbarrier_inval(uint64_t* mbarrier) {
  asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(shared_address(mbarrier)) : "memory");
}
__device__ inline uint64_t mbarrier_arrive(uint64_t* mbarrier) {
  uint64_t state;
  asm volatile("mbarrier.arrive.shared::cta.b64 %0, [%1];"
               : "=l"(state)
               : "r"(shared_address(mbarrier))
               : "memory");
  return state;
}
__device__ inline void mbarrier_arrive_relaxed(uint64_t* mbarrier) {
  asm volatile(
      "mbarrier.arrive.relaxed.cta.shared::cta.b64 _, [%0];" ::"r"(shared_address(mbarrier))
      : "memory");
}
__device__ inline void mbarrier_arrive_drop(uint64_t* mbarrier) {
  asm volatile("mbarrier.arrive_drop.shared::cta.b64 _, [%0];" ::"r"(shared_address(mbarrier))
               : "memory");
}
__device__ inline void mbarrier_arrive_expect_tx(uint64_t* mbarrier, int bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(mbarrier)),
      "r"(bytes)
      : "memory");
}
__device__ inline void mbarrier_expect_tx(uint64_t* mbarrier, int bytes) {
  asm volatile(
      "mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(shared_address(mbarrier)),
      "r"(bytes)
      : "memory");
}
__device__ inline bool mbarrier_test_wait(uint64_t* mbarrier, uint64_t state) {
  uint32_t done;
  asm volatile(
      "{ .reg .pred p; mbarrier.test_wait.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
      : "=r"(done)
      : "r"(shared_address(mbarrier)), "l"(state)
      : "memory");
  return done != 0;
}
__device__ inline bool mbarrier_try_wait(uint64_t* mbarrier, uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; "
      "selp.u32 %0, 1, 0, p; }"
      : "=r"(done)
      : "r"(shared_address(mbarrier)), "r"(parity)
      : "memory");
  return done != 0;
}
__device__ inline void mbarrier_wait(uint64_t* mbarrier, uint32_t parity) {
  while (!mbarrier_try_wait(mbarrier, parity)) continue;
}
__device__ inline void mbarrier_wait_relaxed(uint64_t* mbarrier, uint32_t parity) {
  uint32_t done = 0;
  while (done == 0) {
    asm volatile(
        "{ .reg .pred p; mbarrier.try_wait.parity.relaxed.cta.shared::cta.b64 p, [%1], %2; "
        "selp.u32 %0, 1, 0, p; }"
        : "=r"(done)
        : "r"(shared_address(mbarrier)), "r"(parity)
        : "memory");
  }
}

__device__ inline void fence_mbarrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ inline void fence_proxy_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ inline void bulk_load(void* to, void const* from, int bytes, uint64_t* mbarrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(mbarrier))
      : "memory");
}
__device__ inline void bulk_store(void* to, void const* from, int bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to),
               "r"(shared_address(from)), "r"(bytes)
               : "memory");
}
// Adds to each element of global memory.
#define FA2_SELFTEST_BULK_ADD(type, operation)                                   \
  __device__ inline void bulk_add(type* to, type const* from, int bytes) {       \
    asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group." operation \
                 " [%0], [%1], "                                                 \
                 "%2;" ::"l"(to),                                                \
                 "r"(shared_address(from)), "r"(bytes)                           \
                 : "memory");                                                    \
  }
FA2_SELFTEST_BULK_ADD(float, "add.f32")
FA2_SELFTEST_BULK_ADD(double, "add.f64")
FA2_SELFTEST_BULK_ADD(__half, "add.noftz.f16")
FA2_SELFTEST_BULK_ADD(__nv_bfloat16, "add.noftz.bf16")
FA2_SELFTEST_BULK_ADD(uint32_t, "add.u32")
FA2_SELFTEST_BULK_ADD(int32_t, "add.s32")
FA2_SELFTEST_BULK_ADD(unsigned long long, "add.u64")
#undef FA2_SELFTEST_BULK_ADD

__device__ inline void bulk_store_commit() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
template <int kPending>
__device__ void bulk_store_wait() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(kPending) : "memory");
}
template <int kPending>
__device__ void bulk_store_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

// Of one lane of the warp, all of whose lanes are there.
__device__ inline bool elect_one() {
  uint32_t elected;
  asm volatile("{ .reg .pred p; elect.sync _|p, 0xffffffff; selp.u32 %0, 1, 0, p; }"
               : "=r"(elected));
  return elected != 0;
}

template <int kRegisters>
__device__ void more_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ void fewer_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace selftest
