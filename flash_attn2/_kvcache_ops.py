"""The `torch.library` ops around a KV cache.

    flash_attn2::kvcache_append    writes new keys and values into the cache, in place; returns the
                                   rotated q, empty where nothing is rotated
    flash_attn2::kvcache_forward   attention over the cache: (out, lse)

They have fake implementations and no derivatives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flash_attn2 import _backend, _checks, _kvcache_checks, _kvcache_launch, _observe
from flash_attn2._kvcache_launch import Cache, New
from flash_attn2._launch import Options
from flash_attn2.ops import _library, register_vmap

_ops: Any = torch.ops.flash_attn2

Tensors = tuple[Tensor, Tensor]


def append_and_attend(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    new: New | None,
    cache: Cache,
    num_splits: int,
    options: Options,
) -> Tensors:
    """Append `new`, then attention over the cache: out and lse.

    Skips the dispatcher when nothing would observe the ops, as `_autograd.forward` does.
    """
    tensors = (q, k_cache, v_cache, options.alibi_slopes, options.sink, *(new or ())[:4])
    if torch.is_grad_enabled():
        _refuse_gradient(tensors)
    if not torch.compiler.is_compiling() and _is_plain(tensors):
        _check(q, k_cache, v_cache, new, cache)
        _check_attention(q, cache, num_splits, options)
        if new is not None:
            q = _rotated(q, _kvcache_launch.append(q, k_cache, v_cache, new, cache))
        return _kvcache_launch.attend(q, k_cache, v_cache, cache, num_splits, options)
    if new is not None:
        rotated_q = _ops.kvcache_append(q, k_cache, v_cache, *new, *cache)
        q = _rotated(q, None if new.rotary_cos is None else rotated_q)
    return _ops.kvcache_forward(  # type: ignore[no-any-return]
        q, k_cache, v_cache, *cache, num_splits, *options[:_NUM_OPTIONS]
    )


def _is_plain(tensors: tuple[Tensor | None, ...]) -> bool:
    return _observe.is_plain(tensors)


def _rotated(q: Tensor, rotated_q: Tensor | None) -> Tensor:
    return q if rotated_q is None else rotated_q


def _refuse_gradient(tensors: tuple[Any, ...]) -> None:
    if any(isinstance(x, Tensor) and x.requires_grad for x in tensors):
        raise NotImplementedError(
            "attention over a KV cache has no gradient, but q, k, v, the cache or an option "
            "requires grad: call it under torch.no_grad()"
        )


def _check(q: Tensor, k_cache: Tensor, v_cache: Tensor, new: New | None, cache: Cache) -> None:
    """What an append, or attention, reads of these, memory included."""
    _kvcache_checks.check_cache(q, k_cache, v_cache, cache)
    if new is not None:
        _kvcache_checks.check_new(q, k_cache, new, cache)
    _kvcache_checks.check_layout(k_cache, v_cache, _backend.serving(q), written=new is not None)
    _kvcache_checks.check_values(q, k_cache, cache, new)


def _check_attention(q: Tensor, cache: Cache, num_splits: int, options: Options) -> None:
    _kvcache_checks.check_attend(q, cache, num_splits, options)
    _checks.check_numbers(options.dropout_p, options.softmax_scale, options.softcap)


# The ops. The dispatcher leaves out trailing arguments that have their defaults.

_NUM_OPTIONS = Options._fields.index("dropout_p")


def _append_arguments(*args: Any) -> tuple[Tensor, Tensor, Tensor, New, Cache]:
    count = 3 + len(New._fields)
    return *args[:3], New(*args[3:count]), Cache(*args[count:])


def _append_kernel(*args: Any) -> Tensor:
    q, k_cache, v_cache, new, cache = _append_arguments(*args)
    _check(q, k_cache, v_cache, new, cache)
    rotated_q = _kvcache_launch.append(q, k_cache, v_cache, new, cache)
    return q.new_empty(0) if rotated_q is None else rotated_q


def _append_fake(*args: Any) -> Tensor:
    q, k_cache, v_cache, new, cache = _append_arguments(*args)
    _kvcache_checks.check_cache(q, k_cache, v_cache, cache)
    _kvcache_checks.check_new(q, k_cache, new, cache)
    return q.new_empty(0 if new.rotary_cos is None else q.shape)


def _forward_arguments(*args: Any) -> tuple[Tensor, Tensor, Tensor, Cache, int, Options]:
    count = 3 + len(Cache._fields)
    return *args[:3], Cache(*args[3:count]), args[count], Options(*args[count + 1 :])


def _forward_kernel(*args: Any) -> Tensors:
    q, k_cache, v_cache, cache, num_splits, options = _forward_arguments(*args)
    _check(q, k_cache, v_cache, None, cache)
    _check_attention(q, cache, num_splits, options)
    return _kvcache_launch.attend(q, k_cache, v_cache, cache, num_splits, options)


def _forward_fake(*args: Any) -> Tensors:
    q, k_cache, v_cache, cache, num_splits, options = _forward_arguments(*args)
    _kvcache_checks.check_cache(q, k_cache, v_cache, cache)
    _kvcache_checks.check_attend(q, cache, num_splits, options)
    *batch, rows, num_heads, _ = q.shape
    return q.new_empty(q.shape), q.new_empty(*batch, num_heads, rows, dtype=torch.float32)


_CACHE = """Tensor? cache_seqlens, SymInt? cache_seqlen, Tensor? cache_batch_idx,
    Tensor? cache_leftpad, Tensor? block_table, Tensor? cu_seqlens_q, SymInt? max_seqlen_q,
    Tensor? cu_seqlens_k_new, SymInt seqlen_new"""
_SCHEMAS = {
    "kvcache_append": f"""(Tensor q, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor k, Tensor v,
        Tensor? rotary_cos, Tensor? rotary_sin, bool rotary_interleaved, bool q_advances, {_CACHE})
        -> Tensor rotated_q""",
    "kvcache_forward": f"""(Tensor q, Tensor k_cache, Tensor v_cache, {_CACHE},
        SymInt num_splits, float? softmax_scale=None, SymInt window_left=-1,
        SymInt window_right=-1, float softcap=0.0, Tensor? alibi_slopes=None, Tensor? sink=None)
        -> (Tensor out, Tensor lse)""",
}


def _define(name: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> None:
    tags = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order)
    _library.define(name + " ".join(_SCHEMAS[name].split()), tags=tags)
    op = getattr(_ops, name)

    def checked_kernel(*args: Any) -> Any:
        _observe.refuse_tangents(args)  # inference mode skips the key Autograd
        return kernel(*args)

    def autograd(*args: Any) -> Any:
        _observe.refuse_tangents(args)
        if torch.is_grad_enabled():
            _refuse_gradient(args)
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    _library.impl(name, checked_kernel, "CompositeExplicitAutograd")
    _library.impl(name, autograd, "Autograd")
    torch.library.register_fake(f"flash_attn2::{name}", fake, lib=_library)
    if name == "kvcache_forward":
        register_vmap(name)


_define("kvcache_append", _append_kernel, _append_fake)
_define("kvcache_forward", _forward_kernel, _forward_fake)
