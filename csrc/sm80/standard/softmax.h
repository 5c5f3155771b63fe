#pragma once

// The softmax of rows and its gradient. A row is read once and waits in shared memory.

#include "core/score_mod.h"
#include "sm80/standard/product.h"

namespace fa2::sm80::standard {

using Eight = cutlass::AlignedArray<Element, 8>;

// A warp's row: each lane has 8 neighbours of every 256.
struct Row {
  int pair;
  int row;
  int seqlen;

  CUTE_DEVICE static Row of(SoftmaxArgs const& args) {
    return {int(blockIdx.x) / args.seqlen, int(blockIdx.x) % args.seqlen, args.seqlen};
  }

  template <class Body>
  CUTE_DEVICE void for_each(Body const& body) const {
    for (int col = int(threadIdx.x) * 8; col < seqlen; col += 256) body(col);
  }

  template <class Combine>
  CUTE_DEVICE static float reduce(float x, Combine const& combine) {
    CUTE_UNROLL
    for (int distance = 16; distance > 0; distance /= 2) {
      x = combine(x, __shfl_xor_sync(0xffffffffu, x, distance));
    }
    return x;
  }
};

CUTE_DEVICE float add(float a, float b) { return a + b; }

CUTE_DEVICE void store(Element* to, float const (&x)[8]) {
  cutlass::AlignedArray<uint32_t, 4> pairs;
  CUTE_UNROLL
  for (int i = 0; i < 4; ++i) pairs[i] = pack<Element>(x[2 * i], x[2 * i + 1]);
  *reinterpret_cast<uint128_t*>(to) = reinterpret_cast<uint128_t const&>(pairs);
}

struct RowSoftmax {
  using Args = SoftmaxArgs;
  static constexpr int kThreads = 32;
  static constexpr int kCtasPerSm = 1;
  static constexpr int kSmemBytes = kMostSeqlen * sizeof(Element);

  CUTE_DEVICE void operator()(Args const& args, char* smem) const {
    Row const row = Row::of(args);
    auto* const held = reinterpret_cast<Element*>(smem);
    int const end = args.causal ? row.row + 1 : row.seqlen;

    float max = -INFINITY;
    row.for_each([&](int col) {
      Eight const s = *reinterpret_cast<Eight const*>(at(args, args.in, row.pair, row.row, col));
      *reinterpret_cast<Eight*>(held + col) = s;
      for (int i = 0; i < 8 && col + i < end; ++i) max = fmaxf(max, float(s[i]));
    });
    max = Row::reduce(max, [](float a, float b) { return fmaxf(a, b); });

    auto const prob = [&](Eight const& s, int col, int i) {
      return col + i < end ? exp2_approx((float(s[i]) - max) * kLog2e) : 0.f;
    };
    float sum = 0.f;
    row.for_each([&](int col) {
      Eight const s = *reinterpret_cast<Eight const*>(held + col);
      for (int i = 0; i < 8; ++i) sum += prob(s, col, i);
    });
    float const scale = 1.f / Row::reduce(sum, add);

    row.for_each([&](int col) {
      Eight const s = *reinterpret_cast<Eight const*>(held + col);
      float p[8];
      for (int i = 0; i < 8; ++i) p[i] = prob(s, col, i) * scale;
      store(at(args, args.out, row.pair, row.row, col), p);
    });
  }
};

struct RowSoftmaxGrad {
  using Args = SoftmaxArgs;
  static constexpr int kThreads = 32;
  static constexpr int kCtasPerSm = 1;
  static constexpr int kSmemBytes = 2 * kMostSeqlen * sizeof(Element);

  CUTE_DEVICE void operator()(Args const& args, char* smem) const {
    Row const row = Row::of(args);
    auto* const probs = reinterpret_cast<Element*>(smem);
    auto* const grads = probs + kMostSeqlen;

    float sum = 0.f;
    row.for_each([&](int col) {
      Eight const p = *reinterpret_cast<Eight const*>(at(args, args.in, row.pair, row.row, col));
      Eight const g = *reinterpret_cast<Eight const*>(at(args, args.grad, row.pair, row.row, col));
      *reinterpret_cast<Eight*>(probs + col) = p;
      *reinterpret_cast<Eight*>(grads + col) = g;
      for (int i = 0; i < 8; ++i) sum += float(p[i]) * float(g[i]);
    });
    sum = Row::reduce(sum, add);

    row.for_each([&](int col) {
      Eight const p = *reinterpret_cast<Eight const*>(probs + col);
      Eight const g = *reinterpret_cast<Eight const*>(grads + col);
      float ds[8];
      for (int i = 0; i < 8; ++i) ds[i] = float(p[i]) * (float(g[i]) - sum);
      store(at(args, args.out, row.pair, row.row, col), ds);
    });
  }
};

}  // namespace fa2::sm80::standard
