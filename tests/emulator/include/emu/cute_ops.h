#pragma once

// CuTe's operations that are PTX inside. Their header is read while a macro renames them; then the
// emulator defines the real names, which the traits headers pick up later.

#include "emu/cuda_builtins.h"
#include "emu/device.h"

// Device functions of these headers are wanted by CUTLASS in non-dependent expressions.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

inline __half2 __hfma2(__half2 a, __half2 b, __half2 c) {
  return __floats2half2_rn(std::fma(__low2float(a), __low2float(b), __low2float(c)),
                           std::fma(__high2float(a), __high2float(b), __high2float(c)));
}
inline __nv_bfloat162 __hfma2(__nv_bfloat162 a, __nv_bfloat162 b, __nv_bfloat162 c) {
  return __floats2bfloat162_rn(std::fma(__low2float(a), __low2float(b), __low2float(c)),
                               std::fma(__high2float(a), __high2float(b), __high2float(c)));
}

// An operation that has no emulation must not pass silently.
#include <cute/config.hpp>
#undef CUTE_INVALID_CONTROL_PATH
#define CUTE_INVALID_CONTROL_PATH(what) emu::unsupported(what)

#define canonical_lane_idx renamed_canonical_lane_idx
#define canonical_warp_idx_sync renamed_canonical_warp_idx_sync
#define canonical_warp_idx renamed_canonical_warp_idx
#define canonical_warp_group_idx renamed_canonical_warp_group_idx
#include <cutlass/cutlass.h>
#undef canonical_lane_idx
#undef canonical_warp_idx_sync
#undef canonical_warp_idx
#undef canonical_warp_group_idx

#if CUTLASS_ENABLE_F16C
#include <cutlass/half.h>
// CUTLASS's conversions ask at run time whether the host has F16C.
inline bool const emu_cpu_id_declared =
    (emu::declare_host_constant(&CpuId::instance(), sizeof(CpuId)), true);
#endif

#define UniversalCopy renamed_UniversalCopy
#define AutoVectorizingCopyWithAssumedAlignment renamed_AutoVectorizingCopyWithAssumedAlignment
#define AutoVectorizingCopy renamed_AutoVectorizingCopy
#define DefaultCopy renamed_DefaultCopy
#define SM75_U32x1_LDSM_N renamed_SM75_U32x1_LDSM_N
#define SM75_U32x2_LDSM_N renamed_SM75_U32x2_LDSM_N
#define SM75_U32x4_LDSM_N renamed_SM75_U32x4_LDSM_N
#define SM75_U16x2_LDSM_T renamed_SM75_U16x2_LDSM_T
#define SM75_U16x4_LDSM_T renamed_SM75_U16x4_LDSM_T
#define SM75_U16x8_LDSM_T renamed_SM75_U16x8_LDSM_T
#define SM75_U32x1_MOVM_T renamed_SM75_U32x1_MOVM_T
#define SM80_CP_ASYNC_CACHEALWAYS renamed_SM80_CP_ASYNC_CACHEALWAYS
#define SM80_CP_ASYNC_CACHEGLOBAL renamed_SM80_CP_ASYNC_CACHEGLOBAL
#define SM80_CP_ASYNC_CACHEALWAYS_ZFILL renamed_SM80_CP_ASYNC_CACHEALWAYS_ZFILL
#define SM80_CP_ASYNC_CACHEGLOBAL_ZFILL renamed_SM80_CP_ASYNC_CACHEGLOBAL_ZFILL
#define SM80_16x8x16_F32F16F16F32_TN renamed_SM80_16x8x16_F32F16F16F32_TN
#define SM80_16x8x16_F32BF16BF16F32_TN renamed_SM80_16x8x16_F32BF16BF16F32_TN
#define SM80_16x8x8_F32F16F16F32_TN renamed_SM80_16x8x8_F32F16F16F32_TN
#define SM80_16x8x8_F32BF16BF16F32_TN renamed_SM80_16x8x8_F32BF16BF16F32_TN
#define cp_async_fence renamed_cp_async_fence
#define cp_async_wait renamed_cp_async_wait
#define elect_one_sync renamed_elect_one_sync
#include <cute/arch/cluster_sm90.hpp>
#include <cute/arch/copy.hpp>
#include <cute/arch/copy_sm75.hpp>
#include <cute/arch/copy_sm80.hpp>
#include <cute/arch/mma_sm80.hpp>
#undef UniversalCopy
#undef AutoVectorizingCopyWithAssumedAlignment
#undef AutoVectorizingCopy
#undef DefaultCopy
#undef SM75_U32x1_LDSM_N
#undef SM75_U32x2_LDSM_N
#undef SM75_U32x4_LDSM_N
#undef SM75_U16x2_LDSM_T
#undef SM75_U16x4_LDSM_T
#undef SM75_U16x8_LDSM_T
#undef SM75_U32x1_MOVM_T
#undef SM80_CP_ASYNC_CACHEALWAYS
#undef SM80_CP_ASYNC_CACHEGLOBAL
#undef SM80_CP_ASYNC_CACHEALWAYS_ZFILL
#undef SM80_CP_ASYNC_CACHEGLOBAL_ZFILL
#undef SM80_16x8x16_F32F16F16F32_TN
#undef SM80_16x8x16_F32BF16BF16F32_TN
#undef SM80_16x8x8_F32F16F16F32_TN
#undef SM80_16x8x8_F32BF16BF16F32_TN
#undef cp_async_fence
#undef cp_async_wait
#undef elect_one_sync

