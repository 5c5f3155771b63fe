"""The table of PTX's instructions."""

from tools.ptx_emulator.table import (  # noqa: F401 - they fill the table
    arithmetic,
    bits,
    bulk_copies,
    comparisons,
    control,
    conversions,
    faults,
    floats,
    halves,
    mbarriers,
    memory,
    tensor_core,
    warp,
    wgmma,
)
from tools.ptx_emulator.table.forms import translate
from tools.ptx_emulator.table.special import SPECIAL_REGISTERS

__all__ = ["SPECIAL_REGISTERS", "translate"]
