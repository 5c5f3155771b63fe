// A kernel that was not written here: CUTLASS's GEMM for sm_80, halves with sums in float, three
// stages of cp.async.

#include <cutlass/gemm/device/gemm.h>

#include "gemm_problem.h"
#include "test_frame.h"

namespace {

using Problem = selftest::GemmProblem;
using Half = cutlass::half_t;
using Gemm = cutlass::gemm::device::Gemm<
    Half, cutlass::layout::RowMajor, Half, cutlass::layout::ColumnMajor, float,
    cutlass::layout::RowMajor, float, cutlass::arch::OpClassTensorOp, cutlass::arch::Sm80,
    cutlass::gemm::GemmShape<64, 64, 32>, cutlass::gemm::GemmShape<32, 32, 32>,
    cutlass::gemm::GemmShape<16, 8, 16>,
    cutlass::epilogue::thread::LinearCombination<float, 4, float, float>,
    cutlass::gemm::threadblock::GemmIdentityThreadblockSwizzle<>, 3>;

}  // namespace

TEST(cutlass_gemm) {
  Problem const p(136, 72, 104);  // none of them whole tiles
  selftest::Matrix<Half> const a(p.a), b(p.b);
  selftest::Matrix<float> const c(p.c);
  for (unsigned seed = 1; seed <= 6; ++seed) {
    auto const mode = seed % 2 ? emu::AsyncMode::kLate : emu::AsyncMode::kRandom;
    selftest::WithOptions const options(
        {.seed = seed, .async = mode, .ctas_in_flight = int(seed % 3 + 1)});
    selftest::Matrix<float> const d(std::vector<float>(p.c.size()));
    Gemm gemm;
    auto const status = gemm({{p.m, p.n, p.k},
                              {a.data, p.k},
                              {b.data, p.k},
                              {c.data, p.n},
                              {d.data, p.n},
                              {Problem::kAlpha, Problem::kBeta}});
    CHECK(status == cutlass::Status::kSuccess);
    CHECK(p.worst_error(d.values()) < 1e-4);
  }
}
