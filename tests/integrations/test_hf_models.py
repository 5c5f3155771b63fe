"""Models of transformers on our kernels against their eager selves: logits and gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from hf_models import (
    DECODERS,
    ENCODER_DECODERS,
    ENCODERS,
    GEMMA,
    GQA,
    IMAGES,
    LAYERS,
    VISION,
    counted,
    difference,
    gradient_difference,
    gradients,
    inputs_of,
    padding_mask,
    token_ids,
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
    *((name, padding) for name in ("BART", "T5") for padding in PADDED),
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
        assert calls.take() == MODELS[name].calls + MODELS[name].bias_calls
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


def gemma3() -> tuple[hf.PretrainedConfig, dict[str, Tensor]]:
    """Image tokens see each other, whichever comes first."""
    text = {**GEMMA, "model_type": "gemma3_text"}
    config = hf.Gemma3Config(
        text_config=text, vision_config=IMAGES, mm_tokens_per_image=4, image_token_id=5
    )
    ids = token_ids().clamp(min=6)
    ids[:, 4:8] = 5
    images = {"token_type_ids": (ids == 5).long(), "pixel_values": torch.randn(2, 3, 32, 32)}
    return config, {"input_ids": ids, "attention_mask": padding_mask("right"), **images}


def qwen_vl() -> tuple[hf.PretrainedConfig, dict[str, Tensor]]:
    """Windows of an image are packed sequences."""
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3]}
    vision = {
        **{"depth": LAYERS, "hidden_size": 64, "num_heads": 4, "intermediate_size": 96},
        **{"out_hidden_size": 64, "patch_size": 4, "window_size": 16, "fullatt_block_indexes": [1]},
    }
    config = hf.Qwen2_5_VLConfig(
        text_config={**GQA, "rope_scaling": rope},
        vision_config=vision,
        image_token_id=5,
        vision_start_token_id=3,
        vision_end_token_id=4,
        video_token_id=6,
    )
    ids = token_ids(1).clamp(min=7)
    ids[0, 3:21] = torch.tensor([3, *[5] * 16, 4])
    images = {
        **{"pixel_values": torch.randn(64, 96), "image_grid_thw": torch.tensor([[1, 8, 8]])},
        **{"mm_token_type_ids": (ids == 5).int()},
    }
    return config, {"input_ids": ids, **images}


@pytest.mark.parametrize(
    ("class_name", "make"),
    [
        ("Gemma3ForConditionalGeneration", gemma3),
        ("Qwen2_5_VLForConditionalGeneration", qwen_vl),
    ],
)
def test_images_and_text(class_name: str, make: Callable[[], Any]) -> None:
    config, inputs = make()
    torch.manual_seed(0)
    ours = getattr(hf, class_name)(config).eval()
    eager = copy.deepcopy(ours)
    eager.set_attn_implementation("eager")
    ours.set_attn_implementation("flash_attn2")
    with counted() as calls:
        got = ours(**inputs).logits
        assert calls.take() == 2 * LAYERS
        got = at_tokens(got, inputs)
        got_gradients = gradients(ours, got)
        assert calls.take() == 2 * LAYERS
    expected = at_tokens(eager(**inputs).logits, inputs)
    logits = difference(got, expected)
    grads = gradient_difference(got_gradients, gradients(eager, expected))
    print(f"{class_name}, padding none: logits {logits:.1e}, gradients {grads:.1e}")
    assert logits < 1e-5
    assert grads < 1e-5


@pytest.mark.parametrize("kind", ["bool", "lowest", "-inf", "bias"])
@pytest.mark.parametrize("name", ["Llama", "Gemma 2", "GPT-OSS"])
def test_masks_of_four_dimensions(name: str, kind: str) -> None:
    """The user's own: it says all, whatever the layers think of causal and windows. Floats may be
    a bias, with a gradient."""
    ours, eager = MODELS[name].pair()
    ids, visible = token_ids(), torch.rand(2, 1, 40, 40) > 0.6
    visible |= torch.eye(40, dtype=torch.bool)
    lowest = -torch.inf if kind == "-inf" else torch.finfo(torch.float32).min
    given = torch.zeros(visible.shape).masked_fill(~visible, lowest)
    if kind == "bias":
        given += torch.randn(40, 40)
    biases = [given.clone().requires_grad_(kind == "bias") for _ in range(2)]
    mask = visible if kind == "bool" else biases[0]
    got = ours(ids, attention_mask=mask).logits
    expected = eager(ids, attention_mask=biases[1]).logits
    assert difference(got, expected) < 1e-5
    assert gradient_difference(gradients(ours, got), gradients(eager, expected)) < 1e-5
    if kind == "bias":
        assert difference(*(x.grad for x in biases)) < 1e-5


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
