"""`bench --mode decode`: cases, contenders, accuracy, and the command."""

from __future__ import annotations

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from flash_attn2.__main__ import main
from flash_attn2.bench.contenders import SDPA
from flash_attn2.bench.decode import accuracy
from flash_attn2.bench.decode.cases import GROUPS, PROFILES, DecodeCase, build_cases
from flash_attn2.bench.decode.contenders import CONTENDERS, SDPA_PACKED, DecodeProblem
from flash_attn2.bench.decode.suite import Decoding
from flash_attn2.bench.race import FLASH_ATTN2
from flash_attn2.bench.suite import UnavailableError
from flash_attn2.bench.timing import Budget

CONTIGUOUS = DecodeCase("", "batch", "float32", 3, 37, 8, 2, 32)
CASES = {
    "contiguous": CONTIGUOUS,
    "bfloat16": replace(CONTIGUOUS, dtype="bfloat16"),
    "multi-query": replace(CONTIGUOUS, num_heads_kv=1),
    "multi-head": replace(CONTIGUOUS, num_heads_kv=8),
    "pages": replace(CONTIGUOUS, page_size=8),
    "pages of one": replace(CONTIGUOUS, page_size=1),
    "one page": replace(CONTIGUOUS, page_size=64),
}


def results_of(problem: DecodeProblem) -> dict[str, Tensor]:
    results = {}
    for name, build in CONTENDERS.items():
        if name == SDPA_PACKED and problem.case.group_size == 1:
            with pytest.raises(UnavailableError, match="no groups"):
                build(problem)
            continue
        results[name] = build(problem).result(problem)
    return results


@pytest.mark.parametrize("profile", PROFILES)
def test_profiles_make_valid_cases(profile: str) -> None:
    built = build_cases(PROFILES[profile])
    names = [case.name for case in built]
    assert len(set(names)) == len(names)
    assert {case.group for case in built} == GROUPS.keys()
    for case in built:
        assert case.num_heads == case.num_heads_kv * case.group_size
        assert case.kv_bytes <= 2**33


def test_bytes_of_keys_and_values() -> None:
    assert CONTIGUOUS.kv_bytes == 2 * (3 * 37 * 2 * 32) * 4
    # Rows of the last page that hold nothing do not count.
    assert replace(CONTIGUOUS, page_size=16).kv_bytes == CONTIGUOUS.kv_bytes


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_contender_attends_to_the_cache(case: DecodeCase) -> None:
    problem = DecodeProblem.create(case, "cpu", cold_bytes=0)
    results = results_of(problem)
    errors = accuracy.measure(problem, results)
    assert errors.checked == 0.5  # four of eight heads
    for name, result in results.items():
        assert result.shape == (case.batch, case.num_heads, case.head_dim)
        assert errors.within_tolerance(name), name


def test_accuracy_sees_a_wrong_element() -> None:
    problem = DecodeProblem.create(CONTIGUOUS, "cpu", cold_bytes=0)
    results = results_of(problem)
    results[FLASH_ATTN2][2, 7, 31] += 1e-2
    errors = accuracy.measure(problem, results)
    assert not errors.within_tolerance(FLASH_ATTN2)
    assert errors.largest(FLASH_ATTN2) == pytest.approx(1e-2, rel=1e-2)


@pytest.mark.parametrize("page_size", [0, 5])
def test_layers_fill_the_cache_and_take_turns(page_size: int) -> None:
    case = replace(CONTIGUOUS, page_size=page_size)
    problem = DecodeProblem.create(case, "cpu", cold_bytes=3 * case.kv_bytes - 1)
    for build in CONTENDERS.values():
        call = build(problem)
        assert len(call.layers) == 3
        assert len({x.data_ptr() for layer in call.layers for x in layer}) == 6
        for _, v in call.layers[1:]:
            v.zero_()
        run = call.timed()
        assert [bool(run().any()) for _ in range(4)] == [True, False, False, True]
        for _, v in call.layers[1:]:
            v.copy_(call.layers[0][1])


