"""An extension of griffe: functions as they are called and described.

Functions take `**unknown` only to name what was probably meant by a keyword that they do not know.
Docstrings are those of `tools/docs/docstrings.py`, where it has one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import griffe


class Signatures(griffe.Extension):  # type: ignore[misc]  # of any class, where mypy runs
    def __init__(self, docstrings: str) -> None:
        self._docstrings: dict[str, str] = json.loads(Path(docstrings).read_text())

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        if "unknown" in func.parameters:
            del func.parameters["unknown"]
        if func.path in self._docstrings:
            func.docstring = griffe.Docstring(self._docstrings[func.path], parent=func)
