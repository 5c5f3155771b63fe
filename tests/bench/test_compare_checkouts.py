"""Two checkouts in turns: here the same one twice."""

from __future__ import annotations

import json
from pathlib import Path

import compare_checkouts
import cpu_rows
import own_runs
import peer_rows
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


def test_every_row_can_be_compared() -> None:
    names = [row.name for row in own_runs.rows()]
    assert len(set(names)) == len(names)
    assert {"peers", "forward", "training", "avx2"} <= {row.section for row in own_runs.rows()}


@pytest.mark.parametrize("row", peer_rows.rows(quick=True)[::5], ids=lambda row: row.name)
def test_rows_beside_peers_run_alone(row: peer_rows.PeerRow) -> None:
    prepared = own_runs.prepare(row)
    with prepared.mode:
        out = prepared.run()
    assert out.dtype == row.case.torch_dtype
    assert out.isfinite().all()
