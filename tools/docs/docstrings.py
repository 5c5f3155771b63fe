"""Docstrings as Python has them: some are completed when the package is imported.

The site's environment has no torch, so that it cannot import the package: it reads sources, and for
the functions of the package this file (`tools/docs/signatures.py`).
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import flash_attn2


def docstrings() -> dict[str, str]:
    """Of the package's public functions, by the names under which they are defined."""
    found = {}
    for name in flash_attn2.__all__:
        function = getattr(flash_attn2, name)
        if inspect.isfunction(function):
            path = f"{function.__module__}.{function.__qualname__}"
            found[path] = inspect.getdoc(function) or ""
    return found


def write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(docstrings(), indent=1))
