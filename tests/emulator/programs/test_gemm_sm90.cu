// A kernel that was not written here: CUTLASS's warp-specialised GEMM for sm_90a. One warp loads
// boxes of tensors, and four multiply them by wgmma.

#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/gemm/collective/collective_builder.hpp>
#include <cutlass/gemm/device/gemm_universal_adapter.h>
#include <cutlass/gemm/kernel/gemm_universal.hpp>

#include "gemm_problem.h"
#include "launch.h"

namespace {

using Problem = selftest::GemmProblem;
using Half = cutlass::half_t;
using Rows = cutlass::layout::RowMajor;
using Columns = cutlass::layout::ColumnMajor;
using Tile = cute::Shape<cute::_64, cute::_64, cute::_64>;
using Cluster = cute::Shape<cute::_1, cute::_1, cute::_1>;
using Epilogue = cutlass::epilogue::collective::CollectiveBuilder<
    cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Tile, Cluster,
    cutlass::epilogue::collective::EpilogueTileAuto, float, float, float, Rows, 4, float, Rows, 4,
    cutlass::epilogue::NoSmemWarpSpecialized>::CollectiveOp;
using Mainloop = cutlass::gemm::collective::CollectiveBuilder<
    cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Half, Rows, 8, Half, Columns, 8, float,
    Tile, Cluster, cutlass::gemm::collective::StageCount<3>,
    cutlass::gemm::KernelTmaWarpSpecialized>::CollectiveOp;
using Kernel =
    cutlass::gemm::kernel::GemmUniversal<cute::Shape<int, int, int, int>, Mainloop, Epilogue>;
using Gemm = cutlass::gemm::device::GemmUniversalAdapter<Kernel>;

}  // namespace

TEST(cutlass_gemm_for_sm90) {
  Problem const p(136, 72, 328);  // none of them whole tiles
  selftest::Matrix<Half> const a(p.a), b(p.b);
  selftest::Matrix<float> const c(p.c);
  for (unsigned seed = 1; seed <= 6; ++seed) {
    emu::Options options = selftest::schedule(seed, int(seed % 3 + 1),
                                              selftest::kAsyncModes[seed % 3], emu::Device::kSm90);
    options.elects_first = true;  // what the kernel takes for granted
    selftest::WithOptions const with_options(options);
    selftest::Matrix<float> const d(std::vector<float>(p.c.size()));
    auto const along = [](int64_t stride) {
      return cute::make_stride(stride, cute::_1{}, int64_t(0));
    };
    Gemm gemm;
    auto const status = gemm(Gemm::Arguments{
        cutlass::gemm::GemmUniversalMode::kGemm,
        {p.m, p.n, p.k, 1},
        {a.data, along(p.k), b.data, along(p.k)},
        {{Problem::kAlpha, Problem::kBeta}, c.data, along(p.n), d.data, along(p.n)}});
    CHECK(status == cutlass::Status::kSuccess);
    CHECK(p.worst_error(d.values()) < 1e-3);
  }
}