namespace cutlass {

inline int canonical_lane_idx() { return emu::lane(); }
inline int canonical_warp_idx() { return int(threadIdx.x) / 32; }
inline int canonical_warp_idx_sync() { return __shfl_sync(0xffffffffu, int(threadIdx.x) / 32, 0); }
inline int canonical_warp_group_idx() {
  return __shfl_sync(0xffffffffu, int(threadIdx.x) / 128, 0);
}

}  // namespace cutlass

namespace cute {

inline uint32_t elect_one_sync() { return __ffs(int(emu::active_lanes())) - 1 == emu::lane(); }

// ---- copies through registers
template <class S, class D = S>
struct UniversalCopy {
  using SRegisters = S[1];
  using DRegisters = D[1];
  static_assert(sizeof_bits_v<S> >= 8 && sizeof_bits_v<D> >= 8);

  static constexpr void copy(S const& source, D& target) {
    if constexpr (sizeof(S) == 16 && std::is_same_v<S, D>) {
      emu::copy_vector(&source, &target, sizeof(S));  // gcc would make two copies of 8 bytes
    } else {
      target = source;
    }
  }
};

template <int kMaxVecBits = 128>
struct AutoVectorizingCopyWithAssumedAlignment : UniversalCopy<uint_bit_t<kMaxVecBits>> {};
using AutoVectorizingCopy = AutoVectorizingCopyWithAssumedAlignment<128>;
using DefaultCopy = AutoVectorizingCopyWithAssumedAlignment<8>;

// ---- cp.async
inline void cp_async_fence() { emu::copy_async_commit(); }

template <int N>
void cp_async_wait() {
  if constexpr (N == 0) {
    emu::copy_async_wait_all();
  } else {
    emu::copy_async_wait_group(N);
  }
}
template <int N>
void cp_async_wait(Int<N>) {
  cp_async_wait<N>();
}

#define EMU_COPY_ASYNC(NAME)                                       \
  template <class S, class D = S>                                  \
  struct NAME {                                                    \
    using SRegisters = S[1];                                       \
    using DRegisters = D[1];                                       \
    static_assert(sizeof(S) == sizeof(D));                         \
    static void copy(S const& source, D& target) {                 \
      emu::copy_async(&source, &target, sizeof(S), true);          \
    }                                                              \
  };                                                               \
  template <class S, class D = S>                                  \
  struct NAME##_ZFILL {                                            \
    using SRegisters = S[1];                                       \
    using DRegisters = D[1];                                       \
    static_assert(sizeof(S) == sizeof(D));                         \
    static void copy(S const& source, D& target, bool predicate) { \
      emu::copy_async(&source, &target, sizeof(S), predicate);     \
    }                                                              \
  };
EMU_COPY_ASYNC(SM80_CP_ASYNC_CACHEALWAYS)
EMU_COPY_ASYNC(SM80_CP_ASYNC_CACHEGLOBAL)
#undef EMU_COPY_ASYNC

// ---- ldmatrix, movmatrix
template <int kMatrices, bool kTransposed>
struct EmuLoadMatrix {
  using SRegisters = uint128_t[1];
  using DRegisters = uint32_t[kMatrices];

  template <class... Registers>
  static void copy(uint128_t const& row, Registers&... registers) {
    static_assert(sizeof...(Registers) == kMatrices);
    uint32_t loaded[kMatrices];
    emu::load_matrix(&row, loaded, kMatrices, kTransposed);
    int i = 0;
    ((registers = loaded[i++]), ...);
  }
};

