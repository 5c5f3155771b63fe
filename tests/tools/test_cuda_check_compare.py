"""tools/cuda_check/compare: what counts as worse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tools.cuda_check.compare import main


def report(path: Path, **changes: Any) -> str:
    values = {"per_mma": 2.5, "local": 0, "registers": 128, "stack": 0, "name": "a::entry<b::K>"}
    values |= changes
    kernel = {
        "arch": "80",
        "name": f"void {values['name']}(a::Args)",
        "main_loops": [
            {"instructions_per_mma": values["per_mma"], "local_accesses": values["local"]}
        ],
        "resources": {"registers": values["registers"], "stack_bytes": values["stack"]},
    }
    path.write_text(json.dumps({"kernels": [kernel]}))
    return str(path)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, 0),
        ({"name": "elsewhere::entry<other::K>"}, 0),
        ({"per_mma": 2.52}, 0),
        ({"per_mma": 2.53}, 1),
        ({"per_mma": 2.0, "registers": 255}, 0),
        ({"local": 1}, 1),
        ({"stack": 8}, 1),
        ({"name": "a::entry<b::Another>"}, 1),
    ],
    ids=str,
)
def test_status(changes: dict[str, Any], status: int, tmp_path: Path) -> None:
    before, after = report(tmp_path / "a.json"), report(tmp_path / "b.json", **changes)
    assert main([before, after]) == status


def test_allowance(tmp_path: Path) -> None:
    before, after = report(tmp_path / "a.json"), report(tmp_path / "b.json", per_mma=2.6)
    assert main([before, after]) == 1
    assert main([before, after, "--allowed", "5"]) == 0
