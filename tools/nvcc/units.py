"""What the name of a translation unit, which csrc/instances.cmake gives it, says of its kernels."""

from __future__ import annotations

import re

# Units of small kernels that go through memory once: no tensor cores, and too little shared memory
# to report. And what is there to be counted, not to be fast.
_ROW_KERNELS = (
    *("bwd_rows", "sm90_bwd_rows", "bias_rows"),
    *("combine", "append", "flash1", "standard"),
)

# Variants: the enumerators of csrc/sm80/tiles.h in their order, since kernels' names have numbers.
VARIANTS = ("plain", "modified", "dropout", "codes", "listed", "listeddropout", "latents")
_VARIANT_OF_KERNEL = re.compile(r"7VariantE(\d+)E")  # mangled

# Element types by their names in csrc/instances.cmake, where each has an instance in every unit.
_ELEMENTS = {"bfloat16_t": "bfloat16", "half_t": "float16"}


def has_main_loop(unit: str) -> bool:
    """Whether kernels of a translation unit, or of an instance, have a tensor-core loop."""
    return not unit.startswith(_ROW_KERNELS)


def instance_of(unit: str, kernel: str) -> str:
    """The instance that a kernel, by its demangled name, belongs to; its unit, if that has one."""
    element = next((name for type_, name in _ELEMENTS.items() if type_ in kernel), None)
    return unit if element is None else f"{unit}_{element}"


def any_instance(unit: str) -> str:
    """One of a unit's instances, which are alike but for the element."""
    return f"{unit}_{_ELEMENTS['half_t']}"


def variant_of_unit(unit: str) -> str | None:
    """The variant of a unit's kernels, if they have one."""
    return next((word for word in unit.split("_") if word in VARIANTS), None)


def variant_of_kernel(kernel: str) -> str | None:
    """The same of a kernel, by its mangled name."""
    found = _VARIANT_OF_KERNEL.search(kernel)
    return None if found is None else VARIANTS[int(found[1])]


def shared_variable(unit: str) -> str:
    """The variable of device code that says what launches of a unit's kernels take."""
    return f"shared_bytes_of_{unit}"
