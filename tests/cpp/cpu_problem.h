#pragma once

// Random problems for the CPU family and what their definition needs, in double precision.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "core/dropout.h"
#include "core/mask.h"
#include "core/params.h"
#include "cpu/family.h"
#include "cpu/isa.h"

namespace fa2::testing {

inline constexpr double kInf = std::numeric_limits<double>::infinity();
inline constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// Storage of any element type.
struct Tensor {
  DType dtype;
  std::vector<uint64_t> words;  // aligned memory

  Tensor(DType type, size_t count) : dtype(type), words(count + 1) {}
  template <class T>
  T* as() {
    return reinterpret_cast<T*>(words.data());
  }
  void set(size_t i, double x) {
    if (dtype == DType::kFloat64) as<double>()[i] = x;
    if (dtype == DType::kFloat32) as<float>()[i] = float(x);
    if (dtype == DType::kBFloat16) {
      float const f = float(x);
      uint32_t bits;
      std::memcpy(&bits, &f, sizeof(bits));
      as<uint16_t>()[i] = uint16_t(bits >> 16);
    }
    if (dtype == DType::kFloat16) {  // multiples of 2^-8 below 4 are exact; NaN is NaN
      if (std::isnan(x)) {
        as<uint16_t>()[i] = 0x7e00;
        return;
      }
      int const fixed = int(std::lround(std::clamp(std::fabs(x), 0.0, 3.9) * 256));
      int const exponent = fixed == 0 ? 0 : std::ilogb(fixed);
      int const mantissa = fixed == 0 ? 0 : (fixed << 10 >> exponent) & 1023;
      as<uint16_t>()[i] =
          uint16_t((x < 0 ? 0x8000 : 0) | (fixed == 0 ? 0 : (exponent + 7) << 10 | mantissa));
    }
  }
  double get(size_t i) {
    if (dtype == DType::kFloat64) return as<double>()[i];
    if (dtype == DType::kFloat32) return as<float>()[i];
    uint16_t const half = as<uint16_t>()[i];
    if (dtype == DType::kBFloat16) {
      uint32_t const bits = uint32_t(half) << 16;
      float f;
      std::memcpy(&f, &bits, sizeof(f));
      return f;
    }
    int const exponent = (half >> 10) & 31;
    if (exponent == 31) return half & 1023 ? kNan : half & 0x8000 ? -kInf : kInf;
    double const magnitude = exponent == 0 ? std::ldexp(half & 1023, -24)
                                           : std::ldexp(1024 + (half & 1023), exponent - 25);
    return half & 0x8000 ? -magnitude : magnitude;
  }
};

inline size_t element_bytes(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

// A dense problem with contiguous tensors of random entries, and its outputs.
struct Problem {
  FwdParams p;
  Tensor q, k, v, out;
  std::vector<float> lse;

  static constexpr int64_t kRng[2] = {42, 7};

  // Without dim_v, values are as wide as keys.
  Problem(DType dtype, int batch, int heads, int heads_kv, int seqlen_q, int seqlen_k, int dim,
          int dim_v = 0)
      : q(dtype, size_t(batch) * seqlen_q * heads * dim),
        k(dtype, size_t(batch) * seqlen_k * heads_kv * dim),
        v(dtype, size_t(batch) * seqlen_k * heads_kv * (dim_v == 0 ? dim : dim_v)),
        out(dtype, size_t(batch) * seqlen_q * heads * (dim_v == 0 ? dim : dim_v)),
        lse(size_t(batch) * heads * seqlen_q, kNan) {
    p.dtype = dtype;
    p.batch = batch;
    p.num_heads = heads;
    p.num_heads_kv = heads_kv;
    if (dim_v == 0) dim_v = dim;
    p.head_dim = dim;
    p.head_dim_v = dim_v;
    p.softmax_scale = 1.f / std::sqrt(float(dim));
    p.seqs_q.max_seqlen = seqlen_q;
    p.seqs_k.max_seqlen = seqlen_k;
    p.q = {q.words.data(), int64_t(seqlen_q) * heads * dim, heads * dim, dim};
    p.k = {k.words.data(), int64_t(seqlen_k) * heads_kv * dim, heads_kv * dim, dim};
    p.v = {v.words.data(), int64_t(seqlen_k) * heads_kv * dim_v, heads_kv * dim_v, dim_v};
    p.out = {out.words.data(), int64_t(seqlen_q) * heads * dim_v, heads * dim_v, dim_v};
    p.lse = lse.data();
    std::mt19937 random(seqlen_q * 1000 + seqlen_k + dim);
    std::normal_distribution<double> normal;
    for (Tensor* t : {&q, &k, &v}) {
      for (size_t i = 0; i + 1 < t->words.size(); ++i) t->set(i, normal(random));
    }
    for (size_t i = 0; i + 1 < out.words.size(); ++i) out.set(i, kNan);
  }

  size_t index(TensorRef const& t, int b, int row, int head, int d) const {
    return size_t(b * t.batch_stride + row * t.row_stride + head * t.head_stride + d);
  }
};

struct Score {
  double value;  // modified, natural units
  double slope;  // its derivative by the raw score
};

inline Score score(Problem& x, int b, int head, int row, int col) {
  FwdParams const& p = x.p;
  double s = 0;
  for (int d = 0; d < p.head_dim; ++d) {
    s +=
        x.q.get(x.index(p.q, b, row, head, d)) * x.k.get(x.index(p.k, b, col, head / p.group(), d));
  }
  s *= p.softmax_scale;
  double slope = p.softmax_scale;
  if (p.score_mod.softcap > 0) {
    double const capped = std::tanh(s / p.score_mod.softcap);
    s = p.score_mod.softcap * capped;
    slope *= 1 - capped * capped;
  }
  if (p.score_mod.alibi_slopes != nullptr) {
    int const diagonal = row + p.seqs_k.max_seqlen - p.seqs_q.max_seqlen;
    s -= p.score_mod.alibi_slopes[head] * std::abs(diagonal - col);
  }
  return {s, slope};
}

// What the survivors of dropout are multiplied by, or 0 where an entry is dropped.
inline double keep_weight(Problem const& x, int b, int head, int row, int col) {
  Dropout const& dropout = x.p.dropout;
  if (dropout.drop_prob == 0) return 1;
  uint32_t const bits = dropout_bits(Problem::kRng[0], Problem::kRng[1],
                                     uint32_t(b * x.p.num_heads + head), row, col);
  return (bits < dropout_keep_threshold(dropout.drop_prob)) / (1 - double(dropout.drop_prob));
}

// Compares one row of the output with its definition, relative to the largest logit.
inline void check_row(Problem& x, int b, int head, int row, double tolerance,
                      std::string const& what) {
  FwdParams const& p = x.p;
  int const seqlen_q = p.seqs_q.max_seqlen;
  ColRange const cols = visible_cols(row, seqlen_q, p.seqs_k.max_seqlen, p.window);
  double const sink = p.sink != nullptr ? double(p.sink[head]) : -kInf;
  double top = sink;
  std::vector<double> scores;
  for (int col = cols.begin; col < cols.end; ++col) {
    scores.push_back(score(x, b, head, row, col).value);
    top = std::max(top, scores.back());
  }
  double sum = top == -kInf ? 0 : std::exp(sink - top);
  std::vector<double> out(p.head_dim_v, 0);
  for (int col = cols.begin; col < cols.end; ++col) {
    double weight = top == -kInf ? 0 : std::exp(scores[col - cols.begin] - top);
    sum += weight;
    weight *= keep_weight(x, b, head, row, col);
    for (int d = 0; d < p.head_dim_v; ++d) {
      out[d] += weight * x.v.get(x.index(p.v, b, col, head / p.group(), d));
    }
  }
  float const lse = x.lse[(size_t(b) * p.num_heads + head) * seqlen_q + row];
  EXPECT_NEAR(lse, sum == 0 ? -kInf : top + std::log(sum), 1e-5) << what << " row " << row;
  for (int d = 0; d < p.head_dim_v; ++d) {
    double const expected = sum == 0 ? 0 : out[d] / sum;
    EXPECT_NEAR(x.out.get(x.index(p.out, b, row, head, d)), expected, tolerance)
        << what << " row " << row << " dim " << d;
  }
}

inline double tolerance_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat64: return 1e-12;
    case DType::kFloat32: return 3e-6;
    case DType::kFloat16: return 3e-3;
    default: return 2e-2;
  }
}

