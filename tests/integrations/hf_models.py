"""Tiny models with random weights, beside their eager selves."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers as hf
from support import cpu_tensors_on
from torch import Tensor, nn

from flash_attn2._impl import backends
from flash_attn2.integrations.transformers import NAME

VOCAB, SEQLEN, LAYERS = 99, 40, 2
WIDTHS = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
}
GQA = {**WIDTHS, "num_key_value_heads": 2}
GEMMA = {**GQA, "head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16}
SIDES = {
    "d_model": 64,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
IMAGES = {
    **{name: size for name, size in WIDTHS.items() if name != "vocab_size"},
    "image_size": 32,
    "patch_size": 8,
}


@dataclasses.dataclass(frozen=True)
class Model:
    """A class, its configuration, how many calls of a kernel a forward pass makes, and how many
    more than that a backward pass, for gradients of biases."""

    model_class: str
    config_class: str
    config: dict[str, Any]
    calls: int = LAYERS
    bias_calls: int = 0

    def make(self) -> nn.Module:
        torch.manual_seed(0)
        config = getattr(hf, self.config_class)(**self.config)
        model: nn.Module = getattr(hf, self.model_class)(config).eval()
        for name, parameter in model.named_parameters():
            if name.endswith("sinks"):  # which are not set from the start
                nn.init.normal_(parameter)
        return model

    def pair(self) -> tuple[nn.Module, nn.Module]:
        """The model on our kernels, and by itself."""
        ours, eager = self.make(), self.make()
        eager.load_state_dict(ours.state_dict())
        eager.set_attn_implementation("eager")
        ours.set_attn_implementation(NAME)
        return ours, eager


def _decoder(name: str, config: dict[str, Any], calls: int = LAYERS) -> Model:
    return Model(f"{name}ForCausalLM", f"{name}Config", config, calls)


DECODERS = {
    "Llama": _decoder("Llama", GQA),
    "Qwen2": _decoder("Qwen2", GQA),
    "Qwen3": _decoder("Qwen3", {**GQA, "head_dim": 16}),
    "Mistral": _decoder("Mistral", {**GQA, "sliding_window": 8}),
    "Mixtral": _decoder("Mixtral", {**GQA, "num_local_experts": 4}),
    "Gemma 2": _decoder("Gemma2", GEMMA),
    "Gemma 3": Model("Gemma3ForCausalLM", "Gemma3TextConfig", {**GEMMA, "num_hidden_layers": 2}),
    "Phi": _decoder("Phi", GQA),
    "GPT-OSS": _decoder(
        "GptOss",
        {
            **{**GQA, "head_dim": 16, "sliding_window": 8},
            **{"num_local_experts": 4, "num_experts_per_tok": 2},
        },
    ),
    "DeepSeek V3": _decoder(
        "DeepseekV3",
        {
            **{**WIDTHS, "num_key_value_heads": 4, "moe_intermediate_size": 32},
            **{"n_routed_experts": 8, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2},
            **{"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "v_head_dim": 12},
            **{"qk_nope_head_dim": 16, "first_k_dense_replace": 1},
        },
    ),
    "GPT-2": Model(
        "GPT2LMHeadModel",
        "GPT2Config",
        {"vocab_size": VOCAB, "n_embd": 64, "n_layer": LAYERS, "n_head": 4},
    ),
    "OPT": _decoder("OPT", {**WIDTHS, "ffn_dim": 96, "word_embed_proj_dim": 64}),
}
ENCODERS = {
    "BERT": Model("BertForMaskedLM", "BertConfig", WIDTHS),
    "RoBERTa": Model("RobertaForMaskedLM", "RobertaConfig", WIDTHS),
    "ModernBERT": Model(
        "ModernBertForMaskedLM",
        "ModernBertConfig",
        {
            **{**WIDTHS, **TOKENS, "cls_token_id": 1, "sep_token_id": 2},
            **{"local_attention": 16, "global_attn_every_n_layers": 2},
        },
    ),
}
VISION = {
    "ViT": Model("ViTForImageClassification", "ViTConfig", IMAGES),
    "DINOv2": Model("Dinov2ForImageClassification", "Dinov2Config", IMAGES),
}
ENCODER_DECODERS = {
    "BART": Model(
        "BartForConditionalGeneration",
        "BartConfig",
        {**SIDES, **TOKENS, "vocab_size": VOCAB, "decoder_start_token_id": 2},
        3 * LAYERS,
    ),
    "Whisper": Model(
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        {
            **{**SIDES, **TOKENS, "vocab_size": VOCAB, "decoder_start_token_id": 1},
            **{"max_source_positions": 32, "num_mel_bins": 8},
            **{"suppress_tokens": [], "begin_suppress_tokens": []},
        },
        3 * LAYERS,
    ),
}
ENCODER_DECODERS["T5"] = Model(
    "T5ForConditionalGeneration",
    "T5Config",
    {
        **{"vocab_size": VOCAB, "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": LAYERS},
        **{"num_heads": 4, "decoder_start_token_id": 0},
    },
    3 * LAYERS,
    2 * LAYERS,
)


def token_ids(batch: int = 2, seqlen: int = SEQLEN) -> Tensor:
    return torch.randint(3, VOCAB, (batch, seqlen))


def padding_mask(padding: str, seqlen: int = SEQLEN) -> Tensor:
    """Of two rows, the second of them padded on the left, the right or both, or with a hole."""
    mask = torch.ones((2, seqlen), dtype=torch.long)
    if padding in ("left", "both"):
        mask[1, :13] = 0
    if padding in ("right", "both"):
        mask[1, -7:] = 0
    if padding == "hole":
        mask[1, 9:14] = 0
    return mask


def inputs_of(name: str, padding: str = "none") -> dict[str, Tensor]:
    """Of a model of the tables above."""
    if name in VISION:
        return {"pixel_values": torch.randn(2, 3, 32, 32)}
    if name == "Whisper":
        features = torch.randn(2, 8, 64)
        return {"input_features": features, "decoder_input_ids": token_ids(2, 21)}
    inputs = {"input_ids": token_ids()}
    if padding != "none":
        inputs["attention_mask"] = padding_mask(padding)
    if name in ENCODER_DECODERS:
        inputs["decoder_input_ids"] = token_ids(2, 21)
    return inputs


def difference(x: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest number."""
    assert not x.isnan().any()
    x, expected = x.detach(), expected.detach()
    return float((x - expected).abs().max() / expected.abs().max())


