"""mbarriers: objects in shared memory at which threads arrive, and bytes of bulk copies."""

from __future__ import annotations

from tools.ptx_emulator.table.forms import form

# A cluster is one CTA, whose shared memory is that of the cluster.
_SPACE = "<space:shared|shared::cluster>"
# Whether what comes before is handed over.
_ARRIVALS = {"": True, ".release.cta": True, ".release.cluster": True}
_ARRIVALS |= {".relaxed.cta": False, ".relaxed.cluster": False}
# Whether what others have handed over is taken over.
_WAITS = {"": True, ".acquire.cta": True, ".acquire.cluster": True}
_WAITS |= {".relaxed.cta": False, ".relaxed.cluster": False}


def _cpp(value: bool) -> str:
    return "true" if value else "false"


form("mbarrier.init.shared.b64", "= address u32", "mbarrier_init({site}, {a}, {b})")
form("mbarrier.inval.shared.b64", "= address", "mbarrier_invalidate({site}, {a})")
form(
    f"mbarrier.expect_tx[.relaxed][.cta][.cluster].{_SPACE}.b64",
    "= address u32",
    "mbarrier_expect({site}, {a}, {b})",
)

for how, drops in (("arrive", False), ("arrive_drop", True)):
    for order, releases in _ARRIVALS.items():
        flags = f"{_cpp(releases)}, {_cpp(drops)}"
        plain, with_bytes = (
            f"mbarrier.{how}{order}.{_SPACE}.b64",
            f"mbarrier.{how}.expect_tx{order}.{_SPACE}.b64",
        )
        form(plain, "u64 = address", f"mbarrier_arrive({{site}}, {{a}}, 1u, 0u, {flags})")
        form(plain, "u64 = address u32", f"mbarrier_arrive({{site}}, {{a}}, {{b}}, 0u, {flags})")
        form(
            with_bytes,
            "u64 = address u32",
            f"mbarrier_arrive({{site}}, {{a}}, 1u, {{b}}, {flags})",
        )

for which, hints in (("test_wait", ("",)), ("try_wait", ("", " u32"))):
    for order, acquires in _WAITS.items():
        for hint in hints:  # how long to wait: as long as it takes
            form(
                f"mbarrier.{which}{order}.shared.b64",
                f"pred = address u64{hint}",
                f"mbarrier_test_state({{site}}, {{a}}, {{b}}, {_cpp(acquires)})",
            )
            form(
                f"mbarrier.{which}.parity{order}.shared.b64",
                f"pred = address u32{hint}",
                f"mbarrier_test_parity({{site}}, {{a}}, {{b}}, {_cpp(acquires)})",
            )

form("mapa.shared::cluster.u32", "u32 = u32 u32", "map_address({site}, {a}, {b})")

form("fence.mbarrier_init.release.cluster", "=", "fence_mbarrier_init()")
