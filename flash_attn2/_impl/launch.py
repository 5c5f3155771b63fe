"""A `problem` -> one call of a native module.

Arguments have been accepted by checks. Here inputs get a layout that the backend reads, results are
allocated, and pointers, shapes and strides handed over. A cache is never copied: it is read, and
written, where it lies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, contiguous_format

from flash_attn2._impl import backends, overlap, widths
from flash_attn2._impl.backends import Backend
from flash_attn2._impl.lower import lower, lower_append, with_addresses
from flash_attn2._impl.problem import (
    NO_PAGES,
    NO_SEQLENS,
    Gradient,
    Gradients,
    Problem,
    Result,
    batch_size,
    out_shape,
    unpacked,
    with_qkv,
)
from flash_attn2._impl.quantised import written_scales
from flash_attn2._impl.schema import KVCACHE_APPEND_FORWARD

# Results are allocated through these names, so that tests can poison them.
empty = torch.empty
empty_like = torch.empty_like

# dropout_p, softmax_scale, causal, window_size, softcap, as `flash_attn_func` takes them.
DirectOptions = tuple[float, "float | None", bool, tuple[int, int], float]


def forward(p: Problem, over_cache: bool) -> Result:
    """out, lse and rng_state.

    Over a cache, first writes what there is to append; whatever can be refused is refused before.
    """
    backend = backends.serving(p.q)
    dtype_name = backend.dtype_names.get(p.q.dtype) or backend.dtype_name(p.q.dtype)
    *batch, rows, num_heads, head_dim = p.q.shape
    assert p.v is not None
    head_dim_v = p.v.shape[-1]
    if backend.aligned:
        paged = p.pages.block_table is not None
        widths.require_built(backend, head_dim, head_dim_v, over_cache or paged)
    if p.append is not None:
        if p.k.data_ptr() == p.v.data_ptr():  # type: ignore[union-attr]
            p = _written_once(p)
        p = _apart_from_caches(p)
    p = readable_problem(p, backend, over_cache)
    q, options, out = p.q, p.options, p.out
    if out is not None and (backend.aligned or out.stride(-1) != 1):  # of the caller's
        out = out if out.shape == out_shape(q, p.v) and is_readable(out, backend) else None  # type: ignore[arg-type]
    if out is None and head_dim_v == head_dim:
        out = empty_like(q, memory_format=contiguous_format)
    elif out is None or out.shape[-1] != head_dim_v:
        out = empty(out_shape(q, p.v), dtype=q.dtype, device=q.device)  # type: ignore[arg-type]
    lse = empty((*batch, num_heads, rows), dtype=torch.float32, device=q.device)
    cu_seqlens, seqused_q, *_ = p.seqs_q
    if seqused_q is not None:  # kernels leave the rows past it alone
        out.zero_()
        lse.fill_(-torch.inf)
    (drop_prob, given), rng_state = options.dropout, None
    if drop_prob > 0:
        rng_state = draw_rng_state(q.device) if given is None else given.clone()
    if p.append is not None:
        _append_and_attend(p, backend, dtype_name, out, lse)
    elif lse.numel() != 0 and not (
        backend.forward_direct is not None
        and cu_seqlens is None
        and not over_cache
        and options.sink is None
        and (direct_options := may_be_direct(p)) is not None
        and backend.forward_direct(
            (q, p.k, p.v, out), lse.data_ptr(), direct_options, torch.get_num_threads()
        )
    ):
        problem = lower(p, dtype_name, out, lse, rng_state, head_dim, over_cache)
        backend.run(backend.module.forward, problem, q.device)
    if cu_seqlens is not None and q.is_cpu and (end := int(cu_seqlens[-1])) < rows:
        out[end:] = 0
        lse[:, end:] = -torch.inf
    return _without_padding(out, head_dim_v), lse, rng_state


def _append_and_attend(
    p: Problem, backend: Backend, dtype_name: str, out: Tensor, lse: Tensor
) -> None:
    """One native call for both, with an append that is rotated, of readable tensors."""
    append, q = p.append, p.q
    assert append is not None
    if append.rotary.cos is not None:
        p = p._replace(q=empty_like(q, memory_format=contiguous_format))
    if append.new_k.numel() != 0 or q.numel() != 0:
        problem = lower(p, dtype_name, out, lse, None, q.shape[-1], over_cache=True)
        problem["append"] = lower_append(append, p.seqs_k, q)
        backend.run(backend.module.forward, problem, q.device)
    for cache in (p.k, p.v, *written_scales(p)):
        assert cache is not None
        if not cache.is_inference():  # those have no versions
            torch.autograd.graph.increment_version(cache)


def backward(gradient: Gradient) -> Gradients:
    """Gradients of q, k, v (each as the problem holds it, None where that is None), and of the
    sink.

    Of grad_out and grad_lse, None is zeros. Rows of no sequence, and those past seqused, get zeros.
    """
    grad_out, grad_lse, p = gradient
    all_rows = p.seqs_q.cu_seqlens is None and p.seqs_q.seqused is None
    allocate: Callable[..., Tensor] = empty_like if all_rows else torch.zeros_like
    given, sink, drop_rng = (p.q, p.k, p.v), p.options.sink, p.options.dropout.rng_state
    assert p.out is not None
    assert p.lse is not None
    q = p.q
    if p.v is None:
        q, k, v = unpacked(*given)
        p = with_qkv(p, q, k, v)
    backend = backends.serving(q)
    dtype_name = backend.dtype_name(q.dtype)
    assert p.v is not None
    head_dim, head_dim_v = q.shape[-1], p.v.shape[-1]
    if backend.aligned:
        widths.require_built(backend, head_dim, head_dim_v)
    p = readable_problem(p, backend, over_cache=False)
    q, out = p.q, readable(p.out, backend)  # type: ignore[arg-type]

    def gradient_of(x: Tensor | None, of: Tensor | None) -> Tensor | None:
        if x is None or of is None:
            return None
        if x.shape[-1] != of.shape[-1]:
            x = x[..., :1].expand(*x.shape[:-1], of.shape[-1])  # with its padding
        return allocate(x, memory_format=contiguous_format)

    grads = [gradient_of(x, of) for x, of in zip(given, p[:3], strict=True)]
    grad_sink = None if sink is None else allocate(sink)
    lse = p.lse.contiguous()  # type: ignore[union-attr]
    rng_state = None if drop_rng is None else drop_rng.contiguous()
    if lse.numel() != 0:
        grad_q, grad_k, grad_v = unpacked(*grads)  # type: ignore[arg-type]
        incoming = readable_incoming(grad_out, grad_lse, out, backend)  # held until kernels ran
        problem: dict[str, Any] = {
            **incoming,
            "grad_q": grad_q,
            "grad_k": grad_k,
            "grad_v": grad_v,
        }
        if grad_sink is not None:
            problem["grad_sink"] = grad_sink
        with_addresses(problem)
        problem["deterministic"] = is_deterministic(p.options.deterministic)
        problem["forward"] = lower(p, dtype_name, out, lse, rng_state, head_dim)
        backend.run(backend.module.backward, problem, q.device)
    else:
        for grad in (*grads, grad_sink):
            if grad is not None:
                grad.zero_()
    grads = [
        None if grad is None else _without_padding(grad, width)
        for grad, width in zip(grads, (head_dim, head_dim, head_dim_v), strict=True)
    ]
    return *grads, grad_sink  # type: ignore[return-value]


def readable_incoming(
    grad_out: Tensor | None, grad_lse: Tensor | None, out: Tensor, backend: Backend
) -> dict[str, Tensor]:
    """Gradients of out and lse by name, as backward passes read them."""
    if grad_out is None:
        grad_out = out.new_zeros(out.shape[-1]).expand(out.shape)
    else:
        grad_out = readable(grad_out.to(out.dtype), backend)
    if grad_lse is None:
        return {"grad_out": grad_out}
    return {"grad_out": grad_out, "grad_lse": grad_lse.to(torch.float32).contiguous()}


# Direct calls: the native module looks at the tensors and checks everything for itself, and takes
# what needs neither a copy nor an error message (csrc/bindings/direct_call.h). Otherwise nothing
# happens. A tiny call takes half the time or less this way.


def may_be_direct(p: Problem) -> DirectOptions | None:
    """The options of a direct call, where lengths and options are such as those have."""
    scale, (left, right), score_mod, sink, (drop_prob, _), _, mask = p.options
    softcap, slopes, bias, relative_bias = score_mod
    if slopes is not None or sink is not None or drop_prob != 0 or mask.row_offsets is not None:
        return None
    if bias is not None or relative_bias is not None:
        return None
    if p.seqs_q.cu_seqlens is not None or p.seqs_q.seqused is not None:
        return None
    if p.positions is not None:
        return None
    return 0.0, scale, False, (left, right), softcap


def backward_direct(gradient: Gradient) -> Gradients | None:
    """`backward`, or None. Nothing need be checked before."""
    grad_out, grad_lse, p = gradient
    q, k, v, out, lse = p.q, p.k, p.v, p.out, p.lse
    if grad_out is None or grad_lse is not None or k is None or v is None:
        return None
    if (options := may_be_direct(p)) is None or out is None or lse is None:
        return None
    deterministic = p.options.deterministic
    grads = backward_directly(q, k, v, out, lse, grad_out, options, deterministic)
    return None if grads is None else (*grads, None)


def backward_directly(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    options: DirectOptions,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Gradients of q, k and v, or None."""
    function = backends.serving(q).backward_direct
    if function is None:
        return None
    grads = (
        empty_like(q, memory_format=contiguous_format),
        empty_like(k, memory_format=contiguous_format),
        empty_like(v, memory_format=contiguous_format),
    )
    deterministic = is_deterministic(deterministic)
    threads = torch.get_num_threads()
    done = function((q, k, v, out), lse, (grad_out, *grads), options, deterministic, threads)
    return grads if done else None


