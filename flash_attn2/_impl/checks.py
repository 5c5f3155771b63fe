"""Checks of dense and varlen calls. Every message names the argument, what came, what is allowed.

Shape, dtype and device checks also run while torch.compile traces; checks of values run when
numbers and host memory are at hand. `cu_seqlens` and `seqused_k` on a GPU are not read, because
that would wait for the device: the kernels clamp them to the tensors instead.

A call that is right passes in one row of comparisons. Another goes through checks one by one, of
which one raises; so do traced tensors, whose sizes must not be asked for all that.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch
from torch import Tensor

from flash_attn2._impl import biases, block_mask
from flash_attn2._impl.problem import (
    MAX_HEAD_DIM,
    MAX_HEAD_DIM_V,
    MAX_SEQLEN,
    NO_BLOCK_MASK,
    NO_SCORE_MOD,
    NO_SHARD,
    BiasGradient,
    Gradient,
    Problem,
    lse_shape,
    out_shape,
    unpacked,
)
from flash_attn2._impl.shard_checks import check_shard

FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def too_long(rows: int | torch.SymInt) -> bool:
    """Whether kernels cannot count so many rows. Traced ones can tell only when they are run:
    asked before, torch.export would demand a bound.
    """
    return not isinstance(rows, torch.SymInt) and rows > MAX_SEQLEN


def check_dense(p: Problem) -> None:
    """Shapes, dtypes and devices of (batch, seqlen, num_heads, head_dim) tensors."""
    q, k, v, seqs_q, _, options, *_ = p
    assert k is not None
    assert v is not None
    shape_q, shape_k, shape_v, dtype = q.shape, k.shape, v.shape, q.dtype
    if (
        type(q) is Tensor
        and len(shape_q) == 4 == len(shape_k)
        and (shape_v == shape_k or shape_v[:-1] == shape_k[:-1])
        and dtype is k.dtype is v.dtype
        and dtype in FLOAT_DTYPES
        and q.device == k.device == v.device
    ):
        batch, seqlen_q, num_heads, head_dim = shape_q
        batch_k, seqlen_k, num_heads_kv, head_dim_k = shape_k
        if (
            batch == batch_k
            and head_dim == head_dim_k
            and 1 <= head_dim <= MAX_HEAD_DIM
            and 1 <= shape_v[-1] <= MAX_HEAD_DIM_V
            and num_heads > 0 < num_heads_kv
            and num_heads % num_heads_kv == 0
            and seqlen_q <= MAX_SEQLEN
            and seqlen_k <= MAX_SEQLEN
            and (seqs_q.seqused is None or is_vector(seqs_q.seqused, batch, q.device))
            and (
                (options.sink is None and options.score_mod.alibi_slopes is None)
                or per_head_fits(p, batch)
            )
        ):
            if options.block_mask is not NO_BLOCK_MASK:
                block_mask.check_block_mask(p, batch)
            if options.score_mod is not NO_SCORE_MOD:
                _with_advice(biases.check_biases, p)
            if p[-3:] != NO_SHARD or options.dropout.rng_state is not None:
                check_shard(p, batch)
            return
    explain_dense(p)


def explain_dense(p: Problem) -> None:
    """The same, one by one."""
    _with_advice(_explain_dense, p)


def _with_advice(check: Callable[[Problem], None], p: Problem) -> None:
    """What fails says more where the heads seem to come before the rows."""
    try:
        check(p)
    except ValueError as error:
        if not _heads_first(p):
            raise
        raise ValueError(
            f"{error}: if q, k and v are (batch, num_heads, seqlen, head_dim), as "
            "scaled_dot_product_attention has them, pass q.transpose(1, 2) and so on"
        ) from None


def _heads_first(p: Problem) -> bool:
    """Whether the problem fits with dimensions 1 and 2 swapped, and not as it is."""
    q, k, (_, slopes, bias, _), sink = p.q, p.k, p.options.score_mod, p.options.sink
    if k is None or q.ndim != 4 or k.ndim != 4 or 0 in (*k.shape, *q.shape):
        return False
    (batch, rows, heads, _), (batch_k, rows_k, heads_k, _) = q.shape, k.shape
    if batch != batch_k or rows % rows_k != 0:
        return False
    per_head = [x.shape[-1] for x in (slopes, sink) if x is not None and x.ndim > 0]
    if heads % heads_k != 0 or (heads not in per_head and rows in per_head):
        return True
    if bias is None or bias.ndim < 2:
        return False
    return bias.shape[-2:] == (heads, heads_k) != (rows, rows_k)


def _explain_dense(p: Problem) -> None:
    q, k, v = p.q, p.k, p.v
    assert k is not None
    assert v is not None
    require_dims(q, k, v, ("batch", "seqlen", "num_heads", "head_dim"))
    batch, seqlen_q, _, _ = q.shape
    batch_k, seqlen_k, _, _ = k.shape
    if batch_k != batch:
        raise ValueError(f"k must have the batch size of q, {batch}, got {batch_k}")
    if too_long(seqlen_q) or too_long(seqlen_k):
        raise ValueError(
            f"q and k must have at most {MAX_SEQLEN} rows, got {seqlen_q} and {seqlen_k}"
        )
    check_heads(q, k, v)
    _check_used("seqused_q", p.seqs_q.seqused, batch, q.device)
    check_per_head(p, batch)
    block_mask.check_block_mask(p, batch)
    biases.check_biases(p)
    check_shard(p, batch)


def check_varlen(p: Problem) -> None:
    """Shapes, dtypes and devices of varlen (total, num_heads, head_dim) tensors."""
    q, k, v = p.q, p.k, p.v
    assert k is not None
    assert v is not None
    (cu_seqlens_q, used_q, *_), (cu_seqlens_k, used_k, *_) = p.seqs_q, p.seqs_k
    assert cu_seqlens_q is not None
    assert cu_seqlens_k is not None
    shape_q, shape_k, shape_v, dtype, device = q.shape, k.shape, v.shape, q.dtype, q.device
    if (
        type(q) is Tensor
        and len(shape_q) == 3 == len(shape_k)
        and (shape_v == shape_k or shape_v[:-1] == shape_k[:-1])
        and dtype is k.dtype is v.dtype
        and dtype in FLOAT_DTYPES
        and device == k.device == v.device == cu_seqlens_q.device == cu_seqlens_k.device
        and cu_seqlens_q.dtype is cu_seqlens_k.dtype is torch.int32
        and cu_seqlens_q.shape == cu_seqlens_k.shape
        and cu_seqlens_q.ndim == 1
    ):
        batch, (_, num_heads, head_dim), (_, num_heads_kv, head_dim_k) = (
            cu_seqlens_q.shape[0] - 1,
            shape_q,
            shape_k,
        )
        if (
            batch >= 0
            and head_dim == head_dim_k
            and 1 <= head_dim <= MAX_HEAD_DIM
            and 1 <= shape_v[-1] <= MAX_HEAD_DIM_V
            and num_heads > 0 < num_heads_kv
            and num_heads % num_heads_kv == 0
            and (used_q is None or is_vector(used_q, batch, device))
            and (used_k is None or is_vector(used_k, batch, device))
            and (
                (p.options.sink is None and p.options.score_mod.alibi_slopes is None)
                or per_head_fits(p, batch)
            )
        ):
            if p[-3:] != NO_SHARD or p.options.dropout.rng_state is not None:
                check_shard(p, batch)
            return
    explain_varlen(p)


def explain_varlen(p: Problem) -> None:
    """The same, one by one."""
    q, k, v = p.q, p.k, p.v
    assert k is not None
    assert v is not None
    (cu_seqlens_q, used_q, *_), (cu_seqlens_k, used_k, *_) = p.seqs_q, p.seqs_k
    assert cu_seqlens_q is not None
    assert cu_seqlens_k is not None
    require_dims(q, k, v, ("total", "num_heads", "head_dim"))
    check_heads(q, k, v)
    check_int32_vector("cu_seqlens_q", cu_seqlens_q, q.device)
    check_int32_vector("cu_seqlens_k", cu_seqlens_k, q.device)
    if cu_seqlens_q.shape[0] < 1:
        raise ValueError("cu_seqlens_q must have batch + 1 elements, got 0")
    batch = cu_seqlens_q.shape[0] - 1
    if cu_seqlens_k.shape[0] != batch + 1:
        raise ValueError(
            f"cu_seqlens_k must have as many elements as cu_seqlens_q, {batch + 1}, "
            f"got {cu_seqlens_k.shape[0]}"
        )
    _check_used("seqused_q", used_q, batch, q.device)
    _check_used("seqused_k", used_k, batch, q.device)
    check_per_head(p, batch)
    check_shard(p, batch)


def _check_used(name: str, seqused: Tensor | None, batch: int, device: torch.device) -> None:
    if seqused is None:
        return
    check_int32_vector(name, seqused, device)
    if seqused.shape[0] != batch:
        raise ValueError(
            f"{name} must have one element per sequence, {batch}, got {seqused.shape[0]}"
        )


def check_qkvpacked(q: Tensor, kv: Tensor | None) -> None:
    """What the other checks say of k and v, or of q, said of the tensor that holds them.

    q without kv is qkv.
    """
    name, tensor = ("qkv", q) if kv is None else ("kv", kv)
    if tensor.dtype not in FLOAT_DTYPES:
        raise TypeError(
            f"{name} must be float16, bfloat16, float32 or float64, got {tensor.dtype}"
        ) from None
    if kv is None:
        return
    if kv.dtype != q.dtype:
        raise TypeError(f"kv must have the dtype of q, {q.dtype}, got {kv.dtype}") from None
    if kv.device != q.device:
        raise ValueError(f"kv must be on the device of q, {q.device}, got {kv.device}") from None
    if q.ndim > 1 and kv.shape[-1] != q.shape[-1]:
        raise ValueError(
            f"kv must have the head_dim of q, {q.shape[-1]}, got {kv.shape[-1]}"
        ) from None
    if q.ndim == 4 and kv.ndim == 5 and kv.shape[0] != q.shape[0]:
        raise ValueError(
            f"kv must have the batch size of q, {q.shape[0]}, got {kv.shape[0]}"
        ) from None


def check_results(gradient: Gradient | BiasGradient) -> None:
    """Shapes, dtypes and devices of a forward pass's results, and of gradients of any dtype."""
    grad_out, grad_lse, p, *_ = gradient
    q, v, out, lse, (drop_prob, rng_state) = p.q, p.v, p.out, p.lse, p.options.dropout
    if v is None:
        q, _, v = unpacked(q, p.k, None)
    shape, shape_lse, device = out_shape(q, v), lse_shape(q), q.device
    if (
        type(q) is Tensor
        and drop_prob == 0
        and grad_lse is None
        and grad_out is not None
        and out is not None
        and lse is not None
        and out.shape == shape == grad_out.shape
        and lse.shape == shape_lse
        and out.dtype is q.dtype
        and lse.dtype is torch.float32
        and grad_out.is_floating_point()
        and out.device == lse.device == grad_out.device == device
    ):
        return
    for name, tensor, expected, dtype in (
        ("out", out, shape, q.dtype),
        ("grad_out", grad_out, shape, None),
        ("lse", lse, shape_lse, torch.float32),
        ("grad_lse", grad_lse, shape_lse, None),
        ("rng_state", rng_state if drop_prob > 0 else None, (2,), torch.int64),
    ):
        if tensor is None:
            continue
        if tensor.shape != expected:
            raise ValueError(f"{name} must have shape {tuple(expected)}, got {tuple(tensor.shape)}")
        if dtype is not None and tensor.dtype != dtype:
            raise TypeError(f"{name} must be {dtype}, got {tensor.dtype}")
        if not tensor.is_floating_point() and dtype is None:
            raise TypeError(f"{name} must be of floating point, got {tensor.dtype}")
        check_device(name, tensor, device)
    if drop_prob > 0 and rng_state is None:
        raise ValueError("rng_state must be that of the forward pass, got None")


