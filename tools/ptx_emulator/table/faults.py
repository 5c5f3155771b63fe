"""An instruction of our own: whether a fault is the chosen one (``emu/faults.h``)."""

from __future__ import annotations

from tools.ptx_emulator.table.forms import form

form("emu.fault", "pred = u32", "emu::is_chosen_fault({a})")