def is_deterministic(asked: bool) -> bool:
    """Whether gradients have to be bitwise the same in every run."""
    return asked or torch.are_deterministic_algorithms_enabled()


def draw_rng_state(device: torch.device) -> Tensor:
    """(seed, offset) as int64 (2,), from torch's default generator of `device`."""
    return torch.randint(-(2**63), 2**63 - 1, (2,), dtype=torch.int64, device=device)


# Layouts. Addresses are taken after these, from tensors that the caller holds until the kernel has
# run.


def readable_problem(p: Problem, backend: Backend, over_cache: bool) -> Problem:
    """With tensors as kernels read them, copied where they are not so; caches stay."""
    results: list[Any]
    q, k, v, seqs_q, seqs_k, options, pages, num_splits, append, *results = p
    rows: list[Any] = [q] if over_cache else [q, k, v]
    if append is not None:
        rows += append[:2]
    copied = False
    for i, x in enumerate(rows):
        if x is None:
            continue
        if x.stride(-1) != 1 or (backend.aligned and not is_readable(x, backend)):
            rows[i], copied = _copied(x, backend), True
    if copied:
        if append is not None:
            append = append._replace(new_k=rows[-2], new_v=rows[-1])
        q, k, v = (rows[0], k, v) if over_cache else rows[:3]
        p = Problem(q, k, v, seqs_q, seqs_k, options, pages, num_splits, append, *results)
    slopes, sink, mask = options.score_mod.alibi_slopes, options.sink, options.block_mask
    if (
        seqs_k is NO_SEQLENS
        and slopes is None
        and sink is None
        and seqs_q.seqused is None
        and mask.row_offsets is None
    ):
        return p
    vectors = [slopes, sink]
    if mask.row_offsets is not None:
        vectors += mask
    if seqs_q is not NO_SEQLENS or seqs_k is not NO_SEQLENS:
        vectors += seqs_q[:2]
        vectors += seqs_k[:2]
        vectors += seqs_k.leftpad, seqs_k.cu_appended
    if append is not None:
        vectors += append.rotary[:2]
    if pages is not NO_PAGES:
        vectors.append(pages.batch_idx)
    for vector in vectors:
        if vector is not None and not vector.is_contiguous():
            p = _contiguous_vectors(p)
            break
    if pages.block_table is not None and pages.block_table.stride(1) != 1:
        p = p._replace(pages=pages._replace(block_table=pages.block_table.contiguous()))
    if seqs_k.cu_appended is not None and seqs_k.seqused is None and seqs_k.max_seqlen is not None:
        # Kernels add what is appended to lengths of each sequence.
        lengths = torch.full(
            (batch_size(p),), seqs_k.max_seqlen, dtype=torch.int32, device=q.device
        )
        p = p._replace(seqs_k=p.seqs_k._replace(seqused=lengths))
    return p