def check_lengths(p: Problem) -> None:
    """Bounds of the sequence lengths, and the lengths themselves where host memory holds them."""
    assert p.k is not None
    for side, (cu_seqlens, seqused, bound, *_), rows in (
        ("q", p.seqs_q, p.q.shape[0]),
        ("k", p.seqs_k, p.k.shape[0]),
    ):
        assert cu_seqlens is not None
        if bound is None or not 0 <= bound <= MAX_SEQLEN:
            raise ValueError(f"max_seqlen_{side} must be from 0 to {MAX_SEQLEN}, got {bound}")
        if not cu_seqlens.is_cpu:
            continue
        lengths = host_lengths(f"cu_seqlens_{side}", cu_seqlens, rows)
        if seqused is not None:
            lengths = host_used(f"seqused_{side}", seqused, lengths)
        if lengths and max(lengths) > bound:
            require_bound(f"max_seqlen_{side}", bound, lengths)


def host_lengths(name: str, cu_seqlens: Tensor, total: int) -> list[int]:
    """The lengths that cu_seqlens in host memory say, after checks."""
    bounds = cu_seqlens.tolist()
    lengths = list(map(operator.sub, bounds[1:], bounds))
    if bounds[0] != 0:
        raise ValueError(f"{name} must start at 0, got {bounds[0]}")
    if min(lengths, default=0) < 0:
        at = next(i for i, length in enumerate(lengths) if length < 0)
        raise ValueError(
            f"{name} must not decrease, got {bounds[at]} followed by {bounds[at + 1]} at {at + 1}"
        )
    if bounds[-1] > total:
        raise ValueError(f"{name} must end within the {total} rows of the tensor, got {bounds[-1]}")
    return lengths