def gradients(model: nn.Module, logits: Tensor) -> list[Tensor]:
    """Of the parameters, in their order."""
    model.zero_grad()
    logits.square().mean().backward()
    return [p.grad if p.grad is not None else torch.zeros(1) for p in model.parameters()]


def gradient_difference(got: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference of a gradient, as a share of the largest number in it. Gradients that
    are nothing but rounding, as those of biases of keys, count beside the largest of all."""
    largest = max(float(x.abs().max()) for x in expected)
    return max(
        float((x - y).abs().max()) / max(float(y.abs().max()), 1e-3 * largest)
        for x, y in zip(got, expected, strict=True)
    )


class Calls:
    """Native calls since the last look."""

    def __init__(self) -> None:
        self.count = 0

    def take(self) -> int:
        count, self.count = self.count, 0
        return count


@contextmanager
def counted(name: str = "cpu") -> Iterator[Calls]:
    """Counts every call that reaches a native module, that of a backend to which CPU tensors go."""
    calls = Calls()
    backend = backends.load(name)

    def counting(function: Callable[..., bool] | None) -> Callable[..., bool] | None:
        if function is None:
            return None

        def call(*args: Any) -> bool:
            done = function(*args)
            calls.count += done
            return done

        return call

    class Counting(backends.Backend):
        def run(self, *args: Any) -> Any:
            calls.count += 1
            return super().run(*args)

    fields = {field.name: getattr(backend, field.name) for field in dataclasses.fields(backend)}
    for direct in ("forward_direct", "backward_direct"):
        fields[direct] = counting(fields[direct])
    with cpu_tensors_on(name), pytest.MonkeyPatch.context() as patch:
        patch.setattr(backends, "for_cpu_tensors", Counting(**fields))
        yield calls


def copy_of(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model)
