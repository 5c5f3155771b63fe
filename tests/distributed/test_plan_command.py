"""`python -m flash_attn2 plan`: the table, the page, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from flash_attn2.__main__ import main

ROOT = Path(__file__).resolve().parents[2]


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert main(["plan", *arguments]) == 0
    return capsys.readouterr().out.splitlines()


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, "--seqlen", "1M", "--gpus", "2096", "--node-bandwidth", "50")
    assert lines[0].startswith("1048576 tokens, mask causal, 32 heads of 128 on 8, bfloat16; 2096")
    schemes = {line.split("|")[1].strip(): line for line in lines[4:]}
    assert {"ring 262 x heads 8", "ring 2096", "gather 262 x heads 8"} <= set(schemes)
    assert "heads 2096" not in schemes
    best = schemes["ring 262 x heads 8"]
    assert best == lines[4]
    ring = 2 * 2 * 2**20 * 8 * 128 // 8 * 261 / 262
    exchange = 500 * (32 + 8 + 8 + 32) * 7 / 8 * 128 * 2
    assert f"| {(ring + exchange) / 1e6:.0f} MB " in best


def test_masks(capsys: pytest.CaptureFixture[str]) -> None:
    for mask in ("none", "window:512", "documents:5", "bigbird", "longformer"):
        lines = shown(capsys, "--seqlen", "16k", "--gpus", "6", "--mask", mask)
        schemes = [line.split()[1] for line in lines[4:]]
        assert "heads" in schemes
        assert ("ring" in schemes) == (mask in ("none", "window:512"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seqlen", "1G"], "--seqlen must be a number of tokens like 131072"),
        (["--seqlen", "0"], "--seqlen must be"),
        (["--gpus", "0"], "--gpus must be at least 1, got 0"),
        (["--heads-kv", "-1"], "--heads-kv must be at least 1"),
        (["--heads-kv", "5"], "num_heads must be a multiple of num_heads_kv, got 32 and 5"),
        (["--mask", "sliding"], "--mask must be one of causal, none"),
        (["--mask", "window"], "--mask window must have a number from 1"),
        (["--mask", "documents:0"], "--mask documents must have a number from 1"),
        (["--tflops", "0"], "flops must be positive"),
        (["--docs", "/no/such/folder/plans.md"], "No such file"),
    ],
)
def test_errors(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--seqlen", "1k", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_page_is_what_the_command_writes(tmp_path: Path) -> None:
    page = tmp_path / "plans.md"
    assert main(["plan", "--docs", str(page)]) == 0
    written = (ROOT / "docs" / "plans.md").read_text()
    assert page.read_text() == written, (
        "docs/plans.md is out of date: python -m flash_attn2 plan --docs docs/plans.md"
    )
