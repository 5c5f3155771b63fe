"""What a source distribution holds, and what the extras bring."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def grafted() -> list[str]:
    lines = (ROOT / "MANIFEST.in").read_text().splitlines()
    return [line.split()[1] for line in lines if line.startswith("graft ")]


def test_source_distributions_hold_what_users_read() -> None:
    assert {"csrc", "cmake", "docs", "examples", "third_party/licenses"} <= set(grafted())


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib came with Python 3.11")
def test_extras_bring_what_is_imported() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert {"bench", "examples", "test"} <= set(extras)
    ours = {path.stem for path in (ROOT / "examples").glob("*.py")} | {"flash_attn2", "torch"}
    imported: set[str] = set()
    for path in (ROOT / "examples").glob("*.py"):
        pattern = r"^\s*(?:from|import) (\w+)"
        imported |= set(re.findall(pattern, path.read_text(), re.MULTILINE))
    missing = imported - ours - set(sys.stdlib_module_names) - set(extras["examples"])
    assert not missing
