"""Decoding in closed form is what the emulator counts, and no byte of a cache more than it has."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from support import emulator_options

from flash_attn2.__main__ import main
from flash_attn2.io import decoding_report, split, split_compare
from flash_attn2.io.decoding import Decoding
from flash_attn2.io.problem import DEVICES
from flash_attn2.io.split_plan import split_plan

LATENTS: dict[str, Any] = {"heads_kv": 1, "head_dim": 576, "head_dim_v": 512, "shared": True}
# A split or none that is stored: nothing goes through memory but what must.
WHOLE = [
    Decoding(512, heads=16, heads_kv=4, head_dim=512),
    Decoding(512, 2, heads=4, heads_kv=2, head_dim=192, head_dim_v=128),
    Decoding(512, 2, heads=8, heads_kv=4, head_dim=64, scales="sequence"),
    Decoding(512, 2, heads=8, heads_kv=4, head_dim=96, head_dim_v=64, scales="row"),
    Decoding(512, 2, heads=8, heads_kv=2, head_dim=192, head_dim_v=128, scales="row"),
    Decoding(512, 1, heads=16, heads_kv=2, head_dim=512, scales="row"),
    Decoding(512, 1, heads=16, heads_kv=1, head_dim=512, shared=True),
    Decoding(512, 1, heads=128, **LATENTS),
    Decoding(512, 1, heads=16, **LATENTS, scales="row"),
]
SPLIT = [
    Decoding(1024),
    Decoding(1040, scales="row"),
    Decoding(1024, 2, scales="sequence"),
    Decoding(4096, 1, heads=128, **LATENTS),
    Decoding(4096, 30, heads=4, heads_kv=4, head_dim=64),
]


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("problem", [*WHOLE, *SPLIT], ids=str)
def test_form(problem: Decoding) -> None:
    assert split_compare.differences(split.forward(problem), split_compare.count(problem)) == []


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("problem", WHOLE, ids=str)
def test_what_is_counted_is_the_least(problem: Decoding) -> None:
    """Every byte once: codes are one, keys that hold their values count once."""
    counters = split_compare.count(problem)
    assert list(counters) == [split.SPLIT]
    counted = sum(
        value
        for name, value in counters[split.SPLIT].items()
        if name.endswith(".distinct_sectors") and name.count(".") == 2
    )
    assert counted * 32 == problem.least_bytes


@pytest.mark.usefixtures("emulated")
def test_with_less_shared_memory() -> None:
    problem = Decoding(1024, heads=128, **LATENTS, device=DEVICES["rtx3090"])
    with emulator_options("device=sm86"):
        counted = split_compare.count(problem)
    assert split_compare.differences(split.forward(problem), counted) == []


@pytest.mark.usefixtures("emulated")
def test_differences_are_noticed() -> None:
    shape: dict[str, Any] = {"heads": 2, "heads_kv": 1, "head_dim": 64}
    counted = split_compare.count(Decoding(256, **shape, scales="row"))
    for other in (
        Decoding(256, **shape),
        Decoding(272, **shape, scales="row"),
        Decoding(256, **shape, scales="sequence"),
        Decoding(256, **shape, scales="row", shared=True),
    ):
        assert split_compare.differences(split.forward(other), counted)


def test_codes_are_half_of_a_cache_and_values_in_keys_none() -> None:
    whole, codes = Decoding(2048), Decoding(2048, scales="sequence")
    rows = 2048 * 8
    assert whole.least_bytes - codes.least_bytes == 2 * rows * 128 - 2 * 8 * 4
    scaled = Decoding(2048, scales="row")
    assert scaled.least_bytes - codes.least_bytes == 2 * (rows - 8) * 4
    latents = Decoding(2048, heads=16, **LATENTS)
    apart = Decoding(2048, heads=16, **{**LATENTS, "shared": False})
    assert apart.least_bytes - latents.least_bytes == 2048 * 512 * 2


@pytest.mark.parametrize(("keys", "splits"), [(1024, 1), (2048, 2), (8192, 8), (131072, 32)])
def test_what_many_rows_leave_is_a_share_of_the_cache(keys: int, splits: int) -> None:
    """Of 128 heads over latents, whatever the batch (docs/notes/sm80_split.md)."""
    for batch in (1, 7, 64):
        problem = Decoding(keys, batch, heads=128, **LATENTS)
        plan = split_plan(problem)
        assert (plan.splits, plan.grid) == (splits, batch * 2 * splits)
        assert plan.workspace_bytes <= 0.23 * problem.key_bytes
        assert plan.workspace_bytes == batch * split_plan(replace(problem, batch=1)).workspace_bytes


def test_the_page_has_every_kind_of_cache() -> None:
    table = decoding_report.table(decoding_report.PAGES_PROBLEMS)
    for kind in ("16 bits", "8 bits, a scale a row", "576/512", "of 512", "192/128", "in keys"):
        assert kind in table


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--heads", "16", "--heads-kv", "1", "--head-dim", "576", "--head-dim-v", "512"]
    kind = ["--scales", "row", "--shared-kv", "--batch", "3"]
    assert main(["io", "--decode", "--seqlens", "1024", *options, *kind]) == 0
    shown = capsys.readouterr().out
    assert "| 1024 | 3     | 16 heads on 1 of 576/512, 8 bits, a scale a row, values in" in shown
    assert str(split_plan(Decoding(1024, 3, heads=16, **LATENTS, scales="row")).grid) in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--head-dim", "592"], "head_dim must be a multiple of 32 from 32 to 576, got 592"),
        (["--head-dim-v", "544"], "head_dim_v must be a multiple of 32 from 32 to 512, got 544"),
        (["--heads-kv", "3"], "heads must be a multiple of 3 from 3"),
        (["--shared-kv", "--head-dim-v", "96"], "where keys hold the values, got 64/96"),
        (["--seqlens", "100"], "seqlen_k must be a multiple of 16 from 256"),
    ],
)
def test_errors(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["io", "--decode", *options]) == 2
    assert message in capsys.readouterr().err


def test_other_scales_are_refused() -> None:
    with pytest.raises(ValueError, match="scales must be one of sequence, row, got page"):
        Decoding(1024, scales="page")
