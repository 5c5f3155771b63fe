#pragma once

// The device operations that CuTe does not offer. One place, so that a host build of the kernels
// can supply its own.

#include <cute/config.hpp>

namespace fa2 {

// 2^x, within 2 ulp; subnormal results are flushed to zero.
CUTE_DEVICE float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// tanh, maximal relative error 2^-11.
CUTE_DEVICE float tanh_approx(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Waits until at most kPending of this thread's cp.async groups are in flight. CuTe's
// cp_async_wait<0> is wait_all, which costs extra instructions.
template <int kPending>
CUTE_DEVICE void cp_async_wait_group() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

CUTE_DEVICE void named_barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// __syncthreads that also tells every thread whether the predicate held anywhere.
CUTE_DEVICE bool barrier_or(bool predicate) { return __syncthreads_or(predicate); }

// Hides where a value comes from: the compiler can neither hoist what depends on it nor keep
// several variants of it alive.
template <class T>
CUTE_DEVICE void opaque(T*& pointer) {
  asm volatile("" : "+l"(pointer));
}

// Read anew at every call instead of staying in a register across the main loop.
CUTE_DEVICE int thread_index() {
  int index;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
  return index;
}

CUTE_DEVICE int lane_index() { return thread_index() & 31; }
CUTE_DEVICE int warp_index() { return thread_index() >> 5; }

}  // namespace fa2
