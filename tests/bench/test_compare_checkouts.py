"""Two checkouts in turns: here the same one twice."""

from __future__ import annotations

import json
from pathlib import Path

import compare_checkouts
import cpu_rows
import pytest

ROOT = Path(__file__).parents[2]


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        compare_checkouts.main([str(ROOT), str(ROOT), "--rows", "nothing"])
    assert "matches no row" in capsys.readouterr().err
    path = tmp_path / "new" / "checkouts.json"
    options = ["--rows", "tiny.*fp32", "--seconds", "0.01", "--output", str(path)]
    assert compare_checkouts.main([str(ROOT), str(ROOT), *options]) == 0
    record = json.loads(path.read_text())
    assert record["complete"]
    assert [outcome["threads"] for outcome in record["results"]] == list(cpu_rows.THREADS)
    for outcome in record["results"]:
        assert outcome["times_as_fast"] > 0
        assert outcome["tries"][0]["samples"].keys() == {"before", "after"}
    assert f"geometric mean of {len(cpu_rows.THREADS)}" in capsys.readouterr().out
