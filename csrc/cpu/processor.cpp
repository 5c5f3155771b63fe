#include "cpu/processor.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace fa2::cpu {

namespace {

// What is assumed of a processor that says nothing, and the most that is believed: virtual machines
// make sizes up.
constexpr int32_t kUnknownL2 = 512 << 10;
constexpr int32_t kMostL2 = 2 << 20;

// Of cores whose vectors are 256 bits wide (Zen 3).
constexpr int32_t kSmallL2 = 512 << 10;

int32_t l2_of(Processor const& processor) {
  return processor.l2_bytes <= 0 ? kUnknownL2 : std::min(processor.l2_bytes, kMostL2);
}

int32_t read_l2_bytes() {
#if defined(_SC_LEVEL2_CACHE_SIZE)
  return static_cast<int32_t>(std::clamp<long>(sysconf(_SC_LEVEL2_CACHE_SIZE), 0, INT32_MAX));
#else
  return 0;
#endif
}

// AMD says how wide its data paths are: bit 3 of this leaf is 512 bits, which Zen 5 has (but for
// its mobile form) and Zen 4 has not.
bool has_wide_l2() {
#if defined(__x86_64__)
  constexpr unsigned kPerformanceHints = 0x8000001a;
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  __builtin_cpu_init();
  return __builtin_cpu_is("amd") && __get_cpuid(kPerformanceHints, &eax, &ebx, &ecx, &edx) != 0 &&
         (eax & 8) != 0;
#else
  return false;
#endif
}

std::atomic<Processor>& active() {
  static std::atomic<Processor> processor{Processor{read_l2_bytes(), has_wide_l2()}};
  return processor;
}

}  // namespace

Processor active_processor() { return active(); }

void set_processor(Processor const& processor) { active() = processor; }

// Packing a block, whose rows come from memory or are a page apart each, costs more than bringing Q
// and O of a tile from the third-level cache. So a small second one (Zen 3) does not bound a chunk.
int64_t forward_chunk_bytes(Processor const& processor) {
  int64_t const l2_bytes = l2_of(processor);
  if (processor.wide_l2) return l2_bytes / 4;
  return l2_bytes <= kSmallL2 ? l2_bytes * 2 : l2_bytes * 3 / 4;
}

int32_t backward_chunk_queries(Processor const& processor, int64_t key_sums_bytes) {
  int64_t const l2_bytes = l2_of(processor);
  if (processor.wide_l2 || key_sums_bytes <= l2_bytes / 4) return 128;
  return key_sums_bytes <= l2_bytes ? 256 : 512;
}

// Rows that are fetched ahead wait in the second-level cache for as long as a turn of all heads. A
// large one (Emerald Rapids) has room for them, and long turns save loads; at 1 MiB (Zen 5) short
// turns were faster. Where it is small, vectors are narrow and loads what is waited for (Zen 3).
int32_t decode_turn_keys(Processor const& processor) {
  constexpr int32_t kLargeL2 = 2 << 20;
  int32_t const l2_bytes = l2_of(processor);
  return l2_bytes >= kLargeL2 || l2_bytes <= kSmallL2 ? 16 : 4;
}

}  // namespace fa2::cpu
