"""Programs that import `flash_attn` run on flash_attn2: `install()`, before they are imported.

    import flash_attn2.compat
    flash_attn2.compat.install()

    from flash_attn import flash_attn_func  # of flash_attn2

Nothing is written to disk. A finder stands behind those of Python, so that a flash-attn that is
really installed is what is imported; it answers for the modules of flash-attn 2.8 and of
FlashAttention-3 that are listed in `OFFERED`, and for the metadata of the distributions, which some
programs ask. What it does not offer raises an ImportError that says what to use instead.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings

from flash_attn2.compat.finder import Finder, is_ours
from flash_attn2.compat.names import OFFERED, TOP_LEVEL

__all__ = ["OFFERED", "install", "uninstall"]

_finder = Finder()
_said: set[str] = set()  # of which installed packages it was said that they stay


def install() -> None:
    """From now on `flash_attn`, `flash_attn_interface` and `flash_attn_3` can be imported.

    Once is enough, again changes nothing. Where one of them is installed it stays what it is, and a
    UserWarning says so, once. Programs that asked before what is installed may remember it: install
    first.
    """
    real = frozenset(name for name in TOP_LEVEL if _is_installed(name))
    for name in sorted(real - _said):
        _said.add(name)
        warnings.warn(
            f"{name} is installed: it is what programs import, not flash_attn2.compat",
            UserWarning,
            stacklevel=2,
        )
    _finder.hidden = real
    if _finder not in sys.meta_path:
        sys.meta_path.append(_finder)
        importlib.invalidate_caches()


def uninstall() -> None:
    """Undoes `install`: the modules are gone. Who has imported something keeps it.

    What is in `torch.ops.flash_attn` stays, since torch forgets no ops.
    """
    if _finder in sys.meta_path:
        sys.meta_path.remove(_finder)
    for name, module in list(sys.modules.items()):
        if is_ours(module):
            del sys.modules[name]


def _is_installed(name: str) -> bool:
    """Whether somebody else has it."""
    if name in sys.modules:
        return not is_ours(sys.modules[name])
    spec = importlib.util.find_spec(name)
    return spec is not None and not isinstance(spec.loader, type(_finder.loader))
