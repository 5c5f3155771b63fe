"""What the ranks of `test_dtensors` run: calls with DTensors beside those with their local rows."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from context_cases import BATCH, drawn, inputs, local, make
from outer_cases import mesh_of
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from flash_attn2 import flash_attn_func, masks
from flash_attn2.distributed import ContextPlan, context_attention

_meshes: dict[int, DeviceMesh] = {}


def mesh_of_all(group: Any) -> DeviceMesh:
    if group.size() not in _meshes:
        _meshes[group.size()] = DeviceMesh.from_group(group, "cpu", mesh_dim_names=("ring",))
    return _meshes[group.size()]


def spread(plan: ContextPlan, mesh: DeviceMesh, x: Tensor, dim: int = 1) -> Tensor:
    """Of the whole, in the plan's order."""
    shard = [Shard(dim)] * mesh.ndim
    whole = DTensor.from_local(
        *(plan.shard(x, dim).clone(), mesh, shard),
        run_check=False,
        shape=x.shape,
        stride=x.stride(),
    )
    return whole.detach().requires_grad_()


def plans(group: Any) -> Iterator[tuple[ContextPlan, DeviceMesh]]:
    """With as many rows on each rank, and with others."""
    if group.size() == 8:
        mesh = mesh_of(4, 2)
        yield make(mesh, 67, 6, 2, masks.window(20, 0), scheme="ring"), mesh
        return
    mesh = mesh_of_all(group)
    for scheme, seqlen in (("ring", 48), ("ring", 67), ("gather", 67), ("heads", 67)):
        yield make(mesh, seqlen, 6, 2, masks.causal(), scheme=scheme), mesh


def as_local_rows(group: Any) -> None:
    """Results, lse and gradients, to the bit; options as DTensors, too, or as tensors."""
    for plan, mesh in plans(group):
        tensors = inputs(plan, torch.float32, "sink, bias, relative_bias")
        leaves = [local(plan, name, x).requires_grad_() for name, x in tensors.items()]
        everywhere = [Replicate()] * mesh.ndim
        whole = [
            spread(plan, mesh, x, 2 if name == "bias" else 1)
            if name in ("q", "k", "v", "bias")
            else distribute_tensor(x, mesh, everywhere).requires_grad_()
            for name, x in tensors.items()
        ]
        whole[-1] = leaves[-1].detach().clone().requires_grad_()  # relative_bias, as it is
        found, expected = (_results(plan, mesh, x) for x in (whole, leaves))
        assert found[0].shape == (BATCH, plan.seqlen, 6, 5)
        assert found[1].shape == (BATCH, 6, plan.seqlen)
        for x, dim in zip(found[:2], (1, 2), strict=True):
            assert x.placements == (Shard(dim),) * mesh.ndim  # type: ignore[attr-defined]
        for i, (x, y) in enumerate(zip(found, expected, strict=True)):
            if isinstance(x, DTensor):
                x = x.to_local()
            assert torch.equal(x, y), i
        assert found[5].placements == tuple(everywhere)  # type: ignore[attr-defined]


def _results(plan: ContextPlan, mesh: DeviceMesh, given: list[Tensor]) -> list[Tensor]:
    """out, lse, and gradients of q, k, v, sink, bias and relative_bias."""
    q, k, v, sink, bias, relative = given
    options: Any = {"sink": sink, "bias": bias, "relative_bias": relative}
    torch.manual_seed(5)
    out, lse = context_attention(
        *(q, k, v, plan), **options, dropout_p=0.2, return_lse=True, deterministic=True
    )
    weights = [drawn(*(BATCH, plan.seqlen, 6, 5)).float(), drawn(BATCH, 6, plan.seqlen).float()]
    if isinstance(out, DTensor):
        weights = [spread(plan, mesh, x, dim) for x, dim in zip(weights, (1, 2), strict=True)]
    else:
        weights = [plan.shard(x, dim) for x, dim in zip(weights, (1, 2), strict=True)]
    torch.autograd.backward((out, lse), [x.detach() for x in weights])
    return [out.detach(), lse.detach(), *(x.grad for x in given)]  # type: ignore[misc]


def gradient_whole_on_each(group: Any) -> None:
    """Of a sum, which DTensor takes apart by equal chunks."""
    for plan, mesh in plans(group):
        tensors = inputs(plan, torch.float32, "")
        leaves = [local(plan, name, x).requires_grad_() for name, x in tensors.items()]
        context_attention(*leaves, plan).sum().backward()  # type: ignore[union-attr]
        whole = [spread(plan, mesh, x) for x in tensors.values()]
        context_attention(*whole, plan).sum().backward()  # type: ignore[union-attr]
        for x, y in zip(whole, leaves, strict=True):
            torch.testing.assert_close(x.grad.to_local(), y.grad)  # type: ignore[union-attr]


def compiled(group: Any) -> None:
    """Where ranks have the rows of DTensor's chunks; others are refused."""
    for plan, mesh in plans(group):
        tensors = inputs(plan, torch.float32, "")
        leaves = [spread(plan, mesh, x) for x in tensors.values()]
        weight = spread(plan, mesh, drawn(BATCH, plan.seqlen, 6, 5).float()).detach()

        def attend(q: Tensor, k: Tensor, v: Tensor, plan: ContextPlan = plan) -> Tensor:
            return context_attention(q * 2, k, v, plan)  # type: ignore[return-value]

        found = []
        quick = torch.compile(attend, backend="aot_eager", fullgraph=True, dynamic=False)
        if plan.seqlen % group.size():
            with pytest.raises(Exception, match="compiled calls take DTensors of chunks of 23"):
                quick(*leaves)
            return
        for function in (attend, quick):
            out = function(*leaves)
            grads = torch.autograd.grad(out, leaves, weight)
            found.append([x.to_local() for x in (out, *grads)])  # type: ignore[attr-defined]
        assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))


