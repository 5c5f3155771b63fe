"""Registering the adapter, and what it refuses."""

from __future__ import annotations

import importlib.metadata
import re
import warnings
from pathlib import Path

import pytest
import torch
import transformers as hf
from hf_models import DECODERS, GQA, LAYERS, VOCAB, WIDTHS, counted, padding_mask, token_ids
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel, masking_utils
from transformers import modeling_flash_attention_utils as flash_utils

from flash_attn2.integrations import transformers as adapter
from flash_attn2.integrations.transformers import masks

LLAMA = DECODERS["Llama"]


def state() -> list[object]:
    """All that registering may change."""
    found: list[object] = [
        value
        for owner in (masking_utils, flash_utils)
        for name, value in sorted(vars(owner).items())
        if callable(value)
    ]
    for mapping in (AttentionInterface._global_mapping, AttentionMaskInterface._global_mapping):
        found += sorted(mapping.items())
    return found + [value for _, value in sorted(vars(PreTrainedModel).items()) if callable(value)]


def test_once_and_back() -> None:
    before = state()
    assert adapter.register() == adapter.NAME
    during = state()
    assert during != before
    assert adapter.register() == adapter.NAME
    assert state() == during
    adapter.unregister()
    assert state() == before
    adapter.unregister()
    assert state() == before
    with pytest.raises(ValueError, match="flash_attn2"):
        LLAMA.make().set_attn_implementation(adapter.NAME)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("name", ["flash_attn2", "paged|flash_attn2"])
def test_names(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the prefix is not needed any more
        model = LLAMA.make()
        model.set_attn_implementation(name)
        config = hf.LlamaConfig(**GQA)
        made = hf.AutoModelForCausalLM.from_config(config, attn_implementation=name)
    for each in (model, made):
        with counted() as calls, torch.no_grad():
            each(token_ids())
            assert calls.take() == LAYERS


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_others_work_as_before(implementation: str) -> None:
    model = LLAMA.make()
    model.set_attn_implementation(implementation)
    inputs = {"input_ids": token_ids(), "attention_mask": padding_mask("left")}
    with counted() as calls, torch.no_grad():
        during = model(**inputs).logits
        assert calls.take() == 0
    adapter.unregister()
    with torch.no_grad():
        assert torch.equal(during, model(**inputs).logits)
    adapter.register()


@pytest.mark.usefixtures("registered")
def test_models_with_a_list_of_kernels() -> None:
    """GPT-OSS would take another implementation, with a warning."""
    model = DECODERS["GPT-OSS"].make()
    assert model._compatible_flash_implementations
    model.set_attn_implementation(adapter.NAME)
    assert model.config._attn_implementation == adapter.NAME


IGNORING = {
    "MPT": ("MptForCausalLM", hf.MptConfig(vocab_size=VOCAB, d_model=64, n_layers=1, n_heads=4)),
    "Bloom": (
        "BloomForCausalLM",
        hf.BloomConfig(vocab_size=VOCAB, hidden_size=64, n_layer=1, n_head=4),
    ),
    "Falcon": (
        "FalconForCausalLM",
        hf.FalconConfig(
            vocab_size=VOCAB, hidden_size=64, num_hidden_layers=1, num_attention_heads=4
        ),
    ),
}


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("name", IGNORING)
def test_classes_that_ignore_the_choice(name: str) -> None:
    class_name, config = IGNORING[name]
    model = getattr(hf, class_name)(config)
    with pytest.raises(ValueError, match=f"{class_name} cannot have attn_implementation"):
        model.set_attn_implementation(adapter.NAME)
    with pytest.raises(ValueError, match=r"Model|ForCausalLM"):
        hf.AutoModelForCausalLM.from_config(config, attn_implementation=adapter.NAME)


@pytest.mark.usefixtures("registered")
def test_parts_that_ignore_the_choice() -> None:
    config = hf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        hf.ViTConfig(
            hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4
        ),
        hf.TrOCRConfig(vocab_size=VOCAB, d_model=64, decoder_layers=1, decoder_attention_heads=4),
    )
    model = hf.VisionEncoderDecoderModel(config)
    with pytest.raises(ValueError, match="TrOCR"):
        model.set_attn_implementation(adapter.NAME)