def check_used(p: Problem) -> None:
    """The numbers of rows of dense tensors that count, where host memory holds them."""
    if (seqused := p.seqs_q.seqused) is not None and seqused.is_cpu:
        batch, seqlen_q, *_ = p.q.shape
        host_used("seqused_q", seqused, [seqlen_q] * batch)


def host_used(name: str, seqused: Tensor, lengths: list[int]) -> list[int]:
    """The lengths that seqused leaves of these, after checks."""
    used: list[int] = seqused.tolist()
    for i, (count, length) in enumerate(zip(used, lengths, strict=True)):
        if not 0 <= count <= length:
            raise ValueError(
                f"{name} must be from 0 to the length of each sequence, got {count} of "
                f"{length} rows at {i}"
            )
    return used


def require_bound(name: str, bound: int, lengths: list[int]) -> None:
    """That no sequence is longer than that."""
    if (longest := max(lengths, default=0)) > bound:
        raise ValueError(f"{name} must not be below the longest sequence, {longest}, got {bound}")


def require_dims(q: Tensor, k: Tensor, v: Tensor, dims: tuple[str, ...]) -> None:
    """Numbers of dimensions."""
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.ndim != len(dims):
            raise ValueError(f"{name} must be ({', '.join(dims)}), got shape {tuple(tensor.shape)}")


