"""`bench --mode sparse`: cases, patterns said twice, contenders, accuracy, and the command."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

from flash_attn2.__main__ import main
from flash_attn2.bench import plots
from flash_attn2.bench.contenders import SDPA
from flash_attn2.bench.race import FLASH_ATTN2
from flash_attn2.bench.sparse import accuracy, contenders
from flash_attn2.bench.sparse.cases import GROUPS, PROFILES, SparseCase, build_cases
from flash_attn2.bench.sparse.contenders import DENSE, FLEX, SparseCall, SparseProblem, flex_mask
from flash_attn2.bench.sparse.patterns import PATTERNS
from flash_attn2.bench.sparse.suite import SparseAttention
from flash_attn2.bench.suite import UnavailableError
from flash_attn2.bench.timing import Budget

FORWARD = SparseCase("", "fwd", "float32", "bigbird", 512, 2, 16)
TRAINING = replace(FORWARD, group="fwd+bwd")
MASKED = (FLASH_ATTN2, SDPA)


def calls_of(problem: SparseProblem) -> dict[str, SparseCall]:
    built = contenders.contenders(2**30)
    return {name: call() for name in MASKED for call in built[name](problem).values()}


@pytest.mark.parametrize("profile", PROFILES)
def test_profiles_make_valid_cases(profile: str) -> None:
    built = build_cases(PROFILES[profile])
    names = [case.name for case in built]
    assert len(set(names)) == len(names)
    assert {case.group for case in built} == GROUPS.keys()
    assert {case.pattern for case in built} <= PATTERNS.keys()


@pytest.mark.parametrize("seqlen", [512, 700])
@pytest.mark.parametrize("name", PATTERNS)
def test_patterns_are_said_twice(name: str, seqlen: int) -> None:
    pattern, mask_mod = PATTERNS[name](seqlen, "cpu")
    rows = torch.arange(seqlen)
    none = torch.zeros((), dtype=torch.long)
    assert torch.equal(
        pattern.build(seqlen).to_dense()[0, 0], mask_mod(none, none, rows[:, None], rows[None])
    )


@pytest.mark.parametrize("size", [64, 128, 256])
@pytest.mark.parametrize("name", PATTERNS)
def test_flex_attention_gets_the_same_blocks(name: str, size: int) -> None:
    sparsity = PATTERNS[name](1024, "cpu")
    found = flex_mask(sparsity.pattern.build(1024), sparsity, size, torch.device("cpu"))
    expected = create_block_mask(
        sparsity.mask_mod, None, None, 1024, 1024, device="cpu", BLOCK_SIZE=size
    )
    for partial in ("kv", "full_kv"):
        counts, indices = (
            (
                getattr(mask, f"{partial}_num_blocks")[0, 0],
                getattr(mask, f"{partial}_indices")[0, 0],
            )
            for mask in (found, expected)
        )
        assert torch.equal(counts[0], indices[0])
        for row, count in enumerate(counts[0].tolist()):
            assert torch.equal(counts[1][row, :count], indices[1][row, :count])


@pytest.mark.parametrize("case", [FORWARD, TRAINING, replace(TRAINING, dtype="bfloat16")])
@pytest.mark.parametrize("pattern", ["bigbird", "documents", "random-10"])
def test_every_contender_sees_the_mask(case: SparseCase, pattern: str) -> None:
    problem = SparseProblem.create(replace(case, pattern=pattern), "cpu")
    errors = accuracy.measure(problem, calls_of(problem))
    for name in MASKED:
        assert errors.within_tolerance(name), (name, errors)


def test_accuracy_sees_a_missing_block() -> None:
    problem = SparseProblem.create(FORWARD, "cpu")
    call = calls_of(problem)[FLASH_ATTN2]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = call.attend(q, k, v)
        out[:, -1] = call.attend(q, k, v.roll(64, 1))[:, -1]
        return out

    errors = accuracy.measure(problem, {FLASH_ATTN2: replace(call, attend=attend)})
    assert not errors.within_tolerance(FLASH_ATTN2)


def test_who_cannot_run() -> None:
    problem = SparseProblem.create(TRAINING, "cpu")
    with pytest.raises(UnavailableError, match="no backward pass on CPUs"):
        contenders.contenders(2**30)[FLEX](problem)
    with pytest.raises(UnavailableError, match="needs 0"):
        contenders.contenders(2**20)[SDPA](problem)
    ragged = SparseProblem.create(replace(FORWARD, seqlen=100), "cpu")
    with pytest.raises(UnavailableError, match="needs whole blocks"):
        contenders.contenders(2**30)[FLEX](ragged)


def test_share_of_the_dense_rate() -> None:
    budget = Budget(float("inf"), min_rounds=2, max_rounds=2)
    outcome = SparseAttention([], "cpu", budget, 2**30).measure(TRAINING)
    mask = PATTERNS["bigbird"](512, "cpu").pattern.build(512)
    assert outcome["needed"] == mask.cols.numel() / 64
    assert outcome["density"] == mask.density
    ours, dense = (outcome["contenders"][name] for name in (FLASH_ATTN2, DENSE))
    share = dense["seconds"] / ours["seconds"] * outcome["needed"]
    assert ours["share_of_dense"] == pytest.approx(share)
    assert dense["flops_per_second"] == 3.5 * 4 * 512**2 * 2 * 16 / dense["seconds"]
    assert DENSE not in outcome["errors"]
    assert dense["error"] is None


def test_list_names_the_cases(capsys: pytest.CaptureFixture[str]) -> None:
    command = "bench --demo --device cpu --mode sparse --cases bigbird.*fwd$ --list"
    assert main(command.split()) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split(maxsplit=1) == [
        "bigbird/s1024/bf16/fwd",
        "1 x 1024 x 2 x 64, forward pass",
    ]
    assert len(lines) == 2


def test_the_legend_has_what_was_measured() -> None:
    def outcome(*names: str) -> dict[str, Any]:
        measured = {"seconds": 1.0, "samples": {"1": 1.0}}
        blank = {"unavailable": "needs 1.2 GiB"}
        every = (FLASH_ATTN2, DENSE, SDPA, FLEX)
        return {"contenders": {name: measured if name in names else blank for name in every}}

    report = SimpleNamespace(contenders=[FLASH_ATTN2, DENSE, SDPA, FLEX])
    outcomes = [outcome(FLASH_ATTN2, FLEX), outcome(FLASH_ATTN2, DENSE)]
    handles = plots.lines(cast("Any", report), outcomes)
    assert [handle.get_label() for handle in handles] == [FLASH_ATTN2, DENSE, FLEX]


def test_the_whole_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without what is compiled, which takes minutes."""
    without_flex = functools.partial(SparseAttention, flex_blocks=())
    monkeypatch.setattr("flash_attn2.bench.sparse.suite.SparseAttention", without_flex)
    command = "bench --demo --device cpu --mode sparse --seqlens 192,256 --repeats 2"
    assert main([*command.split(), "--dtype", "float32", "--output", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    for words in ("bigbird/s256/fp32/fwd+bwd", "of dense", "without a mask", "left out"):
        assert words in shown
    record = json.loads((tmp_path / "results-sparse.json").read_text())
    assert record["complete"]
    assert len(record["results"]) == 2 * 3 * 2
    for name in ("sparse-fwd.png", "sparse-fwd-bwd.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    arguments = ["--show", str(tmp_path / "results-sparse.json"), "--no-plots"]
    assert main(["bench", *arguments, "--output", str(tmp_path)]) == 0
    assert "documents/s192/fp32/fwd" in capsys.readouterr().out
    assert main(["bench", "--mode", "sparse", "--unit", "byte"]) == 2
    assert "--unit: not an option of --mode sparse" in capsys.readouterr().err
