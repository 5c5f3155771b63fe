"""Forward mode, batched gradients, torch.vmap, and torch.export with open shapes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from functions import each_function, problem
from support import ONE_DTYPE, TORCH, Target, cumulative, lengths, targets
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jvp, linearize, vjp, vmap
from torch.utils.flop_counter import FlopCounterMode

from flash_attn2 import flash_attn_func, flash_attn_varlen_func, flash_attn_with_kvcache

CU = cumulative(4)
TABLE = lengths(0).view(1, 1)


def skip_where_pages_are_not_read(case: str) -> None:
    if TORCH < (2, 10) and case == "pages":
        pytest.skip("torch itself fails at tolist() inside of a transform")


# Forward mode. Functions of the tensor that gets a tangent, by what is called with it.


def forward_mode_cases(target: Target) -> dict[str, tuple[Callable[[Tensor], Any], Tensor]]:
    q = target.tensor(1, 4, 2, 16)
    p, per_head = q[0], torch.ones(2)
    op, varlen_op = torch.ops.flash_attn2.forward, torch.ops.flash_attn2.varlen_forward
    out, lse, _ = op(q, q, q)
    return {
        "q": (lambda x: flash_attn_func(x, q, q), q),
        "v": (lambda x: flash_attn_func(q, q, x), q),
        "q_dropout": (lambda x: flash_attn_func(x, q, q, 0.5), q),
        "sink": (lambda x: flash_attn_func(q, q, q, sink=x), per_head),
        "slopes": (lambda x: flash_attn_func(q, q, q, alibi_slopes=x), per_head),
        "varlen_q": (lambda x: flash_attn_varlen_func(x, p, p, CU, CU, 4, 4), p),
        "varlen_k": (lambda x: flash_attn_varlen_func(p, x, p, CU, CU, 4, 4), p),
        "op": (lambda x: op(q, x, q)[0], q),
        "varlen_op": (lambda x: varlen_op(p, p, x, CU, CU, None, 4, 4)[0], p),
        "grad_out": (lambda x: torch.ops.flash_attn2.backward(x, None, q, q, q, out, lse, None), q),
        "cache": (lambda x: flash_attn_with_kvcache(q, x, q), q),
        "pages": (lambda x: flash_attn_varlen_func(p, x, q, CU, CU, 4, 4, block_table=TABLE), q),
    }


FORWARD_MODE_CASES = list(forward_mode_cases(Target("cpu", torch.float32)))
GRAD_MODES = {"grad": nullcontext, "no_grad": torch.no_grad, "inference": torch.inference_mode}


def within(mode: Any, attend: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    def attend_in_mode(x: Tensor) -> Any:
        with mode():
            return attend(x)

    return attend_in_mode


def dual(attend: Callable[[Tensor], Any], x: Tensor) -> None:
    with forward_ad.dual_level():
        attend(forward_ad.make_dual(x, torch.ones_like(x)))


FORWARD_MODE_WAYS: dict[str, Callable[[Callable[[Tensor], Any], Tensor], Any]] = {
    "dual": dual,
    "jvp": lambda attend, x: jvp(attend, (x,), (x,)),
    "jvp_of_jvp": lambda attend, x: jvp(lambda y: jvp(attend, (y,), (y,))[1], (x,), (x,)),
    "jvp_of_vmap": lambda attend, x: jvp(
        vmap(attend, randomness="different"), (x[None],), (x[None],)
    ),
    "vmap_of_jvp": lambda attend, x: vmap(
        lambda y: jvp(attend, (y,), (y,)), randomness="different"
    )(x[None]),
    "jacfwd": lambda attend, x: jacfwd(attend, randomness="different")(x),
    "linearize": lambda attend, x: linearize(attend, x),
}


@targets([*ONE_DTYPE, Target("cpu", torch.float32)])
@pytest.mark.parametrize("way", FORWARD_MODE_WAYS)
@pytest.mark.parametrize("case", FORWARD_MODE_CASES)
def test_forward_mode_is_refused(case: str, way: str, target: Target) -> None:
    if TORCH < (2, 6) and way == "jvp_of_vmap":
        pytest.skip("torch itself fails at tangents under vmap in some grad modes")
    skip_where_pages_are_not_read(case)
    attend, x = forward_mode_cases(target)[case]
    for mode in GRAD_MODES.values():
        with pytest.raises(NotImplementedError, match="forward-mode"):
            FORWARD_MODE_WAYS[way](within(mode, attend), x)


@pytest.mark.parametrize(
    "observe", [torch.profiler.profile, lambda: FlopCounterMode(display=False)]
)
@pytest.mark.parametrize("case", FORWARD_MODE_CASES)
def test_observed_forward_mode_is_refused(
    case: str, observe: Callable[[], AbstractContextManager[Any]]
) -> None:
    attend, x = forward_mode_cases(Target("cpu", torch.float32))[case]
    for mode in GRAD_MODES.values():
        with observe(), pytest.raises(NotImplementedError, match="forward-mode"):
            dual(within(mode, attend), x)


@each_function
def test_forward_over_reverse_is_refused(form: str) -> None:
    attend, leaves = problem(form)
    with pytest.raises(NotImplementedError, match="forward-mode"):
        hessian(lambda x: attend(x, *leaves[1:]).sum())(leaves[0].detach())


@pytest.mark.parametrize("case", FORWARD_MODE_CASES)
def test_a_level_of_forward_mode_without_tangents(case: str) -> None:
    """Tangents of other tensors, and detached ones, are no reason to refuse."""
    skip_where_pages_are_not_read(case)
    attend, x = forward_mode_cases(Target("cpu", torch.float32))[case]
    for mode in GRAD_MODES.values():
        with mode(), forward_ad.dual_level():
            torch.manual_seed(3)
            actual = attend(forward_ad.make_dual(x, torch.ones_like(x)).detach())
        torch.manual_seed(3)
        torch.testing.assert_close(actual, attend(x), rtol=0, atol=0)

    def product(y: Tensor) -> Tensor:
        out = attend(x)
        return y * (out if isinstance(out, Tensor) else out[0]).sum()

    torch.manual_seed(3)
    _, tangent = jvp(product, (torch.ones(()),), (torch.ones(()),))
    torch.manual_seed(3)
    torch.testing.assert_close(tangent, product(torch.ones(())), rtol=0, atol=0)


# Batched gradients.

WITH_DROPOUT = [0.0, 0.5]


@pytest.mark.parametrize("dropout_p", WITH_DROPOUT)
@each_function
def test_batched_gradients(form: str, dropout_p: float) -> None:
    attend, leaves = problem(form)
    sink = torch.zeros(leaves[0].shape[-2], requires_grad=True)
    results = attend(*leaves, dropout_p=dropout_p, sink=sink, return_attn_probs=True)[:2]
    leaves = [*leaves, sink]
    for chosen in (results[:1], results[1:], results):
        grads = [torch.randn(3, *x.shape) for x in chosen]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            actual = torch.autograd.grad(
                chosen, leaves, grads, is_grads_batched=True, retain_graph=True
            )
        for i in range(3):
            expected = torch.autograd.grad(chosen, leaves, [x[i] for x in grads], retain_graph=True)
            for a, b in zip(actual, expected, strict=True):
                torch.testing.assert_close(a[i], b)


@targets(ONE_DTYPE)
def test_batched_gradients_on(target: Target) -> None:
    q = target.tensor(1, 5, 2, 16).requires_grad_()
    out = flash_attn_func(q, q, q, deterministic=True)
    grads = target.tensor(2, *out.shape)
    (actual,) = torch.autograd.grad(out, q, grads, is_grads_batched=True, retain_graph=True)
    expected = [torch.autograd.grad(out, q, x, retain_graph=True)[0] for x in grads]
    assert torch.equal(actual, torch.stack(expected))


def test_vectorized_jacobian() -> None:
    q = torch.randn(1, 3, 2, 4)

    def attend(q: Tensor) -> Tensor:
        return flash_attn_func(q, q, q, causal=True)

    jacobians = [
        torch.autograd.functional.jacobian(attend, q, vectorize=vectorize)
        for vectorize in (True, False)
    ]
    torch.testing.assert_close(*jacobians)
    torch.testing.assert_close(torch.func.jacrev(attend)(q), jacobians[0])


# torch.vmap.


@pytest.mark.parametrize("size", [0, 2])
@each_function
def test_vmap_over_any_size(form: str, size: int) -> None:
    """Over nothing as well: values, gradients inside and outside of it, lse."""
    attend, leaves = problem(form)

    def both(*leaves: Tensor) -> tuple[Tensor, Tensor]:
        out, lse, _ = attend(*leaves, return_attn_probs=True)
        return out, lse.nan_to_num(neginf=0)

    def loss(*leaves: Tensor) -> Tensor:
        out, lse = both(*leaves)
        return out.square().sum() + lse.sum()

    stacked = [torch.stack([x, 2 * x]).detach()[:size].requires_grad_() for x in leaves]
    out, lse = vmap(both)(*stacked)
    assert out.shape == (size, *both(*leaves)[0].shape)
    assert lse.shape == (size, *both(*leaves)[1].shape)
    ours = torch.autograd.grad(out.square().sum() + lse.sum(), stacked)
    numbers = tuple(range(len(leaves)))
    inside = vmap(grad(loss, numbers))(*(x.detach() for x in stacked))
    for a, b, x in zip(ours, inside, stacked, strict=True):
        assert a.shape == x.shape
        torch.testing.assert_close(a, b)


def test_vmap_of_dropout_over_nothing() -> None:
    q = torch.zeros(0, 1, 3, 2, 8)
    out = vmap(lambda q: flash_attn_func(q, q, q, 0.5), randomness="different")(q)
    assert out.shape == q.shape


def test_dimensions_of_vmap() -> None:
    q = torch.randn(1, 3, 2, 4, 2, 8)  # dimensions 1 and 3 are mapped

    def attend(q: Tensor) -> Tensor:
        return flash_attn_func(q, q, q, causal=True)

    inner = vmap(attend, in_dims=1, out_dims=1)
    out = vmap(inner, in_dims=1, out_dims=-1)(q.movedim(3, 2))
    for i in range(3):
        for j in range(4):
            assert torch.equal(out[:, j, ..., i], attend(q[:, i, :, j]))
    empty = vmap(inner, in_dims=1, out_dims=-1)(q.movedim(3, 2)[:, :, :0])
    assert empty.shape == out[:, :0].shape


@pytest.mark.parametrize("size", [0, 3])
def test_vmap_over_where_sequences_lie(size: int) -> None:
    q = torch.randn(8, 2, 16)
    bounds = torch.stack([cumulative(3, 5), cumulative(8, 0), cumulative(1, 7)])[:size]
    used = torch.stack([lengths(2, 5), lengths(0, 0), lengths(1, 3)])[:size]

    def attend(q: Tensor, cu: Tensor, used: Tensor) -> Tensor:
        return flash_attn_varlen_func(q, q, q, cu, cu, 8, 8, seqused_k=used)

    out = vmap(attend, in_dims=(None, 0, 0))(q, bounds, used)
    assert out.shape == (size, *q.shape)
    for i in range(size):
        assert torch.equal(out[i], attend(q, bounds[i], used[i]))


@pytest.mark.skipif(TORCH < (2, 5), reason="torch has no register_vmap")
@pytest.mark.parametrize("size", [0, 2])
def test_vmap_of_ops(size: int) -> None:
    q = torch.randn(2, 1, 5, 2, 16)[:size]
    cache = torch.randn(1, 9, 2, 16)
    op = torch.ops.flash_attn2.forward
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results = vmap(lambda q: op(q, q, q)[:2])(q)
        out = vmap(lambda q: flash_attn_with_kvcache(q, cache, cache))(q)
    assert results[0].shape == out.shape == q.shape
    assert results[1].shape == (size, 1, 2, 5)
    for i in range(size):
        assert torch.equal(out[i], flash_attn_with_kvcache(q[i], cache, cache))
        for a, b in zip(results, op(q[i], q[i], q[i]), strict=False):
            assert torch.equal(a[i], b)


@each_function
def test_vmap_of_vjp(form: str) -> None:
    attend, leaves = problem(form)
    leaves = [x.detach() for x in leaves]
    out, pull_back = vjp(attend, *leaves)
    grads = torch.randn(3, *out.shape)
    together = vmap(pull_back)(grads)
    for i in range(3):
        for a, b in zip(together, pull_back(grads[i]), strict=True):
            assert torch.equal(a[i], b)


def test_ops_are_not_differentiated_by_torch_func() -> None:
    q = torch.randn(1, 5, 2, 16)
    with pytest.raises(NotImplementedError, match="in eager mode, not their ops"):
        grad(lambda q: torch.ops.flash_attn2.forward(q, q, q)[0].sum())(q)


# torch.export.


class Layer(torch.nn.Module):
    def __init__(self, attend: Callable[..., Any]) -> None:
        super().__init__()
        self.attend = attend

    def forward(self, *tensors: Tensor) -> Any:
        return self.attend(*tensors)


def varlen_of_all(q: Tensor, cu: Tensor) -> Any:
    return flash_attn_varlen_func(q, q, q, cu, cu, q.shape[0], q.shape[0])


def tensors_for(name: str, batch: int, seqlen: int, others: int) -> tuple[Tensor, ...]:
    q, k = torch.randn(batch, seqlen, 4, 16), torch.randn(batch, others, 2, 16)
    if name == "dense":
        return q, k, k
    if name == "varlen":
        return q[0], cumulative(*[seqlen // batch] * batch)
    return q, k, k, torch.full((batch,), others, dtype=torch.int32)


EXPORTED: dict[str, tuple[Callable[..., Any], tuple[dict[int, str], ...]]] = {
    "dense": (
        lambda q, k, v: flash_attn_func(q, k, v, causal=True, sink=torch.zeros(4)),
        ({0: "b", 1: "s"}, {0: "b", 1: "t"}, {0: "b", 1: "t"}),
    ),
    "varlen": (varlen_of_all, ({0: "s"}, {0: "b"})),
    "kvcache": (
        lambda q, k, v, held: flash_attn_with_kvcache(q, k, v, cache_seqlens=held, causal=True),
        ({0: "b", 1: "s"}, {0: "b", 1: "t"}, {0: "b", 1: "t"}, {0: "b"}),
    ),
}


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", EXPORTED)
def test_export_without_bounds(name: str, strict: bool) -> None:
    attend, names = EXPORTED[name]
    dims = {x: torch.export.Dim(x) for x in "bst"}
    shapes = tuple({at: dims[x] for at, x in by_dim.items()} for by_dim in names)
    layer = Layer(attend)
    exported = torch.export.export(
        layer, tensors_for(name, 2, 8, 13), dynamic_shapes={"tensors": shapes}, strict=strict
    )
    for sizes in ((2, 8, 13), (3, 30, 41)):
        tensors = tensors_for(name, *sizes)
        assert torch.equal(exported.module()(*tensors), layer(*tensors))