struct SM75_U32x1_LDSM_N : EmuLoadMatrix<1, false> {};
struct SM75_U32x2_LDSM_N : EmuLoadMatrix<2, false> {};
struct SM75_U32x4_LDSM_N : EmuLoadMatrix<4, false> {};
struct SM75_U16x2_LDSM_T : EmuLoadMatrix<1, true> {};
struct SM75_U16x4_LDSM_T : EmuLoadMatrix<2, true> {};
struct SM75_U16x8_LDSM_T : EmuLoadMatrix<4, true> {};

struct SM75_U32x1_MOVM_T {
  using SRegisters = uint32_t[1];
  using DRegisters = uint32_t[1];
  static void copy(uint32_t const& source, uint32_t& target) {
    target = emu::transpose_matrix(source);
  }
};

// ---- mma.sync
template <emu::MmaType kType>
struct EmuMma16x8x16 {
  using DRegisters = float[4];
  using ARegisters = uint32_t[4];
  using BRegisters = uint32_t[2];
  using CRegisters = float[4];

  static void fma(float& d0, float& d1, float& d2, float& d3, uint32_t const& a0,
                  uint32_t const& a1, uint32_t const& a2, uint32_t const& a3, uint32_t const& b0,
                  uint32_t const& b1, float const& c0, float const& c1, float const& c2,
                  float const& c3) {
    emu::MmaOperands x{{a0, a1, a2, a3}, {b0, b1}, {c0, c1, c2, c3}};
    emu::mma(x, kType, 16);
    d0 = x.c[0], d1 = x.c[1], d2 = x.c[2], d3 = x.c[3];
  }
};

template <emu::MmaType kType>
struct EmuMma16x8x8 {
  using DRegisters = float[4];
  using ARegisters = uint32_t[2];
  using BRegisters = uint32_t[1];
  using CRegisters = float[4];

  static void fma(float& d0, float& d1, float& d2, float& d3, uint32_t const& a0,
                  uint32_t const& a1, uint32_t const& b0, float const& c0, float const& c1,
                  float const& c2, float const& c3) {
    emu::MmaOperands x{{a0, a1, 0, 0}, {b0, 0}, {c0, c1, c2, c3}};
    emu::mma(x, kType, 8);
    d0 = x.c[0], d1 = x.c[1], d2 = x.c[2], d3 = x.c[3];
  }
};

struct SM80_16x8x16_F32F16F16F32_TN : EmuMma16x8x16<emu::MmaType::kHalf> {};
struct SM80_16x8x16_F32BF16BF16F32_TN : EmuMma16x8x16<emu::MmaType::kBFloat16> {};
struct SM80_16x8x8_F32F16F16F32_TN : EmuMma16x8x8<emu::MmaType::kHalf> {};
struct SM80_16x8x8_F32BF16BF16F32_TN : EmuMma16x8x8<emu::MmaType::kBFloat16> {};

}  // namespace cute

// ---- named barriers
#define NamedBarrier renamed_NamedBarrier
#include <cutlass/arch/barrier.h>
#undef NamedBarrier

namespace cutlass::arch {

class NamedBarrier {
 public:
  NamedBarrier(uint32_t threads, ReservedNamedBarriers id) : threads_(threads), id_(uint32_t(id)) {}
  explicit NamedBarrier(uint32_t threads, uint32_t id = 0) : threads_(threads), id_(user(id)) {}

  void sync() const { emu::barrier_sync(int(id_), int(threads_)); }
  void arrive_and_wait() const { sync(); }
  void arrive() const { emu::barrier_arrive(int(id_), int(threads_)); }

  static void sync(uint32_t threads, uint32_t id) { NamedBarrier(threads, id).sync(); }
  static void sync(uint32_t threads, ReservedNamedBarriers id) { NamedBarrier(threads, id).sync(); }
  static void arrive_and_wait(uint32_t threads, uint32_t id) { sync(threads, id); }
  static void arrive_and_wait(uint32_t threads, ReservedNamedBarriers id) { sync(threads, id); }
  static void arrive(uint32_t threads, uint32_t id) { NamedBarrier(threads, id).arrive(); }
  static void arrive(uint32_t threads, ReservedNamedBarriers id) {
    NamedBarrier(threads, id).arrive();
  }

 private:
  static uint32_t user(uint32_t id) {
    return id + uint32_t(ReservedNamedBarriers::FirstUserBarrier);
  }

  uint32_t threads_;
  uint32_t id_;
};

}  // namespace cutlass::arch
