"""The training examples at a small size: losses fall, and agree between the ways of attention."""

from __future__ import annotations

import importlib
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = "--device cpu --d-model 32 --layers 2 --heads 2 --dtype"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)


def largest_difference(a: list[float], b: list[float]) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def test_train_gpt_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_gpt = importlib.import_module("train_gpt")
    options = f"{SMALL} float32 --heads-kv 1 --steps 20 --tokens 512 --max-document 200"
    options += f" --compare --lr 1e-2 --output {tmp_path} --save {tmp_path / 'gpt.pt'}"
    results = train_gpt.main(options.split())
    ours = results["flash_attn2"]
    assert ours["loss"][0] == pytest.approx(5.5, abs=0.3)  # ln 256: nothing known yet
    assert ours["loss"][-1] < ours["loss"][0] - 1
    assert ours["validation_loss"] < ours["loss"][0] - 1
    for name in ("sdpa", "standard"):
        assert largest_difference(ours["loss"], results[name]["loss"]) < 1e-3
        assert results[name]["validation_loss"] == pytest.approx(ours["validation_loss"], abs=1e-3)
    assert 0 < ours["peak_bytes"] < results["standard"]["peak_bytes"]

    shown = capsys.readouterr().out
    assert "The losses of flash_attn2 and sdpa differ by at most" in shown
    assert (tmp_path / "train-gpt.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((tmp_path / "train-gpt.json").read_text())
    assert record["results"] == results
    assert record["config"]["num_heads_kv"] == 1

    gpt = importlib.import_module("gpt")
    model = gpt.GPT.load(tmp_path / "gpt.pt")
    stream = train_gpt.batches([b"import sys" * 10 + b"\n"], 100, 50, "cpu")
    batch: Any = next(stream)
    with torch.no_grad():
        packed = model(batch.tokens, cu_seqlens=batch.cu_seqlens, max_seqlen=batch.max_seqlen)
        dense = model(batch.tokens.unflatten(0, (2, 50))).flatten(0, 1)
    torch.testing.assert_close(packed, dense)
    loss = torch.nn.functional.cross_entropy(packed, batch.targets)
    assert loss < ours["loss"][0] - 1


def test_train_gpt_alone(capsys: pytest.CaptureFixture[str]) -> None:
    train_gpt = importlib.import_module("train_gpt")
    options = f"{SMALL} bfloat16 --heads-kv 2 --steps 5 --tokens 256 --peak-tflops 1"
    results = train_gpt.main(options.split())
    assert list(results) == ["flash_attn2"]
    assert results["flash_attn2"]["loss"][-1] < results["flash_attn2"]["loss"][0]
    assert "MFU" in capsys.readouterr().out


def test_train_gpt_batches() -> None:
    train_gpt = importlib.import_module("train_gpt")
    files = [bytes(range(60, 75)), b"", b"a", bytes(range(100, 131))]
    for batch in itertools.islice(train_gpt.batches(files, 25, 10, "cpu"), 7):
        lengths: Tensor = batch.cu_seqlens.diff()
        assert lengths.sum() == 25 == len(batch.tokens)
        assert lengths.min() >= 1
        assert lengths.max() == batch.max_seqlen <= 10
        assert batch.squares == lengths.square().sum()
        # In these files each byte is one more than the one before it.
        assert torch.equal(batch.targets, batch.tokens + 1)


def test_train_gpt_flops() -> None:
    train_gpt = importlib.import_module("train_gpt")
    model = train_gpt.GPT(train_gpt.Config(64, 3, 2, 1))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    batch = train_gpt.Batch.pack([b"x" * 31, b"x" * 11], "cpu")
    expected = 6 * 40 * parameters + 12 * 3 * 64 * (30**2 + 10**2)
    assert train_gpt.train_flops(model, batch) == expected


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.05)])
def test_finetune_bert(dtype: str, tolerance: float, capsys: pytest.CaptureFixture[str]) -> None:
    finetune_bert = importlib.import_module("finetune_bert")
    runs = finetune_bert.main([*SMALL.split(), dtype, "--steps", "4", "--batch", "6"])
    padded, packed = runs["padded"].losses, runs["packed"].losses
    assert len(padded) == 4
    assert largest_difference(padded, packed) < tolerance
    assert "Losses differ by at most" in capsys.readouterr().out


def test_long_documents(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long_documents = importlib.import_module("long_documents")
    options = "--seqlens 320 640 --longest 1000 --steps 12 --d-model 32 --lr 1e-2 --device cpu"
    arguments = f"{options} --dtype float32 --output {tmp_path}".split()
    results = long_documents.main(arguments)
    for seqlen, runs in results.items():
        sparse, dense = runs["block-sparse"], runs["dense"]
        assert sparse["density"] < 1 == dense["density"]
        for run in (sparse, dense):
            assert run["loss"][0] == pytest.approx(5.5, abs=0.6)  # ln 256: nothing known yet
            assert run["validation_loss"] < run["loss"][0] - 1
        # Close, since the same bytes are near; and other pairs are attended to.
        assert 0 < largest_difference(sparse["loss"], dense["loss"]) < 0.2, seqlen
    assert "One document of 1,000 tokens" in capsys.readouterr().out
    assert (tmp_path / "long-documents.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((tmp_path / "long-documents.json").read_text())
    assert record["results"] == results
    assert set(record["longest_seconds"]) == {"block-sparse", "dense"}


def test_long_documents_need_whole_documents() -> None:
    long_documents = importlib.import_module("long_documents")
    with pytest.raises(SystemExit):
        long_documents.parse(["--seqlens", "300", "--tokens", "640"])
