"""What the ranks of `test_train_long` run."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

EXAMPLES = str(Path(__file__).parents[2] / "examples")


def trained(group: Any, options: str) -> dict[str, Any]:
    if EXAMPLES not in sys.path:
        sys.path.insert(0, EXAMPLES)
    results: dict[str, Any] = importlib.import_module("train_long").main(options.split(), group)
    return results