def check_heads(q: Tensor, k: Tensor, v: Tensor) -> None:
    """What dense and varlen tensors share."""
    require_rows_of("v", v, "k", k)
    dtype, device = q.dtype, q.device
    if k.dtype != dtype or v.dtype != dtype:
        raise TypeError(f"q, k and v must have one dtype, got {dtype}, {k.dtype} and {v.dtype}")
    if dtype not in FLOAT_DTYPES:
        raise TypeError(f"q must be float16, bfloat16, float32 or float64, got {dtype}")
    if k.device != device or v.device != device:
        raise ValueError(f"q, k and v must be on one device, got {device}, {k.device}, {v.device}")
    check_head_counts(q, k, "k", "v")
    check_head_dim_v("v", v)


def require_rows_of(name: str, v: Tensor, name_k: str, k: Tensor) -> None:
    """That values are as many as keys, in as many heads, whose width is their own."""
    if k.shape[:-1] != v.shape[:-1]:
        raise ValueError(
            f"{name} must have the shape of {name_k} but for the width of its heads, "
            f"{_but_for_width(k)}, got {tuple(v.shape)}"
        )


def _but_for_width(k: Tensor) -> str:
    return f"({', '.join(map(str, k.shape[:-1]))}, head_dim_v)"


def check_head_dim_v(name: str, v: Tensor) -> None:
    """The width of values."""
    if not 1 <= v.shape[-1] <= MAX_HEAD_DIM_V:
        raise ValueError(
            f"head_dim_v, of {name}, must be from 1 to {MAX_HEAD_DIM_V}, got {v.shape[-1]}"
        )