def test_shares_are_of_the_memory_speed_of_the_same_run(monkeypatch: pytest.MonkeyPatch) -> None:
    small = torch.ones(1024)
    module = "flash_attn2.bench.decode.suite.read_memory"
    monkeypatch.setattr(module, lambda device: (small.sum, small.nbytes))
    budget = Budget(float("inf"), min_rounds=2, max_rounds=2)
    outcome = Decoding([], "cpu", budget).measure(CONTIGUOUS)
    assert outcome["read"]["samples"].keys() == {0, 1}
    with_ratio = {name for name, one in outcome["contenders"].items() if "ratio" in one}
    assert with_ratio == {SDPA, SDPA_PACKED}
    for one in outcome["contenders"].values():
        assert one["bytes_per_second"] == CONTIGUOUS.kv_bytes / one["seconds"]
        share = one["bytes_per_second"] / outcome["read"]["bytes_per_second"]
        assert one["share_of_memory"] == share


@pytest.fixture
def small_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    """A demo that takes a moment."""
    profile = replace(
        PROFILES["cpu-demo"], batches=(1, 2), batch=2, base_seqlens=(40,), head_dim=32
    )
    monkeypatch.setitem(PROFILES, "cpu-demo", profile)
    contenders = "flash_attn2.bench.decode.contenders"
    monkeypatch.setitem(sys.modules[contenders]._COLD, "cpu", 0)


@pytest.mark.usefixtures("small_cases")
def test_the_whole_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = "bench --demo --device cpu --mode decode --seqlens 64,128 --repeats 2"
    arguments = [*command.split(), "--dtype", "float32,bfloat16", "--output", str(tmp_path)]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    for words in ("decode/s128/bf16", "pages of 16", "no groups", "SDPA packed", "of the speed"):
        assert words in shown
    path = tmp_path / "results-decode.json"
    record = json.loads(path.read_text())
    assert record["complete"]
    assert record["options"]["mode"] == "decode"
    # The lengths, and every other sweep at each of them.
    assert len(record["results"]) == 2 * (2 + 2 * (2 + 2 + 2))
    for result in record["results"]:
        ours = result["contenders"][FLASH_ATTN2]
        assert len(ours["samples"]) == len(result["read"]["samples"]) == 2
        assert ours["bytes_per_second"] == pytest.approx(result["kv_bytes"] / ours["seconds"])
        assert result["contenders"][SDPA]["ratio"]["value"] > 0
    assert (tmp_path / "decode.png").read_bytes().startswith(b"\x89PNG")

    script = Path(__file__).parents[2] / "benchmarks" / "markdown_table.py"
    runpy.run_path(str(script))["main"](str(path), "p16/s64")
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "Decoding: page size"
    assert [line.split(" | ")[0] for line in lines[6::3]] == [
        "| decode/p16/s64/fp32",
        "| decode/p16/s64/bf16",
    ]


@pytest.mark.usefixtures("small_cases")
def test_a_case_that_fails_costs_only_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def create(case: DecodeCase, device: str, cold_bytes: int | None) -> DecodeProblem:
        if case.page_size == 16:
            raise RuntimeError("no such pages")
        return original(case, device, cold_bytes)

    original = DecodeProblem.create
    monkeypatch.setattr(DecodeProblem, "create", staticmethod(create))
    command = "bench --demo --device cpu --mode decode --repeats 1 --no-plots --cases p16|p256"
    assert main([*command.split(), "--output", str(tmp_path)]) == 1
    shown = capsys.readouterr()
    assert "Failed: decode/p16/bf16: RuntimeError: no such pages" in shown.out
    assert "decode/p16/bf16: FAILED: RuntimeError: no such pages" in shown.err
    failed, other = json.loads((tmp_path / "results-decode.json").read_text())["results"]
    assert failed["case"]["name"] == "decode/p16/bf16"
    assert failed["failed"] == "RuntimeError: no such pages"
    assert other["contenders"]


def test_bad_options(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for option, value in (("--head-dims", "64"), ("--unit", "byte"), ("--standard-limit", "1")):
        assert main(["bench", "--mode", "decode", option, value]) == 2
        assert f"{option}: not an option of --mode decode" in capsys.readouterr().err
    monkeypatch.setenv("FLASH_ATTN2_BACKEND", "sm80-emulated")
    assert main(["bench", "--mode", "decode", "--device", "cpu"]) == 2
    assert "the emulator's times mean nothing" in capsys.readouterr().err
