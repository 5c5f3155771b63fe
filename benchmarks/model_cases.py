"""Whole models in which attention is flash_attn2's or SDPA's, with the same weights and data.

They are those of examples/, at their sizes there; each unit of work is a number of tokens.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.append(str(Path(__file__).parents[1] / "examples"))

import finetune_bert
import train_gpt
from common import standard_library
from generate import random_model
from gpt import GPT, Config
from model_rows import BERT_TRAINING, GPT_GENERATION, GPT_TRAINING, ModelRow
from model_sdpa import SdpaGPT
from serving import CachedGPT

from flash_attn2.bench.contenders import SDPA
from flash_attn2.bench.race import FLASH_ATTN2
from flash_attn2.inference import PagedKVCache

_SEED = 0
_BATCHES = 4  # of training, again and again


@dataclass(frozen=True)
class Work:
    """What a contender does again and again, and what shows that it is right."""

    run: Callable[[], Any]
    tokens: int  # per run
    outcome: Callable[[], Tensor]  # of the first run, to be called before any
    tolerance: Mapping[str, float]  # of outcomes of two contenders, by dtype


def prepare(row: ModelRow, contender: str) -> Work:
    """What one of flash_attn2 and SDPA does."""
    return _KINDS[row.kind](row, contender)


def _gpt_training(row: ModelRow, contender: str) -> Work:
    """Packed documents, forward, backward and an optimizer step."""
    sizes = row.sizes
    args = argparse.Namespace(seed=_SEED, device="cpu", dtype=row.dtype)
    attention = {FLASH_ATTN2: "flash_attn2", SDPA: "sdpa"}[contender]
    training = train_gpt.GptTraining(args, Config(*sizes.gpt), attention)
    sources = list(standard_library().values())[:200]
    stream = train_gpt.batches(sources, sizes.gpt_tokens, sizes.longest_document, "cpu")
    return _training(training, list(itertools.islice(stream, _BATCHES)), sizes.gpt_tokens)


def _bert_training(row: ModelRow, contender: str) -> Work:
    """Snippets of very different lengths: packed, or padded with a mask for SDPA."""
    sizes = row.sizes
    width, layers, heads = sizes.bert
    args = argparse.Namespace(seed=_SEED, device="cpu", dtype=row.dtype, lr=1e-3)
    args.d_model, args.layers, args.heads = width, layers, heads
    encoder = finetune_bert.ENCODERS[{FLASH_ATTN2: "packed", SDPA: "padded"}[contender]]
    snippets = finetune_bert.Snippets(_SEED)
    batch = snippets.batch(sizes.snippets, "cpu")
    return _training(finetune_bert.Training(args, encoder), [batch], int(batch.mask.sum()))


def _training(training: Any, batches: Sequence[Any], tokens: int) -> Work:
    endless = itertools.cycle(batches)

    def first_losses() -> Tensor:
        for _ in range(2):
            training.step(next(endless))
        return torch.tensor(training.losses)

    # The second loss is that after a step, which depends on all gradients.
    tolerance = {"float32": 1e-4, "bfloat16": 5e-3}
    return Work(lambda: training.step(next(endless)), tokens, first_losses, tolerance)


@torch.inference_mode()
def _generation(row: ModelRow, contender: str) -> Work:
    """The most likely tokens after a long prompt, whose keys and values are there."""
    sizes = row.sizes
    torch.manual_seed(_SEED)
    model = random_model(Config(*sizes.gpt)).to(getattr(torch, row.dtype)).eval()
    text = b"".join(list(standard_library().values())[:50])
    length = sizes.sequences * sizes.prompt
    prompts = torch.frombuffer(bytearray(text[:length]), dtype=torch.uint8).long()
    prompts = prompts.view(sizes.sequences, sizes.prompt)
    make = {FLASH_ATTN2: _PagedGeneration, SDPA: _SdpaGeneration}[contender]
    generation = make(model, prompts, sizes.new)
    tokens = sizes.sequences * sizes.new
    return Work(generation.run, tokens, generation.given, {"float32": 1e-3, "bfloat16": 0.3})


class _Generation:
    """`new` tokens after each of `prompts` (sequences, length), again and again."""

    def __init__(self, model: GPT, prompts: Tensor, new: int) -> None:
        self.prompts = prompts
        self.new = new
        self.prepare(model)
        self._first = self.logits(prompts, 0)

    def prepare(self, model: GPT) -> None:
        raise NotImplementedError

    def logits(self, tokens: Tensor, start: int) -> Tensor:
        """After the last of `tokens` (sequences, count), the first of which is at `start`."""
        raise NotImplementedError

    def forget(self) -> None:
        """All but the prompts."""

    @torch.inference_mode()
    def run(self) -> None:
        """Greedy."""
        logits = self._first
        for start in self._starts():
            logits = self.logits(logits.argmax(-1)[:, None], start)
        self.forget()

    @torch.inference_mode()
    def given(self) -> Tensor:
        """Logits after tokens that are given: with rounding, others might be the most likely."""
        starts = self._starts()
        steps = [
            self.logits(self.prompts[:, index, None], start) for index, start in enumerate(starts)
        ]
        self.forget()
        return torch.stack([self._first, *steps])

    def _starts(self) -> range:
        length = self.prompts.shape[1]
        return range(length, length + self.new)


class _PagedGeneration(_Generation):
    def prepare(self, model: GPT) -> None:
        config = model.config
        sequences, length = self.prompts.shape
        page_size = 16
        pages = sequences * -(-(length + self.new) // page_size)
        heads = (config.num_heads_kv, config.d_model // config.num_heads)
        dtype = model.head.weight.dtype
        self._cache = PagedKVCache(config.num_layers, pages, page_size, *heads, dtype, "cpu")
        self._model = CachedGPT(model, self._cache)
        self._sequences = [self._cache.allocate() for _ in range(sequences)]

    def logits(self, tokens: Tensor, start: int) -> Tensor:
        step = self._cache.append(self._sequences, tokens.shape[1])
        return self._model.logits(tokens.flatten(), step)

    def forget(self) -> None:
        for sequence in self._sequences:
            self._cache.truncate(sequence, self.prompts.shape[1])


class _SdpaGeneration(_Generation):
    def prepare(self, model: GPT) -> None:
        sequences, length = self.prompts.shape
        self._model = SdpaGPT(model, sequences, length + self.new)

    def logits(self, tokens: Tensor, start: int) -> Tensor:
        return self._model.logits(tokens, start)


_KINDS: Mapping[str, Callable[[ModelRow, str], Work]] = {
    GPT_TRAINING: _gpt_training,
    GPT_GENERATION: _generation,
    BERT_TRAINING: _bert_training,
}
