"""The script of the CPU table: its rows, their peers, and what it makes of failures."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cpu_markdown
import cpu_peak
import cpu_peers
import cpu_rows
import cpu_suite
import cpu_table
import pytest
import torch
from cpu_rows import (
    BIAS,
    BOOL_MASK,
    FLEX,
    LOOP,
    NESTED,
    ONE_THREAD,
    PEAK,
    ErrorRow,
    Goal,
    MemoryRow,
    Row,
)
from cpu_suite import CpuTable
from torch import Tensor

from flash_attn2 import build_info
from flash_attn2.bench import runner, timing
from flash_attn2.bench.cases import Case
from flash_attn2.bench.contenders import SDPA, Problem
from flash_attn2.bench.modes import FORWARD, TRAINING
from flash_attn2.bench.race import FLASH_ATTN2
from flash_attn2.bench.suite import Outcome
from flash_attn2.bench.timing import Budget

BUDGET = Budget(float("inf"), min_rounds=2, max_rounds=2)
CASE = Case("small", "", "float32", 4, 4, 32, (40, 40), packed=False, causal=False)
CAUSAL = replace(CASE, causal=True)
PACKED = replace(CASE, packed=True, seqlens=(5, 30, 17))


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("quick", [False, True])
def test_rows(quick: bool) -> None:
    rows = cpu_rows.rows(quick)
    names = [row.name for row in rows]
    assert len(set(names)) == len(names)
    peers = {name for row in rows if isinstance(row, Row) for name in row.goals}
    assert peers == {SDPA, LOOP, BOOL_MASK, BIAS, FLEX, NESTED, PEAK, ONE_THREAD}
    sections = [row.section for row in rows]
    assert len({*sections}) == 1 + sum(a != b for a, b in itertools.pairwise(sections))


@pytest.mark.parametrize(
    ("torch_threads", "allowed", "counts"),
    [(2, 2, (1, 2)), (8, 2, (1, 2)), (4, 16, (1, 4)), (2, 1, (1,))],
)
def test_threads_are_those_of_torch_and_of_the_mask(
    torch_threads: int, allowed: int, counts: tuple[int, ...]
) -> None:
    assert cpu_rows.thread_counts(torch_threads, allowed) == counts


def measure(row: cpu_rows.AnyRow) -> Outcome:
    return CpuTable([], BUDGET).measure(row)


def rows_of(name: str, row: Row) -> Tensor:
    """What a contender computes, as (total, num_heads, head_dim)."""
    with torch.inference_mode():
        problem = Problem.create(row.case, "cpu")
        out = cpu_peers.build(name, row, problem).run()
    if out.is_nested:
        return torch.cat([one.transpose(0, 1) for one in out.unbind()])
    if out.ndim == 4:
        out = (out if name == FLASH_ATTN2 else out.transpose(1, 2)).flatten(0, 1)
    return out


PEERS = {
    "SDPA": Row("", "", CASE, {SDPA: Goal(1)}),
    "grouped": Row("", "", replace(CAUSAL, num_heads_kv=2), {SDPA: Goal(1), FLEX: Goal(1)}),
    "window": Row("", "", replace(CAUSAL, window_left=6), {BOOL_MASK: Goal(1), FLEX: Goal(1)}),
    "softcap": Row("", "", replace(CAUSAL, softcap=2.0), {FLEX: Goal(1)}),
    "packed": Row("", "", PACKED, {LOOP: Goal(1), NESTED: Goal(1), FLEX: Goal(1)}),
    "packed, causal": Row("", "", replace(PACKED, causal=True), {LOOP: Goal(1), FLEX: Goal(1)}),
    "ALiBi": Row("", "", CASE, {BIAS: Goal(1)}, alibi=True),
    "ALiBi, causal": Row("", "", CAUSAL, {BIAS: Goal(1)}, alibi=True),
}


@pytest.mark.parametrize("row", PEERS.values(), ids=PEERS)
@pytest.mark.filterwarnings("ignore:flex_attention called without:UserWarning")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_peers_compute_the_same(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    ours = rows_of(FLASH_ATTN2, row)
    for name in row.goals:
        torch.testing.assert_close(rows_of(name, row), ours, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", [FORWARD, TRAINING], ids=lambda mode: mode.name)
def test_times_of_one_and_two_threads(mode: Any) -> None:
    row = Row("", "title", CAUSAL, {SDPA: Goal(2, 3), ONE_THREAD: Goal(1.85)}, mode)
    row = replace(row, threads=(1, 2))
    outcome = measure(row)
    assert outcome["contenders"].keys() == {FLASH_ATTN2, SDPA}
    times = {
        (name, threads): one["seconds"]
        for name, by_threads in outcome["contenders"].items()
        for threads, one in by_threads.items()
    }
    assert len(times) == 4
    against_sdpa, scaling = outcome["goals"]
    for threads in ("1", "2"):
        ratio = times[SDPA, threads] / times[FLASH_ATTN2, threads]
        assert against_sdpa["figures"][threads]["value"] == pytest.approx(ratio)
    ratio = times[FLASH_ATTN2, "1"] / times[FLASH_ATTN2, "2"]
    assert scaling["figures"].keys() == {"2"}
    assert scaling["figures"]["2"]["value"] == pytest.approx(ratio)


def test_a_peer_that_cannot_run_is_reported() -> None:
    row = Row("", "title", replace(CAUSAL, softcap=3.0), {SDPA: Goal(1)})
    outcome = measure(row)
    assert outcome["contenders"][SDPA] == {"unavailable": "no softcap"}
    assert outcome["goals"][0]["figures"] == {}
    assert "| no softcap |" in table_of([outcome])


@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "c++")), reason="no C++ compiler")
def test_share_of_peak() -> None:
    assert cpu_peak.loop(cpu_peak.FP32)() > 10**7
    row = Row("", "title", CASE, {PEAK: Goal(0.85)})
    outcome = measure(row)
    rates = [outcome["contenders"][name]["1"]["flops_per_second"] for name in (FLASH_ATTN2, PEAK)]
    assert outcome["goals"][0]["figures"]["1"]["value"] == pytest.approx(rates[0] / rates[1])
    assert outcome["contenders"][PEAK]["1"]["variant"] == cpu_peak.FP32
    assert f"| {PEAK} by multiply-adds of float32 | 0.85 |" in table_of([outcome])


@pytest.mark.parametrize(
    ("of_pairs", "dtype", "expected"),
    [
        (0, torch.bfloat16, cpu_peak.FP32),  # the processor has no such instruction
        (50, torch.bfloat16, cpu_peak.FP32),  # or a slow one
        (200, torch.bfloat16, cpu_peak.PAIRS),
        (200, torch.float32, cpu_peak.FP32),
    ],
)
def test_the_peak_is_that_of_the_fastest_instructions(
    of_pairs: int, dtype: torch.dtype, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    operations = {cpu_peak.FP32: 100, cpu_peak.PAIRS: of_pairs}
    monkeypatch.setattr(cpu_peak, "loop", lambda instructions: lambda: operations[instructions])
    monkeypatch.setattr(timing, "estimate", lambda run, clock: 1.0)
    assert cpu_peak.peak(dtype).instructions == expected
    assert cpu_peak.peak(dtype).run() == operations[expected]


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(RuntimeError, match="no C\\+\\+ compiler 'no-such-compiler' \\(set CXX\\)"):
        cpu_peak._library.__wrapped__()


@dataclass(frozen=True)
class Deadly(ErrorRow):
    """Takes its process with it."""

    def __getattribute__(self, name: str) -> Any:
        if name == "case" and multiprocessing.parent_process() is not None:
            os._exit(1)
        return super().__getattribute__(name)


def test_a_row_that_dies_costs_only_itself() -> None:
    rows = [ErrorRow(CASE, 4), Deadly(CASE, 4), ErrorRow(replace(CASE, head_dim=-1), 4)]
    rows += [ErrorRow(CAUSAL, 4)]
    outcomes = list(runner.measure(CpuTable(rows, BUDGET)))
    assert [outcome.get("failed", "")[:12] for outcome in outcomes] == [
        "",
        "its process ",
        "RuntimeError",
        "",
    ]


@pytest.mark.skipif(
    "x86-64-v3" not in build_info()["cpu"]["isa_levels"], reason="the machine has no AVX2"
)
def test_a_section_has_its_own_environment() -> None:
    before = dict(os.environ)
    row = ErrorRow(CASE, 4, section="avx2")
    (outcome,) = runner.measure(CpuTable([row], BUDGET))
    assert outcome["isa"] == {"flash_attn2": "x86-64-v3", "torch": "AVX2"}
    assert os.environ == before


def test_errors_are_beside_those_of_sdpa() -> None:
    outcome = measure(ErrorRow(CASE, 4))
    errors = outcome["errors"]
    assert outcome["times_as_large"] == errors[FLASH_ATTN2] / errors[SDPA]


def test_results_are_not_extra_memory() -> None:
    row = MemoryRow(replace(CASE, num_heads_kv=2), FORWARD)
    assert cpu_suite._result_bytes(row) == 80 * 4 * (32 * 4 + 4)
    row = replace(row, mode=TRAINING)
    assert cpu_suite._result_bytes(row) == 80 * (4 + 4 + 2 + 2) * 32 * 4 + 80 * 4 * 4


def table_of(outcomes: list[Any]) -> str:
    return cpu_markdown.tables(
        {
            "machine": {"cpu": "A CPU", "threads": 2},
            "build": {"cpu": {"isa": "baseline"}},
            "versions": {"torch": "2", "flash_attn2": "0"},
            "complete": True,
            "results": outcomes,
        }
    )


def test_summary_is_of_all_cases() -> None:
    def outcome(case: str, one: float, two: float) -> dict[str, Any]:
        figures = {
            "1": {"value": one, "low": one, "high": one},
            "2": {"value": two, "low": two, "high": two},
        }
        goal = {"against": SDPA, "must": 2.2, "aim": None, "figures": figures}
        times = {"1": {"seconds": 2e-3}, "2": {"seconds": 1e-3}}
        return {
            "title": "forward",
            "case": {"name": case},
            "contenders": {FLASH_ATTN2: times, SDPA: times},
            "goals": [goal],
        }

    failed = {"title": "forward", "case": {"name": "bad"}, "failed": "its process died"}
    text = table_of([outcome("a", 3.0, 2.0), outcome("b", 4.0, 5.0), failed])
    assert "| forward | SDPA | 2.2 |  | 3 to 4 | 2 to 5 (1 of 2 below) |" in text
    assert "| forward | b | SDPA | 2.2 |  | 4 (4 to 4) | 5 (5 to 5) | 1 ms |" in text
    assert "Failed: forward, bad: its process died" in text


def test_the_record_of_an_earlier_release_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).parents[2] / "benchmarks" / "results" / "cpu-amd-epyc-table.json"
    assert cpu_table.main(["--show", str(path)]) == 0
    shown = capsys.readouterr().out
    for result in json.loads(path.read_text())["results"]:
        assert result["case"]["name"] in shown


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cpu_table.main(["--list", "--rows", "tiny"]) == 0
    names = capsys.readouterr().out.splitlines()
    assert names == [f"tiny call: b1 h1 s16 d64 full {dtype}" for dtype in ("fp32", "bf16")]
    with pytest.raises(SystemExit):
        cpu_table.main(["--rows", "nothing"])
    assert "matches no row" in capsys.readouterr().err
    path = tmp_path / "new" / "table.json"
    assert cpu_table.main(["--rows", "tiny.*fp32", "--quick", "--output", str(path)]) == 0
    shown = capsys.readouterr().out
    assert json.loads(path.read_text())["complete"]
    assert cpu_table.main(["--show", str(path)]) == 0
    assert capsys.readouterr().out in shown
