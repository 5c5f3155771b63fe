"""What the ranks of `test_rings_and_gathers` run."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from context_cases import (
    BATCH,
    HEAD_DIM,
    HEAD_DIM_V,
    OPTIONS,
    Counted,
    check,
    drawn,
    inputs,
    local,
    make,
    one_process,
)
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from flash_attn2 import masks
from flash_attn2._impl import parts
from flash_attn2.bench.memory import keep_freed_memory, touched_memory
from flash_attn2.distributed import ContextPlan, context_attention, transfer
from flash_attn2.io.emulate import cpu_tensors_on

COUNTS = {1: (4, 2), 2: (4, 2), 3: (6, 3), 4: (4, 1), 8: (6, 2)}
_meshes: dict[tuple[int, int], DeviceMesh] = {}


def mesh_of(outer: int, heads: int) -> DeviceMesh:
    """Of all processes."""
    if (outer, heads) not in _meshes:
        ranks = torch.arange(outer * heads).view(outer, heads)
        _meshes[outer, heads] = DeviceMesh("cpu", ranks, mesh_dim_names=("ring", "heads"))
    return _meshes[outer, heads]


def lengths(group: Any, scheme: str) -> None:
    """Ranks without rows, and lengths that do not divide."""
    for seqlen in (1, 5, 37, 70):
        pattern = masks.causal() if seqlen % 2 else None
        check(group, plan=make(group, seqlen, *COUNTS[group.size()], pattern, scheme=scheme))


def windows(group: Any) -> None:
    for pattern in (masks.window(20, 3), masks.window(9, 0), masks.window(-1, 30)):
        for balance in ("zigzag", "contiguous"):
            plan = make(group, 75, 4, 2, pattern, scheme="ring", balance=balance)
            check(group, plan=plan, dropout_p=0.2)


def options(group: Any, scheme: str) -> None:
    plan = make(group, 37, 6, 3, masks.causal(), scheme=scheme)
    for more in OPTIONS:
        check(group, plan=plan, **more)


def nothing(group: Any, scheme: str) -> None:
    """An empty batch."""
    plan = make(group, 12, 4, 2, masks.causal(), scheme=scheme)
    leaves = [torch.ones(0, plan.rows[plan.rank], n, 8, requires_grad=True) for n in (4, 2, 2)]
    out: Any = context_attention(*leaves, plan)
    assert out.shape == leaves[0].shape
    out.sum().backward()
    assert all(x.grad is not None for x in leaves)


def limited(group: Any) -> None:
    """Gathers of several KV heads at a time, of which the last may be fewer."""
    of_one = 6 * 50 * HEAD_DIM * 8
    given = {"scheme": "gather", "head_dim": HEAD_DIM, "dtype": torch.float64}
    for heads, count in (((6, 3), 2), ((4, 4), 3), ((4, 2), 5)):
        limit = (count + 1) * of_one - 1
        plan = make(group, 50, *heads, masks.causal(), **given, memory_limit=limit)
        assert plan.kv_heads_at_once == min(count, heads[1])
        check(group, plan=plan, kinds="alibi_slopes, bias, sink", dropout_p=0.1)
    mesh = mesh_of(2, 4)
    for heads in ((6, 3), (12, 6)):
        plan = make(mesh, 50, *heads, masks.causal(), **given, memory_limit=2 * of_one)
        check(group, plan=plan, kinds="bias of all rows, relative_bias")


def memory(group: Any) -> dict[str, tuple[int, int, int]]:
    """By plans: bytes that a rank touches in the forward pass, those that the plan says, and those
    of its own rows of q, k, v and out."""
    keep_freed_memory()
    size, seqlen, heads = 64, 8192, (4, 2)
    pattern = masks.window(256, 0)  # of little work
    found = {}
    for plan in (
        make(group, seqlen, *heads, pattern, scheme="ring"),
        make(group, seqlen, *heads, pattern, scheme="gather"),
        make(mesh_of(4, 2), seqlen, *heads, pattern, scheme="ring"),
    ):
        rows = plan.rows[plan.rank]
        leaves = [torch.ones(1, rows, n, size, requires_grad=True) for n in (4, 2, 2)]
        context_attention(*leaves, plan)  # what is touched once
        touched = touched_memory(lambda plan=plan, leaves=leaves: context_attention(*leaves, plan))
        own = rows * (2 * heads[0] + 2 * heads[1]) * size * 4
        held = int(plan.report(head_dim=size, dtype=torch.float32).memory_bytes[plan.rank])
        found[f"{plan.scheme} {plan.ranks.heads}"] = touched, held, own
    return found


def patterns(group: Any) -> None:
    tokens = torch.arange(150)
    per_head = torch.rand(BATCH, 6, 150, 150, generator=torch.Generator().manual_seed(1)) < 0.4
    for pattern in (
        masks.window(20, 3),
        masks.documents(tokens // 40) & masks.causal(),
        masks.random_blocks(1, seed=1, heads=2) | masks.window(9, 0),
        masks.dense(per_head),
        masks.prefix([3, 60]) | masks.causal(),
    ):
        check(group, plan=make(group, 150, 6, 2, pattern, scheme="gather"), dropout_p=0.1)


def both_dimensions(group: Any, scheme: str, outer: int) -> None:
    """Heads inside, the ring or gather outside."""
    mesh = mesh_of(outer, group.size() // outer)
    for heads, seqlen in (((8, 4), 37), ((6, 2), 70), ((3, 1), 5)):
        plan = make(mesh, seqlen, *heads, masks.causal(), scheme=scheme)
        check(group, plan=plan)
    plan = make(mesh, 50, 8, 2, masks.window(30, 2), scheme=scheme)
    for more in OPTIONS[1:4]:
        check(group, plan=plan, **more)


def low_precision(group: Any, scheme: str) -> None:
    """The error of 20 seeds beside that of one process."""
    plan = make(group, 200, 4, 2, masks.causal(), scheme=scheme)
    squares = torch.zeros(2, 4, dtype=torch.float64)
    for seed in range(20):
        shapes = {"q": (1, 200, 4, 32), "k": (1, 200, 2, 32), "v": (1, 200, 2, 32)}
        exact = [drawn(*x, seed=100 * seed + i) for i, x in enumerate(shapes.values())]
        exact = [x.bfloat16().double() for x in exact]
        weight = drawn(1, 200, 4, 32, seed=100 * seed + 9).bfloat16().double()

        def gradients(tensors: list[Tensor], attend: Any, weight: Tensor = weight) -> list[Tensor]:
            leaves = [x.detach().requires_grad_() for x in tensors]
            out = attend(*leaves)
            return [out.detach(), *torch.autograd.grad(out, leaves, weight.to(out.dtype))]

        def whole(q: Tensor, k: Tensor, v: Tensor) -> Any:
            return one_process(plan, {"q": q, "k": k, "v": v})

        expected = gradients(exact, whole)
        one = gradients([x.bfloat16() for x in exact], whole)
        own = gradients(
            [plan.shard(x.bfloat16(), 1) for x in exact],
            lambda *x: context_attention(*x, plan),
            plan.shard(weight, 1),
        )
        for i, (e, a, b) in enumerate(zip(expected, one, own, strict=True)):
            squares[0, i] += (plan.shard(a.double() - e, 1)).square().sum()
            squares[1, i] += (b.double() - plan.shard(e, 1)).square().sum()
    ratios = (squares[1] / squares[0]).sqrt()
    assert ratios.max() <= 1.05, ratios


def same_bits(group: Any, chunk: int) -> None:
    """A gather's forward pass."""
    seqlen = 140 if chunk == 1 else 600
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        for pattern in (
            masks.causal(),
            masks.documents(torch.arange(seqlen) // 50),
            masks.random_blocks(1, seed=1) | masks.window(9, 0),
        ):
            plan = make(group, seqlen, 4, 2, pattern, scheme="gather", chunk=chunk)
            tensors = inputs(plan, dtype, "sink, bias of all heads")
            expected = one_process(plan, tensors, return_lse=True)
            given = {name: local(plan, name, x) for name, x in tensors.items()}
            found: Any = context_attention(plan=plan, return_lse=True, **given)
            assert torch.equal(found[0], plan.shard(expected[0], 1))
            assert torch.equal(found[1], plan.shard(expected[1], 2))


def few_rows(group: Any) -> None:
    """Sequences of few queries, which take a way of their own."""
    for seqlen, counts in ((2, (2, 1)), (4, (2, 2)), (8, (4, 4))):
        plan = make(group, seqlen, *counts, scheme="gather", chunk=1)
        tensors = inputs(plan, torch.float32, "")
        given = {name: local(plan, name, x) for name, x in tensors.items()}
        expected = one_process(plan, tensors)
        assert torch.equal(context_attention(plan=plan, **given), plan.shard(expected, 1))


def plans(group: Any, **more: Any) -> Iterator[ContextPlan]:
    """Of rings, gathers and both dimensions; gathers of all keys and of some."""
    counts = COUNTS[group.size()]
    of_some = masks.window(70, 0), masks.documents(torch.arange(300) // 90) & masks.causal()
    for pattern in of_some:
        yield make(group, 300, *counts, pattern, scheme="gather", chunk=40)
    for scheme in ("ring", "gather"):
        yield make(group, 37, *counts, masks.causal(), scheme=scheme)
        if group.size() == 8:
            if scheme == "gather":
                yield make(mesh_of(2, 4), 300, 6, 2, of_some[1], scheme=scheme, chunk=40)
            yield make(mesh_of(2, 4), 37, 6, 2, masks.causal(), scheme=scheme)


def bytes_sent(group: Any) -> None:
    """Equal to the plan's, to the byte."""
    for plan in plans(group):
        for dtype, with_lse in ((torch.float64, False), (torch.bfloat16, True)):
            size = {"head_dim": HEAD_DIM, "head_dim_v": HEAD_DIM_V, "batch": BATCH}
            report = plan.report(**size, dtype=dtype, with_lse=with_lse)
            leaves = [
                local(plan, n, x).requires_grad_() for n, x in inputs(plan, dtype, "").items()
            ]
            with Counted() as forward:
                out: Any = context_attention(*leaves, plan, return_lse=with_lse)
            with Counted() as backward:
                sum(x.sum() for x in (out if with_lse else [out])).backward()
            assert forward.sent == report.forward_bytes[group.rank()], plan
            assert backward.sent == report.backward_bytes[group.rank()], plan


def dropout_mask(group: Any, scheme: str) -> int:
    from context_cases import dropout_mask_of

    return dropout_mask_of(group, make(group, 64, 8, 4, scheme=scheme))


def emulated(group: Any, scheme: str) -> None:
    """With CUDA kernels, which an emulator runs."""
    with cpu_tensors_on("sm80-emulated"):
        plan = make(group, 50, 2, 1, masks.causal(), scheme=scheme)
        given: dict[str, Any] = {"dtype": torch.bfloat16, "tolerance": 2e-2}
        check(group, plan=plan, kinds="alibi_slopes, bias, sink", dropout_p=0.2, **given)
        if scheme == "gather":  # of parts that begin inside of blocks
            pattern = masks.random_blocks(1, seed=1) | masks.window(9, 0)
            plan = make(group, 100, 2, 1, pattern, scheme=scheme, chunk=37)
            check(group, plan=plan, kinds="bias", **given)


@contextmanager
def transfers(post: Any, empty: Any = transfer.empty) -> Iterator[None]:
    """With these in the place of those of `transfer`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, "post", post)
        patch.setattr(transfer, "empty", empty)
        yield


def disturbed(group: Any) -> None:
    """Memory that holds NaN until something is received, and messages that come late."""
    delay = random.Random(group.rank())
    post = transfer.post

    def late(*args: Any) -> Any:
        time.sleep(delay.random() * 0.01)
        return post(*args)

    def poisoned(*args: Any, **more: Any) -> Tensor:
        return torch.full((*args,) if isinstance(args[0], int) else args[0], torch.nan, **more)

    with transfers(late, poisoned):
        for plan in plans(group):
            check(group, plan=plan)


class Traced:
    """What happens in which order: messages posted and awaited, kernels run."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def __enter__(self) -> Traced:
        post, merge = transfer.post, parts.merge
        traced = self

        class Pending(transfer.Pending):
            def wait(self) -> None:
                time.sleep(0.02)
                traced.events.append("awaited")
                super().wait()

        def posted(group: Any, sent: Any, received: Any) -> Any:
            self.events.append("posted")
            found = post(group, sent, received)
            return Pending(found._works, found._messages)

        def merged(*args: Any) -> None:
            self.events.append("kernel")
            merge(*args)

        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(transfer, "post", posted)
        self._patch.setattr(parts, "merge", merged)
        return self

    def __exit__(self, *_: Any) -> None:
        self._patch.undo()


def overlap(group: Any) -> None:
    """The next keys are on their way while a kernel runs."""
    plan = make(group, 256, 4, 2, scheme="ring")
    given = {n: local(plan, n, x) for n, x in inputs(plan, torch.float32, "").items()}
    context_attention(plan=plan, **given)
    with Traced() as trace:
        context_attention(plan=plan, **given)
    steps = ["posted", "kernel", "awaited"] * (group.size() - 1)
    assert trace.events == [*steps, "kernel"]


def same_in_every_run(group: Any) -> None:
    """Results, and gradients where they are asked to be."""
    for plan in plans(group):
        leaves = [
            local(plan, n, x).requires_grad_() for n, x in inputs(plan, torch.float32, "").items()
        ]

        def run(plan: ContextPlan = plan, leaves: list[Tensor] = leaves) -> list[Tensor]:
            out: Any = context_attention(*leaves, plan, deterministic=True)
            return [out.detach(), *torch.autograd.grad(out.square().sum(), leaves)]

        assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


def a_remote_key_counts(group: Any) -> None:
    """Keys that are on another rank change its gradient, and are not those of a call before."""
    for scheme in ("ring", "gather"):
        plan = make(group, 40, 2, 1, scheme=scheme)
        tensors = inputs(plan, torch.float64, "")
        found = []
        for change in (0.0, 1.0):
            changed = dict(tensors) | {
                "k": tensors["k"] + change * (torch.arange(40) == 39)[:, None, None]
            }
            leaves = [local(plan, n, x).requires_grad_() for n, x in changed.items()]
            out: Any = context_attention(*leaves, plan)
            found.append(torch.autograd.grad(out.square().sum(), leaves[0])[0])
        assert (found[0] - found[1]).abs().max() > 1e-6


def differences(group: Any) -> None:
    """All ranks of both dimensions raise, whoever it is that differs."""
    plan = make(mesh_of(2, 4), 16, 4, 2, masks.causal(), scheme="ring")
    x = [torch.ones(1, 2, heads, 8) for heads in (4, 2, 2)]
    for i, odd in enumerate((0, 3, 6)):
        softcap = 10.0 + i + (100.0 if group.rank() == odd else 0.0)
        with pytest.raises(ValueError, match="must be called with the same plan and arguments"):
            context_attention(*x, plan, softcap=softcap)
        if group.rank() == odd:
            with pytest.raises(ValueError, match="dropout_p must be"):
                context_attention(*x, plan, dropout_p=2.0)
        else:
            with pytest.raises(ValueError, match=f"was refused by rank {odd} of the group"):
                context_attention(*x, plan, softcap=20.0 + i)
    context_attention(*x, plan)


def wrapped(group: Any, scheme: str) -> None:
    """Checkpointing and compilation change nothing."""
    from torch.utils.checkpoint import checkpoint

    plan = make(group, 40, 4, 2, masks.causal(), scheme=scheme)
    tensors = {n: local(plan, n, x) for n, x in inputs(plan, torch.float32, "sink").items()}

    def attend(q: Tensor, k: Tensor, v: Tensor, sink: Tensor) -> Tensor:
        return context_attention(q * 2, k, v, plan, sink=sink, dropout_p=0.3, deterministic=True)  # type: ignore[return-value]

    def gradients(function: Any) -> list[Tensor]:
        leaves = [x.clone().requires_grad_() for x in tensors.values()]
        torch.manual_seed(group.rank())
        out = function(*leaves)
        return [out, *torch.autograd.grad(out.square().sum(), leaves)]

    expected = gradients(attend)
    again = gradients(lambda *x: checkpoint(attend, *x, use_reentrant=False))
    compiled = gradients(torch.compile(attend, backend="aot_eager", fullgraph=True))
    for found in (again, compiled):
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def dies(group: Any, scheme: str) -> bool:
    """Of two ranks, where one is gone before the second call: whether the other got an error."""
    plan = make(group, 12, 4, 2, masks.causal(), scheme=scheme)
    x = [torch.ones(1, 6, heads, 8) for heads in (4, 2, 2)]
    context_attention(*x, plan)
    if group.rank() == 1:
        os._exit(1)
    with pytest.raises(RuntimeError):
        context_attention(*x, plan)
    return True