def _contiguous_vectors(p: Problem) -> Problem:
    def contiguous(x: Any) -> Any:
        return x.contiguous() if isinstance(x, Tensor) else x

    def of(struct: Any) -> Any:
        return type(struct)(*map(contiguous, struct))

    score_mod = p.options.score_mod
    score_mod = score_mod._replace(alibi_slopes=contiguous(score_mod.alibi_slopes))
    options = of(p.options)._replace(score_mod=score_mod, block_mask=of(p.options.block_mask))
    append = p.append
    if append is not None:
        append = append._replace(rotary=of(append.rotary))
    batch_idx = contiguous(p.pages.batch_idx)
    return p._replace(
        seqs_q=of(p.seqs_q),
        seqs_k=of(p.seqs_k),
        options=options,
        pages=p.pages._replace(batch_idx=batch_idx),
        append=append,
    )


def readable(t: Tensor, backend: Backend) -> Tensor:
    """`t` in rows that the backend reads, a copy where it has others.

    Every tensor whose rows a kernel reads goes through here, and what comes out is so whatever
    strides or address came in: the last stride is 1, and for CUDA kernels each row starts on 16
    bytes and has a width that is padded with zeros to a multiple of 8.
    """
    return t if is_readable(t, backend) else _copied(t, backend)


