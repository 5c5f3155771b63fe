"""Models of transformers on our kernels against their eager selves: logits and gradients."""

from __future__ import annotations

import pytest
import torch
from hf_models import (
    DECODERS,
    ENCODER_DECODERS,
    ENCODERS,
    VISION,
    counted,
    difference,
    gradient_difference,
    gradients,
    inputs_of,
)
from torch import Tensor

pytestmark = pytest.mark.usefixtures("registered")

MODELS = {**DECODERS, **ENCODERS, **VISION, **ENCODER_DECODERS}
PADDED = ["left", "right", "both", "hole"]
CASES = [
    *((name, "none") for name in MODELS),
    *((name, padding) for name in [*DECODERS, *ENCODERS] for padding in PADDED[:2]),
    *(
        (name, padding)
        for name in ("Llama", "BERT", "Gemma 2", "GPT-OSS")
        for padding in PADDED[2:]
    ),
    *(("BART", padding) for padding in PADDED),
]


@pytest.mark.parametrize(("name", "padding"), CASES)
def test_same_as_eager(name: str, padding: str) -> None:
    ours, eager = MODELS[name].pair()
    inputs = inputs_of(name, padding)
    with counted() as calls:
        got = ours(**inputs).logits
        assert calls.take() == MODELS[name].calls
        got = at_tokens(got, inputs)
        got_gradients = gradients(ours, got)
        assert calls.take() == MODELS[name].calls
    expected = at_tokens(eager(**inputs).logits, inputs)
    logits = difference(got, expected)
    grads = gradient_difference(got_gradients, gradients(eager, expected))
    print(f"{name}, padding {padding}: logits {logits:.1e}, gradients {grads:.1e}")
    assert logits < 1e-5
    assert grads < 1e-5


def at_tokens(logits: Tensor, inputs: dict[str, Tensor]) -> Tensor:
    """Without the rows of padding, where nothing is promised."""
    mask = inputs.get("attention_mask")
    if mask is None or mask.shape != logits.shape[:2]:
        return logits
    return logits[mask.bool()]


@pytest.mark.parametrize("name", ["Llama", "Gemma 2", "GPT-OSS", "BERT"])
def test_bfloat16(name: str) -> None:
    """The error to float32 is at most 1.2 times eager's, over several inputs."""
    ours, eager = MODELS[name].pair()
    exact = MODELS[name].make()
    exact.set_attn_implementation("eager")
    errors = torch.zeros(2)
    low = [model.bfloat16() for model in (ours, eager)]
    exact.load_state_dict(low[1].state_dict())
    for _ in range(4):
        inputs = inputs_of(name, "left")
        expected = at_tokens(exact(**inputs).logits, inputs)
        with torch.no_grad():
            for i, model in enumerate(low):
                got = at_tokens(model(**inputs).logits.float(), inputs)
                errors[i] += (got - expected).square().mean().sqrt().item()
    assert errors[0] <= 1.2 * errors[1]
