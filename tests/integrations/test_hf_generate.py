"""Generation with models of transformers: the tokens of eager attention, with its caches."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers as hf
from hf_models import (
    DECODERS,
    ENCODER_DECODERS,
    LAYERS,
    counted,
    difference,
    inputs_of,
    padding_mask,
    token_ids,
)
from torch import nn
from transformers.generation.continuous_batching import initialization

from flash_attn2.integrations.transformers import attention

pytestmark = pytest.mark.usefixtures("registered")

NEW = 12
OPTIONS: dict[str, dict[str, Any]] = {
    "dynamic cache": {},
    "static cache": {"cache_implementation": "static"},
    "no cache": {"use_cache": False},
    "beams": {"num_beams": 3},
    "beams, static cache": {"num_beams": 2, "cache_implementation": "static"},
    "chunks of the prompt": {"prefill_chunk_size": 16},
}


def generate(model: nn.Module, inputs: dict[str, Any], **options: Any) -> Any:
    options = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, **options}
    return model.generate(
        **inputs, pad_token_id=0, return_dict_in_generate=True, output_logits=True, **options
    )


def require_same(got: Any, expected: Any) -> None:
    """Tokens, and the logits that chose them."""
    assert torch.equal(got.sequences, expected.sequences)
    for x, y in zip(got.logits, expected.logits, strict=True):
        assert difference(x, y) < 1e-5


CASES = [
    *((name, "dynamic cache", "left") for name in DECODERS),
    *(
        (name, option, padding)
        for name in ("Llama", "Gemma 2", "GPT-OSS")
        for option in OPTIONS
        for padding in ("none", "left")
    ),
]


@pytest.mark.parametrize(("name", "option", "padding"), CASES)
def test_decoders(name: str, option: str, padding: str) -> None:
    ours, eager = DECODERS[name].pair()
    inputs = {"input_ids": token_ids(), "attention_mask": padding_mask(padding)}
    options = OPTIONS[option]
    with counted() as calls:
        got = generate(ours, inputs, **options)
        assert calls.take() >= NEW * LAYERS
    require_same(got, generate(eager, inputs, **options))


@pytest.mark.parametrize("name", ENCODER_DECODERS)
@pytest.mark.parametrize("option", ["dynamic cache", "static cache", "beams"])
def test_encoder_decoders(name: str, option: str) -> None:
    ours, eager = ENCODER_DECODERS[name].pair()
    inputs = inputs_of(name, "right")
    del inputs["decoder_input_ids"]
    with counted() as calls:
        got = generate(ours, inputs, **OPTIONS[option])
        assert calls.take() >= NEW * LAYERS
    require_same(got, generate(eager, inputs, **OPTIONS[option]))


@pytest.mark.parametrize("name", ["Llama", "Mistral"])
def test_assisted(name: str) -> None:
    ours, eager = DECODERS[name].pair()
    drafts = copy.deepcopy(ours), copy.deepcopy(eager)
    with torch.no_grad():  # drafts that are right now and then
        for draft in drafts:
            draft.get_parameter("lm_head.weight")[:, ::5] *= 0.5
    inputs = {"input_ids": token_ids(batch=1)}
    with counted() as calls:
        got = generate(ours, inputs, assistant_model=drafts[0])
        assert calls.take() >= NEW * LAYERS
    require_same(got, generate(eager, inputs, assistant_model=drafts[1]))


@pytest.mark.parametrize("mode", ["continuous", "inference"])
def test_prompt_after_prompt(mode: str) -> None:
    """Rows of a cache go on with several tokens at once, as in a conversation."""
    ours, eager = DECODERS["Llama"].pair()
    inputs = token_ids()
    results = []
    guard = torch.inference_mode if mode == "inference" else torch.no_grad
    with guard():
        for model in (ours, eager):
            cache = hf.DynamicCache(config=model.config)
            model(inputs[:, :17], cache=cache)
            results.append(model(inputs[:, 17:], cache=cache).logits)
    assert difference(*results) < 1e-5


@pytest.mark.parametrize(
    ("name", "pages"),
    [("Llama", True), *((name, False) for name in ("Llama", "Mistral", "Gemma 2", "GPT-OSS"))],
)
def test_continuous_batching(name: str, pages: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts of different lengths in one packed batch, over a cache in pages; with `pages` the
    kernels read these through a block table, which transformers does on a GPU only, and for models
    without windows."""
    ours, eager = DECODERS[name].pair()
    prompts = [token_ids(1, n)[0].tolist() for n in (5, 40, 23)]
    options = hf.GenerationConfig(
        max_new_tokens=NEW, do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    cache = hf.ContinuousBatchingConfig(
        num_blocks=64, page_size=16, max_batch_tokens=64, max_blocks_per_request=8 * pages
    )
    monkeypatch.setattr(initialization, "ensure_decode_fast_path_is_available", lambda *_: None)
    tables = count_calls(monkeypatch, attention, "paged")
    with counted() as calls:
        results = ours.generate_batch(
            prompts, generation_config=options, continuous_batching_config=cache
        )
        assert calls.take() >= NEW * LAYERS
    assert bool(tables) == pages
    got = {tuple(result.prompt_ids): result.generated_tokens for result in results.values()}
    for prompt in prompts:
        expected = generate(eager, {"input_ids": torch.tensor([prompt])}).sequences[0]
        assert got[tuple(prompt)] == expected[len(prompt) :].tolist()


def count_calls(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[None]:
    """An entry for each call of this function."""
    function, made = getattr(module, name), []

    def call(*args: Any, **kwargs: Any) -> Any:
        made.append(None)
        return function(*args, **kwargs)

    monkeypatch.setattr(module, name, call)
    return made
