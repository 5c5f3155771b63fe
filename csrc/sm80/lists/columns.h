#pragma once

// The kernels that derive lists by keys from a block mask, whose own are by queries. Their order is
// that of the queries, whatever runs first; nothing on the host waits for them, and their memory is
// bounded by the number of entries.
//
// Entries of a hostile mask may be anything. What these kernels hand on is right in itself: each
// block of queries that a key block lists will be worked on, so that nobody waits in vain.

#include <cute/config.hpp>

#include "sm80/backward/args.h"
#include "sm80/lists/sums.h"
#include "tile/intrinsics.h"

namespace fa2::sm80 {

// How far a block of queries has a list in order: a warp for each.
struct MaskRowsKernel {
  using Args = BwdArgs;
  static constexpr int kThreads = 32 * kMaskRowsPerCta;
  static constexpr int kCtasPerSm = 1;
  static constexpr int kSmemBytes = 0;

  CUTE_DEVICE void operator()(BwdArgs const& args, char*) const {
    FwdParams const& p = args.problem.forward;
    MaskColumns const& columns = args.workspace.columns;
    int const lane = threadIdx.x % 32;
    int64_t const index = int64_t(blockIdx.x) * kMaskRowsPerCta + threadIdx.x / 32;
    if (index >= int64_t(columns.masks) * columns.rows) return;
    int32_t const mask = int32_t(index / columns.rows), row = int32_t(index % columns.rows);
    int32_t const heads = p.block_mask.heads;
    ListedEntries entries = row_entries(p, mask / heads, mask % heads, row);
    int32_t last = -1;
    for (int64_t first = entries.begin; first < entries.end; first += 32) {
      bool const exists = first + lane < entries.end;
      int32_t const col = exists ? p.block_mask.cols[first + lane] : columns.key_blocks;
      int32_t before = __shfl_up_sync(0xffffffffu, col, 1);
      if (lane == 0) before = last;
      uint32_t const wrong =
          __ballot_sync(0xffffffffu, exists && (col <= before || col >= columns.key_blocks));
      if (wrong != 0) {
        entries.end = first + __ffs(int(wrong)) - 1;
        break;
      }
      last = __shfl_sync(0xffffffffu, col, 31);
    }
    if (lane == 0) columns.by_row[index] = entries;
  }
};

// The lists of a group of columns: a CTA for each. Counts what they hold, or fills them in when all
// has been counted.
template <bool kFill>
struct MaskColumnsKernel {
  using Args = BwdArgs;
  static constexpr int kThreads = 256;
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kCtasPerSm = 1;
  static constexpr int kGroup = MaskColumns::kGroup;

  struct Smem {
    int64_t place[kGroup];  // of the next entry of each column, at the bit of its first block
    int32_t found[kWarps][kGroup];  // by each warp in its rows of a batch
    PairOfSums warp_sums[kWarps];
  };
  static constexpr int kSmemBytes = sizeof(Smem);

  // What a row lists of the group: bits of key blocks, of which the first is that entry.
  struct Listed {
    uint64_t blocks;
    int64_t entry;
    int64_t end;  // of the row
  };

  CUTE_DEVICE void operator()(BwdArgs const& args, char* smem_bytes) const {
    Smem& smem = *reinterpret_cast<Smem*>(smem_bytes);
    BlockMask const& block_mask = args.problem.forward.block_mask;
    MaskColumns const& columns = args.workspace.columns;
    int32_t const mask = blockIdx.x / columns.groups, group = blockIdx.x % columns.groups;
    int const thread = threadIdx.x, warp = thread / 32;

    if constexpr (kFill) {
      if (!place_lists(columns, mask, group, smem)) return;
    } else {
      if (thread < kGroup) smem.place[thread] = 0;
    }
    for (int i = thread; i < kWarps * kGroup; i += kThreads) smem.found[i / kGroup][i % kGroup] = 0;
    __syncthreads();

    for (int32_t first = 0; first < columns.rows; first += kThreads) {
      int32_t const row = first + thread;
      Listed listed = {};
      if (row < columns.rows) {
        listed =
            find(block_mask, columns.by_row[int64_t(mask) * columns.rows + row], group * kGroup);
      }
      uint64_t const seen = packed(listed.blocks, columns.pack);
      for_each(seen, [&](int bit, uint32_t lanes) {
        if (thread % 32 == 0) smem.found[warp][bit] = __popc(lanes);
      });
      __syncthreads();
      if constexpr (kFill) {
        for_each(seen, [&](int bit, uint32_t lanes) {
          if ((seen >> bit & 1) == 0) return;
          int64_t place = smem.place[bit] + __popc(lanes & ((1u << thread % 32) - 1));
          for (int w = 0; w < warp; ++w) place += smem.found[w][bit];
          columns.entries[place] = queries_of(args, group, row, listed, bit);
        });
        __syncthreads();
      }
      if (thread < kGroup) {
        for (int w = 0; w < kWarps; ++w) {
          smem.place[thread] += smem.found[w][thread];
          smem.found[w][thread] = 0;
        }
      }
      __syncthreads();
    }
    if constexpr (!kFill) store_counts(columns, mask, group, smem);
  }

 private:
  CUTE_DEVICE static int popcount(uint64_t bits) {
    return __popc(uint32_t(bits)) + __popc(uint32_t(bits >> 32));
  }

