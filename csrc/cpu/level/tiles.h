#pragma once

// Every tile size of the CPU family, by instruction-set level.
//
// A tile is up to kTileVectors vectors of queries. It meets the keys in blocks of kKeyBlock;
// products are formed kTileRows keys (or head dims of V) at a time, which keeps rows * vectors
// accumulators in registers. Tiles that share keys are worked through together as one chunk, so
// that a block of K and V is packed once for all of them.

#include "cpu/level/simd.h"

namespace fa2::cpu::FA2_CPU_LEVEL {

#if defined(__AVX512F__) || defined(__aarch64__)  // 32 vector registers
inline constexpr int kTileVectors = 4;
#else  // 16 vector registers
inline constexpr int kTileVectors = 2;
#endif

// Rows of a register tile of kVectors columns: as many as the registers hold beside a row of
// queries and a broadcast, and at least 8 accumulators, which hide the latency of a multiply-add.
template <int kVectors>
inline constexpr int kTileRows =
    kTileVectors == 4 ? (kVectors == 4 ? 6 : 8) : (kVectors == 2 ? 6 : 8);

// Steps of the summed dimension that a turn of the inner loop takes. A step of two vectors is
// twelve products beside eight loads, and what each turn adds to them costs time where two threads
// share a core.
inline constexpr int kDepthSteps = kTileVectors == 4 ? 1 : 4;

// Keys per block: a multiple of 6 and 8 rows, of the 32 columns in which dropout is numbered, and
// of the blocks of a mask.
inline constexpr int kKeyBlock = 192;

// Visible ranges start at multiples of this many keys, which keeps the order of every sum
// independent of the tile that a query falls into.
inline constexpr int kKeyStep = 8;

// Queries per chunk of the gradient of a bias, a multiple of a tile.
inline constexpr int kBiasChunkQueries = 128;

}  // namespace fa2::cpu::FA2_CPU_LEVEL
