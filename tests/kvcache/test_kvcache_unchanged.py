"""A call around a KV cache that fails has changed nothing, on whatever path it goes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from support import Target, lengths, targets
from test_kvcache_errors import DENSE, PACKED, PAGED, dense, packed, paged, varlen
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from flash_attn2 import flash_attn_varlen_func, flash_attn_with_kvcache
from flash_attn2._impl import backends, launch

PAST_INT64 = 2**63


class Dispatching(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Overriding(TorchFunctionMode):
    def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


PATHS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "direct": nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "profiler": torch.profiler.profile,
    "dispatch_mode": Dispatching,
    "function_mode": Overriding,
}
NUMBERS: list[tuple[str, Any]] = [
    *(("window_size", x) for x in ((PAST_INT64, 0), (0, -2), (0,), (0.5, 0), "ab", None, 3)),
    *(("num_splits", x) for x in (-1, 129, 2**31, 2**40, PAST_INT64, 1.0, True, "1", None)),
    *(("softcap", x) for x in (-1.0, float("inf"), float("nan"), 10**400, "1", None)),
    *(("softmax_scale", x) for x in (-1.0, float("inf"), float("nan"), 10**400, "1")),
    *(("cache_seqlens", x) for x in (-1, 18, 2**31, 2**40, PAST_INT64, 5.0, True, "5", [5, 17])),
    ("cache_seqlens", torch.tensor(18)),
    ("cache_seqlens", torch.tensor(2**40)),
    ("cache_seqlens", torch.tensor(5.0)),
    ("cache_seqlens", torch.tensor(True)),
    *(("causal", x) for x in ("False", None, 2, torch.tensor(True))),
    *(("rotary_interleaved", x) for x in ("False", None, 2)),
    *(("return_softmax_lse", x) for x in ("False", None, 2)),
    *(("sink", x) for x in (torch.zeros(3), torch.zeros(4).double(), 0.0)),
    *(("alibi_slopes", x) for x in (torch.zeros(3), torch.zeros(2, 4).half(), True)),
]
LONGEST = [("max_seqlen_q", x) for x in (-1, 3, 2**31, 2**40, PAST_INT64, 4.0, True, "4")]
BAD = [
    *((dense, bad) for bad, *_ in DENSE),
    *((paged, bad) for bad, *_ in PAGED),
    *((packed, bad) for bad, *_ in PACKED),
    *((dense, {name: value}) for name, value in NUMBERS),
    *((packed, {name: value}) for name, value in (*NUMBERS, *LONGEST)),
]


def copies(given: dict[str, Any]) -> dict[str, Tensor]:
    tensors = {name: x for name, x in given.items() if isinstance(x, Tensor) and not x.is_meta}
    return {name: x.detach().clone() for name, x in tensors.items()}


def assert_unchanged(given: dict[str, Any], before: dict[str, Tensor]) -> None:
    for name, tensor in before.items():
        torch.testing.assert_close(
            given[name], tensor, rtol=0, atol=0, equal_nan=True, msg=f"{name} has changed"
        )


@pytest.mark.parametrize("path", PATHS)
def test_wrong_arguments(path: str) -> None:
    for arguments, bad in BAD:
        given = arguments() | bad
        before = copies(given)
        with pytest.raises((ValueError, TypeError)) as caught, PATHS[path]():
            flash_attn_with_kvcache(**given)
        names = {"heads", "head_dim", *given}
        assert any(name in str(caught.value) for name in names), (bad, caught.value)
        assert "incompatible function arguments" not in str(caught.value), bad
        assert_unchanged(given, before)
        for cache in before.keys() & {"k_cache", "v_cache"}:
            assert given[cache]._version == 0 or cache in bad


@pytest.mark.parametrize("path", PATHS)
def test_wrong_arguments_of_varlen(path: str) -> None:
    for name, value in (
        *NUMBERS,
        ("max_seqlen_q", 3),
        ("max_seqlen_k", PAST_INT64),
        ("max_seqlen_q", PAST_INT64),
        ("block_table", lengths(4, 0, 0, 1, 0, 6).view(2, 3)),
    ):
        if name in ("num_splits", "cache_seqlens", "rotary_interleaved", "return_softmax_lse"):
            continue
        given = varlen() | {name: value}
        before = copies(given)
        with pytest.raises((ValueError, TypeError), match=name), PATHS[path]():
            flash_attn_varlen_func(**given)
        assert_unchanged(given, before)


@pytest.mark.parametrize(
    "bad",
    [{"cache_seqlens": lengths(5, 18)}, {"softcap": -1.0}, {"sink": torch.zeros(3)}],
    ids=lambda bad: next(iter(bad)),
)
def test_wrong_arguments_when_compiled(bad: dict[str, Any]) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(flash_attn_with_kvcache, backend="aot_eager")
    given = dense() | bad
    before = copies(given)
    with pytest.raises((ValueError, TypeError, RuntimeError), match=next(iter(bad))):
        compiled(**given)
    assert_unchanged(given, before)


@targets([Target("cpu", torch.bfloat16), Target("sm80-emulated", torch.bfloat16)])
@pytest.mark.parametrize("path", ["direct", "profiler"])
def test_no_memory(path: str, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results and workspaces come before the append."""

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no memory")

    new = target.tensor(2, 3, 2, 16)
    given = dense() | {name: target.tensor(3, 300, 2, 16) for name in ("k_cache", "v_cache")}
    given |= {"q": target.tensor(2, 3, 4, 16), "k": new, "v": new}
    given |= {x: given[x].to(target.dtype) for x in ("rotary_cos", "rotary_sin")}
    given["num_splits"] = 2  # whose results need a workspace
    before = copies(given)
    memory = [(launch, "empty"), (launch, "empty_like")]
    if target.backend != "cpu":
        memory.append((backends, "allocated"))
    for module, name in memory:
        with monkeypatch.context() as patch, PATHS[path]():
            patch.setattr(module, name, fail)
            with pytest.raises(RuntimeError, match="no memory"):
                flash_attn_with_kvcache(**given)
        assert_unchanged(given, before)


@targets([Target("sm80-emulated", torch.bfloat16)])
@pytest.mark.parametrize("path", ["direct", "profiler"])
def test_what_the_backend_refuses(path: str, target: Target) -> None:
    assert target.backend == "sm80-emulated"
    given = dense()  # float32
    before = copies(given)
    with pytest.raises(TypeError, match="q must be float16 or bfloat16"), PATHS[path]():
        flash_attn_with_kvcache(**given)
    assert_unchanged(given, before)
