#pragma once

// Scores in base-2 units: exp2 of a modified score is exp of the natural one.
//   plain:   s * softmax_scale
//   softcap: softcap * tanh(s * softmax_scale / softcap)          (Gemma 2)
//   ALiBi:   ... - slope * |row + seqlen_k - seqlen_q - col|      (Press et al. 2021)
// The modifications apply in this order and are followed by a factor log2(e).

#include "core/macros.h"
#include "core/params.h"

namespace fa2 {

inline constexpr float kLog2e = 1.4426950408889634f;
inline constexpr float kLn2 = 0.6931471805599453f;

// The factors of the formulae above, computed once per problem.
struct ScoreScales {
  float inner;  // multiplies the raw score: softmax_scale / softcap, or softmax_scale * log2(e)
  float outer;  // multiplies tanh: softcap * log2(e); 1 without softcap
};

FA2_HD ScoreScales score_scales(float softmax_scale, float softcap) {
  if (softcap > 0.f) return {softmax_scale / softcap, softcap * kLog2e};
  return {softmax_scale * kLog2e, 1.f};
}

// ALiBi slope of (batch, head) in base-2 units; 0 without ALiBi.
FA2_HD float alibi_slope_log2(ScoreMod const& mod, int32_t batch, int32_t head) {
  if (mod.alibi_slopes == nullptr) return 0.f;
  return mod.alibi_slopes[batch * mod.alibi_batch_stride + head] * kLog2e;
}

}  // namespace fa2
