"""What the ranks of `test_context_attention` run: calls beside those of one process."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from flash_attn2 import flash_attn_func, masks
from flash_attn2.distributed import ContextPlan, context_attention, context_plan
from flash_attn2.distributed.digest import digest
from flash_attn2.masks.leaves import Window

SEED = 7
BATCH, HEAD_DIM, HEAD_DIM_V = 2, 8, 5


def drawn(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 3) -> Tensor:
    """The same in all processes."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def make(
    group: Any, seqlen: int, heads: int, heads_kv: int, pattern: Any = None, **more: Any
) -> ContextPlan:
    return context_plan(
        group, seqlen, pattern=pattern, num_heads=heads, num_heads_kv=heads_kv, **more
    )


def inputs(plan: ContextPlan, dtype: torch.dtype, kinds: str) -> dict[str, Tensor]:
    """Of the whole sequence."""
    seqlen, heads = plan.seqlen, plan.num_heads
    heads_kv = plan.num_heads_kv
    found = {
        "q": drawn(BATCH, seqlen, heads, HEAD_DIM, dtype=dtype, seed=1),
        "k": drawn(BATCH, seqlen, heads_kv, HEAD_DIM, dtype=dtype, seed=2),
        "v": drawn(BATCH, seqlen, heads_kv, HEAD_DIM_V, dtype=dtype, seed=3),
    }
    options = {
        "sink": drawn(heads, seed=4).float(),
        "alibi_slopes": drawn(heads, seed=5).float().abs(),
        "alibi_slopes of each": drawn(BATCH, heads, seed=6).float().abs(),
        "bias": drawn(BATCH, heads, seqlen, seqlen, dtype=dtype, seed=7),
        "bias of all heads": drawn(1, 1, seqlen, seqlen, dtype=dtype, seed=8),
        "bias of all rows": drawn(BATCH, heads, 1, seqlen, dtype=dtype, seed=9),
        "bias of keys": drawn(seqlen, dtype=dtype, seed=10),
        "bias of all keys": drawn(heads, seqlen, 1, dtype=dtype, seed=10),
        "relative_bias": drawn(heads, 2 * seqlen - 1, seed=11).float(),
        "relative_bias of all heads": drawn(1, 2 * seqlen - 1, seed=12).float(),
    }
    for kind in filter(None, kinds.split(", ")):
        found[kind.partition(" ")[0]] = options[kind]
    return found


ROWS = {"q": 1, "k": 1, "v": 1}


def local(plan: ContextPlan, name: str, x: Tensor) -> Tensor:
    """What a rank gives of a tensor of the whole."""
    if name == "bias":
        return plan.shard(x, -2).clone() if x.ndim > 1 and x.shape[-2] != 1 else x.clone()
    return plan.shard(x, ROWS[name]).clone() if name in ROWS else x.clone()


def one_process(plan: ContextPlan, tensors: dict[str, Tensor], **options: Any) -> Any:
    pattern = plan.pattern
    if isinstance(pattern, Window):
        options["window_size"] = (pattern.left, pattern.right)
    else:
        options["block_mask"] = plan.block_mask(torch.device("cpu"))
    return flash_attn_func(**tensors, **options)


def results(attend: Any, leaves: dict[str, Tensor], weight: Any, seed: int) -> dict[str, Tensor]:
    """out, lse and gradients."""
    leaves = {name: x.detach().requires_grad_(name != "alibi_slopes") for name, x in leaves.items()}
    torch.manual_seed(seed)
    out, lse = attend(leaves)
    (weight(out, 1, 21) * out).sum().add((weight(lse, 2, 22) * lse).sum()).backward()
    found = {"out": out.detach(), "lse": lse.detach()}
    return found | {name: x.grad for name, x in leaves.items() if x.grad is not None}