  // The first blocks of the columns that hold some.
  CUTE_DEVICE static uint64_t packed(uint64_t blocks, int pack) {
    constexpr uint64_t kEven = 0x5555555555555555;
    return pack == 1 ? blocks : (blocks | blocks >> 1) & kEven;
  }

  // What the column whose first block is that bit lists of a row.
  CUTE_DEVICE static ListedQueries queries_of(BwdArgs const& args, int32_t group, int32_t row,
                                              Listed const& listed, int bit) {
    BlockMask const& mask = args.problem.forward.block_mask;
    int const pack = args.workspace.columns.pack;
    int32_t const seqlen_k = args.problem.forward.seqs_k.max_seqlen;
    ListedQueries queries = {row, 0, {kUnlisted, kUnlisted}};
    int64_t entry = listed.entry + popcount(listed.blocks & ((uint64_t(1) << bit) - 1));
    CUTE_UNROLL
    for (int i = 0; i < 2; ++i) {
      if (i >= pack || (listed.blocks >> (bit + i) & 1) == 0) continue;
      int32_t const end = (group * kGroup + bit + i + 1) * BlockMask::kBlock;
      queries.tile[i] = listed_tile(mask, entry);
      bool const simple = !args.is_modified && end <= seqlen_k;
      if (queries.tile[i] == 0 && !simple) queries.tile[i] = kAllVisible;
      queries.later = int32_t(listed.end - 1 - entry);
      ++entry;
    }
    return queries;
  }

  // Of entries that ascend, those of key blocks [first, first + kGroup).
  CUTE_DEVICE static Listed find(BlockMask const& mask, ListedEntries const& row, int32_t first) {
    int64_t low = row.begin, high = row.end;
    while (low < high) {
      int64_t const middle = low + (high - low) / 2;
      if (mask.cols[middle] < first) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    Listed listed{0, low, row.end};
    for (int64_t entry = low; entry < row.end; ++entry) {
      int32_t const col = mask.cols[entry] - first;
      if (col >= kGroup) break;
      listed.blocks |= uint64_t(1) << col;
    }
    return listed;
  }

  // Calls step(bit, lanes) for the bits that some lane of a warp has.
  template <class Step>
  CUTE_DEVICE static void for_each(uint64_t blocks, Step const& step) {
    uint32_t any[2] = {uint32_t(blocks), uint32_t(blocks >> 32)};
    for (int half = 0; half < 2; ++half) {
      for (int distance = 1; distance < 32; distance *= 2) {
        any[half] |= __shfl_xor_sync(0xffffffffu, any[half], distance);
      }
      for (uint32_t left = any[half]; left != 0; left &= left - 1) {
        int const bit = half * 32 + __ffs(int(left)) - 1;
        step(bit, __ballot_sync(0xffffffffu, int(blocks >> bit & 1)));
      }
    }
  }

  // Whether a bit of the group is the first block of a column, and which one of all.
  CUTE_DEVICE static bool is_column(MaskColumns const& columns, int32_t group, int bit) {
    return bit < kGroup && bit % columns.pack == 0 && group * kGroup + bit < columns.key_blocks;
  }
  CUTE_DEVICE static int64_t column(MaskColumns const& columns, int32_t mask, int32_t group,
                                    int bit) {
    return int64_t(mask) * columns.cols + (group * kGroup + bit) / columns.pack;
  }

  CUTE_DEVICE static void store_counts(MaskColumns const& columns, int32_t mask, int32_t group,
                                       Smem const& smem) {
    int const bit = threadIdx.x;
    if (is_column(columns, group, bit)) {
      columns.counts[column(columns, mask, group, bit)] = int32_t(smem.place[bit]);
    }
    if (threadIdx.x == 0) {
      int64_t sum = 0;
      for (int i = 0; i < kGroup; ++i) sum += smem.place[i];
      columns.sums[int64_t(mask) * columns.groups + group] = sum;
    }
  }

  // Where the lists of the group go. False, and all lists are empty, where rows share entries, so
  // that there are more than there is room for.
  CUTE_DEVICE static bool place_lists(MaskColumns const& columns, int32_t mask, int32_t group,
                                      Smem& smem) {
    int const thread = threadIdx.x;
    int64_t const own = int64_t(mask) * columns.groups + group;
    PairOfSums entries{0, 0};  // of groups before this one, and of all
    for (int64_t i = thread; i < int64_t(columns.masks) * columns.groups; i += kThreads) {
      int64_t const sum = columns.sums[i];
      entries.second += sum;
      if (i < own) entries.first += sum;
    }
    entries = cta_sums<kThreads>(entries, smem.warp_sums);
    int64_t place = entries.first;
    bool const fits = entries.second <= columns.capacity;
    if (is_column(columns, group, thread)) {
      int64_t const own_column = column(columns, mask, group, thread);
      for (int64_t i = column(columns, mask, group, 0); i < own_column; ++i) {
        place += columns.counts[i];
      }
      smem.place[thread] = place;
      columns.by_col[own_column] =
          fits ? ListedEntries{place, place + columns.counts[own_column]} : ListedEntries{0, 0};
    }
    return fits;
  }
};

}  // namespace fa2::sm80
