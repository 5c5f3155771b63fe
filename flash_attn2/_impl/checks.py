"""Validation of arguments. Every message names the argument, what came and what is allowed.

Shape, dtype and device checks also run while torch.compile traces; checks of values run when
numbers and host memory are at hand. `cu_seqlens` and `seqused_k` on a GPU are not read, because
that would wait for the device: the kernels clamp them to the tensors instead.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor

from flash_attn2._impl.arguments import (
    as_bound,
    as_int,
    as_number,
    require_bool,
    require_tensor,
)
from flash_attn2._impl.launch import Options, Packing, Saved

MAX_HEAD_DIM = 256
MAX_SEQLEN = 2**29 - 1  # kMaxSeqlen in csrc/core/params.h
MAX_DROPOUT_P = 1 - 2.0**-10  # where steps of 2^-16 change the share of kept entries by 1%
MIN_FACTOR, MAX_FACTOR = 2.0**-100, 2.0**100  # likewise in csrc/bindings/direct_call.cpp
UNLIMITED = -1
_MAX_WINDOW = 2**63 - 1

_FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def require_packed(name: str, packed: Any, dims: tuple[str | int, ...]) -> None:
    """Error unless `packed` is a tensor of these dimensions, named or fixed."""
    require_tensor(name, packed)
    if len(dims) != packed.ndim or any(
        isinstance(dim, int) and dim != size for dim, size in zip(dims, packed.shape, strict=True)
    ):
        raise ValueError(
            f"{name} must be ({', '.join(map(str, dims))}), got shape {tuple(packed.shape)}"
        )


def rows_of(packed: Tensor) -> int:
    """Rows of a packed tensor, whose shape has not been checked yet."""
    return packed.shape[0] if packed.ndim > 0 else 0


def make_packing(
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    seqused_k: Any,
    max_seqlen_q: Any,
    max_seqlen_k: Any,
    rows_q: int,
    rows_k: int,
) -> Packing:
    """Where the sequences of packed tensors of so many rows lie, after checks of the types."""
    require_tensor("cu_seqlens_q", cu_seqlens_q)
    require_tensor("cu_seqlens_k", cu_seqlens_k)
    if seqused_k is not None:
        require_tensor("seqused_k", seqused_k)
    return Packing(
        cu_seqlens_q,
        cu_seqlens_k,
        seqused_k,
        as_bound("max_seqlen_q", max_seqlen_q, rows_q),
        as_bound("max_seqlen_k", max_seqlen_k, rows_k),
    )


def make_options(
    dropout_p: float,
    softmax_scale: float | None,
    causal: bool,
    window_size: tuple[int, int],
    softcap: float,
    alibi_slopes: Tensor | None,
    sink: Tensor | None,
    deterministic: bool = False,
) -> Options:
    """The arguments that the public functions share, after checks of types and ranges.

    `causal` is a window with right = 0.
    """
    require_bool("causal", causal)
    require_bool("deterministic", deterministic)
    if alibi_slopes is not None:
        require_tensor("alibi_slopes", alibi_slopes)
    if sink is not None:
        require_tensor("sink", sink)
    if softmax_scale is not None:
        softmax_scale = as_number("softmax_scale", softmax_scale)
    softcap = as_number("softcap", softcap)
    dropout_p = as_number("dropout_p", dropout_p)
    check_numbers(dropout_p, softmax_scale, softcap)
    left, right = _window(window_size)
    return Options(
        softmax_scale,
        left,
        0 if causal else right,
        softcap,
        alibi_slopes,
        sink,
        dropout_p,
        bool(deterministic),
    )


def _window(window_size: Any) -> tuple[int, int]:
    try:
        left, right = window_size
        left, right = as_int("left", left), as_int("right", right)
    except (TypeError, ValueError):
        raise TypeError(
            f"window_size must be a pair of integers (left, right), got {window_size!r}"
        ) from None
    for side in (left, right):
        if not UNLIMITED <= side <= _MAX_WINDOW:
            raise ValueError(
                f"window_size must hold integers from 0 to {_MAX_WINDOW}, or -1 for no bound, "
                f"got {window_size}"
            )
    return left, right


def check_numbers(dropout_p: float, softmax_scale: float | None, softcap: float) -> None:
    """Ranges of probability, scale and cap: within them no kernel rounds one to 0 or infinity."""
    if not 0.0 <= dropout_p <= MAX_DROPOUT_P:
        raise ValueError(
            f"dropout_p must be from 0 to {MAX_DROPOUT_P} (1 - 2^-10, since entries are dropped in "
            f"steps of 2^-16), got {dropout_p}"
        )
    if softmax_scale is not None and not (
        softmax_scale == 0.0 or MIN_FACTOR <= softmax_scale <= MAX_FACTOR
    ):
        raise ValueError(
            f"softmax_scale must be 0 or from {MIN_FACTOR:.4g} to {MAX_FACTOR:.4g} (2^-100 to "
            f"2^100), got {softmax_scale}"
        )
    if softcap == 0.0:
        return
    if not MIN_FACTOR <= softcap <= MAX_FACTOR:
        raise ValueError(
            f"softcap must be 0 (none) or from {MIN_FACTOR:.4g} to {MAX_FACTOR:.4g} (2^-100 to "
            f"2^100), got {softcap}"
        )
    if softmax_scale and not 2.0**-120 <= softmax_scale / softcap <= 2.0**120:
        raise ValueError(
            f"softcap must be within a factor 2^120 of softmax_scale, {softmax_scale}, "
            f"got {softcap}"
        )


def too_long(rows: int | torch.SymInt) -> bool:
    """Whether kernels cannot count so many rows. Traced ones can tell only when they are run:
    asked before, torch.export would demand a bound.
    """
    return not isinstance(rows, torch.SymInt) and rows > MAX_SEQLEN


def check_dense(
    q: Tensor, k: Tensor, v: Tensor, alibi_slopes: Tensor | None, sink: Tensor | None
) -> None:
    """Shapes, dtypes and devices of (batch, seqlen, num_heads, head_dim) tensors."""
    _require_dims(q, k, v, ("batch", "seqlen", "num_heads", "head_dim"))
    batch, seqlen_q, _, _ = q.shape
    batch_k, seqlen_k, _, _ = k.shape
    if batch_k != batch:
        raise ValueError(f"k must have the batch size of q, {batch}, got {batch_k}")
    if too_long(seqlen_q) or too_long(seqlen_k):
        raise ValueError(
            f"q and k must have at most {MAX_SEQLEN} rows, got {seqlen_q} and {seqlen_k}"
        )
    _check_heads(q, k, v)
    if alibi_slopes is not None or sink is not None:
        _check_per_head(q, batch, alibi_slopes, sink)


def check_packed(q: Tensor, kv: Tensor | None) -> None:
    """What the other checks say of k and v, or of q, said of the tensor that holds them.

    q without kv is qkv.
    """
    name, packed = ("qkv", q) if kv is None else ("kv", kv)
    if packed.dtype not in _FLOAT_DTYPES:
        raise TypeError(
            f"{name} must be float16, bfloat16, float32 or float64, got {packed.dtype}"
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


def check_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    packing: Packing,
    alibi_slopes: Tensor | None,
    sink: Tensor | None,
) -> None:
    """Shapes, dtypes and devices of packed (total, num_heads, head_dim) tensors."""
    cu_seqlens_q, cu_seqlens_k, seqused_k, *_ = packing
    _require_dims(q, k, v, ("total", "num_heads", "head_dim"))
    _check_heads(q, k, v)
    for name, lengths in (
        ("cu_seqlens_q", cu_seqlens_q),
        ("cu_seqlens_k", cu_seqlens_k),
        ("seqused_k", seqused_k),
    ):
        if lengths is not None:
            _check_int32_vector(name, lengths, q.device)
    if cu_seqlens_q.shape[0] < 1:
        raise ValueError("cu_seqlens_q must have batch + 1 elements, got 0")
    batch = cu_seqlens_q.shape[0] - 1
    if cu_seqlens_k.shape[0] != batch + 1:
        raise ValueError(
            f"cu_seqlens_k must have as many elements as cu_seqlens_q, {batch + 1}, "
            f"got {cu_seqlens_k.shape[0]}"
        )
    if seqused_k is not None and seqused_k.shape[0] != batch:
        raise ValueError(
            f"seqused_k must have one element per sequence, {batch}, got {seqused_k.shape[0]}"
        )
    _check_per_head(q, batch, alibi_slopes, sink)


def check_results(
    grad_out: Tensor | None,
    grad_lse: Tensor | None,
    q: Tensor,
    saved: Saved,
    lse_shape: tuple[int, ...],
    dropout_p: float,
) -> None:
    """Shapes, dtypes and devices of a forward pass's results, and of gradients of any dtype."""
    for name, tensor, shape, dtype in (
        ("out", saved.out, q.shape, q.dtype),
        ("grad_out", grad_out, q.shape, None),
        ("lse", saved.lse, lse_shape, torch.float32),
        ("grad_lse", grad_lse, lse_shape, None),
        ("rng_state", saved.rng_state if dropout_p > 0 else None, (2,), torch.int64),
    ):
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(tensor.shape)}")
        if dtype is not None and tensor.dtype != dtype:
            raise TypeError(f"{name} must be {dtype}, got {tensor.dtype}")
        if not tensor.is_floating_point() and dtype is None:
            raise TypeError(f"{name} must be of floating point, got {tensor.dtype}")
        _check_device(name, tensor, q.device)
    if dropout_p > 0 and saved.rng_state is None:
        raise ValueError("rng_state must be that of the forward pass, got None")


