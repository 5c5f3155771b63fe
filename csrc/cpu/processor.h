#pragma once

// How much a thread works on at a time, after the caches of the processor at hand. Sizes that are
// the same on every processor stand in level/tiles.h.

#include <cstdint>

namespace fa2::cpu {

struct Processor {
  int32_t l2_bytes = 0;  // of a core; 0: not reported
  // Whole vectors of 512 bits come from the second-level cache in each cycle (Zen 5), so that data
  // which leave the first one cost little.
  bool wide_l2 = false;
};

// The one that sizes follow: that at hand unless another was set, for every thread from then on.
Processor active_processor();
void set_processor(Processor const& processor);

// Q and O of a chunk of the forward pass, for which a block of K and V is read and packed once.
// Results do not depend on it.
int64_t forward_chunk_bytes(Processor const& processor);

// Queries of a chunk of the backward pass, a multiple of every tile. Gradients of keys are read and
// written once per chunk, so there are more where those of a KV head (`key_sums_bytes`) do not stay
// in the cache. They are sums over chunks: their last bits depend on it.
int32_t backward_chunk_queries(Processor const& processor, int64_t key_sums_bytes);

// Keys of one head after which it is the next head's turn, where heads that lie beside each other
// are decoded together: a power of two. Results do not depend on it.
int32_t decode_turn_keys(Processor const& processor);

}  // namespace fa2::cpu
