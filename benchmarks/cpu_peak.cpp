// What this machine can do at most: multiply-adds of float32, and of pairs of bf16 where the
// processor has them; and how fast it reads memory. cpu_peak.py compiles this file for the machine
// it runs on.

#include <cstdint>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
constexpr int kLanes = kVectorBytes / 4;
typedef float Vector __attribute__((vector_size(kVectorBytes)));

constexpr int kChains = 12;  // independent ones: more than latency times multiply-adds per cycle
constexpr int64_t kRuns = 64;
constexpr int64_t kSteps = 1 << 15;

// `step(x)` is one multiply-add onto x. Returns the number of them, in all.
template <class Step>
int64_t multiply_adds(int threads, Step step) {
  float volatile sink;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t run = 0; run < kRuns; ++run) {
    Vector sums[kChains];  // all different, or the compiler would compute one
    for (int i = 0; i < kChains; ++i) sums[i] = Vector{} + static_cast<float>(i);
    for (int64_t i = 0; i < kSteps; ++i) {
#pragma GCC unroll 12
      for (Vector& sum : sums) sum = step(sum);
    }
    for (Vector const& sum : sums) sink = sum[0];
  }
  (void)sink;
  return kRuns * kSteps * kChains;
}

}  // namespace

// Reads `bytes` of memory, which is aligned to a cache line, on `threads` threads: each one several
// streams at a time, which is faster than one where pages are small. Returns the sum of its floats.
extern "C" double read_memory(void const* memory, int64_t bytes, int threads) {
  constexpr int kStreams = 4;
  constexpr int kLine = 64;
  constexpr int kVectorsPerLine = kLine / kVectorBytes;
  constexpr int kFloatsPerLine = kLine / 4;
  int64_t const lines = bytes / kLine / kStreams / threads;  // of a stream
  float const* const data = static_cast<float const*>(memory);
  double total = 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(+ : total)
  for (int thread = 0; thread < threads; ++thread) {
    float const* const begin = data + thread * kStreams * lines * kFloatsPerLine;
    Vector sums[kStreams] = {};
    for (int64_t line = 0; line < lines; ++line) {
#pragma GCC unroll 4
      for (int stream = 0; stream < kStreams; ++stream) {
        float const* const at = begin + (stream * lines + line) * kFloatsPerLine;
#pragma GCC unroll 4
        for (int i = 0; i < kVectorsPerLine; ++i) {
          sums[stream] += *reinterpret_cast<Vector const*>(at + i * kLanes);
        }
      }
    }
    for (Vector const& sum : sums) {
      for (int i = 0; i < kLanes; ++i) total += sum[i];
    }
  }
  return total;
}

// Both run on `threads` threads and return the floating-point operations that they did.

extern "C" int64_t fp32_flops(int threads) {
  Vector const a = Vector{} + 0.999f, b = Vector{} + 1e-3f;
  return multiply_adds(threads, [=](Vector x) { return x * a + b; }) * kLanes * 2;
}

extern "C" int64_t bf16_flops(int threads) {
#if defined(__AVX512BF16__)
  __m512bh const a = (__m512bh)_mm512_set1_epi32(0x3c003c00);
  auto step = [=](Vector x) { return (Vector)_mm512_dpbf16_ps((__m512)x, a, a); };
  return multiply_adds(threads, step) * kLanes * 4;
#else
  (void)threads;
  return 0;
#endif
}
