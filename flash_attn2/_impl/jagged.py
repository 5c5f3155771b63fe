"""Nested tensors of layout torch.jagged: packed sequences, with their offsets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

_RAGGED_DIM = 1  # of (batch, seqlen, num_heads, head_dim)


def is_jagged(x: Any) -> bool:
    """Whether x is a nested tensor of that layout."""
    return isinstance(x, Tensor) and x.layout is torch.jagged


class _Packed(NamedTuple):
    """What a nested tensor (batch, seqlen, num_heads, head_dim) consists of."""

    rows: Tensor  # (total, num_heads, head_dim)
    offsets: Tensor
    lengths: Tensor | None  # where rows between the sequences belong to none
    max_seqlen: int | None  # None: not known without a look


def attend(
    varlen: Callable[..., Any],
    q: Any,
    k: Any,
    v: Any,
    dense_only: dict[str, Any],
    **options: Any,
) -> Any:
    """`varlen` of the packed rows; out, and lse (batch, num_heads, seqlen_q), nested as q is.

    TypeError and ValueError where tensors do not go together, or with `dense_only` options.
    """
    for name, x in (("k", k), ("v", v)):
        if not is_jagged(x):
            what = "a dense tensor" if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(
                f"q must be dense, or {name} a nested tensor of layout torch.jagged as q is, got "
                f"{what}"
            )
    for name, value in dense_only.items():
        if value is not None:
            raise ValueError(f"{name} must be None with nested tensors, got {type(value).__name__}")
    of_q, of_k, of_v = (_packed(name, x, q) for name, x in (("q", q), ("k", k), ("v", v)))
    if of_k.rows.shape[:-1] != of_v.rows.shape[:-1] or not _same_sequences(of_k, of_v):
        raise ValueError("v must have the lengths and offsets of k")
    sides = of_q, of_k
    lengths = [x.offsets.to(torch.int32) for x in sides]
    used = [None if x.lengths is None else x.lengths.to(torch.int32) for x in sides]
    holes = any(x is not None for x in used)
    if holes:
        # Rows before the first sequence belong to none: they are one of which nothing counts.
        lengths, used = ([_after_zero(x) for x in xs] for xs in (lengths, used))
        options["alibi_slopes"] = _for_one_more(options["alibi_slopes"])
    results = varlen(
        *(of_q.rows, of_k.rows, of_v.rows, *lengths, of_q.max_seqlen, of_k.max_seqlen),
        seqused_q=used[0],
        seqused_k=used[1],
        **options,
    )
    if isinstance(results, Tensor):
        return _nested(results, of_q)
    out, lse, *probs = results
    if holes:
        probs = [x[1:] for x in probs]
    of_lse = _nested(lse.transpose(0, 1), of_q).transpose(1, 2)
    return _nested(out, of_q), of_lse, *probs


def _after_zero(x: Tensor | None) -> Any:
    return None if x is None else functional.pad(x, (1, 0))


def _for_one_more(slopes: Tensor | None) -> Tensor | None:
    """Slopes (batch, num_heads) with some for a sequence before the first."""
    return slopes if slopes is None or slopes.ndim != 2 else torch.cat((slopes[:1], slopes))


def _packed(name: str, x: Any, q: Any) -> _Packed:
    if x.ndim != 4 or x._ragged_idx != _RAGGED_DIM:
        raise ValueError(
            f"{name} must be nested as (batch, seqlen, num_heads, head_dim) with sequences of "
            f"different lengths, got shape {tuple(x.shape)}: transpose(1, 2) leads there from "
            "heads before rows"
        )
    if x.shape[0] != q.shape[0]:
        raise ValueError(f"{name} must have as many sequences as q, {q.shape[0]}, got {x.shape[0]}")
    longest = getattr(x, "_maybe_max_seqlen", None)
    return _Packed(x.values(), x.offsets(), x.lengths(), longest)


def _same_sequences(a: _Packed, b: _Packed) -> bool:
    """What can be told without waiting for a GPU: kernels read lengths of keys once, for both."""
    if a.offsets is b.offsets and a.lengths is b.lengths:
        return True
    if (a.lengths is None) != (b.lengths is None):
        return False
    if torch.compiler.is_compiling() or not a.offsets.is_cpu:
        return a.offsets.shape == b.offsets.shape
    return torch.equal(a.offsets, b.offsets) and (
        a.lengths is None or b.lengths is None or torch.equal(a.lengths, b.lengths)
    )


def _nested(rows: Tensor, like: _Packed) -> Tensor:
    result: Tensor = torch.nested.nested_tensor_from_jagged(rows, like.offsets, like.lengths)
    return result
