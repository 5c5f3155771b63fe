"""Backends, problems, and the tolerance rule that the tests share."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flash_attn2 import (
    attention_probs,
    flash_attn_func,
    flash_attn_varlen_func,
    varlen_attention_probs,
)
from flash_attn2._impl import backends, launch
from flash_attn2.io import emulate
from flash_attn2.io.emulate import cpu_tensors_on as cpu_tensors_on
from flash_attn2.masks import BlockMask
from flash_attn2.reference import Packing, attention_reference, varlen_attention_reference

SEED = 1234
TORCH = tuple(int(x) for x in torch.__version__.split(".")[:2])


@dataclass(frozen=True)
class Target:
    """A backend and a dtype to test it with."""

    backend: str
    dtype: torch.dtype

    @property
    def device(self) -> str:
        return "cuda" if self.backend == "cuda" else "cpu"

    def __str__(self) -> str:
        return f"{self.backend}-{str(self.dtype).removeprefix('torch.')}"

    def tensor(self, *shape: int) -> Tensor:
        return torch.randn(*shape).to(self.device, self.dtype)


CPU_FLOAT32 = Target("cpu", torch.float32)
HALF = (torch.float16, torch.bfloat16)
TARGETS = [
    *(Target("cpu", dtype) for dtype in (*HALF, torch.float32, torch.float64)),
    *(Target("sm80-emulated", dtype) for dtype in HALF),
    *(Target("cuda", dtype) for dtype in HALF if torch.cuda.is_available()),
]
# One dtype per backend, for what does not depend on the dtype.
ONE_DTYPE = [target for target in TARGETS if target.dtype is torch.bfloat16]
# Written by the build where nvcc, which makes what the emulator runs, cannot be had.
NO_NVCC = Path(__file__).resolve().parents[1] / "build" / "nvcc" / "unavailable.txt"
EMULATOR_REQUIRED = os.environ.get("FLASH_ATTN2_REQUIRE_EMULATOR", "0") == "1"


def targets(selection: list[Target] = TARGETS) -> pytest.MarkDecorator:
    """Run a test, which takes `target`, once for each."""
    return pytest.mark.parametrize("target", selection, ids=str, indirect=True)


def emulator_options(text: str, backend: str = "sm80-emulated") -> AbstractContextManager[None]:
    """Options of the kernel emulator, as in FLASH_ATTN2_EMULATOR."""
    return emulate.emulator_options(backends.load(backend).module, text)


def require_backend(backend: str) -> None:
    """Skip the test, or fail it where the emulator has to be there."""
    require_module(backends.MODULES[backend])


def require_module(name: str) -> None:
    """Likewise of a native module."""
    module = f"flash_attn2.{name}"
    if importlib.util.find_spec(module) is not None:
        return
    reason = f"{module} is not built (`make test` builds it)"
    if name.endswith("_emulated") and NO_NVCC.exists():
        reason = f"{module} is not built: {NO_NVCC.read_text()}"
    if name.endswith("_emulated") and EMULATOR_REQUIRED:
        pytest.fail(reason)
    pytest.skip(reason)


@contextmanager
def num_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def lengths(*values: int, device: str = "cpu") -> Tensor:
    """int32 vector."""
    return torch.tensor(values, dtype=torch.int32, device=device)


def cumulative(*seqlens: int, device: str = "cpu") -> Tensor:
    """cu_seqlens of sequences of these lengths."""
    return torch.tensor([0, *seqlens], device=device).cumsum(0).int()


def mask_arguments(mask: BlockMask) -> dict[str, Tensor]:
    """Those of the ops."""
    return {
        "block_mask_offsets": mask.row_offsets,
        "block_mask_cols": mask.cols,
        "block_mask_tiles": mask.tiles,
        "block_mask_bits": mask.bits,
    }


def assert_within_rule(
    name: str,
    actual: Tensor,
    exact: Tensor,
    low: Tensor,
    factor: float = 2,
    slack: float = 1e-5,
) -> None:
    """`factor` times the error of the same formula at the tensors' own dtype, plus `slack`."""
    assert actual.shape == exact.shape
    assert torch.equal(actual.isnan(), exact.isnan()), f"{name} has NaN in other places"
    if actual.numel() == 0:
        return
    error = (actual.double() - exact).nan_to_num().abs().max().item()
    allowed = factor * (low.double() - exact).nan_to_num().abs().max().item() + slack
    assert error <= allowed, f"{name} is off by {error:.3g}, allowed is {allowed:.3g}"


