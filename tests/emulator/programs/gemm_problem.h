#pragma once

// Matrices for kernels of CUTLASS's: halves, a by rows and b by columns, sums in float.

#include <cuda_runtime.h>
#include <cutlass/half.h>

#include <cmath>
#include <random>
#include <vector>

namespace selftest {

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

// d = alpha a b + beta c.
struct GemmProblem {
  static constexpr float kAlpha = 0.5f, kBeta = 2.f;

  GemmProblem(int m, int n, int k) : m(m), n(n), k(k), a(m * k), b(k * n), c(m * n) {
    std::mt19937 generator(5);
    std::normal_distribution<float> normal;
    for (cutlass::half_t& x : a) x = cutlass::half_t(normal(generator));
    for (cutlass::half_t& x : b) x = cutlass::half_t(normal(generator));
    for (float& x : c) x = normal(generator);
  }

  double worst_error(std::vector<float> const& d) const {
    double worst = 0;
    for (int i = 0; i < m; ++i) {
      for (int j = 0; j < n; ++j) {
        double sum = 0;
        for (int l = 0; l < k; ++l) sum += double(float(a[i * k + l])) * float(b[j * k + l]);
        double const want = kAlpha * sum + double(kBeta) * c[i * n + j];
        worst = std::fmax(worst, std::fabs(d[i * n + j] - want));
      }
    }
    return worst;
  }

  int m, n, k;
  std::vector<cutlass::half_t> a, b;
  std::vector<float> c;
};

}  // namespace selftest
