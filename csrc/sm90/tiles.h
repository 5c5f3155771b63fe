#pragma once

// The tiles of every head-dim bucket; figures are in docs/notes/sm90.md.

#include <cstdint>

namespace fa2::sm90 {

// Widths that kernels are built for, which narrower heads are rounded up to. A number stands for
// values as wide as keys.
struct Bucket {
  int32_t head_dim;
  int32_t head_dim_v;

  constexpr Bucket(int32_t both = 0) : Bucket(both, both) {}  // NOLINT(google-explicit-constructor)
  constexpr Bucket(int32_t head_dim, int32_t head_dim_v)
      : head_dim(head_dim), head_dim_v(head_dim_v) {}

  constexpr bool operator==(Bucket const&) const = default;
  constexpr bool holds(int32_t width, int32_t width_v) const {
    return width <= head_dim && width_v <= head_dim_v;
  }
};

// The narrowest ones first. Heads of up to kNarrow columns are left to sm80.
inline constexpr Bucket kBuckets[] = {64, 96, 128, {192, 128}, 192, 256};
inline constexpr int32_t kNarrow = 32;

// What happens to scores. Numbers are those of sm80, as tools tell kernels apart by them.
enum class Variant : int32_t {
  kPlain,       // scale only
  kModified,    // softcap, ALiBi, biases and dropout
  kListed = 4,  // all of these, with a block mask
};

// How many keys a step takes.
enum class StepKind : int32_t {
  kLong,   // where most tiles need no mask
  kShort,  // under windows, of which causal masks are one: fewer masked scores
};

constexpr bool has_short_steps(Bucket bucket, Variant variant) {
  return bucket == Bucket(128) && variant == Variant::kPlain;
}

struct FwdTile {
  int head_dim;      // of Q and K, rounded up to a bucket
  int head_dim_v;    // of V and the output
  int block_m;       // query rows of a CTA, 64 for each of its consumer warpgroups
  int block_n;       // keys of a step
  int stages;        // of the rings of K and V
  bool takes_turns;  // warpgroups start their products one after the other

  // Of a copy of its rows, as products read them (tile/wgmma.h).
  constexpr int box_cols() const { return head_dim % 64 == 0 && head_dim_v % 64 == 0 ? 64 : 32; }

  constexpr int consumers() const { return block_m / 64; }
  constexpr int threads() const { return (consumers() + 1) * 128; }
  // Of 64 K, of which the producer needs few.
  constexpr int producer_registers() const { return consumers() == 3 ? 32 : 24; }
  constexpr int consumer_registers() const { return consumers() == 3 ? 160 : 240; }
};

// Where scores are modified, steps are of whole blocks of 32 keys, as random numbers of dropout
// are, and under a block mask of one or two of its blocks.
constexpr FwdTile fwd_tile(Bucket bucket, Variant variant, StepKind steps) {
  bool const plain = variant == Variant::kPlain;
  if (bucket == Bucket(192, 128)) return {192, 128, 128, 128, 2, true};
  switch (bucket.head_dim) {
    case 64: return {64, 64, plain ? 192 : 128, 128, 2, true};
    case 96: return {96, 96, 128, plain ? 176 : 128, 2, true};
    case 128: return {128, 128, 128, plain && steps == StepKind::kLong ? 176 : 128, 2, true};
    case 192:
      return {192, 192, 128, plain ? 112 : (variant == Variant::kListed ? 64 : 96), 2, false};
    default: return {256, 256, 128, plain ? 80 : 64, 2, false};
  }
}

}  // namespace fa2::sm90
