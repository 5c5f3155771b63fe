"""JAX: jax.nn.dot_product_attention, compiled by XLA."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import torch
from torch import Tensor

from flash_attn2.bench.suite import UnavailableError
from peers import XLA_THREADS
from peers.interface import Attention, Prepared, in_turns


def variants(attention: Attention) -> Mapping[str, Callable[[], Prepared]]:
    if attention.q.dtype == torch.float16:
        raise UnavailableError("no float16 on CPUs")
    allowed = int(os.environ.get(XLA_THREADS) or len(os.sched_getaffinity(0)))
    if allowed != attention.threads:
        raise UnavailableError(f"takes {allowed} threads")
    return {"": lambda: _prepare(attention)}


def _prepare(attention: Attention) -> Prepared:
    """Rows first is its own layout; nothing is copied on the way in or out."""
    q = jax.dlpack.from_dlpack(attention.q)
    layers = [tuple(map(jax.dlpack.from_dlpack, layer)) for layer in attention.layers]

    def attend(q: Any, k: Any, v: Any) -> Any:
        return jax.nn.dot_product_attention(
            q, k, v, scale=attention.scale, is_causal=attention.causal, implementation="xla"
        )

    compiled = jax.jit(attend).lower(q, *layers[0]).compile()
    last: list[Any] = []

    def run(layer: Any) -> None:
        last[:] = [compiled(q, *layer).block_until_ready()]

    def result() -> Tensor:
        return torch.from_dlpack(last[0])

    # float32 is multiplied as such on CPUs; what comes out says what went in.
    (out,) = jax.tree.leaves(compiled.out_info)
    return Prepared(in_turns(layers, run), result, str(out.dtype))
