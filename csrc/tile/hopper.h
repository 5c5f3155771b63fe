#pragma once

// The operations of sm_90a that kernels use beside products (tile/wgmma.h): mbarriers, copies of
// boxes of tensors, named barriers and registers of warpgroups.

#include <cuda.h>
#include <cute/arch/util.hpp>
#include <cute/config.hpp>

#include <cstdint>

namespace fa2 {

CUTE_DEVICE uint32_t shared_address(void const* pointer) {
  return cute::cast_smem_ptr_to_uint(pointer);
}

// --- mbarriers: a phase is complete when so many arrivals have come, and as many bytes as were
// announced. A new one is in phase 0.

CUTE_DEVICE void mbarrier_init(uint64_t& mbarrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&mbarrier)),
               "r"(arrivals)
               : "memory");
}

// Between that and the first use by copies; other threads are a barrier further.
CUTE_DEVICE void fence_mbarrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

CUTE_DEVICE void mbarrier_arrive(uint64_t& mbarrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&mbarrier))
               : "memory");
}

// Arrives, and announces bytes.
CUTE_DEVICE void mbarrier_arrive_expect(uint64_t& mbarrier, int bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&mbarrier)),
      "r"(bytes)
      : "memory");
}

// Until the phase of this parity is complete; that before phase 0 counts as complete.
CUTE_DEVICE void mbarrier_wait(uint64_t& mbarrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred complete;\n"
      "TRY:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 complete, [%0], %1;\n"
      "@complete bra GO_ON;\n"
      "bra TRY;\n"
      "GO_ON:\n"
      "}" ::"r"(shared_address(&mbarrier)),
      "r"(parity)
      : "memory");
}

// --- copies of boxes of tensors

CUTE_DEVICE void prefetch_map(CUtensorMap const& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// One box, whose first element is named innermost dimension first. Its bytes count at `mbarrier`.
CUTE_DEVICE void load_box(CUtensorMap const& map, uint64_t& mbarrier, void* to, int col, int head,
                          int row, int outer, int batch) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%3, %4, %5, %6, %7}], [%2];" ::"r"(shared_address(to)),
      "l"(&map), "r"(shared_address(&mbarrier)), "r"(col), "r"(head), "r"(row), "r"(outer),
      "r"(batch)
      : "memory");
}

// --- copies of what follows each other, in units of 16 bytes

// Its bytes count at `mbarrier`.
CUTE_DEVICE void load_bytes(void* to, void const* from, int bytes, uint64_t& mbarrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(&mbarrier))
      : "memory");
}

// Adds floats to those in global memory, each as red_add does.
CUTE_DEVICE void add_floats(float* to, float const* from, int bytes) {
  asm volatile(
      "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(to),
      "r"(shared_address(from)), "r"(bytes)
      : "memory");
}
CUTE_DEVICE void commit_additions() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Until at most kPending groups of this thread have not read what they add, or are not done.
template <int kPending>
CUTE_DEVICE void wait_for_reading() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}
template <int kPending>
CUTE_DEVICE void wait_for_additions() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(kPending) : "memory");
}

// Between what a thread has written and, behind a barrier, copies and products that read it; and
// between what it knows of other threads and such copies to global memory.
CUTE_DEVICE void fence_async_proxy() { asm volatile("fence.proxy.async;" ::: "memory"); }
CUTE_DEVICE void fence_shared_async_proxy() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// --- warps and warpgroups

// Four matrices of 8 x 8 halves, as they lie in fragments of mma.m16n8k16. Lane l says where row
// l % 8 of matrix l / 8 goes.
CUTE_DEVICE void store_matrices(uint32_t address, uint32_t const (&words)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
               "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3])
               : "memory");
}

// The way back.
CUTE_DEVICE void load_matrices(uint32_t address, uint32_t (&words)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(address)
               : "memory");
}

// True in one lane of a warp, all of whose lanes come here.
CUTE_DEVICE bool elect_one() {
  uint32_t elected;
  asm volatile(
      "{\n"
      ".reg .pred is_elected;\n"
      "elect.sync _|is_elected, 0xffffffff;\n"
      "selp.u32 %0, 1, 0, is_elected;\n"
      "}"
      : "=r"(elected));
  return elected != 0;
}

// At a barrier that others wait at, of so many threads together.
CUTE_DEVICE void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Registers of each thread of a warpgroup, all of which come here: fewer, or more of those that
// others have given back.
template <int kRegisters>
CUTE_DEVICE void keep_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
CUTE_DEVICE void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace fa2