# Relative error of the tanh that a GPU has, and that the emulator has where it is told to err.
TANH_ERROR = 2.0**-11


def tanh_slack(device: torch.device, softcap: float) -> float:
    """What that tanh may do to a score, and so to lse, and relatively to a probability."""
    is_device = "approx=worst" in os.environ.get("FLASH_ATTN2_EMULATOR", "")
    return TANH_ERROR * softcap if is_device or device.type == "cuda" else 0.0


def assert_lse(actual: Tensor, exact: Tensor, softcap: float = 0.0) -> None:
    """1e-5 relative and absolute, and `tanh_slack`; infinities in the same places."""
    assert actual.dtype == torch.float32
    atol = 1e-5 + tanh_slack(actual.device, softcap)
    torch.testing.assert_close(actual.double(), exact, rtol=1e-5, atol=atol, equal_nan=True)


def drawn_rng_state(device: str) -> Tensor:
    """What the next call draws; seeds the generator so that it does."""
    torch.manual_seed(SEED)
    state = launch.draw_rng_state(torch.device(device))
    torch.manual_seed(SEED)
    return state


def check_dense(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> None:
    """flash_attn_func against the reference: out, lse and probs."""
    rng_state = drawn_rng_state(q.device.type)
    out, lse, probs = flash_attn_func(q, k, v, return_attn_probs=True, **options)
    if not options.get("dropout_p"):
        assert probs.shape == (0,)
        probs = attention_probs(q, k, **without_dropout(options))
    exact, low = (
        attention_reference(*(x.to(dtype) for x in (q, k, v)), rng_state=rng_state, **options)
        for dtype in (torch.float64, q.dtype)
    )
    compare((out, lse, probs), exact, low, options.get("softcap", 0.0))


def without_dropout(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != "dropout_p"}


def check_varlen(q: Tensor, k: Tensor, v: Tensor, packing: Packing, **options: Any) -> None:
    """flash_attn_varlen_func against the reference: out, lse and probs."""
    rng_state = drawn_rng_state(q.device.type)
    out, lse, probs = run_varlen(q, k, v, packing, return_attn_probs=True, **options)
    if not options.get("dropout_p"):
        assert probs.shape == (0,)
        probs = varlen_attention_probs(
            q,
            k,
            *packing[:2],
            packing.max_seqlen_q,
            packing.max_seqlen_k,
            seqused_k=packing.seqused_k,
            **without_dropout(options),
        )
    if q.is_cuda:  # where rows that belong to no sequence are unspecified
        end = packing.cu_seqlens_q[-1]
        out[end:] = 0
        lse[:, end:] = -torch.inf
    exact, low = (
        varlen_attention_reference(
            *(x.to(dtype) for x in (q, k, v)), packing, rng_state=rng_state, **options
        )
        for dtype in (torch.float64, q.dtype)
    )
    compare((out, lse, probs), exact, low, options.get("softcap", 0.0))


def run_varlen(q: Tensor, k: Tensor, v: Tensor, packing: Packing, **options: Any) -> Any:
    return flash_attn_varlen_func(
        q,
        k,
        v,
        packing.cu_seqlens_q,
        packing.cu_seqlens_k,
        packing.max_seqlen_q,
        packing.max_seqlen_k,
        seqused_k=packing.seqused_k,
        **options,
    )


def compare(
    actual: tuple[Tensor, ...],
    exact: tuple[Tensor, ...],
    low: tuple[Tensor, ...],
    softcap: float = 0.0,
) -> None:
    assert_within_rule("out", actual[0], exact[0], low[0])
    assert_lse(actual[1], exact[1], softcap)
    assert_within_rule("probs", actual[2], exact[2], low[2])


def check_dense_gradients(
    q: Tensor, k: Tensor, v: Tensor, of_sink: bool = True, **options: Any
) -> None:
    """Gradients of flash_attn_func, through out and lse, against those of the reference."""
    names = ("q", "k", "v", "sink") if of_sink else ("q", "k", "v")
    names += tuple(x for x in BIASES if isinstance(options.get(x), Tensor))
    inputs = {"q": q, "k": k, "v": v} | options
    check_gradients(flash_attn_func, attention_reference, inputs, names)


def check_varlen_gradients(
    q: Tensor, k: Tensor, v: Tensor, packing: Packing, of_sink: bool = True, **options: Any
) -> None:
    """As `check_dense_gradients`; what comes in for rows of no sequence is NaN."""
    names = ("q", "k", "v", "sink") if of_sink else ("q", "k", "v")
    attend = functools.partial(run_varlen, packing=packing)
    refer = functools.partial(varlen_attention_reference, packing=packing)
    inputs = {"q": q, "k": k, "v": v} | options
    check_gradients(attend, refer, inputs, names, end=int(packing.cu_seqlens_q[-1]))


BIASES = ("bias", "relative_bias")


def check_gradients(
    attend: Callable[..., Any],
    refer: Callable[..., Any],
    inputs: dict[str, Any],
    names: Sequence[str],
    end: int | None = None,
) -> None:
    """Three times the error of autograd at the tensors' own dtype, plus 1e-5, for each name, and
    what `tanh_slack` makes of the largest entry.
    """
    q, dtype = inputs["q"], inputs["q"].dtype
    *batch, rows, num_heads, _ = q.shape
    grad_out = torch.randn_like(q[..., :1].expand(*q.shape[:-1], inputs["v"].shape[-1]))
    grad_lse = torch.randn(*batch, num_heads, rows, device=q.device)
    if end is not None:
        grad_out[end:] = torch.nan
        grad_lse[:, end:] = torch.nan
    deterministic = inputs.pop("deterministic", False)
    rng_state = drawn_rng_state(q.device.type)

    def gradients(function: Callable[..., Any], dtype: torch.dtype, **more: Any) -> Any:
        tensors = inputs | {name: inputs[name].to(dtype) for name in "qkv"}
        if dtype == torch.float64:  # or the gradient would be rounded to what they are given in
            tensors |= {name: x.to(dtype) for name in BIASES if (x := inputs.get(name)) is not None}
        leaves = {x: tensors[x].detach().requires_grad_() for x in names if x in inputs}
        out, lse, *_ = function(**tensors | leaves, **more)
        grads = (grad_out.to(out.dtype), grad_lse.to(lse.dtype))
        grads = torch.autograd.grad((out, lse), leaves.values(), grads)
        return dict(zip(leaves, grads, strict=True))

    actual = gradients(attend, dtype, return_lse=True, deterministic=deterministic)
    exact = gradients(refer, torch.float64, rng_state=rng_state)
    low = gradients(refer, dtype, rng_state=rng_state)
    for name, gradient in actual.items():
        assert gradient.is_contiguous()
        largest = exact[name].abs().max().item() if exact[name].numel() else 0.0
        slack = 1e-5 + tanh_slack(q.device, inputs.get("softcap", 0.0)) * largest
        if name == "sink":  # so few entries that errors may happen to cancel in all of them
            slack += torch.finfo(dtype).eps * largest
        assert_within_rule(f"gradient of {name}", gradient, exact[name], low[name], 3, slack)