def require_head_dim(name: str, tensor: Tensor, q: Tensor) -> None:
    """That heads are as large as those of q."""
    if tensor.shape[-1] != q.shape[-1]:
        raise ValueError(
            f"{name} must have the head_dim of q, {q.shape[-1]}, got {tensor.shape[-1]}"
        )


def check_head_counts(q: Tensor, k: Tensor, name_k: str, name_v: str) -> None:
    """Numbers and dimensions of heads, of keys and values that are called so."""
    num_heads, head_dim = q.shape[-2:]
    num_heads_kv = k.shape[-2]
    require_head_dim(name_k, k, q)
    if not 1 <= head_dim <= MAX_HEAD_DIM:
        raise ValueError(f"head_dim, of q, must be from 1 to {MAX_HEAD_DIM}, got {head_dim}")
    if num_heads_kv == 0 or num_heads == 0 or num_heads % num_heads_kv != 0:
        raise ValueError(
            f"num_heads of q must be a positive multiple of num_heads of {name_k} and {name_v}, "
            f"got {num_heads} and {num_heads_kv}"
        )


def per_head_fits(p: Problem, batch: int) -> bool:
    """Whether `check_per_head` would pass."""
    slopes, sink, num_heads = p.options.score_mod.alibi_slopes, p.options.sink, p.q.shape[-2]
    return (
        slopes is None
        or (
            slopes.dtype is torch.float32
            and slopes.device == p.q.device
            and slopes.shape in ((num_heads,), (batch, num_heads))
        )
    ) and (
        sink is None
        or (
            sink.dtype is torch.float32 and sink.device == p.q.device and sink.shape == (num_heads,)
        )
    )


def check_per_head(p: Problem, batch: int) -> None:
    """Slopes and sink."""
    slopes, sink, num_heads = p.options.score_mod.alibi_slopes, p.options.sink, p.q.shape[-2]
    if slopes is not None:
        _check_float32("alibi_slopes", slopes, p.q.device)
        if slopes.shape not in ((num_heads,), (batch, num_heads)):
            raise ValueError(
                f"alibi_slopes must have shape ({num_heads},) or ({batch}, {num_heads}), "
                f"got {tuple(slopes.shape)}"
            )
    if sink is not None:
        _check_float32("sink", sink, p.q.device)
        if sink.shape != (num_heads,):
            raise ValueError(f"sink must have shape ({num_heads},), got {tuple(sink.shape)}")


def _check_float32(name: str, tensor: Tensor, device: torch.device) -> None:
    if tensor.dtype != torch.float32:
        raise TypeError(f"{name} must be float32, got {tensor.dtype}")
    check_device(name, tensor, device)


def is_vector(x: Tensor, count: int, device: torch.device) -> bool:
    """Whether x is int32 (count,) on that device."""
    return x.dtype is torch.int32 and x.shape == (count,) and x.device == device


def check_int32_vector(name: str, tensor: Tensor, device: torch.device) -> None:
    """int32 of one dimension, on that device."""
    if tensor.dtype != torch.int32:
        raise TypeError(f"{name} must be int32, got {tensor.dtype}")
    if tensor.ndim != 1:
        raise ValueError(f"{name} must have one dimension, got shape {tuple(tensor.shape)}")
    check_device(name, tensor, device)


def check_device(name: str, tensor: Tensor, device: torch.device) -> None:
    """That the tensor is where q is."""
    if tensor.device != device:
        raise ValueError(f"{name} must be on the device of q, {device}, got {tensor.device}")
