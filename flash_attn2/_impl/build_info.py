"""What was built, and what would run here."""

from __future__ import annotations

import platform
from typing import Any

import torch

from flash_attn2._impl import backends, env
from flash_attn2._impl.version import __version__


def build_info() -> dict[str, Any]:
    """Versions, and what each native module was built with and for.

    Keys: `version`, `torch`, `python`, `machine`, `backend` (FLASH_ATTN2_BACKEND), and one per
    native module, `cpu`, `cuda` and `sm80-emulated`: a dict, or None where it was not built.
    ValueError where an environment variable is wrong.
    """
    info: dict[str, Any] = {
        "version": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "backend": env.backend(),
    }
    for name in backends.MODULES:
        try:
            info[name] = backends.load(name).module.build_info()
        except backends.NotBuiltError:
            info[name] = None
    return info
