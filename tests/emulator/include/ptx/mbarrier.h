#pragma once

// mbarriers and the bulk copies that they count. Shared memory is addressed by offset.

#include "ptx/memory.h"
#include "ptx/module.h"

namespace emu::ptx {

void mbarrier_init(Site const* site, u64 mbarrier, u32 arrivals);
void mbarrier_invalidate(Site const* site, u64 mbarrier);
void mbarrier_expect(Site const* site, u64 mbarrier, u32 bytes);
// The state: which phase it was.
u64 mbarrier_arrive(Site const* site, u64 mbarrier, u32 count, u32 bytes, bool releases,
                    bool drops);
bool mbarrier_test_state(Site const* site, u64 mbarrier, u64 state, bool acquires);
bool mbarrier_test_parity(Site const* site, u64 mbarrier, u32 parity, bool acquires);

// mapa: the address of the same place in the shared memory of a CTA of the cluster.
u32 map_address(Site const* site, u32 address, u32 cta);

// cp.async.bulk
void bulk_load(Site const* site, u64 to, u64 from, u32 bytes, u64 mbarrier);
void bulk_store(Site const* site, u64 to, u64 from, u32 bytes);
void bulk_add(Site const* site, AtomicType type, u64 to, u64 from, u32 bytes);
// Of a box of a tensor: where its map lies, and the coordinates of its first element.
struct TensorBox {
  u64 map;
  int rank;
  s32 first[5];
};
void bulk_load_box(Site const* site, u64 to, TensorBox const& from, u64 mbarrier);
void bulk_store_box(Site const* site, TensorBox const& to, u64 from);
void bulk_add_box(Site const* site, TensorBox const& to, u64 from);
void bulk_store_commit();
void bulk_store_wait(u32 pending);
void bulk_store_wait_read(u32 pending);

// fence.proxy.async and fence.mbarrier_init
void fence_proxy_async();
void fence_mbarrier_init();

}  // namespace emu::ptx
