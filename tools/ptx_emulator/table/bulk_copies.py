"""``cp.async.bulk`` between global and shared memory, and the fence of its proxy."""

from __future__ import annotations

from tools.ptx_emulator.table.forms import form

# A hint for the L2 cache changes nothing.
for hint, operand in (("", ""), (".L2::cache_hint", " u64")):
    # A cluster is one CTA: an address in its shared memory is one in the CTA's.
    form(
        f"cp.async.bulk.<to:shared|shared::cluster>.global.mbarrier::complete_tx::bytes{hint}",
        f"= address address u32 address{operand}",
        "bulk_load({site}, {a}, {b}, {c}, {d})",
    )
    form(
        f"cp.async.bulk.global.shared.bulk_group{hint}",
        f"= address address u32{operand}",
        "bulk_store({site}, {a}, {b}, {c})",
    )

form("cp.async.bulk.commit_group", "=", "bulk_store_commit()")
form("cp.async.bulk.wait_group", "= u32", "bulk_store_wait({a})")
form("cp.async.bulk.wait_group.read", "= u32", "bulk_store_wait_read({a})")

form("fence.proxy.async", "=", "fence_proxy_async()")
form("fence.proxy.async.<space:shared|shared::cluster>", "=", "fence_proxy_async()")