// Plans and runs a problem of any kind.
template <class Params>
void execute(Params const& params, int num_threads) {
  cpu::Family::Target const target{num_threads};
  cpu::Family::run(params, cpu::Family::plan(params, target), target);
}

inline void run_and_check(Problem& x, std::string const& what, int num_threads = 2) {
  execute(x.p, num_threads);
  for (int b = 0; b < x.p.batch; ++b) {
    for (int head = 0; head < x.p.num_heads; ++head) {
      for (int row = 0; row < x.p.seqs_q.max_seqlen; ++row) {
        check_row(x, b, head, row, tolerance_of(x.p.dtype), what);
      }
    }
  }
}

// At every level of this machine and for every type: body(dtype, name of both).
template <class Body>
void for_levels(Body const& body) {
  for (int level = 0; level <= int(cpu::highest_isa()); ++level) {
    char const* const name = cpu::isa_name(cpu::Isa(level));
    cpu::set_isa(name);
    EXPECT_EQ(std::string(cpu::isa_name()), name);
    for (DType const dtype :
         {DType::kFloat16, DType::kBFloat16, DType::kFloat32, DType::kFloat64}) {
      body(dtype, std::string(name) + " dtype " + std::to_string(int(dtype)));
    }
  }
}

}  // namespace fa2::testing
