#pragma once

// wgmma.mma_async: 64 x kN x 16 of a warpgroup, half or bfloat16 into float. CuTe's atoms for all
// widths take a compiler 30 s to read; here are those that kernels ask for.

#include <cute/config.hpp>
#include <cute/numeric/numeric_types.hpp>

#include <cstdint>

namespace fa2 {

// acc (+)= A B, with A in shared memory or registers, and B in shared memory: rows of A and columns
// of B, along which the depth goes, contiguous (`from_shared`), or columns of A and rows of B
// (`from_columns`), or A in registers and rows of B contiguous (`from_registers`).
template <class Element, int kN>
struct Wgmma;

// Names of the accumulators, which come first, and of what follows them.
#define FA2_TEN(tens)                                                        \
  "%" #tens "0, %" #tens "1, %" #tens "2, %" #tens "3, %" #tens "4, %" #tens \
  "5, "                                                                      \
  "%" #tens "6, %" #tens "7, %" #tens "8, %" #tens "9"
#define FA2_NAMES_16 FA2_TEN() ", %10, %11, %12, %13, %14, %15"
#define FA2_NAMES_24 FA2_TEN() ", " FA2_TEN(1) ", %20, %21, %22, %23"
#define FA2_NAMES_30 FA2_TEN() ", " FA2_TEN(1) ", " FA2_TEN(2)
#define FA2_NAMES_32 FA2_NAMES_30 ", %30, %31"
#define FA2_NAMES_40 FA2_NAMES_30 ", " FA2_TEN(3)
#define FA2_NAMES_48 FA2_NAMES_40 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define FA2_NAMES_50 FA2_NAMES_40 ", " FA2_TEN(4)
#define FA2_NAMES_56 FA2_NAMES_50 ", %50, %51, %52, %53, %54, %55"
#define FA2_NAMES_60 FA2_NAMES_50 ", " FA2_TEN(5)
#define FA2_NAMES_64 FA2_NAMES_60 ", %60, %61, %62, %63"
#define FA2_NAMES_80 FA2_NAMES_60 ", " FA2_TEN(6) ", " FA2_TEN(7)
#define FA2_NAMES_88 FA2_NAMES_80 ", %80, %81, %82, %83, %84, %85, %86, %87"
#define FA2_NAMES_90 FA2_NAMES_80 ", " FA2_TEN(8)
#define FA2_NAMES_96 FA2_NAMES_90 ", %90, %91, %92, %93, %94, %95"
#define FA2_NAMES_120 FA2_NAMES_90 ", " FA2_TEN(9) ", " FA2_TEN(10) ", " FA2_TEN(11)
#define FA2_NAMES_128 FA2_NAMES_120 ", %120, %121, %122, %123, %124, %125, %126, %127"

#define FA2_ACC_8(i)                                                                    \
  "+f"(acc[i]), "+f"(acc[i + 1]), "+f"(acc[i + 2]), "+f"(acc[i + 3]), "+f"(acc[i + 4]), \
      "+f"(acc[i + 5]), "+f"(acc[i + 6]), "+f"(acc[i + 7])
#define FA2_ACC_16 FA2_ACC_8(0), FA2_ACC_8(8)
#define FA2_ACC_24 FA2_ACC_16, FA2_ACC_8(16)
#define FA2_ACC_32 FA2_ACC_24, FA2_ACC_8(24)
#define FA2_ACC_40 FA2_ACC_32, FA2_ACC_8(32)
#define FA2_ACC_48 FA2_ACC_40, FA2_ACC_8(40)
#define FA2_ACC_56 FA2_ACC_48, FA2_ACC_8(48)
#define FA2_ACC_64 FA2_ACC_56, FA2_ACC_8(56)
#define FA2_ACC_88 FA2_ACC_64, FA2_ACC_8(64), FA2_ACC_8(72), FA2_ACC_8(80)
#define FA2_ACC_96 FA2_ACC_88, FA2_ACC_8(88)
#define FA2_ACC_128 FA2_ACC_96, FA2_ACC_8(96), FA2_ACC_8(104), FA2_ACC_8(112), FA2_ACC_8(120)

// kN, its half, and the numbers of the five operands that may follow as many accumulators.
#define FA2_WGMMA(Element, type, n, half, p0, p1, p2, p3, p4, p5)                               \
  template <>                                                                                   \
  struct Wgmma<Element, n> {                                                                    \
    CUTE_DEVICE static void from_shared(float* acc, uint64_t a, uint64_t b, int accumulates) {  \
      asm volatile(                                                                             \
          "{\n"                                                                                 \
          ".reg .pred accumulates;\n"                                                           \
          "setp.ne.b32 accumulates, %" #p2                                                      \
          ", 0;\n"                                                                              \
          "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " {" FA2_NAMES_##half \
          "}, %" #p0 ", %" #p1                                                                  \
          ", accumulates, 1, 1, 0, 0;\n"                                                        \
          "}"                                                                                   \
          : FA2_ACC_##half                                                                      \
          : "l"(a), "l"(b), "r"(accumulates));                                                  \
    }                                                                                           \
    CUTE_DEVICE static void from_columns(float* acc, uint64_t a, uint64_t b, int accumulates) { \
      asm volatile(                                                                             \
          "{\n"                                                                                 \
          ".reg .pred accumulates;\n"                                                           \
          "setp.ne.b32 accumulates, %" #p2                                                      \
          ", 0;\n"                                                                              \
          "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " {" FA2_NAMES_##half \
          "}, %" #p0 ", %" #p1                                                                  \
          ", accumulates, 1, 1, 1, 1;\n"                                                        \
          "}"                                                                                   \
          : FA2_ACC_##half                                                                      \
          : "l"(a), "l"(b), "r"(accumulates));                                                  \
    }                                                                                           \
    CUTE_DEVICE static void from_registers(float* acc, uint32_t const (&a)[4], uint64_t b,      \
                                           int accumulates) {                                   \
      asm volatile(                                                                             \
          "{\n"                                                                                 \
          ".reg .pred accumulates;\n"                                                           \
          "setp.ne.b32 accumulates, %" #p5                                                      \
          ", 0;\n"                                                                              \
          "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " {" FA2_NAMES_##half \
          "}, {%" #p0 ", %" #p1 ", %" #p2 ", %" #p3 "}, %" #p4                                  \
          ", accumulates, 1, 1, 1;\n"                                                           \
          "}"                                                                                   \
          : FA2_ACC_##half                                                                      \
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulates));              \
    }                                                                                           \
  };
#define FA2_WGMMA_OF_BOTH(...)                \
  FA2_WGMMA(cute::half_t, "f16", __VA_ARGS__) \
  FA2_WGMMA(cute::bfloat16_t, "bf16", __VA_ARGS__)

FA2_WGMMA_OF_BOTH(32, 16, 16, 17, 18, 19, 20, 21)
FA2_WGMMA_OF_BOTH(48, 24, 24, 25, 26, 27, 28, 29)
FA2_WGMMA_OF_BOTH(64, 32, 32, 33, 34, 35, 36, 37)
FA2_WGMMA_OF_BOTH(80, 40, 40, 41, 42, 43, 44, 45)
FA2_WGMMA_OF_BOTH(96, 48, 48, 49, 50, 51, 52, 53)
FA2_WGMMA_OF_BOTH(112, 56, 56, 57, 58, 59, 60, 61)
FA2_WGMMA_OF_BOTH(128, 64, 64, 65, 66, 67, 68, 69)
FA2_WGMMA_OF_BOTH(176, 88, 88, 89, 90, 91, 92, 93)
FA2_WGMMA_OF_BOTH(192, 96, 96, 97, 98, 99, 100, 101)
FA2_WGMMA_OF_BOTH(256, 128, 128, 129, 130, 131, 132, 133)

#undef FA2_WGMMA_OF_BOTH
#undef FA2_WGMMA
#undef FA2_ACC_128
#undef FA2_ACC_96
#undef FA2_ACC_88
#undef FA2_ACC_64
#undef FA2_ACC_56
#undef FA2_ACC_48
#undef FA2_ACC_40
#undef FA2_ACC_32
#undef FA2_ACC_24
#undef FA2_ACC_16
#undef FA2_ACC_8
#undef FA2_NAMES_128
#undef FA2_NAMES_120
#undef FA2_NAMES_96
#undef FA2_NAMES_90
#undef FA2_NAMES_88
#undef FA2_NAMES_80
#undef FA2_NAMES_64
#undef FA2_NAMES_60
#undef FA2_NAMES_56
#undef FA2_NAMES_50
#undef FA2_NAMES_48
#undef FA2_NAMES_40
#undef FA2_NAMES_32
#undef FA2_NAMES_30
#undef FA2_NAMES_24
#undef FA2_NAMES_16
#undef FA2_TEN

}  // namespace fa2
