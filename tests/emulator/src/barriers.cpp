// Barriers of a CTA: __syncthreads, bar.sync, bar.arrive. Warps arrive as a whole.

#include <algorithm>
#include <cstring>

#include "collectives.h"
#include "operations.h"

namespace emu {

namespace {

void open_barrier(Barrier& barrier, int threads) {
  barrier.threads = threads;
  barrier.arrived = 0;
  barrier.waiting_warps = barrier.arrived_warps = 0;
  std::memset(barrier.known, 0, sizeof(barrier.known));
  barrier.foreign.clear();
  barrier.any = 0;
  barrier.all = 1;
  barrier.count = 0;
}

// What the warp knows, and all that it has done so far.
void contribute_knowledge(Barrier& barrier, Warp& warp) {
  order_lanes(warp);
  warp.known[warp.index] = warp.tick;
  for (int w = 0; w < warp.cta->num_warps; ++w) {
    barrier.known[w] = std::max(barrier.known[w], warp.known[w]);
  }
  barrier.foreign.merge(warp.foreign);
}

void complete_barrier(Barrier& barrier, Cta& cta, Reduction reduction) {
  ++totals.barriers;
  int const result = reduction == Reduction::kOr    ? barrier.any
                     : reduction == Reduction::kAnd ? barrier.all
                                                    : barrier.count;
  for (int w = 0; w < cta.num_warps; ++w) {
    if (!(barrier.waiting_warps >> w & 1)) continue;
    Warp& warp = cta.warps[w];
    for (int u = 0; u < cta.num_warps; ++u) {
      warp.known[u] = std::max(warp.known[u], barrier.known[u]);
    }
    warp.foreign.merge(barrier.foreign);
    warp.barrier_result = result;
    set_runnable(warp, warp.exists);
    shuffle_lane_order(warp);
  }
  barrier.threads = 0;
}

enum class Arrival { kAndGoOn, kAndWait };

// True where the barrier is complete.
bool arrive(Warp& warp, int id, int threads, Arrival arrival, Reduction reduction,
            void const* site) {
  Cta& cta = *warp.cta;
  Barrier& barrier = cta.barriers[id];
  if (barrier.threads == 0) open_barrier(barrier, threads);
  if (barrier.threads != threads) {
    fail(site, "barrier %d for %d threads, while others wait there for %d", id, threads,
         barrier.threads);
  }
  if (barrier.arrived_warps >> warp.index & 1) {
    fail(site, "warp %d arrives twice at barrier %d", warp.index, id);
  }
  barrier.arrived_warps |= 1u << warp.index;
  if (arrival == Arrival::kAndWait) barrier.waiting_warps |= 1u << warp.index;
  barrier.arrived += kWarpSize;
  for (int l = 0; l < kWarpSize; ++l) {
    if (!(warp.exists >> l & 1)) continue;
    bool const predicate = warp.vote.predicate[l];
    barrier.any |= predicate;
    barrier.all &= predicate;
    barrier.count += predicate;
  }
  contribute_knowledge(barrier, warp);
  if (barrier.arrived < barrier.threads) return false;
  complete_barrier(barrier, cta, reduction);
  return true;
}

// The thread count of a barrier, whole warps.
int check(int id, int threads, void const* site) {
  int const whole_cta = current_cta().num_warps * kWarpSize;
  if (id < 0 || id >= kMaxBarriers) fail(site, "barrier %d does not exist", id);
  if (threads == kWholeCta) return whole_cta;
  if (threads < 0 || threads % kWarpSize != 0 || threads > whole_cta) {
    fail(site, "barrier %d for %d threads in a CTA of %d", id, threads, whole_cta);
  }
  return threads;
}

uint32_t detail_of(int id, int threads, Arrival arrival) {
  return uint32_t(arrival) << 31 | uint32_t(id) << 16 | uint32_t(threads);
}

}  // namespace

int barrier_sync(void const* site, int id, int threads, bool predicate, Reduction reduction) {
  threads = check(id, threads, site);
  Warp& warp = current_warp();
  warp.vote.predicate[current->lane] = predicate;
  bool complete = false;
  converge(Operation::kBarrier, detail_of(id, threads, Arrival::kAndWait), warp.exists,
           {site, true}, [=, &complete](Warp& warp) {
             complete = arrive(warp, id, threads, Arrival::kAndWait, reduction, site);
             return complete;
           });
  if (complete) give_way();  // else the last to arrive would always be the first to leave
  return warp.barrier_result;
}

void barrier_arrive(void const* site, int id, int threads) {
  threads = check(id, threads, site);
  Warp& warp = current_warp();
  warp.vote.predicate[current->lane] = false;
  converge(Operation::kBarrier, detail_of(id, threads, Arrival::kAndGoOn), warp.exists,
           {site, true}, [=](Warp& warp) {
             arrive(warp, id, threads, Arrival::kAndGoOn, Reduction::kNone, site);
             return true;
           });
}

}  // namespace emu
