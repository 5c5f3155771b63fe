"""Whole models beside SDPA, at tiny sizes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import model_cases
import model_rows
import models
import own_runs
import pytest
import torch
from model_rows import SMALL, ModelRow
from model_sdpa import SdpaGPT

from flash_attn2.bench.contenders import SDPA
from flash_attn2.bench.race import FLASH_ATTN2
from flash_attn2.bench.record import Record
from flash_attn2.bench.timing import Budget
from tools.docs import performance

BUDGET = Budget(0.0, min_rounds=2, max_rounds=2)
EACH = pytest.mark.parametrize("row", model_rows.rows(SMALL), ids=lambda row: row.name)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@EACH
def test_both_compute_the_same_and_are_timed(row: ModelRow) -> None:
    outcome = models.Models([], BUDGET).measure(replace(row, threads=(1,)))
    own, sdpa = (outcome["contenders"][name] for name in (FLASH_ATTN2, SDPA))
    assert own["tokens_per_second"] == pytest.approx(outcome["tokens"] / own["seconds"])
    assert sdpa["ratio"]["value"] == pytest.approx(sdpa["seconds"] / own["seconds"])
    assert outcome["difference"] < (1e-4 if row.dtype == "float32" else 0.2)
    assert f"{sdpa['ratio']['value']:.2f}x SDPA" in models.one_line(outcome)


@EACH
def test_other_results_are_an_error(row: ModelRow, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = model_cases.prepare

    def wrong(row: ModelRow, contender: str) -> model_cases.Work:
        work = prepare(row, contender)
        off = 0.0 if contender == SDPA else 1.0
        return replace(work, outcome=lambda: work.outcome() + off)

    monkeypatch.setattr(models, "prepare", wrong)
    with pytest.raises(RuntimeError, match="results differ by"):
        models.Models([], BUDGET).measure(replace(row, threads=(1,)))


def test_generation_over_a_cache_that_forgets_a_key_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logits = SdpaGPT.logits

    def forgetful(self: SdpaGPT, tokens: torch.Tensor, start: int) -> torch.Tensor:
        return logits(self, tokens, start - 1 if start else 0)

    monkeypatch.setattr(SdpaGPT, "logits", forgetful)
    row = ModelRow(model_rows.GPT_GENERATION, "float32", SMALL, threads=(1,))
    with pytest.raises(RuntimeError, match="results differ by"):
        models.Models([], BUDGET).measure(row)


def test_a_run_generates_the_same_again() -> None:
    row = ModelRow(model_rows.GPT_GENERATION, "float32", SMALL)
    for contender in (FLASH_ATTN2, SDPA):
        work = model_cases.prepare(row, contender)
        before = work.outcome()
        work.run()
        work.run()
        assert torch.equal(work.outcome(), before)


@EACH
def test_models_can_be_compared_between_checkouts(row: ModelRow) -> None:
    assert row.name in [one.name for one in own_runs.rows()]
    prepared = own_runs.prepare(row)
    with prepared.mode:
        prepared.run()


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        models.main(["--cases", "nothing"])
    assert "matches none of model, GPT training fp32" in capsys.readouterr().err
    path = tmp_path / "new" / "models.json"
    options = ["--quick", "--seconds", "0.01", "--cases", "generation fp32"]
    assert models.main([*options, "--output", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "| GPT generation fp32 | " in shown
    written: dict[str, Any] = json.loads(path.read_text())
    assert written["complete"]
    assert written["build"]["processor"]["name"] in shown
    assert models.main(["--show", str(path)]) == 0
    assert capsys.readouterr().out in shown


def test_a_page_of_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(performance, "RECORDS", tmp_path)
    assert performance.model_pages(tmp_path) == []
    record = Record(tmp_path / "a-models.json", "cpu", {})
    row = ModelRow(model_rows.BERT_TRAINING, "float32", SMALL, threads=(1,))
    record.write([models.Models([], BUDGET).measure(row)], complete=True)
    (summary,) = performance.model_pages(tmp_path)
    assert "](a-models.md)" in summary
    page = (tmp_path / "a-models.md").read_text()
    assert page.startswith("# Whole models: ")
    assert "| BERT training fp32 |" in page


def test_a_model_that_fails_is_reported() -> None:
    failed = {"case": {"name": "model, GPT training fp32"}, "failed": "RuntimeError: no"}
    assert models.one_line(failed) == "FAILED: RuntimeError: no"
