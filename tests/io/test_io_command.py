"""`python -m flash_attn2 io`: tables, record, picture, page, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flash_attn2.__main__ import main
from flash_attn2.io import balance, flash2, standard
from flash_attn2.io.claims import claims
from flash_attn2.io.problem import DEVICES, Attention

ROOT = Path(__file__).resolve().parents[2]


def test_tables_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    record, picture, page = (tmp_path / name for name in ("io.json", "io.png", "io.md"))
    files = ["--json", str(record), "--plot", str(picture), "--docs", str(page)]
    assert main(["io", "--seqlens", "1024,2048", "--batch", "2", "--causal", *files]) == 0
    shown = capsys.readouterr().out
    assert "causal" in shown
    assert "FlashAttention-1" in shown
    assert shown.rstrip("\n") in page.read_text()
    assert picture.read_bytes().startswith(b"\x89PNG")
    rows = json.loads(record.read_text())["rows"]
    assert [(row["seqlen"], row["batch"], row["schedule"]) for row in rows[:3]] == [
        (1024, 2, "standard"),
        (1024, 2, "FlashAttention-1"),
        (1024, 2, "FlashAttention-2"),
    ]
    q = 2 * 16 * 1024 * 64 * 2
    assert rows[2]["forward"]["kernels"][0]["reads"]["q"] == {"asked": q, "distinct": q}


def test_schedules_that_have_no_such_head_dim_are_left_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["io", "--seqlens", "1024", "--head-dim", "128"]) == 0
    tables = capsys.readouterr().out.split("What the papers say")[0]
    assert "FlashAttention-1" not in tables
    assert "FlashAttention-2" in tables


def test_block_masks_of_wide_heads_are_left_out_where_nothing_runs_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for device in ("a100", "rtx3090"):
        assert main(["io", "--seqlens", "1024", "--head-dim", "512", "--device", device]) == 0
        tables = capsys.readouterr().out.split("BigBird beside")[0]
        assert ("| BigBird" in tables) == (device == "a100")
        assert "| FlashAttention-2 " in tables


def test_values_of_another_width(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["io", "--seqlens", "1024", "--head-dim-v", "128"]) == 0
    tables = capsys.readouterr().out.split("What the papers say")[0]
    assert "16 of 64/128" in tables
    assert "FlashAttention-1" not in tables  # 64, but of both


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seqlens", "1001"], "seqlen must be a multiple of 16 from 256 to 1048576, got 1001"),
        (["--seqlens", "128"], "seqlen must be"),
        (["--head-dim", "72"], "head_dim must be a multiple of 16 from 16 to 512, got 72"),
        (["--head-dim", "576"], "head_dim must be a multiple of 16 from 16 to 512, got 576"),
        (["--head-dim-v", "72"], "head_dim_v must be a multiple of 16 from 16 to 512, got 72"),
        (["--batch", "0"], "batch must be from 1 to 16384, got 0"),
        (["--heads", "-1"], "heads must be from 1"),
        (["--batch", "4096"], "batch * heads must be at most 16384, got 65536"),
        (["--json", "/no/such/folder/io.json"], "No such file"),
    ],
)
def test_errors(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    if "--seqlens" not in arguments:
        arguments = ["--seqlens", "1024", *arguments]
    assert main(["io", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_page_is_what_the_command_writes(tmp_path: Path) -> None:
    page = tmp_path / "io.md"
    assert main(["io", "--docs", str(page)]) == 0
    written = (ROOT / "docs" / "io.md").read_text()
    assert page.read_text() == written, "docs/io.md is out of date: make io-page"


def test_claims_are_met() -> None:
    counted = [claim.counted for claim in claims()]
    assert counted[0] == "32.7 (25.2) GB"  # of a paper's 40.3, without mask and dropout
    assert counted[2:4] == ["10.4 (2.7) GB", "10.4 (2.8) GB"]  # of 4.4
    assert counted[5:7] == ["10.1x", "19.6x"]


def test_balance() -> None:
    assert balance.waves_over_ideal(108, 108) == 1
    assert balance.waves_over_ideal(109, 108) == pytest.approx(216 / 109)
    assert balance.makespan_over_ideal([3, 1, 1, 1], 2) == 1
    assert balance.makespan_over_ideal([1, 1, 1, 3], 2) == pytest.approx(4 / 3)
    assert list(balance.schedule([2, 1], pairs=3, section=2)) == [2, 2, 1, 1, 2, 1]


@pytest.mark.parametrize("device", DEVICES.values(), ids=list(DEVICES))
def test_perfect_caches_never_cost_more(device: object) -> None:
    for widths in ((32,), (64,), (96,), (128,), (192, 128), (192,), (256,), (512, 64), (512,)):
        problem = Attention(
            1024,
            head_dim=widths[0],
            head_dim_v=widths[-1],
            causal=True,
            device=device,  # type: ignore[arg-type]
        )
        for direction in (flash2.forward, flash2.backward, standard.forward, standard.backward):
            memory = direction(problem).memory
            assert 0 < memory.distinct <= memory.asked


def test_half_of_the_products_are_skipped_under_a_causal_mask() -> None:
    whole, causal = (flash2.forward(Attention(2**14, causal=c)) for c in (False, True))
    assert 0.5 < causal.mma / whole.mma < 0.51
    assert standard.forward(Attention(2**14, causal=True)).mma == whole.mma