@pytest.mark.usefixtures("registered")
def test_parts_that_were_written_for_dense_masks() -> None:
    """Each part is asked, also where a dictionary chooses for some."""
    text = {**GQA, "model_type": "gemma3_text", "head_dim": 16}
    vision = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 1}
    config = hf.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    model = hf.Gemma3ForConditionalGeneration(config)
    masks.dense_configs.discard(hf.Gemma3Config)
    model.set_attn_implementation({"": adapter.NAME, "vision_config": "eager"})
    assert hf.Gemma3Config in masks.dense_configs
    assert model.config.vision_config._attn_implementation == "eager"
    assert model.config._attn_implementation == adapter.NAME


def test_docs_list_the_classes_that_ignore_the_choice() -> None:
    """Of the release that tests run with, by the rule that `register` has."""
    models = Path(hf.__file__).parent / "models"
    ignoring = set()
    for path in models.glob("*/modeling_*.py"):
        source = path.read_text()
        has_attention = re.search(r"^class \w*Attention\w*[(:]", source, re.MULTILINE)
        if has_attention and "ALL_ATTENTION_FUNCTIONS" not in source:
            ignoring.add(path.stem.removeprefix("modeling_"))
    page = Path(__file__).resolve().parents[2] / "docs" / "transformers.md"
    listed = page.read_text().split("modeling_<name>`):")[1]
    assert set(re.findall(r"`(\w+)`", listed)) == ignoring


def layer_inputs(heads: int = 4, seqlen: int = 8, head_dim: int = 16) -> list[Tensor]:
    return [torch.randn(1, heads, seqlen, head_dim) for _ in range(3)]


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"alibi": torch.ones(1, 4, 8, 8)}, NotImplementedError, "Linear .*alibi"),
        (
            {"position_bias": torch.ones(1, 3, 8, 8)},
            ValueError,
            r"^position_bias of Linear .*heads or 1.*\(1, 3, 8, 8\)",
        ),
        ({"position_bias": torch.ones(4, 8, 8)}, ValueError, r"^position_bias .*\(4, 8, 8\)"),
        (
            {
                "position_bias": torch.ones(1, 4, 8, 8),
                "attention_mask": torch.tensor([0, 8], dtype=torch.int32),
            },
            NotImplementedError,
            "packed sequences do not take",
        ),
        ({"indices": torch.zeros(1)}, NotImplementedError, "chosen keys"),
        ({"output_attentions": True}, ValueError, "output_attentions of Linear"),
        ({"attention_mask": torch.ones(1, 8, 8)}, ValueError, "2 or 4 dimensions"),
        ({"attention_mask": torch.ones(1, 9)}, ValueError, "at most as many columns"),
        (
            {"attention_mask": torch.zeros(1, 3, 8, 8)},
            ValueError,
            r"^attention_mask of Linear .*heads or 1.*\(1, 3, 8, 8\)",
        ),
        (
            {
                "attention_mask": torch.ones(1, 8),
                "cu_seq_lens_q": torch.tensor([0, 8]),
                "cu_seq_lens_k": torch.tensor([0, 8]),
            },
            ValueError,
            "None with cu_seq_lens_q",
        ),
    ],
)
def test_refused(options: dict[str, object], error: type[Exception], message: str) -> None:
    attention = AttentionInterface._global_mapping[adapter.NAME]
    layer = torch.nn.Linear(1, 1)
    options = {"attention_mask": None, **options}
    with pytest.raises(error, match=message):
        attention(layer, *layer_inputs(), **options)


@pytest.mark.usefixtures("registered")
def test_wide_heads() -> None:
    attention = AttentionInterface._global_mapping[adapter.NAME]
    with pytest.raises(
        ValueError, match=r"head_dim of Linear must be at most 576 on cpu .* got 584"
    ):
        attention(torch.nn.Linear(1, 1), *layer_inputs(head_dim=584), None)


@pytest.mark.parametrize("version", ["5.21.1", "4.57.6"])
def test_older_releases(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    with pytest.raises(ImportError, match=f"got {version}"):
        adapter.register()


def test_untested_releases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "6.1.0.dev0")
    with pytest.warns(UserWarning, match=r"tested with transformers .* this is 6\.1"):
        adapter.register()
    adapter.unregister()


def test_config_with_defaults_is_untouched() -> None:
    """A model made before registering, on its default, is not changed by it."""
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**{**WIDTHS, "num_key_value_heads": 2}))
    adapter.register()
    with counted() as calls, torch.no_grad():
        model(token_ids())
        assert calls.take() == 0
    adapter.unregister()
