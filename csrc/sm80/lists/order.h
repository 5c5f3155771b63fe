#pragma once

// The kernel that places the work of a launch under a block mask (lists/pieces.h): a CTA for each
// unit. Nothing on the host waits for it, and its memory is bounded by the number of entries.
//
// Entries of a hostile mask may be anything. Every item is written once, whatever they are, and
// none is beyond the end; lists that overlap are not cut.

#include "sm80/lists/pieces.h"
#include "sm80/lists/sums.h"

namespace fa2::sm80 {

// `Args_` has work_order(), a WorkOrder, and items(), their memory.
template <class Args_>
struct WorkOrderKernel {
  using Args = Args_;
  static constexpr int kThreads = 256;
  static constexpr int kCtasPerSm = 1;

  struct Smem {
    PairOfSums warp_sums[kThreads / 32];
  };
  static constexpr int kSmemBytes = sizeof(Smem);

  CUTE_DEVICE void operator()(Args const& args, char* smem_bytes) const {
    Smem& smem = *reinterpret_cast<Smem*>(smem_bytes);
    auto const order = args.work_order();
    WorkItem* const items = args.items();
    int32_t const unit = blockIdx.x;

    int32_t const own_mask = unit * order.lists.masks;
    PairOfSums places{0, 0};  // of units before this one, and of all
    for (int32_t m = threadIdx.x; m < order.lists.units * order.lists.masks; m += kThreads) {
      int64_t const count = order.places_of_mask(m);
      places.second += count;
      if (m < own_mask) places.first += count;
    }
    places = cta_sums<kThreads>(places, smem.warp_sums);
    bool const fits = places.second <= order.capacity;
    if (!fits) places = {0, 0};

    bool disordered = false;
    for (int32_t list = threadIdx.x; list < order.lists.lists; list += kThreads) {
      disordered |= !order.in_order(unit, list);
    }
    int64_t own = 0;
    for (int32_t i = 0; fits && i < order.lists.masks; ++i) {
      own += order.places_of_mask(own_mask + i);
    }
    bool const cut = __syncthreads_or(!fits || disordered) == 0;

    auto const put = [&](int64_t place, WorkItem const& item) { items[place] = item; };
    for (int32_t list = threadIdx.x; list < order.lists.lists; list += kThreads) {
      order.place({unit, places.first, own, cut}, list, put);
    }
    for (int64_t i = order.unused_begin(places.second) + unit * kThreads + threadIdx.x;
         i < order.unused_end(); i += order.lists.units * kThreads) {
      put(i, WorkItem{});
    }
  }
};

}  // namespace fa2::sm80