def _copied(t: Tensor, backend: Backend) -> Tensor:
    padding = -t.shape[-1] % 8 if backend.aligned else 0
    if padding == 0:
        copy = t.clone(memory_format=contiguous_format)
    else:  # not F.pad, which may keep the order of the strides
        head_dim = t.shape[-1]
        copy = t.new_zeros(*t.shape[:-1], head_dim + padding)
        copy[..., :head_dim] = t
    assert is_readable(copy, backend), (copy.shape, copy.stride(), copy.data_ptr())
    return copy


def is_readable(t: Tensor, backend: Backend) -> bool:
    """Whether the backend reads rows like those of `t`."""
    strides = t.stride()
    return strides[-1] == 1 and (
        not backend.aligned
        or (
            t.shape[-1] % 8 == 0
            and t.data_ptr() % 16 == 0
            and all(stride % 8 == 0 for stride in strides[:-1])
        )
    )


def _without_padding(t: Tensor, head_dim: int) -> Tensor:
    return t if t.shape[-1] == head_dim else t[..., :head_dim].contiguous()


def _written_once(p: Problem) -> Problem:
    """Without new values where those of the cache are columns of its keys."""
    append, k_cache, v_cache = p.append, p.k, p.v
    assert append is not None
    assert k_cache is not None
    assert v_cache is not None
    if append.new_v is None or not widths.keys_hold_values(k_cache, v_cache):
        return p
    return p._replace(append=append._replace(new_v=None))


def _among(x: Any, tensors: tuple[Tensor, ...]) -> bool:
    return any(x is y for y in tensors)


def _apart_from_caches(p: Problem) -> Problem:
    """With copies of what shares memory with the caches, which are written before it is read."""
    k_cache, v_cache = p.k, p.v
    assert k_cache is not None
    assert v_cache is not None
    q, _, _, *rest = KVCACHE_APPEND_FORWARD.flatten(p)
    written: tuple[Tensor, ...] = (k_cache, v_cache)
    read, scales = rest, written[:0]
    if p.quantised is not None and p.quantised.k_descale is not None:
        scales = written_scales(p)
        written += scales
        read = [x for x in rest if not _among(x, scales)]
    if not overlap.any_close(written, (q, *read)):
        return p

    def apart(x: Any) -> Any:
        if not isinstance(x, Tensor) or _among(x, scales):
            return x
        return x.clone() if any(overlap.tensors_overlap(y, x) for y in written) else x

    return KVCACHE_APPEND_FORWARD.unflatten([apart(q), k_cache, v_cache, *map(apart, rest)])