def check_lengths(q: Tensor, k: Tensor, packing: Packing) -> None:
    """Bounds of the sequence lengths, and the lengths themselves where host memory holds them."""
    for name in ("max_seqlen_q", "max_seqlen_k"):
        if not 0 <= (value := getattr(packing, name)) <= MAX_SEQLEN:
            raise ValueError(f"{name} must be from 0 to {MAX_SEQLEN}, got {value}")
    if q.is_cpu:
        lengths = _host_lengths("cu_seqlens_q", packing.cu_seqlens_q, q.shape[0])
        _require_bound("max_seqlen_q", packing.max_seqlen_q, lengths)
        lengths = _host_lengths("cu_seqlens_k", packing.cu_seqlens_k, k.shape[0])
        if packing.seqused_k is not None:
            lengths = _host_used(packing.seqused_k, lengths)
        _require_bound("max_seqlen_k", packing.max_seqlen_k, lengths)


def _host_lengths(name: str, cu_seqlens: Tensor, total: int) -> list[int]:
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


def _host_used(seqused_k: Tensor, lengths: list[int]) -> list[int]:
    used: list[int] = seqused_k.tolist()
    for i, (count, length) in enumerate(zip(used, lengths, strict=True)):
        if not 0 <= count <= length:
            raise ValueError(
                f"seqused_k must be from 0 to the length of each sequence, got {count} of "
                f"{length} rows at {i}"
            )
    return used


