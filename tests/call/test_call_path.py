"""How far a call has to go: functions of the package entered before the native one, by call."""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import pytest
import torch
from support import cpu_tensors_on, cumulative, lengths

import flash_attn2
from flash_attn2 import flash_attn_func, flash_attn_varlen_func, flash_attn_with_kvcache
from flash_attn2._impl import backends, launch

PACKAGE = str(Path(flash_attn2.__file__).parent)
Q, K, V = torch.randn(2, 5, 4, 8), torch.randn(2, 7, 2, 8), torch.randn(2, 7, 2, 8)
STRIDED = torch.randn(2, 7, 2, 16)[..., ::2]
CU_Q, CU_K = cumulative(5, 5), cumulative(7, 7)
DECODE = {
    "q": torch.randn(2, 1, 4, 8),
    "k_cache": torch.randn(6, 16, 2, 8),
    "v_cache": torch.randn(6, 16, 2, 8),
    "cache_seqlens": lengths(20, 9),
    "block_table": lengths(0, 1, 2, 3).view(2, 2),
    "causal": True,
}
NEW = {
    "k": torch.randn(2, 1, 2, 8),
    "v": torch.randn(2, 1, 2, 8),
    "rotary_cos": torch.randn(32, 4),
    "rotary_sin": torch.randn(32, 4),
}
needs_direct = pytest.mark.skipif(
    not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"), reason="torch is older than 2.10"
)

# Calls, and how many functions they may enter.
CALLS: dict[str, tuple[Callable[[], Any], int]] = {
    "direct": (lambda: flash_attn_func(Q, K, V), 5),
    "strided": (lambda: flash_attn_func(Q, STRIDED, V), 15),
    "sink": (lambda: flash_attn_func(Q, K, V, sink=torch.zeros(4)), 15),
    "varlen": (
        lambda: flash_attn_varlen_func(
            *(x.flatten(0, 1) for x in (Q, K, V)), CU_Q, CU_K, 5, 7, causal=True
        ),
        18,
    ),
    "cache": (lambda: flash_attn_with_kvcache(**DECODE), 22),
    "append": (lambda: flash_attn_with_kvcache(**DECODE, **NEW), 32),
}


def entered(call: Callable[[], Any]) -> Counter[str]:
    """Functions of the package that are entered until the native one is."""
    names: Counter[str] = Counter()
    arrived = False

    def count(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and not arrived and code.co_filename.startswith(PACKAGE):
            names[f"{Path(code.co_filename).stem}.{code.co_name}"] += 1

    def arrive(function: Callable[..., Any]) -> Callable[..., Any]:
        def native(*args: Any) -> Any:
            nonlocal arrived
            done = function(*args)
            arrived = arrived or done is not False  # direct calls may be refused
            return done

        return native

    backend = backends.load("cpu")
    module, direct = SimpleNamespace(forward=arrive(backend.module.forward)), backend.forward_direct
    counting = dataclasses.replace(
        backend, module=module, forward_direct=None if direct is None else arrive(direct)
    )
    with cpu_tensors_on("cpu"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(backends, "for_cpu_tensors", counting)
        call()  # what is done once
        arrived, names = False, Counter()
        sys.setprofile(count)
        try:
            call()
        finally:
            sys.setprofile(None)
    assert arrived
    return names


def test_a_strided_call_allocates_its_result_once(monkeypatch: pytest.MonkeyPatch) -> None:
    allocated = []
    monkeypatch.setattr(launch, "empty_like", lambda x, **_: allocated.append(x) or x.clone())
    with cpu_tensors_on("cpu"):
        out = flash_attn_func(Q, STRIDED, V)
        assert len(allocated) == 1
        torch.testing.assert_close(out, flash_attn_func(Q, STRIDED.contiguous(), V))
        flash_attn_func(Q.clone().requires_grad_(), STRIDED, V)
        assert len(allocated) == 3


@needs_direct
@pytest.mark.parametrize("name", CALLS)
def test_functions_before_the_native_one(name: str) -> None:
    call, limit = CALLS[name]
    names = entered(call)
    table = "\n".join(f"  {count} {function}" for function, count in names.items())
    print(f"{name}: {names.total()} of at most {limit}\n{table}")
    assert names.total() <= limit, table