def check(
    group: Any,
    dtype: torch.dtype = torch.float64,
    kinds: str = "",
    plan: ContextPlan | None = None,
    tolerance: float = 1e-12,
    **options: Any,
) -> None:
    """out, lse and gradients equal to those of one process, whose generator is in the state of the
    first rank's."""
    assert plan is not None
    tensors = inputs(plan, dtype, kinds)

    def whole(x: Tensor, dim: int, seed: int) -> Tensor:
        return drawn(*x.shape, dtype=x.dtype, seed=seed)

    def of_rows(x: Tensor, dim: int, seed: int) -> Tensor:
        shape = list(x.shape)
        shape[dim] = plan.seqlen
        return plan.shard(drawn(*shape, dtype=x.dtype, seed=seed), dim)

    expected = results(
        lambda leaves: one_process(plan, leaves, return_lse=True, **options), tensors, whole, SEED
    )
    actual = results(
        lambda leaves: context_attention(plan=plan, return_lse=True, **leaves, **options),
        {name: local(plan, name, x) for name, x in tensors.items()},
        of_rows,
        SEED + 100 * group.rank(),
    )
    assert set(actual) == set(expected)
    for name, value in expected.items():
        found = actual[name]
        if name in ("out", "lse"):
            value = plan.shard(value, 1 if name == "out" else 2)
        else:
            value = local(plan, name, value)
        assert found.shape == value.shape, name
        assert found.dtype == value.dtype, name
        bound = tolerance if value.dtype == torch.float64 else max(tolerance, 1e-5)
        error = (found - value).abs().nan_to_num(nan=torch.inf).max() if value.numel() else 0.0
        allowed = bound * (1 + value.abs().max()) if value.numel() else 0.0
        assert error <= allowed, f"{name} is off by {float(error):.3g}"


# Cases


HEADS = {1: [(4, 2)], 2: [(4, 2), (3, 3), (3, 1)], 3: [(6, 3), (4, 2), (12, 4)],
         4: [(8, 4), (8, 2), (6, 3)], 8: [(8, 8), (16, 2), (6, 2)]}  # fmt: skip
OPTIONS: list[dict[str, Any]] = [
    {"kinds": "sink, alibi_slopes", "softcap": 5.0, "softmax_scale": 0.3},
    {"kinds": "alibi_slopes of each, bias", "deterministic": True},
    {"kinds": "bias of all heads, relative_bias", "dropout_p": 0.3},
    {"kinds": "bias of all rows, relative_bias of all heads, sink", "dropout_p": 0.2},
    {"kinds": "bias of keys", "softcap": 2.0},
    {"kinds": "bias of all keys"},
]


def heads(group: Any) -> None:
    """Even, uneven, replicated, and more ranks than heads; lengths that do not divide."""
    for counts in HEADS[group.size()]:
        for seqlen in (1, 5, 70):
            pattern = masks.causal() if seqlen == 70 else None
            check(group, plan=make(group, seqlen, *counts, pattern, scheme="heads"))


def options(group: Any) -> None:
    plan = make(group, 37, 6, 3, masks.causal(), scheme="heads")
    for more in OPTIONS:
        check(group, plan=plan, **more)


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
        check(group, plan=make(group, 150, 6, 2, pattern, scheme="heads"), dropout_p=0.1)


def low_precision(group: Any) -> None:
    plan = make(group, 100, 8, 2, masks.causal(), scheme="heads")
    check(group, torch.float32, plan=plan, tolerance=1e-5)
    check(group, torch.bfloat16, plan=plan, tolerance=2e-2)
    check(group, torch.float16, plan=plan, tolerance=3e-3, kinds="sink, bias of all rows")


def same_bits(group: Any) -> None:
    """Heads are computed as by one process, with gradients where none is shared."""
    plan = make(group, 100, 8, 8, masks.causal(), scheme="heads")
    check(group, torch.bfloat16, plan=plan, tolerance=0.0, dropout_p=0.4, deterministic=True)


def wrapped(group: Any, how: str) -> None:
    """Autocast, checkpointing and compilation change nothing."""
    plan = make(group, 40, 4, 2, masks.causal(), scheme="heads")
    tensors = {n: local(plan, n, x) for n, x in inputs(plan, torch.float32, "sink").items()}

    def attend(q: Tensor, k: Tensor, v: Tensor, sink: Tensor) -> Tensor:
        return context_attention(q * 2, k, v, plan, sink=sink, dropout_p=0.3)  # type: ignore[return-value]

    def gradients(function: Any, low: bool = False) -> list[Tensor]:
        leaves = [x.clone().requires_grad_() for x in tensors.values()]
        torch.manual_seed(group.rank())
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            out = function(*leaves)
        return [out, *torch.autograd.grad(out.float().square().sum(), leaves)]

    expected = gradients(attend)
    if how == "checkpoint":
        from torch.utils.checkpoint import checkpoint

        found = gradients(lambda *x: checkpoint(attend, *x, use_reentrant=False))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    elif how == "compile":
        compiled = torch.compile(attend, backend="aot_eager", fullgraph=True)
        for _ in range(2):
            found = gradients(compiled)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    else:
        found = gradients(attend, low=True)
        assert found[0].dtype == torch.bfloat16
        assert [x.dtype for x in found[1:]] == [torch.float32] * 4
        for a, b in zip(found, expected, strict=True):
            assert (a.float() - b).norm() <= 0.02 * b.norm()


