"""Which releases of transformers the adapter knows."""

from __future__ import annotations

import importlib.metadata
import warnings

NAME = "flash_attn2"
OLDEST = "5.24"
TESTED = ("5.24",)


def require_known() -> None:
    """ImportError without a transformers that the adapter knows, a warning with an untested one."""
    try:
        found = importlib.metadata.version("transformers")
    except importlib.metadata.PackageNotFoundError:
        raise ImportError(
            f"flash_attn2.integrations.transformers needs transformers {OLDEST} or later, which is "
            "not installed: pip install transformers"
        ) from None
    release = _minor(found)
    if release < _minor(OLDEST):
        raise ImportError(
            f"flash_attn2.integrations.transformers needs transformers {OLDEST} or later, got "
            f"{found}: pip install --upgrade transformers"
        )
    if release not in map(_minor, TESTED):
        warnings.warn(
            f"flash_attn2 is tested with transformers {', '.join(TESTED)}, and this is {found}",
            stacklevel=3,
        )


def _minor(version: str) -> tuple[int, int]:
    major, minor, *_ = version.split(".")
    return int(major), int("".join(c for c in minor if c.isdigit()))
