// A kernel that was not written here: CUTLASS's GEMM for sm_80, halves with sums in float, three
// stages of cp.async.

#include <cutlass/gemm/device/gemm.h>
#include <cutlass/half.h>

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "test_frame.h"

namespace {

using Half = cutlass::half_t;
using Gemm = cutlass::gemm::device::Gemm<
    Half, cutlass::layout::RowMajor, Half, cutlass::layout::ColumnMajor, float,
    cutlass::layout::RowMajor, float, cutlass::arch::OpClassTensorOp, cutlass::arch::Sm80,
    cutlass::gemm::GemmShape<64, 64, 32>, cutlass::gemm::GemmShape<32, 32, 32>,
    cutlass::gemm::GemmShape<16, 8, 16>,
    cutlass::epilogue::thread::LinearCombination<float, 4, float, float>,
    cutlass::gemm::threadblock::GemmIdentityThreadblockSwizzle<>, 3>;

// A matrix in device memory.
template <class T>
struct Matrix {
  explicit Matrix(std::vector<T> const& values) : bytes(values.size() * sizeof(T)) {
    cudaMalloc(&data, bytes);
    cudaMemcpy(data, values.data(), bytes, cudaMemcpyHostToDevice);
  }
  ~Matrix() { cudaFree(data); }
  std::vector<T> values() const {
    std::vector<T> result(bytes / sizeof(T));
    cudaMemcpy(result.data(), data, bytes, cudaMemcpyDeviceToHost);
    return result;
  }
  T* data = nullptr;
  size_t bytes;
};

TEST(cutlass_gemm) {
  constexpr int m = 136, n = 72, k = 104;  // none of them whole tiles
  std::mt19937 generator(5);
  std::normal_distribution<float> normal;
  std::vector<Half> a(m * k), b(k * n);
  std::vector<float> c(m * n);
  for (Half& x : a) x = Half(normal(generator));
  for (Half& x : b) x = Half(normal(generator));
  for (float& x : c) x = normal(generator);
  Matrix<Half> const from_a(a), from_b(b);
  Matrix<float> const from_c(c);
  for (unsigned seed = 1; seed <= 6; ++seed) {
    auto const mode = seed % 2 ? emu::AsyncMode::kLate : emu::AsyncMode::kRandom;
    selftest::WithOptions const options(
        {.seed = seed, .async = mode, .ctas_in_flight = int(seed % 3 + 1)});
    Matrix<float> const to(std::vector<float>(m * n));
    Gemm gemm;
    auto const status = gemm({{m, n, k},
                              {from_a.data, k},
                              {from_b.data, k},
                              {from_c.data, n},
                              {to.data, n},
                              {0.5f, 2.f}});
    CHECK(status == cutlass::Status::kSuccess);
    std::vector<float> const d = to.values();
    double worst = 0;
    for (int i = 0; i < m; ++i) {
      for (int j = 0; j < n; ++j) {
        double sum = 0;
        for (int l = 0; l < k; ++l) sum += double(float(a[i * k + l])) * float(b[j * k + l]);
        double const want = 0.5 * sum + 2. * c[i * n + j];
        worst = std::fmax(worst, std::fabs(d[i * n + j] - want));
      }
    }
    CHECK(worst < 1e-4);
  }
}

}  // namespace
