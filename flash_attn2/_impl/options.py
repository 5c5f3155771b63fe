"""Arguments of the public functions -> structs of `problem`, after checks of types and ranges."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from flash_attn2._impl.arguments import (
    as_bound,
    as_int,
    as_number,
    require_bool,
    require_tensor,
    require_tensors,
    traced,
)
from flash_attn2._impl.block_mask import make_block_mask
from flash_attn2._impl.observe import is_ordinary, ordinary
from flash_attn2._impl.problem import (
    MAX_DROPOUT_P,
    MAX_FACTOR,
    MAX_FACTOR_RATIO,
    MAX_SEQLEN,
    MIN_FACTOR,
    NO_BLOCK_MASK,
    NO_DROPOUT,
    NO_SCORE_MOD,
    NO_SEQLENS,
    NO_WINDOW,
    UNLIMITED,
    Dropout,
    Options,
    ScoreMod,
    SeqLens,
    Window,
)
from flash_attn2._impl.tensors import in_memory

_MAX_WINDOW = 2**63 - 1


def make_options(
    dropout_p: Any,
    softmax_scale: Any,
    causal: Any,
    window_size: Any,
    softcap: Any,
    alibi_slopes: Any,
    sink: Any,
    deterministic: Any = False,
    block_mask: Any = None,
    bias: Any = None,
    relative_bias: Any = None,
) -> Options:
    """The arguments that the public functions share. `causal` is a window with right = 0."""
    if type(causal) is not bool:
        require_bool("causal", causal)
    if type(deterministic) is not bool:
        require_bool("deterministic", deterministic)
    if alibi_slopes is not None or sink is not None:
        require_tensors(("?alibi_slopes", "?sink"), alibi_slopes, sink)
    if bias is not None or relative_bias is not None:
        require_tensors(("?bias", "?relative_bias"), bias, relative_bias)
    if softmax_scale is not None and type(softmax_scale) is not float:
        softmax_scale = as_number("softmax_scale", softmax_scale)
    if type(softcap) is not float:
        softcap = as_number("softcap", softcap)
    if type(dropout_p) is not float:
        dropout_p = as_number("dropout_p", dropout_p)
    if softmax_scale is not None or softcap != 0.0 or not 0.0 <= dropout_p <= MAX_DROPOUT_P:
        check_numbers(dropout_p, softmax_scale, softcap)
    if type(window_size) is tuple and len(window_size) == 2:
        left, right = window_size
        if type(left) is not int or type(right) is not int:
            left, right = _window(window_size)
    else:
        left, right = _window(window_size)
    if not (UNLIMITED <= left <= _MAX_WINDOW and UNLIMITED <= right <= _MAX_WINDOW):
        raise ValueError(
            f"window_size must hold integers from 0 to {_MAX_WINDOW}, or -1 for no bound, "
            f"got {window_size}"
        )
    if causal:
        right = 0
    # What has its default is not made anew, which would take a third of the time.
    window, score_mod, dropout, mask = NO_WINDOW, NO_SCORE_MOD, NO_DROPOUT, NO_BLOCK_MASK
    if left != UNLIMITED or right != UNLIMITED:
        window = Window(left, right)
    if softcap != 0.0 or alibi_slopes is not None or bias is not None or relative_bias is not None:
        score_mod = ScoreMod(softcap, alibi_slopes, bias, relative_bias)
    if dropout_p != 0.0:
        dropout = Dropout(dropout_p)
    if block_mask is not None:
        mask = make_block_mask(block_mask)
    return Options(softmax_scale, window, score_mod, sink, dropout, bool(deterministic), mask)


def _window(window_size: Any) -> tuple[int, int]:
    try:
        left, right = window_size
        return as_int("left", left), as_int("right", right)
    except (TypeError, ValueError):
        raise TypeError(
            f"window_size must be a pair of integers (left, right), got {window_size!r}"
        ) from None


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
    if softmax_scale and not 1 / MAX_FACTOR_RATIO <= softmax_scale / softcap <= MAX_FACTOR_RATIO:
        raise ValueError(
            f"softcap must be within a factor 2^120 of softmax_scale, {softmax_scale}, "
            f"got {softcap}"
        )


def make_seqlens(
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    seqused_q: Any,
    seqused_k: Any,
    max_seqlen_q: Any,
    max_seqlen_k: Any,
    q: Tensor,
    k: Tensor,
    block_table: Tensor | None = None,
) -> tuple[SeqLens, SeqLens]:
    """Of varlen queries and keys, in tensors whose shapes have not been checked yet."""
    require_tensors(
        ("cu_seqlens_q", "cu_seqlens_k", "?seqused_q", "?seqused_k"),
        *(cu_seqlens_q, cu_seqlens_k, seqused_q, seqused_k),
    )
    if type(max_seqlen_q) is not int:
        max_seqlen_q = bound_of("max_seqlen_q", max_seqlen_q, cu_seqlens_q, rows_of(q))
    if type(max_seqlen_k) is not int:
        rows = rows_of(k)
        if block_table is not None:
            rows = math.prod((*block_table.shape[1:2], *k.shape[1:2]))
        max_seqlen_k = bound_of("max_seqlen_k", max_seqlen_k, cu_seqlens_k, rows)
    return (
        SeqLens(cu_seqlens_q, seqused_q, max_seqlen_q),
        SeqLens(cu_seqlens_k, seqused_k, max_seqlen_k),
    )


def bound_of(name: str, bound: Any, cu_seqlens: Tensor, rows: int) -> int:
    """An upper bound of the lengths as `as_bound` takes it; None: the longest, where host memory
    says so, else `rows`."""
    if bound is not None:
        return as_bound(name, bound, rows)
    if (
        not cu_seqlens.is_cpu
        or cu_seqlens.ndim != 1
        or cu_seqlens.shape[0] < 2
        or not ordinary()
        or not is_ordinary(cu_seqlens)
        or traced()
    ):
        return min(rows, MAX_SEQLEN) if type(rows) is int else rows
    return max(0, int(in_memory("cu_seqlens", cu_seqlens).diff().max()))


def make_used(seqused_q: Any) -> SeqLens:
    """Of dense queries, of which so many rows count; None: all."""
    if seqused_q is None:
        return NO_SEQLENS
    require_tensor("seqused_q", seqused_q)
    return SeqLens(None, seqused_q)


def require_qkvpacked(name: str, tensor: Any, dims: tuple[str | int, ...]) -> None:
    """Error unless `tensor` is one of these dimensions, named or fixed."""
    require_tensor(name, tensor)
    shape = tensor.shape
    wrong = len(dims) != len(shape)
    if not wrong:
        for dim, size in zip(dims, shape, strict=True):
            wrong = wrong or (type(dim) is int and dim != size)
    if wrong:
        raise ValueError(f"{name} must be ({', '.join(map(str, dims))}), got shape {tuple(shape)}")


def rows_of(x: Tensor) -> int:
    """Rows of a varlen tensor, whose shape has not been checked yet."""
    return x.shape[0] if x.ndim > 0 else 0
