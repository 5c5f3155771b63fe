"""Training with models of transformers: packing, checkpoints, compilation, Trainer and PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as hf
from hf_models import (
    DECODERS,
    ENCODERS,
    LAYERS,
    SEQLEN,
    counted,
    difference,
    gradient_difference,
    gradients,
    inputs_of,
    padding_mask,
    token_ids,
)
from torch import Tensor, nn

pytestmark = pytest.mark.usefixtures("registered")


def require_same(
    ours: nn.Module, eager: nn.Module, inputs: dict[str, Any], calls_wanted: int = 2 * LAYERS
) -> None:
    """Logits and gradients, of tokens."""
    mask = inputs.get("attention_mask")
    rows = slice(None) if mask is None else mask.bool()
    with counted() as calls:
        got = ours(**inputs).logits[rows]
        got_gradients = gradients(ours, got)
        assert calls.take() == calls_wanted
    expected = eager(**inputs).logits[rows]
    assert difference(got, expected) < 1e-5
    assert gradient_difference(got_gradients, gradients(eager, expected)) < 1e-5


def positions(*lengths: int) -> Tensor:
    return torch.cat([torch.arange(n) for n in lengths])[None]


LENGTHS = ((15, 1, 24), (30, 10))


def one_by_one(model: nn.Module, ids: Tensor) -> Tensor:
    """Logits of the sequences of packed rows, each by itself."""
    rows = zip(ids, LENGTHS, strict=False)
    parts = [part[None] for row, lengths in rows for part in row.split(lengths)]
    logits = torch.cat([model(part).logits[0] for part in parts])
    return logits.view(*ids.shape, -1)


@pytest.mark.parametrize("name", ["Llama", "Mistral", "Gemma 2", "GPT-OSS", "Phi"])
@pytest.mark.parametrize(("batch", "cache"), [(1, False), (2, False), (2, True)])
def test_packed(name: str, batch: int, cache: bool) -> None:
    """Positions that start anew; the rows of a batch may be packed differently."""
    ours, eager = DECODERS[name].pair()
    position_ids = torch.cat([positions(*lengths) for lengths in LENGTHS])[:batch]
    ids = token_ids(batch)
    with counted() as calls:
        got = ours(ids, position_ids=position_ids, use_cache=cache).logits
        got_gradients = gradients(ours, got)
        assert calls.take() == 2 * LAYERS
    expected = one_by_one(eager, ids)
    assert difference(got, expected) < 1e-5
    assert gradient_difference(got_gradients, gradients(eager, expected)) < 1e-5


@pytest.mark.parametrize("name", ["Llama", "Gemma 2"])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("tensors", [False, True])
def test_packed_by_lengths(name: str, dtype: torch.dtype, tensors: bool) -> None:
    """What `DataCollatorWithFlattening(return_flash_attn_kwargs=True)` gives beside positions."""
    ours, eager = DECODERS[name].pair()
    inputs = {"input_ids": token_ids(1), "position_ids": positions(15, 1, 24), "use_cache": False}
    bounds = torch.tensor([0, 15, 16, 40], dtype=dtype)
    longest = torch.tensor(24) if tensors else 24
    lengths = {
        **{"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds},
        **{"max_length_q": longest, "max_length_k": longest},
    }
    expected = eager(**inputs).logits
    with counted() as calls, torch.no_grad():
        got = ours(**inputs, **lengths).logits
        assert calls.take() == LAYERS
    assert difference(got, expected) < 1e-5


@pytest.mark.parametrize("name", ["Llama", "GPT-OSS", "BERT"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(name: str, reentrant: bool) -> None:
    """Layers run once more in the backward pass."""
    ours, eager = {**DECODERS, **ENCODERS}[name].pair()
    for model in (ours, eager):
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.enable_input_require_grads()
        model.train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        for parameter in ("attention_probs_dropout_prob", "hidden_dropout_prob"):
            if hasattr(model.config, parameter):
                setattr(model.config, parameter, 0.0)
    require_same(ours, eager, inputs_of(name, "left"), 3 * LAYERS)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("Llama", kind) for kind in ("plain", "padded", "packed", "packed, cache")),
        *(("GPT-OSS", "packed"), ("Gemma 2", "padded"), ("BERT", "padded")),
    ],
)
def test_compiled(name: str, kind: str) -> None:
    """Without a graph break, forward and backward."""
    ours, eager = {**DECODERS, **ENCODERS}[name].pair()
    padding = "left" if kind == "padded" else "none"
    inputs: dict[str, Any] = inputs_of(name, padding)
    expected = (
        one_by_one(eager, inputs["input_ids"]) if "packed" in kind else eager(**inputs).logits
    )
    if "packed" in kind:
        inputs["position_ids"] = torch.cat([positions(*lengths) for lengths in LENGTHS])
    if name != "BERT":
        inputs["use_cache"] = "cache" in kind
    torch.compiler.reset()
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    rows = padding_mask(padding).bool()
    got, expected = compiled(**inputs).logits[rows], expected[rows]
    assert difference(got, expected) < 1e-5
    assert gradient_difference(gradients(ours, got), gradients(eager, expected)) < 1e-5


def test_compiled_mask_of_four_dimensions() -> None:
    ours, eager = DECODERS["Llama"].pair()
    ids, mask = token_ids(), (torch.rand(2, 1, SEQLEN, SEQLEN) > 0.6) | torch.eye(SEQLEN).bool()
    floats = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    torch.compiler.reset()
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    got, expected = compiled(ids, attention_mask=mask), eager(ids, attention_mask=floats)
    assert difference(got.logits, expected.logits) < 1e-5


def test_compiled_mask_with_holes() -> None:
    ours, _ = DECODERS["Llama"].pair()
    torch.compiler.reset()
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    with pytest.raises(RuntimeError, match="attention_mask has holes"):
        compiled(**inputs_of("Llama", "hole"))


@pytest.mark.parametrize("name", ["Llama", "Gemma 2"])
def test_compiled_decoding(name: str) -> None:
    """A step over a static cache whose length is a tensor."""
    ours, eager = DECODERS[name].pair()
    ids, mask = token_ids(), padding_mask("left", SEQLEN)
    results = []
    torch.compiler.reset()
    step = torch.compile(ours, fullgraph=True, backend="aot_eager", dynamic=False)
    with torch.no_grad():
        for model in (ours, eager):
            cache = hf.StaticCache(model.config, max_cache_len=64)
            model(ids[:, :-2], attention_mask=mask[:, :-2], cache=cache)
            run = step if model is ours else model
            for at in (SEQLEN - 2, SEQLEN - 1):
                out = run(ids[:, at : at + 1], attention_mask=mask[:, : at + 1], cache=cache)
            results.append(out.logits)
    assert difference(*results) < 1e-5


class Packed(torch.utils.data.Dataset[dict[str, list[int]]]):
    """Sequences of different lengths."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.rows = [
            torch.randint(3, 99, (n,), generator=generator).tolist() for n in (5, 31, 12, 20) * 2
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return {"input_ids": self.rows[index]}


def trained(model: nn.Module, directory: Path, collate: Any) -> list[float]:
    """The losses of a short training."""
    arguments = hf.TrainingArguments(
        output_dir=str(directory),
        per_device_train_batch_size=4,
        max_steps=4,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=0,
    )
    trainer = hf.Trainer(model=model, args=arguments, train_dataset=Packed(), data_collator=collate)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("lengths", [False, True])
def test_trainer_with_packing(tmp_path: Path, lengths: bool, lora: bool) -> None:
    losses = []
    for implementation in ("flash_attn2", "eager"):
        model: Any = DECODERS["Llama"].make()
        model.set_attn_implementation(implementation)
        if lora:
            torch.manual_seed(0)
            options = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
            model = peft.get_peft_model(model, options)
        ours = implementation == "flash_attn2"
        collate = hf.DataCollatorWithFlattening(return_flash_attn_kwargs=lengths and ours)
        with counted() as calls:
            losses.append(trained(model, tmp_path, collate))
            assert calls.take() == (4 * 2 * LAYERS if ours else 0)
    assert losses[0][0] > losses[0][-1]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
