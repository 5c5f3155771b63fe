"""The script of the limits: its rows, what reading memory is, and what it makes of shares."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import cpu_peak
import limit_rows
import limits
import pytest
import torch
from cpu_rows import HELD_TO_AVX2, PEAK, SDPA, Goal, Row
from limit_rows import READING, DecodeRow

from flash_attn2 import build_info
from flash_attn2.bench import runner
from flash_attn2.bench.decode import contenders as decode_contenders
from flash_attn2.bench.decode.cases import DecodeCase
from flash_attn2.bench.race import FLASH_ATTN2
from flash_attn2.bench.timing import Budget

BUDGET = Budget(0.0, min_rounds=2, max_rounds=2)
DECODE = DecodeCase("few", "", "bfloat16", 2, 48, 4, 2, 32, 16)
needs_compiler = pytest.mark.skipif(
    not shutil.which(os.environ.get("CXX", "c++")), reason="no C++ compiler"
)


@pytest.fixture(autouse=True)
def _few_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_contenders, "_COLD", {"cpu": 2**16})
    monkeypatch.setattr(limits, "_READ_BYTES", 2**16)


@pytest.mark.parametrize("quick", [False, True])
def test_rows(quick: bool) -> None:
    rows = limit_rows.rows(quick)
    assert len({row.name for row in rows}) == len(rows)
    assert {name for row in rows for name in row.goals} == {PEAK, SDPA, READING}
    assert {row.case.dtype for row in rows} == {"float32", "bfloat16"}
    assert limits.Limits(rows, BUDGET).environment(limit_rows.AVX2_SECTION) == HELD_TO_AVX2


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_all_of_the_memory_is_read(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        floats = cpu_peak.reading(2**22)()
    finally:
        torch.set_num_threads(before)
    assert 0 <= 2**20 - floats < threads * 256 / 4


@needs_compiler
def test_decoding_is_beside_reading() -> None:
    row = DecodeRow("title", DECODE, {READING: Goal(0.8)}, threads=(1,))
    outcome = limits.Limits([row], BUDGET).measure(row)
    ours, read = (outcome["contenders"][name]["1"] for name in (FLASH_ATTN2, READING))
    assert outcome["goals"][0]["figures"]["1"]["value"] == pytest.approx(
        ours["bytes_per_second"] / read["bytes_per_second"]
    )
    assert ours["bytes_per_second"] * ours["seconds"] == pytest.approx(DECODE.kv_bytes)


@pytest.mark.skipif(
    "x86-64-v3" not in build_info()["cpu"]["isa_levels"], reason="the machine has no AVX2"
)
def test_avx2_is_held_in_a_process_of_its_own() -> None:
    (row,) = (
        row
        for row in limit_rows.rows(quick=True)
        if "AVX2 fwd fp32" in row.title and row.case.head_dim == 64
    )
    assert isinstance(row, Row)
    (outcome,) = runner.measure(limits.Limits([replace(row, threads=(1,))], BUDGET))
    assert outcome["isa"] == {"flash_attn2": "x86-64-v3", "torch": "AVX2"}
    assert outcome["goals"][0]["figures"]["1"]["value"] > 0


@needs_compiler
def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        limits.main(["--rows", "nothing"])
    assert "matches no row" in capsys.readouterr().err
    path = tmp_path / "new" / "limits.json"
    pattern = "limits, forward . backward fp32.*full"
    assert limits.main(["--rows", pattern, "--quick", "--output", str(path)]) == 0
    shown = capsys.readouterr().out
    assert json.loads(path.read_text())["complete"]
    assert f"| limits, forward + backward fp32 | {SDPA} | 1.28 | 1.38 |" in shown
    assert f"| limits, forward + backward fp32 | {PEAK} |  |  |" in shown  # nothing is asked
    assert limits.main(["--show", str(path)]) == 0
    assert capsys.readouterr().out in shown
