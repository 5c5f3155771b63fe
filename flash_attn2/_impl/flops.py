"""What torch.utils.flop_counter counts for the ops.

As for PyTorch's own attention: two products of matrices forward and five backward, of all queries
of a sequence with all its keys, masked or not; two for the gradient of a bias. Lengths are read
from memory; where they cannot be, in fake and meta tensors, every sequence counts as the longest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

# Products of matrices whose sums or results are as wide as keys, and as values.
Products = tuple[int, int]
FORWARD, BACKWARD, BIAS = (1, 1), (3, 2), (1, 1)

Named = dict[str, Any]  # arguments of an op


def _products(
    count: Products, q: Tensor, v: Tensor | None, seqlens_q: Sequence[int], seqlens_k: Sequence[int]
) -> int:
    """Of heads as q and v have them, and sequences of these lengths; v is None where it is as wide
    as q."""
    head_dim_v = q.shape[-1] if v is None else v.shape[-1]
    scores = sum(a * b for a, b in zip(seqlens_q, seqlens_k, strict=True))
    return products(count, q.shape[-1], head_dim_v, q.shape[-2] * scores)


def products(count: Products, head_dim: int, head_dim_v: int, scores: int) -> int:
    """FLOPs of so many products that each make or take `scores` scores."""
    return 2 * (count[0] * head_dim + count[1] * head_dim_v) * scores


def _dense(count: Products, named: Named) -> int:
    q, k = named["q"], named["k"]
    batch, seqlen_q = q.shape[:2]
    seqlen_k = seqlen_q if k is None else k.shape[1]
    seqlens_q = [seqlen_q] * batch
    if (used := named["seqused_q"]) is not None:
        seqlens_q = _values(used, seqlen_q)
    return _products(count, q, named["v"], seqlens_q, [seqlen_k] * batch)


def _biases(count: Products, named: Named) -> int:
    """Each bias by a pass of its own."""
    passes = sum(
        named[f"of_{name}"] and named[name] is not None for name in ("bias", "relative_bias")
    )
    of_keys, of_values = count
    return _dense((of_keys * passes, of_values * passes), named)


def _varlen(count: Products, named: Named) -> int:
    seqlens_q, seqlens_k = (
        _differences(named[f"cu_seqlens_{side}"], named[f"max_seqlen_{side}"])
        if named[f"seqused_{side}"] is None
        else _values(named[f"seqused_{side}"], named[f"max_seqlen_{side}"])
        for side in "qk"
    )
    return _products(count, named["q"], named["v"], seqlens_q, seqlens_k)


def _kvcache(count: Products, named: Named) -> int:
    q, seqlens = named["q"], named["cache_seqlens"]
    table, leftpad = named["block_table"], named["cache_leftpad"]
    page_size = named["k_cache"].shape[1]
    capacity = page_size if table is None else page_size * table.shape[1]
    if named["cu_seqlens_q"] is None:
        seqlens_q = [q.shape[1]] * q.shape[0]
    else:
        longest = named["max_seqlen_q"]
        seqlens_q = _differences(named["cu_seqlens_q"], q.shape[0] if longest is None else longest)
    held = [capacity] * len(seqlens_q)
    if seqlens is not None or named["cache_seqlen"] is not None:
        known = [named["cache_seqlen"]] * len(seqlens_q)
        held = known if seqlens is None else _values(seqlens, capacity)
        new = [named["seqlen_new"]] * len(seqlens_q)
        if named["cu_seqlens_k_new"] is not None:
            new = _differences(named["cu_seqlens_k_new"], 0)
        held = [min(a + b, capacity) for a, b in zip(held, new, strict=True)]
    if leftpad is not None:
        held = [a - b for a, b in zip(held, _values(leftpad, 0), strict=True)]
    return _products(count, q, named["v_cache"], seqlens_q, held)


_FORMULAS: dict[str, tuple[Callable[[Products, Named], int], Products]] = {
    "forward": (_dense, FORWARD),
    "backward": (_dense, BACKWARD),
    "bias_backward": (_biases, BIAS),
    "varlen_forward": (_varlen, FORWARD),
    "varlen_backward": (_varlen, BACKWARD),
    "kvcache_forward": (_kvcache, FORWARD),
    "kvcache_append_forward": (_kvcache, FORWARD),
}


def _values(x: Tensor, unknown: int) -> list[int]:
    from torch._subclasses.fake_tensor import FakeTensor
    from torch._subclasses.functional_tensor import FunctionalTensor

    if x.is_meta or isinstance(x, (FakeTensor, FunctionalTensor)):
        return [unknown] * x.shape[0]
    return x.tolist()


def _differences(cu_seqlens: Tensor, unknown: int) -> list[int]:
    return _values(cu_seqlens.diff(), unknown)


def count_op(op: Any, rule: Callable[[Products, Named], int], count: Products) -> None:
    """Let FlopCounterMode count an op by what `rule` says of its arguments, by name."""
    arguments = op.default._schema.arguments
    defaults = {x.name: x.default_value for x in arguments if x.has_default_value()}
    names = [x.name for x in arguments]

    def flops(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
        return rule(count, defaults | dict(zip(names, args, strict=False)) | kwargs)

    # As register_flop_formula does, which in torch 2.4 enters overloads, which nothing finds.
    flop_registry[op] = flops


def register() -> None:
    """Let FlopCounterMode count the ops, which have to be defined."""
    for name, (rule, count) in _FORMULAS.items():
        count_op(getattr(torch.ops.flash_attn2, name), rule, count)
