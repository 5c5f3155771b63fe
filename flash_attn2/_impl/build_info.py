"""What was built, and what would run here."""

from __future__ import annotations

import platform
from typing import Any

import torch

from flash_attn2._impl import backends, env
from flash_attn2._impl.processor import processor
from flash_attn2._impl.version import __version__


def build_info() -> dict[str, Any]:
    """Versions, and what each native module was built with and for.

    Keys: `version`, `torch`, `python`, `machine`, `processor` (a dict: its `name`, `vendor`,
    `model_name`, `family`, `model`, `stepping`, `generation`, `l1d_bytes`, `l2_bytes`, `l3_bytes`,
    `cores`, `threads` and `avx512`, whose data paths are "whole" or "halves"; None for what is not
    known), `backend` (FLASH_ATTN2_BACKEND), and one per native module, `cpu`, `cuda`,
    `sm80-emulated` and `sm90-emulated`: a dict, or None where it was not built.
    ValueError where an environment variable is wrong.
    """
    info: dict[str, Any] = {
        "version": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": dict(processor()),
        "backend": env.backend(),
    }
    for name in backends.MODULES:
        try:
            info[name] = backends.load(name).module.build_info()
        except backends.NotBuiltError:
            info[name] = None
    return info