def _require_bound(name: str, bound: int, lengths: list[int]) -> None:
    if (longest := max(lengths, default=0)) > bound:
        raise ValueError(f"{name} must not be below the longest sequence, {longest}, got {bound}")


def _require_dims(q: Tensor, k: Tensor, v: Tensor, dims: tuple[str, ...]) -> None:
    rank = len(dims)
    if q.ndim == rank and k.ndim == rank and v.ndim == rank:
        return
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.ndim != rank:
            raise ValueError(f"{name} must be ({', '.join(dims)}), got shape {tuple(tensor.shape)}")


def _check_heads(q: Tensor, k: Tensor, v: Tensor) -> None:
    """What dense and packed tensors share."""
    shape_k, shape_v = k.shape, v.shape
    if shape_k != shape_v:
        _require_head_dim("k", k, q)
        raise ValueError(
            f"v must have the shape of k, {tuple(shape_k)}, got {tuple(shape_v)}; "
            "head dimensions of k and v that differ are not supported"
        )
    dtype, device = q.dtype, q.device
    if k.dtype != dtype or v.dtype != dtype:
        raise TypeError(f"q, k and v must have one dtype, got {dtype}, {k.dtype} and {v.dtype}")
    if dtype not in _FLOAT_DTYPES:
        raise TypeError(f"q must be float16, bfloat16, float32 or float64, got {dtype}")
    if k.device != device or v.device != device:
        raise ValueError(f"q, k and v must be on one device, got {device}, {k.device}, {v.device}")
    _check_head_counts(q, k, "k", "v")


def _require_head_dim(name: str, tensor: Tensor, q: Tensor) -> None:
    if tensor.shape[-1] != q.shape[-1]:
        raise ValueError(
            f"{name} must have the head_dim of q, {q.shape[-1]}, got {tensor.shape[-1]}"
        )


def _check_head_counts(q: Tensor, k: Tensor, name_k: str, name_v: str) -> None:
    """Numbers and dimensions of heads, of keys and values that are called so."""
    num_heads, head_dim = q.shape[-2:]
    num_heads_kv = k.shape[-2]
    _require_head_dim(name_k, k, q)
    if not 1 <= head_dim <= MAX_HEAD_DIM:
        raise ValueError(f"head_dim must be from 1 to {MAX_HEAD_DIM}, got {head_dim}")
    if num_heads_kv == 0 or num_heads == 0 or num_heads % num_heads_kv != 0:
        raise ValueError(
            f"num_heads of q must be a positive multiple of num_heads of {name_k} and {name_v}, "
            f"got {num_heads} and {num_heads_kv}"
        )


def _check_per_head(
    q: Tensor, batch: int, alibi_slopes: Tensor | None, sink: Tensor | None
) -> None:
    num_heads = q.shape[-2]
    if alibi_slopes is not None:
        _check_float32("alibi_slopes", alibi_slopes, q.device)
        if alibi_slopes.shape not in ((num_heads,), (batch, num_heads)):
            raise ValueError(
                f"alibi_slopes must have shape ({num_heads},) or ({batch}, {num_heads}), "
                f"got {tuple(alibi_slopes.shape)}"
            )
    if sink is not None:
        _check_float32("sink", sink, q.device)
        if sink.shape != (num_heads,):
            raise ValueError(f"sink must have shape ({num_heads},), got {tuple(sink.shape)}")


def _check_float32(name: str, tensor: Tensor, device: torch.device) -> None:
    if tensor.dtype != torch.float32:
        raise TypeError(f"{name} must be float32, got {tensor.dtype}")
    _check_device(name, tensor, device)


def _check_int32_vector(name: str, tensor: Tensor, device: torch.device) -> None:
    if tensor.dtype != torch.int32:
        raise TypeError(f"{name} must be int32, got {tensor.dtype}")
    if tensor.ndim != 1:
        raise ValueError(f"{name} must have one dimension, got shape {tuple(tensor.shape)}")
    _check_device(name, tensor, device)


def _check_device(name: str, tensor: Tensor, device: torch.device) -> None:
    if tensor.device != device:
        raise ValueError(f"{name} must be on the device of q, {device}, got {tensor.device}")