def wrong(group: Any) -> None:
    """What lies otherwise is refused, on all ranks, and a right call works after it."""
    mesh = mesh_of_all(group)
    plan = make(mesh, 16, 4, 4, masks.causal(), scheme="ring")
    good = spread(plan, mesh, drawn(1, 16, 4, 8).float())

    def placed(*placements: Any, seqlen: int = 16) -> Tensor:
        return distribute_tensor(drawn(1, seqlen, 4, 8).float(), mesh, placements)

    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (ValueError, r"q must be sharded along its sequence, Shard\(1\)", {"q": placed(Shard(0))}),
        (ValueError, r"k must be sharded along its sequence", {"k": placed(Shard(2))}),
        (ValueError, r"v must be sharded along its sequence", {"v": placed(Replicate())}),
        (ValueError, "q must have the 16 rows of the plan's", {"q": placed(Shard(1), seqlen=32)}),
        (TypeError, "all be DTensors, or none: k is a Tensor", {"k": good.to_local()}),  # type: ignore[attr-defined]
        (
            ValueError,
            r"sink must have Replicate\(\) in all dimensions",
            {"sink": distribute_tensor(torch.zeros(4), mesh, [Shard(0)])},
        ),
        (
            ValueError,
            r"bias must have Replicate\(\) or Shard\(0\) in all dimensions",
            {"bias": distribute_tensor(torch.zeros(16, 16), mesh, [Shard(1)])},
        ),
        (
            ValueError,
            "relative_bias must have Replicate",
            {"relative_bias": DTensor.from_local(torch.zeros(4, 31), mesh, [Partial()])},
        ),
    ]
    for kind, message, changed in cases:
        with pytest.raises(kind, match=message):
            context_attention(**{"q": good, "k": good, "v": good, "plan": plan} | changed)
        context_attention(good, good, good, plan)
    x, sink = torch.ones(1, plan.rows[plan.rank], 4, 8), distribute_tensor(torch.zeros(4), mesh)
    with pytest.raises(TypeError, match="sink must be a tensor where q is"):
        context_attention(x, x, x, plan, sink=sink)
    uneven = make(mesh, 67, 4, 4, masks.causal(), scheme="ring")
    chunks = placed(Shard(1), seqlen=67)  # 23, 23 and 21 rows
    assert uneven.rows == (23, 22, 22)
    with pytest.raises(ValueError, match=r"q must have the plan's .* rows|was refused by rank"):
        context_attention(chunks, chunks, chunks, uneven)


def wrong_mesh(group: Any) -> None:
    """One of two dimensions, where the plan's has one, and the other way round."""
    flat, square = mesh_of_all(group), mesh_of(4, 2)
    for mesh, other in ((flat, square), (square, flat)):
        plan = make(mesh, 64, 4, 4, masks.causal(), scheme="ring")
        x = spread(plan, other, drawn(1, 64, 4, 8).float())
        with pytest.raises(ValueError, match="q must be a DTensor on the plan's mesh, of ranks"):
            context_attention(x, x, x, plan)


class Layer(nn.Module):
    """Attention with a learned sink, as a residual."""

    def __init__(self, plan: ContextPlan | None) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(32, 64), nn.Linear(32, 32)
        self.sink = nn.Parameter(torch.zeros(4))
        self.plan = plan

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (8, 8)).split((4, 2, 2), 2)
        if self.plan is None:
            out: Any = flash_attn_func(q, k, v, causal=True, sink=self.sink)
        else:
            out = context_attention(q, k, v, self.plan, sink=self.sink)
        return x + self.out(out.flatten(2))


def fsdp2(group: Any, compiled: bool) -> None:
    """Layers whose parameters are sharded over the ranks that share a sequence: gradients are those
    of one process. FSDP2 averages them, so that a loss that is a sum counts `ranks` times; and that
    of a sink, which is the same on all ranks already, comes out as often too large."""
    mesh, ranks = mesh_of_all(group), group.size()
    plan = make(mesh, 40, 4, 2, masks.causal(), scheme="ring")
    torch.manual_seed(1)
    one = nn.Sequential(Layer(None), Layer(None))
    several = copy.deepcopy(one)
    for layer in several:
        layer.plan = plan
        fully_shard(layer, mesh=mesh)
        if compiled:
            layer.compile(backend="aot_eager", fullgraph=True)
    fully_shard(several, mesh=mesh)
    x, weight = (drawn(1, 40, 32, seed=seed).float() for seed in (1, 2))
    (one(x) * weight).sum().backward()
    for _ in range(2):
        several.zero_grad()
        (ranks * several(plan.shard(x, 1)) * plan.shard(weight, 1)).sum().backward()
    for (name, x), y in zip(several.named_parameters(), one.parameters(), strict=True):
        grad = x.grad.full_tensor()  # type: ignore[union-attr]
        if name.endswith("sink"):
            grad = grad / ranks
        torch.testing.assert_close(grad, y.grad, rtol=1e-4, atol=1e-5)
