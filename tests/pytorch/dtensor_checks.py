"""What `test_dtensor` runs in each process."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

from flash_attn2 import (
    flash_attn_func,
    flash_attn_kvpacked_func,
    flash_attn_qkvpacked_func,
    flash_attn_varlen_func,
    flash_attn_with_kvcache,
)
from flash_attn2.masks import BlockMask
from flash_attn2.nn import Attention, RotaryEmbedding

SEED = 5


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The same in all processes."""
    return torch.randn(shape, generator=GENERATOR).to(dtype)


GENERATOR = torch.Generator().manual_seed(7)


def check(
    mesh: DeviceMesh,
    attend: Callable[..., Any],
    tensors: dict[str, Tensor],
    placements: dict[str, list[Any]],
    expected_out: list[Any] | None = None,
    **options: Any,
) -> None:
    """out, lse and gradients equal to those of one process, whose generator is in the same state
    as that of the first of these."""

    def results(inputs: dict[str, Tensor], seed: int) -> tuple[dict[str, Tensor], Any]:
        leaves = {
            name: x.detach().requires_grad_(x.is_floating_point()) for name, x in inputs.items()
        }
        torch.manual_seed(seed)
        out, lse = attend(**leaves, **options, return_lse=True)
        wanted = {name: x for name, x in leaves.items() if x.requires_grad}
        sum((x * weights(x)).sum() for x in (out, lse)).backward()
        return {"out": out, "lse": lse} | {n: x.grad for n, x in wanted.items()}, out

    def weights(x: Tensor) -> Tensor:
        drawn = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
        return distribute_tensor(drawn, mesh, x.placements) if isinstance(x, DTensor) else drawn

    expected, _ = results(tensors, SEED)
    spread = {
        name: distribute_tensor(x, mesh, placements[name]) if name in placements else x
        for name, x in tensors.items()
    }
    actual, out = results(spread, SEED + 100 * dist.get_rank())
    if expected_out is not None:
        assert list(out.placements) == expected_out, out.placements
    for name, value in expected.items():
        found = actual[name]
        if isinstance(found, DTensor):
            if name in placements:
                assert found.placements == spread[name].placements, (name, found.placements)
            found = found.full_tensor()
        assert torch.allclose(found, value, rtol=1e-4, atol=1e-5), name


def qkv(
    heads: int, heads_kv: int, batch: int = 5, rows: tuple[int, int] = (9, 13)
) -> dict[str, Tensor]:
    q = drawn(batch, rows[0], heads, 8)
    k, v = (drawn(batch, rows[1], heads_kv, 8) for _ in "kv")
    return {"q": q, "k": k, "v": v}


def all_three(*placements: Any) -> dict[str, list[Any]]:
    return {name: list(placements) for name in "qkv"}


def dense() -> None:
    """On 2 or 4 processes."""
    count = dist.get_world_size()
    mesh = init_device_mesh("cpu", (count,))
    whole, rows, heads = [Replicate()], [Shard(0)], [Shard(2)]
    for dropout_p in (0.0, 0.4):
        more: dict[str, Any] = {"dropout_p": dropout_p, "causal": True}
        # 12 and 3 heads on 2 processes, 8 and 2 on 4: the heads of the keys cannot be cut.
        counts = (12, 3) if count == 2 else (8, 2)
        check(mesh, flash_attn_func, qkv(*counts), all_three(*heads), whole, **more)
        check(mesh, flash_attn_func, qkv(8, 4), all_three(*heads), heads, **more)
        # Batches that the mesh does not divide, of which a process may get nothing.
        check(mesh, flash_attn_func, qkv(4, 2), all_three(*rows), rows, **more)
        check(mesh, flash_attn_func, qkv(4, 2, 1), all_three(*rows), rows, **more)
        mixed = {"q": rows, "k": whole, "v": heads}
        check(mesh, flash_attn_func, qkv(4, 4), mixed, rows, **more)
    check(mesh, flash_attn_func, qkv(4, 4), all_three(Shard(3)), whole)
    check(mesh, flash_attn_func, qkv(4, 4), {"q": whole, "k": heads, "v": whole}, heads)
    parts = {x: distribute_tensor(y, mesh, whole).to_local() for x, y in qkv(4, 4).items()}
    summed = {x: DTensor.from_local(y / count, mesh, [Partial()]) for x, y in parts.items()}
    out: Any = flash_attn_func(**summed)
    torch.testing.assert_close(out.full_tensor(), flash_attn_func(**parts), rtol=1e-4, atol=1e-5)


