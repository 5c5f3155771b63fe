"""Calls with DTensors: each device attends over its own sequences, or its own heads.

A dimension of the mesh may cut the batch, or the heads where its size divides num_heads_kv; on
others every device computes the same. Arguments are brought to that by `redistribute`, results come
out of it as DTensors. Local calls are calls as all others; dropout is told where they lie in the
whole, so that it drops what one process would drop.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flash_attn2._impl import launch
from flash_attn2._impl.forms import Form
from flash_attn2._impl.problem import Problem, Result, lse_shape, out_shape, unpacked, with_qkv

_BATCH, _HEADS = "batch", "heads"

# Dimensions of the batch and of the heads, of a tensor that is cut along them; None: it is not.
_Dims = tuple["int | None", "int | None"]


def is_dtensor(x: Any) -> bool:
    """Whether x is a torch.distributed.tensor.DTensor; nothing is imported for it."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)


class _Cuts(NamedTuple):
    """What each dimension of a mesh cuts: _BATCH, _HEADS, or nothing."""

    mesh: Any
    cuts: tuple[str | None, ...]

    def placements(self, dims: _Dims, others: Any) -> list[Any]:
        """Of a tensor, and of its gradient: where a cut does not reach a tensor, each device has
        all of it, and a part of the gradient (`others`)."""
        from torch.distributed.tensor import Replicate, Shard

        batch_dim, heads_dim = dims
        found: list[Any] = []
        for cut in self.cuts:
            dim = batch_dim if cut == _BATCH else heads_dim
            if cut is None:
                found.append(Replicate())
            else:
                found.append(others if dim is None else Shard(dim))
        return found

    def start(self, cut: str, size: int) -> int:
        """Of this device's share of so many sequences or heads."""
        begin = 0
        for dim, kind in enumerate(self.cuts):
            if kind == cut:
                share = -(-size // self.mesh.size(dim))
                first = min(share * self.mesh.get_local_rank(dim), size)
                begin, size = begin + first, min(share, size - first)
        return begin


def attend(form: Form, p: Problem, local_attend: Callable[[Form, Problem], Result]) -> Result:
    """out and lse as DTensors, and rng_state, which is one for all devices.

    NotImplementedError for tensors that are cut along sequences, and over a KV cache.
    """
    from torch.distributed.tensor import DTensor

    if form.over_cache:
        raise NotImplementedError(
            "attention over a KV cache takes no DTensors: call it with the local tensors of this "
            "device, x.to_local()"
        )
    q, k, v = unpacked(p.q, p.k, p.v)
    packed = p.seqs_q.cu_seqlens is not None
    cuts = _cuts(q, k, v, packed)
    local = _local_problem(with_qkv(p, q, k, v), cuts, packed)
    if p.options.dropout.drop_prob > 0:
        local = _placed(local, cuts, q, packed)
    out, lse, rng_state = local_attend(form, local)
    dims_out: _Dims = (None, 1) if packed else (0, 2)
    dims_lse: _Dims = (None, 0) if packed else (0, 1)

    def whole(x: Tensor, shape: Sequence[int], dims: _Dims) -> Tensor:
        shape = torch.Size(shape)
        stride = torch.empty(shape, device="meta").stride()
        placements = cuts.placements(dims, None)
        return DTensor.from_local(
            x, cuts.mesh, placements, run_check=False, shape=shape, stride=stride
        )

    return whole(out, out_shape(q, v), dims_out), whole(lse, lse_shape(q), dims_lse), rng_state


def _cuts(q: Any, k: Any, v: Any, packed: bool) -> _Cuts:
    """By how the three lie; NotImplementedError where that is along their sequences."""
    for name, x in (("k", k), ("v", v)):
        if not is_dtensor(x) or x.device_mesh != q.device_mesh:
            what = f"one on {x.device_mesh}" if is_dtensor(x) else type(x).__name__
            raise ValueError(
                f"{name} must be a DTensor on the mesh of q, {q.device_mesh}, got {what}"
            )
    mesh = q.device_mesh
    cuts: list[str | None] = []
    room = k.shape[-2]  # KV heads of a device, after the cuts so far
    for dim in range(mesh.ndim):
        asked = [
            _wanted(name, x, x.placements[dim], packed)
            for name, x in (("q", q), ("k", k), ("v", v))
        ]
        wanted = asked[0] or asked[1] or asked[2]
        if wanted == _HEADS:
            if room % mesh.size(dim) == 0:
                room //= mesh.size(dim)
            else:
                wanted = None
        cuts.append(wanted)
    return _Cuts(mesh, tuple(cuts))


def _wanted(name: str, x: Tensor, placement: Any, packed: bool) -> str | None:
    """What a placement of q, k or v asks for."""
    from torch.distributed.tensor import Shard

    if type(placement) is not Shard:
        return None
    dim = placement.dim % x.ndim
    sequences = 0 if packed else 1
    if dim == sequences:
        raise NotImplementedError(
            f"{name} is sharded along its sequences, dimension {dim}, which attention over "
            "DTensors does not take: redistribute it to shards of the batch or of the heads, or to "
            "Replicate()"
        )
    if dim == x.ndim - 2:
        return _HEADS
    return _BATCH if dim == 0 else None


def _local_problem(p: Problem, cuts: _Cuts, packed: bool) -> Problem:
    """With this device's parts of all tensors."""
    from torch.distributed.tensor import DTensor, Partial, Replicate

    replicated = [Replicate()] * cuts.mesh.ndim

    def local(x: Any, dims: _Dims = (None, None)) -> Any:
        if x is None:
            return None
        if not is_dtensor(x):  # every device has all of it
            x = DTensor.from_local(x, cuts.mesh, replicated, run_check=False)
        elif x.device_mesh != cuts.mesh:
            raise ValueError(f"DTensors must be on the mesh of q, {cuts.mesh}, got {x.device_mesh}")
        x = x.redistribute(cuts.mesh, cuts.placements(dims, Replicate()))
        if not x.is_floating_point():
            return x.to_local()
        return x.to_local(grad_placements=cuts.placements(dims, Partial()))

    rows: _Dims = (None, 1) if packed else (0, 2)
    q, k, v = (local(x, rows) for x in (p.q, p.k, p.v))
    of_batch: _Dims = (None, None) if packed else (0, None)
    seqs_q, seqs_k = p.seqs_q, p.seqs_k
    seqs_q = seqs_q._replace(
        cu_seqlens=local(seqs_q.cu_seqlens), seqused=local(seqs_q.seqused, of_batch)
    )
    seqs_k = seqs_k._replace(cu_seqlens=local(seqs_k.cu_seqlens), seqused=local(seqs_k.seqused))
    score_mod, mask = p.options.score_mod, p.options.block_mask
    slopes, bias, relative = score_mod.alibi_slopes, score_mod.bias, score_mod.relative_bias
    slopes_dims: _Dims = (None, 0)
    if slopes is not None and slopes.ndim == 2:
        slopes_dims = None if packed else 0, 1
    options = p.options._replace(
        score_mod=score_mod._replace(
            alibi_slopes=local(slopes, slopes_dims),
            bias=local(bias, _broadcast_dims(bias, 4)),
            relative_bias=local(relative, (None, _broadcast_dims(relative, 2)[0])),
        ),
        sink=local(p.options.sink, (None, 0)),
        dropout=p.options.dropout._replace(rng_state=local(p.options.dropout.rng_state)),
        block_mask=mask._replace(
            row_offsets=local(mask.row_offsets, _broadcast_dims(mask.row_offsets, 3)),
            cols=local(mask.cols),
            tiles=local(mask.tiles),
            bits=local(mask.bits),
        ),
    )
    return p._replace(q=q, k=k, v=v, seqs_q=seqs_q, seqs_k=seqs_k, options=options)


def _broadcast_dims(x: Tensor | None, full: int) -> _Dims:
    """Of a tensor that broadcasts to `full` dimensions, the first of which are batch and heads."""
    if x is None:
        return None, None
    missing = full - x.ndim
    first, second = (
        dim - missing if dim >= missing and x.shape[dim - missing] != 1 else None for dim in (0, 1)
    )
    return first, second


def _placed(local: Problem, cuts: _Cuts, q: Tensor, packed: bool) -> Problem:
    """With what dropout needs: where the part lies, and a state that all devices share."""
    rng_state = local.options.dropout.rng_state
    if rng_state is None:
        rng_state = launch.draw_rng_state(local.q.device)
        for dim in range(cuts.mesh.ndim):
            share_rng_state(rng_state, cuts.mesh.get_group(dim))
    dropout = local.options.dropout._replace(rng_state=rng_state)
    num_heads = q.shape[-2]
    return local._replace(
        options=local.options._replace(dropout=dropout),
        batch_start=0 if packed else local.batch_start + cuts.start(_BATCH, q.shape[0]),
        head_start=local.head_start + cuts.start(_HEADS, num_heads),
        num_heads_total=num_heads if local.num_heads_total is None else local.num_heads_total,
    )


def share_rng_state(rng_state: Tensor, group: Any) -> None:
    """Writes the one of the first rank: those of others are drawn from generators of their own."""
    import torch.distributed as dist

    dist.broadcast(rng_state, src=dist.get_global_rank(group, 0), group=group)


def split_heads(
    qkv: Any, counts: Sequence[int], rotate: Callable[[Tensor], Tensor] | None
) -> tuple[Tensor, ...]:
    """Queries, keys and values (..., heads, head_dim) of a DTensor that holds so many heads of
    each, one after another; queries and keys rotated.

    A mesh dimension that cuts all of these heads holds parts of queries or of keys: it cuts each of
    the three instead, where it can.
    """
    from torch.distributed.tensor import DTensor, Replicate, Shard

    mesh, heads_dim = qkv.device_mesh, qkv.ndim - 2
    whole, cut, room = list(qkv.placements), list(qkv.placements), counts[-1]
    for dim, placement in enumerate(qkv.placements):
        if type(placement) is Shard and placement.dim % qkv.ndim == heads_dim:
            whole[dim] = Replicate()
            divides = room % mesh.size(dim) == 0
            cut[dim] = Shard(heads_dim) if divides else Replicate()
            room //= mesh.size(dim) if divides else 1
    parts = [
        x.redistribute(mesh, cut) for x in qkv.redistribute(mesh, whole).split(counts, heads_dim)
    ]
    if rotate is not None:
        for i, x in enumerate(parts[:2]):
            rotated = rotate(x.to_local())
            parts[i] = DTensor.from_local(
                rotated, mesh, x.placements, run_check=False, shape=x.shape, stride=x.stride()
            )
    return tuple(parts)
