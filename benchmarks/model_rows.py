"""Which whole models are measured, at which sizes."""

from __future__ import annotations

from dataclasses import dataclass

from cpu_rows import THREADS

from flash_attn2.bench.cases import DTYPES

GPT_TRAINING = "GPT training"
GPT_GENERATION = "GPT generation"
BERT_TRAINING = "BERT training"
_KINDS = (GPT_TRAINING, GPT_GENERATION, BERT_TRAINING)


@dataclass(frozen=True)
class Sizes:
    """Of all models; the full ones are those of the examples."""

    gpt: tuple[int, int, int, int]  # width, layers, heads, key heads
    gpt_tokens: int  # of a training step
    longest_document: int
    sequences: int  # generated side by side
    prompt: int
    new: int  # tokens of each sequence
    bert: tuple[int, int, int]  # width, layers, heads
    snippets: int  # of a training step


FULL = Sizes((256, 4, 4, 2), 4096, 2048, 8, 2048, 16, (128, 4, 4), 32)
SMALL = Sizes((32, 2, 2, 1), 128, 64, 2, 20, 4, (16, 1, 2), 2)


@dataclass(frozen=True)
class ModelRow:
    kind: str
    dtype: str
    sizes: Sizes = FULL
    threads: tuple[int, ...] = THREADS[-1:]

    @property
    def name(self) -> str:
        return f"model, {self.kind} {DTYPES[self.dtype]}"

    @property
    def section(self) -> str:
        """A process of its own for each kind."""
        return self.kind


def rows(sizes: Sizes = FULL) -> list[ModelRow]:
    """In the order in which they run."""
    return [ModelRow(kind, dtype, sizes) for kind in _KINDS for dtype in ("float32", "bfloat16")]