def options() -> None:
    """Tensors beside q, k and v, cut or whole, with gradients."""
    count = dist.get_world_size()
    mesh = init_device_mesh("cpu", (count,))
    tensors = qkv(8, 4, 4, (70, 70))
    mask = BlockMask.from_dense(torch.rand(4, 8, 70, 70, generator=GENERATOR) < 0.5)
    more: dict[str, dict[str, Tensor]] = {
        "sink": {"sink": drawn(8)},
        "bias": {"bias": drawn(1, 8, 70, 70)},
        "bias of all": {"bias": drawn(4, 1, 1, 70)},
        "short bias": {"bias": drawn(8, 1, 70)},
        "relative": {"relative_bias": drawn(8, 139)},
        "relative of all": {"relative_bias": drawn(1, 139)},
    }
    for cut in (Shard(0), Shard(2)):
        for given in more.values():
            check(mesh, flash_attn_func, tensors | given, all_three(cut), [cut], dropout_p=0.3)
        given = more["sink"]
        placements = all_three(cut) | {"sink": [Shard(0)]}
        check(mesh, flash_attn_func, tensors | given, placements, [cut])
        check(mesh, flash_attn_func, tensors, all_three(cut), [cut], block_mask=mask)
        for slopes in (drawn(8).abs(), drawn(4, 8).abs()):
            check(mesh, flash_attn_func, tensors, all_three(cut), [cut], alibi_slopes=slopes)
        used = torch.tensor([70, 3, 0, 20], dtype=torch.int32)
        check(mesh, flash_attn_func, tensors, all_three(cut), [cut], seqused_q=used)


def packed() -> None:
    """Packed tensors and packed sequences."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    cut = Shard(3)
    kv = drawn(4, 13, 2, 4, 8)
    check(
        mesh,
        flash_attn_kvpacked_func,
        {"q": drawn(4, 9, 8, 8), "kv": kv},
        {"q": [Shard(2)], "kv": [cut]},
        [Shard(2)],
        dropout_p=0.4,
    )
    check(
        mesh, flash_attn_qkvpacked_func, {"qkv": drawn(4, 9, 3, 4, 8)}, {"qkv": [cut]}, [Shard(2)]
    )
    cu = torch.tensor([0, 4, 4, 9], dtype=torch.int32)
    rows = {"q": drawn(9, 8, 8), "k": drawn(9, 4, 8), "v": drawn(9, 4, 8)}
    lengths = {"cu_seqlens_q": cu, "cu_seqlens_k": cu, "max_seqlen_q": 5, "max_seqlen_k": 5}
    check(
        mesh,
        flash_attn_varlen_func,
        rows,
        all_three(Shard(1)),
        [Shard(1)],
        dropout_p=0.4,
        **lengths,
    )
    spread = {name: distribute_tensor(x, mesh, [Shard(0)]) for name, x in rows.items()}
    with pytest.raises(NotImplementedError, match="q is sharded along its sequences, dimension 0"):
        flash_attn_varlen_func(**spread, **lengths)


def two_dimensions() -> None:
    """Of a mesh of 4 processes: batch by heads, both for one, and neither."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "model"))
    for cuts in (
        [Shard(0), Shard(2)],
        [Shard(2), Shard(2)],
        [Shard(0), Shard(0)],
        [Replicate(), Shard(2)],
    ):
        tensors = qkv(8, 4) | {"sink": drawn(8)}
        check(mesh, flash_attn_func, tensors, all_three(*cuts), cuts, dropout_p=0.4)
    cuts = [Shard(2), Shard(2)]
    check(
        mesh, flash_attn_func, qkv(8, 2), all_three(*cuts), [Shard(2), Replicate()], dropout_p=0.4
    )


def compiled() -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Any:
        return flash_attn_func(q * 2, k, v, causal=True)

    leaves = [distribute_tensor(x, mesh, [Shard(2)]).requires_grad_() for x in qkv(4, 4).values()]
    outs = torch.compile(attend, backend="aot_eager", fullgraph=True)(*leaves), attend(*leaves)
    assert torch.equal(*(x.full_tensor() for x in outs))
    for grads in zip(*(torch.autograd.grad(x.sum(), leaves) for x in outs), strict=True):
        assert torch.equal(*(x.full_tensor() for x in grads))


