"""The generation example at a small size: how the work is cut up does not change what comes out."""

from __future__ import annotations

import functools
import importlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from flash_attn2.inference import PagedKVCache

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = "--device cpu --d-model 32 --layers 2 --heads 2 --heads-kv 1 --requests 8 --prompt 80"
SMALL += " --new 24 --budget 64 --page-size 16 --pages 128"

Generate = Callable[..., dict[str, Any]]


class PoisonedCache(PagedKVCache):
    """What nobody has written shows as NaN."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for kv in itertools.chain(*self.layers):
            kv.fill_(torch.nan)


@functools.cache
def sources() -> dict[str, bytes]:
    library: dict[str, bytes] = importlib.import_module("common").standard_library()
    return library


@pytest.fixture
def generate(monkeypatch: pytest.MonkeyPatch) -> Generate:
    monkeypatch.syspath_prepend(EXAMPLES)
    example = importlib.import_module("generate")
    monkeypatch.setattr(example, "standard_library", sources)
    monkeypatch.setattr(example, "PagedKVCache", PoisonedCache)

    def run(options: str = "") -> dict[str, Any]:
        result: dict[str, Any] = example.main([*SMALL.split(), *options.split()])
        return result

    return run


def test_greedy_output_is_that_of_full_recomputation(
    generate: Generate, capsys: pytest.CaptureFixture[str]
) -> None:
    result = generate("--dtype float32")
    generated = sum(map(len, result["outputs"]))
    assert result["difference"] == {"tokens": generated, "different": 0, "largest_gap": 0.0}
    assert len({token for output in result["outputs"] for token in output}) > 30
    counts = result["counts"]
    assert counts["generated"] == generated
    assert counts["mixed"] > 0
    assert counts["peak"].pages_shared > 10
    shown = capsys.readouterr().out
    assert f"All {generated} tokens are those of full recomputation" in shown
    assert "tokens/s" in shown
    assert "MiB of keys and values" in shown


def test_cutting_up_the_work_does_not_change_the_output(generate: Generate) -> None:
    expected = generate("--no-check")["outputs"]
    assert generate("--no-check --page-size 1 --pages 4096")["outputs"] == expected
    assert generate("--no-check --budget 7")["outputs"] == expected
    assert generate("--no-check --arrival 1000 --requests 2")["outputs"] == expected[:2]

    crowded = generate("--no-check --page-size 1 --pages 360 --arrival 0 --budget 200")
    assert crowded["outputs"] == expected
    assert crowded["counts"]["preempted"] > 0


def test_sampling(generate: Generate) -> None:
    options = "--temperature 1.0 --top-k 20"
    expected = generate(options)
    assert expected["difference"] is None
    assert generate(f"{options} --arrival 0 --budget 40")["outputs"] == expected["outputs"]
    assert generate(f"{options} --seed 1")["outputs"] != expected["outputs"]
    assert generate("--temperature 1.0 --top-k 1")["outputs"] == generate()["outputs"]


def test_bfloat16_differs_where_tokens_are_nearly_as_likely(
    generate: Generate, capsys: pytest.CaptureFixture[str]
) -> None:
    difference = generate("--dtype bfloat16")["difference"]
    assert difference["different"] < difference["tokens"] / 4
    assert difference["largest_gap"] < 0.5  # logits have a standard deviation of about 1
    assert "recomputation" in capsys.readouterr().out


def test_trained_model(
    generate: Generate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gpt = importlib.import_module("gpt")
    gpt.GPT(gpt.Config(32, 1, 2, 2)).save(tmp_path / "gpt.pt")
    assert generate(f"--model {tmp_path / 'gpt.pt'}")["difference"]["different"] == 0
    assert "Request 0: ..." in capsys.readouterr().out


def test_recomputation_of_every_token(generate: Generate) -> None:
    """The check looks at each output once as a whole; here the model runs for each token."""
    example, serving = importlib.import_module("generate"), importlib.import_module("serving")
    model = example.random_model(example.Config(32, 2, 2, 1))
    cache = PoisonedCache(2, 32, 4, 1, 16)
    request = serving.Request(0, list(b"def parse(text):\n"), 20)
    engine = serving.Engine(model, cache, budget=5)
    engine.add(request)
    while engine.busy:
        engine.step()
    tokens = list(request.prompt)
    with torch.inference_mode():
        for _ in range(request.max_new):
            tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    assert request.tokens == tokens
    assert cache.usage().pages_used == 0


def test_requests_that_cannot_run(generate: Generate) -> None:
    with pytest.raises(ValueError, match="must fit into the cache, got"):
        generate("--pages 16")
    request = importlib.import_module("serving").Request
    with pytest.raises(ValueError, match=r"must have a prompt .* got 0 tokens and max_new 1"):
        request(0, [], 1)
