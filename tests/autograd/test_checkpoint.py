"""Activation checkpointing, whoever observes one of the passes or both."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from functions import each_function, problem
from support import ONE_DTYPE, Target, targets
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint as checkpointing
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from flash_attn2 import flash_attn_func


class Dispatched(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Called(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


OBSERVERS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "profiler": torch.profiler.profile,
    "flop_counter": lambda: FlopCounterMode(display=False),
    "dispatch_mode": Dispatched,
    "function_mode": Called,
}
OPTIONS: dict[str, Callable[[int], dict[str, Any]]] = {
    "plain": lambda num_heads: {},
    "everything": lambda num_heads: {
        "causal": True,
        "dropout_p": 0.5,
        "alibi_slopes": torch.arange(1.0, 1 + num_heads) / 4,
        "sink": torch.zeros(num_heads, requires_grad=True),
        "return_attn_probs": True,
    },
}


def checkpointed(
    layer: Callable[..., Tensor],
    leaves: list[Tensor],
    forward: Callable[[], AbstractContextManager[Any]],
    backward: Callable[[], AbstractContextManager[Any]],
    **options: Any,
) -> tuple[Tensor, ...]:
    """Gradients, with observers of the passes; backward includes the recomputation."""
    torch.manual_seed(7)
    with forward():
        out = checkpoint(layer, *leaves, use_reentrant=False, **options)
        loss = out.square().sum()
    with backward():
        return torch.autograd.grad(loss, leaves)


@each_function
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("observer", OBSERVERS)
def test_observers_of_one_pass(observer: str, options: str, form: str) -> None:
    attend, leaves = problem(form)
    chosen = OPTIONS[options](leaves[0].shape[-2])
    leaves = [*leaves, *(x for x in chosen.values() if isinstance(x, Tensor) and x.requires_grad)]

    def layer(*leaves: Tensor) -> Tensor:
        inputs = [x * 2 for x in leaves]
        if "sink" in chosen:
            *inputs, chosen["sink"] = inputs
        out = attend(*inputs, **chosen)
        return out[0] * out[1].nan_to_num(neginf=0).sum() if isinstance(out, tuple) else out

    expected = checkpointed(layer, leaves, nullcontext, nullcontext)
    observe = OBSERVERS[observer]
    for forward, backward in (
        (observe, nullcontext),
        (nullcontext, observe),
        (observe, observe),
    ):
        actual = checkpointed(layer, leaves, forward, backward)
        assert all(map(torch.equal, actual, expected))


@targets(ONE_DTYPE)
def test_observers_of_one_pass_on(target: Target) -> None:
    leaves = [target.tensor(1, 5, 2, 16).requires_grad_() for _ in range(3)]

    def layer(*leaves: Tensor) -> Tensor:
        return flash_attn_func(*(x * 2 for x in leaves), causal=True, deterministic=True)

    expected = checkpointed(layer, leaves, nullcontext, nullcontext)
    for forward, backward in ((Dispatched, nullcontext), (nullcontext, Dispatched)):
        assert all(map(torch.equal, checkpointed(layer, leaves, forward, backward), expected))


@each_function
@pytest.mark.skipif(not hasattr(checkpointing, "CheckpointPolicy"), reason="torch is older")
@pytest.mark.parametrize("policy_name", ["MUST_SAVE", "MUST_RECOMPUTE"])
@pytest.mark.parametrize("dropout_p", [0.0, 0.5])
def test_selective_checkpointing(form: str, policy_name: str, dropout_p: float) -> None:
    policies = checkpointing.CheckpointPolicy
    policy = policies[policy_name]
    attend, leaves = problem(form)
    op = torch.ops.flash_attn2.varlen_forward if "varlen" in form else torch.ops.flash_attn2.forward
    decided = []

    def choose(context: Any, func: Any, *args: Any, **kwargs: Any) -> Any:
        if func is op.default:
            decided.append(policy)
            return policy
        return policies.PREFER_RECOMPUTE

    def layer(*leaves: Tensor) -> Tensor:
        return attend(*(x * 2 for x in leaves), causal=True, dropout_p=dropout_p).sin()

    expected = checkpointed(layer, leaves, nullcontext, nullcontext)
    actual = checkpointed(
        layer,
        leaves,
        nullcontext,
        nullcontext,
        context_fn=lambda: checkpointing.create_selective_checkpoint_contexts(choose),
    )
    assert decided
    assert all(map(torch.equal, actual, expected))


def saved_by(attend: Callable[..., Any], leaves: list[Tensor]) -> list[tuple[Any, ...]]:
    saved = []

    def pack(x: Tensor) -> Tensor:
        saved.append((x.shape, x.dtype, x.device))
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        attend(*leaves)
    return saved


@pytest.mark.parametrize("options", OPTIONS)
@each_function
def test_same_tensors_are_saved(form: str, options: str) -> None:
    """By the direct calls, by the ops and under each observer."""
    attend, leaves = problem(form)
    chosen = OPTIONS[options](leaves[0].shape[-2])
    direct = saved_by(lambda *x: attend(*x, **chosen), leaves)
    assert len(direct) >= len(leaves) + 2
    for observe in OBSERVERS.values():
        with observe():
            assert saved_by(lambda *x: attend(*x, **chosen), leaves) == direct
