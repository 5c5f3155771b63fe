"""``cp.async.bulk`` between global and shared memory, of ranges and of boxes of tensors."""

from __future__ import annotations

from tools.ptx_emulator.table.forms import form

# What is added to global memory, element for element. Halves keep their subnormal numbers.
_ADDITIONS = {f".add.{kind}": kind for kind in ("u32", "s32", "u64", "f32", "f64")}
_ADDITIONS |= {f".add.noftz.{kind}": kind for kind in ("f16", "bf16")}

_RANKS = range(1, 6)
# A cluster is one CTA: an address in its shared memory is one in the CTA's.
_LOADED = "<to:shared|shared::cluster>.global"
_STORED = "global.shared"

# A hint for the L2 cache changes nothing.
for hint, operand in (("", ""), (".L2::cache_hint", " u64")):
    form(
        f"cp.async.bulk.{_LOADED}.mbarrier::complete_tx::bytes{hint}",
        f"= address address u32 address{operand}",
        "bulk_load({site}, {a}, {b}, {c}, {d})",
    )
    form(
        f"cp.async.bulk.{_STORED}.bulk_group{hint}",
        f"= address address u32{operand}",
        "bulk_store({site}, {a}, {b}, {c})",
    )
    for addition, kind in _ADDITIONS.items():
        form(
            f"cp.reduce.async.bulk.{_STORED}.bulk_group{hint}{addition}",
            f"= address address u32{operand}",
            f"bulk_add({{site}}, AtomicType::k{kind.capitalize()}, {{a}}, {{b}}, {{c}})",
        )

    for rank in _RANKS:
        form(
            f"cp.async.bulk.tensor.{rank}d.{_LOADED}[.tile].mbarrier::complete_tx::bytes{hint}",
            f"= address box{rank} address{operand}",
            "bulk_load_box({site}, {a}, {b}, {c})",
        )
        form(
            f"cp.async.bulk.tensor.{rank}d.{_STORED}[.tile].bulk_group{hint}",
            f"= box{rank} address{operand}",
            "bulk_store_box({site}, {a}, {b})",
        )
        form(
            f"cp.reduce.async.bulk.tensor.{rank}d.{_STORED}.add[.tile].bulk_group{hint}",
            f"= box{rank} address{operand}",
            "bulk_add_box({site}, {a}, {b})",
        )

form("cp.async.bulk.commit_group", "=", "bulk_store_commit()")
form("cp.async.bulk.wait_group", "= u32", "bulk_store_wait({a})")
form("cp.async.bulk.wait_group.read", "= u32", "bulk_store_wait_read({a})")

form("fence.proxy.async", "=", "fence_proxy_async()")
form("fence.proxy.async.<space:shared|shared::cluster>", "=", "fence_proxy_async()")
