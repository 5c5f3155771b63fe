"""What the name of a translation unit, which csrc/instances.cmake gives it, says of its kernels."""

from __future__ import annotations

# Units of small kernels that go through memory once: no tensor cores, and too little shared memory
# to report.
_ROW_KERNELS = ("bwd_rows_", "combine_", "append_")


def has_main_loop(instance: str) -> bool:
    """Whether the kernels of this translation unit are built around a tensor-core loop."""
    return not instance.startswith(_ROW_KERNELS)