class Counted:
    """Bytes that go to other ranks through all_to_all_single and batch_isend_irecv."""

    def __enter__(self) -> Counted:
        self.sent = 0
        self._call, self._batch = dist.all_to_all_single, dist.batch_isend_irecv
        dist.all_to_all_single = self._counting  # type: ignore[assignment]
        dist.batch_isend_irecv = self._counting_messages
        return self

    def __exit__(self, *_: Any) -> None:
        dist.all_to_all_single, dist.batch_isend_irecv = self._call, self._batch

    def _counting_messages(self, ops: Any) -> Any:
        self.sent += sum(
            x.tensor.numel() * x.tensor.element_size() for x in ops if x.op is dist.isend
        )
        return self._batch(ops)

    def _counting(self, out: Tensor, x: Tensor, to: Any, of: Any, group: Any) -> Any:
        own = group.rank()
        sizes = of if of is not None else [x.shape[0] // group.size()] * group.size()
        row = x.element_size() * (x.numel() // max(x.shape[0], 1))
        self.sent += sum(n for rank, n in enumerate(sizes) if rank != own) * row
        assert sum(sizes) == x.shape[0]
        return self._call(out, x, to, of, group=group)


def bytes_sent(group: Any) -> None:
    """Equal to the plan's, to the byte."""
    for counts in HEADS[group.size()]:
        for dtype, with_lse in ((torch.float64, False), (torch.bfloat16, True)):
            plan = make(group, 37, *counts, scheme="heads")
            size = {"head_dim": HEAD_DIM, "head_dim_v": HEAD_DIM_V, "batch": BATCH}
            report = plan.report(**size, dtype=dtype, with_lse=with_lse)
            tensors = inputs(plan, dtype, "")
            leaves = [local(plan, n, x).requires_grad_() for n, x in tensors.items()]
            with Counted() as forward:
                out: Any = context_attention(*leaves, plan, return_lse=with_lse)
            with Counted() as backward:
                sum(x.sum() for x in (out if with_lse else [out])).backward()
            assert forward.sent == report.forward_bytes[group.rank()]
            assert backward.sent == report.backward_bytes[group.rank()]


def unshard(group: Any) -> None:
    x = drawn(2, 61, 3)
    for scheme in ("ring", "gather", "heads"):
        plan = make(group, 61, 4, 2, masks.causal(), scheme=scheme)
        assert torch.equal(plan.unshard(plan.shard(x, 1), 1), x)
        assert torch.equal(plan.unshard(plan.shard(x.int(), -2), -2), x.int())
    short = drawn(1, 5)  # of which a rank may have nothing
    plan = make(group, 1, 4, 2, scheme="ring")
    assert torch.equal(plan.unshard(plan.shard(short, 0), 0), short)


def dropout_mask(group: Any) -> int:
    return dropout_mask_of(group, make(group, 64, 8, 4, scheme="heads"))


def dropout_mask_of(group: Any, plan: ContextPlan) -> int:
    """Of which entries are kept, a number."""
    q, k = torch.zeros(1, 64, 8, 64), torch.zeros(1, 64, 4, 64)
    v = torch.eye(64)[None, :, None].expand(1, 64, 4, 64)
    torch.manual_seed(group.rank())
    out = context_attention(*(plan.shard(x, 1) for x in (q, k, v)), plan, dropout_p=0.5)
    kept: Tensor = out != 0  # type: ignore[assignment]
    assert 0.4 < kept.double().mean() < 0.6
    return digest(plan.unshard(kept, 1))


# What is refused


def small(group: Any, **changed: Any) -> Any:
    """A call of float32 tensors with what is changed on this rank."""
    given: dict[str, Any] = {"seqlen": 12, "pattern": masks.causal(), "batch": 1}
    own = {name: changed.pop(name) for name in list(changed) if name in given}
    given |= own
    plan = changed.pop("plan", None)
    if plan is None:
        plan = make(group, given["seqlen"], 4, 2, given["pattern"], scheme="heads")
    rows = 12 // group.size()
    q = torch.ones(given["batch"], rows, 4, 8)
    k = torch.ones(given["batch"], rows, 2, 8)
    return context_attention(**{"q": q, "k": k, "v": k, "plan": plan} | changed)


def differences(group: Any) -> None:
    """All ranks raise, and a right call works after each."""
    last = group.size() - 1
    leaf = torch.ones(1, 12 // group.size(), 4, 8, requires_grad=True)
    for i, changed in enumerate(
        (
            {"dropout_p": 0.5},
            {"softcap": 3.0},
            {"q": leaf},
            {"batch": 2},
            {"pattern": masks.window(3, 0)},
            {"return_lse": True},
            {"sink": torch.zeros(4)},
        )
    ):
        all_have = {"softcap": 10.0 + i}  # a call that was not made before
        own = changed if group.rank() == last else {}
        with pytest.raises(ValueError, match="must be called with the same plan and arguments"):
            small(group, **all_have | own)
        small(group, **all_have)


LEARNED = torch.ones(4, requires_grad=True)
WRONG: list[tuple[type[Exception], str, dict[str, Any]]] = [
    (TypeError, "q must be a torch.Tensor", {"q": None}),
    (ValueError, "q must be .batch, rows, num_heads, head_dim.", {"q": torch.ones(3, 4)}),
    (ValueError, "q must have the plan's .* rows of rank", {"q": torch.ones(1, 99, 4, 8)}),
    (ValueError, "k must have the plan's", {"k": torch.ones(1, 6, 4, 8)}),
    (TypeError, "q, k and v must have one dtype", {"q": torch.ones(1, 6, 4, 8).double()}),
    (ValueError, "dropout_p must be from 0", {"dropout_p": 2.0}),
    (TypeError, "softcap must be a number", {"softcap": "1"}),
    (TypeError, "return_lse must be a bool", {"return_lse": "False"}),
    (TypeError, "sink must be float32", {"sink": torch.zeros(4).double()}),
    (ValueError, "alibi_slopes must have shape", {"alibi_slopes": torch.zeros(3)}),
    (NotImplementedError, "alibi_slopes requires", {"alibi_slopes": LEARNED}),
    (ValueError, "bias must have the 6 rows of rank", {"bias": torch.zeros(12, 12)}),
    (ValueError, "relative_bias must", {"relative_bias": torch.zeros(4, 12)}),
    (ValueError, "sink must be on the device of q", {"sink": torch.zeros(4, device="meta")}),
    (TypeError, "'causal': which keys each query sees is the plan's pattern", {"causal": True}),
    (TypeError, "has no argument 'scale': use softmax_scale", {"scale": 1.0}),
]  # fmt: skip


def refusals(group: Any) -> None:
    """Where one rank's arguments are no good, the others say which rank's."""
    for kind, message, wrong in WRONG:
        if group.rank() == 0:
            with pytest.raises(kind, match=message):
                small(group, **wrong)
        else:
            with pytest.raises(ValueError, match="was refused by rank 0 of the group"):
                small(group, softcap=7.0)  # which was not called before
    small(group, softcap=7.0)


def wrong_plans(group: Any) -> None:
    numbers = context_plan(2, 12, num_heads=4, num_heads_kv=2, scheme="heads").at(group.rank())
    with pytest.raises(ValueError, match="made of numbers"):
        small(group, plan=numbers)
    with pytest.raises(TypeError, match="plan must be made by context_plan, got str"):
        small(group, plan="heads")
    plan = make(group, 12, 4, 2, masks.prefix([1, 2, 3]), scheme="heads")
    with pytest.raises(ValueError, match="q must have the batch of the plan's pattern, 3, got 1"):
        small(group, plan=plan)
    x = plan.shard(torch.ones(12, requires_grad=True), 0)
    with pytest.raises(NotImplementedError, match="unshard has no gradient"):
        plan.unshard(x, 0)


def checked_always(group: Any) -> None:
    """A call that was right before is asked for again."""
    leaf = torch.ones(1, 12 // group.size(), 4, 8)
    small(group, dropout_p=0.25)
    small(group)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLASH_ATTN2_DISTRIBUTED_CHECK", "always")
        with pytest.raises(ValueError, match="must be called with the same plan and arguments"):
            small(group, dropout_p=0.25 * group.rank())
        small(group, q=leaf)
        patch.setenv("FLASH_ATTN2_DISTRIBUTED_CHECK", "sometimes")
        with pytest.raises(ValueError, match="CHECK must be one of first, always, off, got"):
            small(group)
        patch.setenv("FLASH_ATTN2_DISTRIBUTED_CHECK", "off")
        small(group, softcap=9.0)


def second_derivative(group: Any) -> None:
    plan = make(group, 12, 4, 2, scheme="heads")
    x = [torch.ones(1, 12 // group.size(), n, 8, requires_grad=True) for n in (4, 2, 2)]
    out = context_attention(*x, plan)
    (grad,) = torch.autograd.grad(out.square().sum(), x[:1], create_graph=True)  # type: ignore[union-attr]
    with pytest.raises(NotImplementedError, match="differentiated only once"):
        grad.sum().backward()


def dies(group: Any) -> bool:
    """Of two ranks, where one is gone before the second call: whether the other got an error."""
    small(group)
    if group.rank() == 1:
        os._exit(1)
    with pytest.raises(RuntimeError):
        small(group)
    return True