def errors() -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    q, k, v = (distribute_tensor(x, mesh, [Shard(0)]) for x in qkv(4, 4).values())
    along = distribute_tensor(qkv(4, 4)["k"], mesh, [Shard(1)])
    with pytest.raises(NotImplementedError, match="k is sharded along its sequences, dimension 1"):
        flash_attn_func(q, along, v)
    with pytest.raises(ValueError, match="v must be a DTensor on the mesh of q"):
        flash_attn_func(q, k, qkv(4, 4)["v"])
    other = init_device_mesh("cpu", (dist.get_world_size(), 1))
    with pytest.raises(ValueError, match="k must be a DTensor on the mesh of q"):
        flash_attn_func(q, distribute_tensor(qkv(4, 4)["k"], other, [Shard(0), Replicate()]), v)
    with pytest.raises(NotImplementedError, match="return_attn_probs must be False"):
        flash_attn_func(q, k, v, 0.5, return_attn_probs=True)
    with pytest.raises(NotImplementedError, match="over a KV cache takes no DTensors"):
        flash_attn_with_kvcache(q, k, v)


LAYERS: dict[str, dict[str, Any]] = {
    "grouped": {"num_heads_kv": 2, "causal": True, "sink": True, "bias": True},
    "undivided": {"num_heads": 6, "num_heads_kv": 1, "alibi": True, "dropout": 0.3},
    "rotary": {"rotary": RotaryEmbedding(8), "num_heads_kv": 4, "dropout": 0.3},
}


def train(layer: Any, x: Tensor, **options: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Output and the gradients of the parameters, all of them."""
    torch.manual_seed(SEED + 100 * dist.get_rank())
    out = layer(x, **options)
    (out * torch.linspace(-1, 1, out.shape[-1])).sum().backward()
    return out.detach(), {
        name: p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad
        for name, p in layer.named_parameters()
    }


def assert_same(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-4, atol=1e-5)
    for name, grad in expected[1].items():
        torch.testing.assert_close(actual[1][name], grad, rtol=1e-4, atol=1e-4)


def layers() -> None:
    """Under tensor parallelism, and sharded by FSDP."""
    count = dist.get_world_size()
    mesh = init_device_mesh("cpu", (count,))
    for options in LAYERS.values():
        torch.manual_seed(1)
        layer = Attention(32, **{"num_heads": 4, "head_dim": 8} | options)
        x, cu = drawn(3, 11, 32), torch.tensor([0, 4, 11], dtype=torch.int32)
        for given, more in ((x, {}), (x[0], {"cu_seqlens": cu, "max_seqlen": 7})):
            parallel = parallelize_module(
                copy.deepcopy(layer),
                mesh,
                {
                    "qkv_proj": ColwiseParallel(use_local_output=False),
                    "out_proj": RowwiseParallel(),
                },
            )
            alone = copy.deepcopy(layer)
            actual = train(parallel, given, **more)
            with one_generator():
                expected = train(alone, given, **more)
            assert_same(actual, expected)
    local = parallelize_module(copy.deepcopy(layer), mesh, {"qkv_proj": ColwiseParallel()})
    with pytest.raises(ValueError, match="use_local_output=False"):
        local(x)
    torch.manual_seed(1)
    layer = Attention(32, 4, 2, sink=True, alibi=True, rotary=RotaryEmbedding(8))
    sharded = fully_shard(copy.deepcopy(layer), mesh=mesh)
    whole = drawn(count, 11, 32)
    rank = dist.get_rank()
    _, grads = train(sharded, whole[rank : rank + 1])
    _, expected = train(layer, whole)
    for name, grad in expected.items():  # FSDP averages over the processes
        torch.testing.assert_close(grads[name] * count, grad, rtol=1e-4, atol=1e-4)


@contextmanager
def one_generator() -> Iterator[None]:
    """For a layer alone: its generator is that of the first process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "get_rank", lambda: 0)
        yield


def on_two() -> None:
    for part in (dense, options, packed, errors, layers, compiled):
        part()


def on_four() -> None:
    for part in (dense, two_dimensions):
        part()
