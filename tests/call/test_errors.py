"""Bad input: an error that names the argument, what came and what is allowed."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from support import Target, cumulative, lengths, targets

from flash_attn2 import (
    flash_attn_func,
    flash_attn_kvpacked_func,
    flash_attn_qkvpacked_func,
    flash_attn_varlen_func,
    flash_attn_varlen_qkvpacked_func,
    unpad_input,
)
from flash_attn2._impl import backends

NAN, INF = float("nan"), float("inf")
META = torch.device("meta")


def dense_arguments() -> dict[str, Any]:
    return {
        "q": torch.randn(2, 6, 4, 16),
        "k": torch.randn(2, 9, 2, 16),
        "v": torch.randn(2, 9, 2, 16),
    }


def varlen_arguments() -> dict[str, Any]:
    return {
        "q": torch.randn(12, 4, 16),
        "k": torch.randn(18, 2, 16),
        "v": torch.randn(18, 2, 16),
        "cu_seqlens_q": lengths(0, 5, 12),
        "cu_seqlens_k": lengths(0, 9, 18),
        "max_seqlen_q": 7,
        "max_seqlen_k": 9,
    }


SHARED = [
    ({"q": [1.0]}, TypeError, r"q must be a torch.Tensor, got list"),
    ({"v": None}, TypeError, r"v must be a torch.Tensor, got NoneType"),
    ({"dropout_p": 1.0}, ValueError, r"dropout_p must be from 0 to 0.999.* got 1.0"),
    ({"dropout_p": 1 - 2.0**-11}, ValueError, r"dropout_p must be from 0 to 0.999"),
    ({"dropout_p": -0.1}, ValueError, r"dropout_p .* got -0.1"),
    ({"dropout_p": NAN}, ValueError, r"dropout_p .* got nan"),
    ({"dropout_p": "0.1"}, TypeError, r"dropout_p must be a number, got str '0.1'"),
    ({"dropout_p": torch.tensor(0.1)}, TypeError, r"dropout_p must be a number, got Tensor"),
    ({"softmax_scale": -1.0}, ValueError, r"softmax_scale must be 0 or from .* got -1.0"),
    ({"softmax_scale": NAN}, ValueError, r"softmax_scale .* got nan"),
    ({"softmax_scale": INF}, ValueError, r"softmax_scale .* got inf"),
    (
        {"softmax_scale": 1e-36},
        ValueError,
        r"softmax_scale must be 0 or from 7.889e-31 .* got 1e-36",
    ),
    ({"softmax_scale": 1e31}, ValueError, r"softmax_scale must be .* to 1.268e\+30 .* got 1e\+31"),
    ({"softmax_scale": True}, TypeError, r"softmax_scale must be a number, got bool True"),
    ({"softmax_scale": [1]}, TypeError, r"softmax_scale must be a number, got list"),
    ({"softcap": -1.0}, ValueError, r"softcap must be 0 .* or from .* got -1.0"),
    ({"softcap": NAN}, ValueError, r"softcap .* got nan"),
    ({"softcap": 1e-46}, ValueError, r"softcap must be 0 .* or from 7.889e-31 .* got 1e-46"),
    ({"softcap": 1e31}, ValueError, r"softcap .* got 1e\+31"),
    (
        {"softcap": 2.0**-90, "softmax_scale": 2.0**40},
        ValueError,
        r"softcap must be within a factor 2\^120 of softmax_scale",
    ),
    ({"softcap": None}, TypeError, r"softcap must be a number, got NoneType"),
    ({"window_size": 5}, TypeError, r"window_size must be a pair of integers .* got 5"),
    ({"window_size": (1, 2, 3)}, TypeError, r"window_size must be a pair .* \(1, 2, 3\)"),
    ({"window_size": (1.5, 2)}, TypeError, r"window_size must be a pair of integers"),
    ({"window_size": (None, 0)}, TypeError, r"window_size must be a pair of integers"),
    ({"window_size": (True, 0)}, TypeError, r"window_size must be a pair of integers"),
    (
        {"window_size": (2**63, 0)},
        ValueError,
        r"window_size must hold integers .* got \(9223372036854775808, 0",
    ),
    ({"window_size": (-2, 0)}, ValueError, r"window_size must hold .* got \(-2, 0\)"),
    ({"causal": "False"}, TypeError, r"causal must be a bool, got str 'False'"),
    ({"causal": None}, TypeError, r"causal must be a bool, got NoneType"),
    ({"causal": torch.ones(4, 4) > 0}, TypeError, r"causal must be a bool, got Tensor"),
    ({"deterministic": 2}, TypeError, r"deterministic must be a bool, got int 2"),
    ({"return_lse": "yes"}, TypeError, r"return_lse must be a bool, got str 'yes'"),
    ({"return_attn_probs": 2}, TypeError, r"return_attn_probs must be a bool, got int 2"),
    ({"casual": True}, TypeError, r"flash_attn_\w*func has no argument 'casual': use causal"),
    ({"is_causal": True}, TypeError, r"has no argument 'is_causal': use causal"),
    ({"scale": 0.1}, TypeError, r"has no argument 'scale': use softmax_scale"),
    (
        {"attn_mask": None},
        TypeError,
        r"no argument 'attn_mask': use causal, window_size, the varlen functions, or block_mask",
    ),
    ({"softmax_cap": 1.0}, TypeError, r"has no argument 'softmax_cap': use softcap"),
    ({"p": 0.1}, TypeError, r"has no argument 'p': use dropout_p"),
    ({"scaling": 1.0}, TypeError, r"has no argument 'scaling': use softmax_scale"),
    ({"dropout": 0.1}, TypeError, r"has no argument 'dropout': use dropout_p"),
    (
        {"enable_gqa": True},
        TypeError,
        r"no argument 'enable_gqa'(: use k and v with fewer heads|$)",
    ),
    ({"xyz": None}, TypeError, r"has no argument 'xyz'$"),
    ({"alibi_slopes": torch.rand(3)}, ValueError, r"alibi_slopes .* \(4,\) or \(2, 4\), .* \(3,\)"),
    ({"alibi_slopes": torch.rand(4, 2)}, ValueError, r"alibi_slopes .* got \(4, 2\)"),
    ({"alibi_slopes": torch.rand(4).half()}, TypeError, r"alibi_slopes must be float32"),
    ({"alibi_slopes": 0.5}, TypeError, r"alibi_slopes must be a torch.Tensor, got float"),
    (
        {"alibi_slopes": torch.rand(4, device=META)},
        ValueError,
        r"alibi_slopes must be on the device of q, cpu, got meta",
    ),
    ({"sink": torch.rand(2)}, ValueError, r"sink must have shape \(4,\), got \(2,\)"),
    ({"sink": torch.rand(4).double()}, TypeError, r"sink must be float32, got torch.float64"),
]
DENSE = [
    ({"q": torch.randn(6, 4, 16)}, ValueError, r"q must be \(batch, .* got shape \(6, 4, 16\)"),
    ({"k": torch.randn(9, 2, 16)}, ValueError, r"k must be \(batch, .* got shape \(9, 2, 16\)"),
    (
        {"k": torch.randn(2, 8, 2, 16)},
        ValueError,
        r"v must have the shape of k .* \(2, 8, 2, head_dim_v\)",
    ),
    ({"v": torch.randn(2, 9, 1, 16)}, ValueError, r"v must have the shape of k"),
    ({"k": torch.randn(2, 9, 2, 8)}, ValueError, r"k must have the head_dim of q, 16, got 8"),
    ({"q": torch.randn(3, 6, 4, 16)}, ValueError, r"k must have the batch size of q, 3, got 2"),
    ({"q": torch.randn(2, 6, 3, 16)}, ValueError, r"num_heads .* got 3 and 2"),
    ({"q": torch.randn(2, 6, 0, 16)}, ValueError, r"num_heads .* positive .* got 0 and 2"),
    ({"q": torch.randn(2, 6, 4, 8)}, ValueError, r"k must have the head_dim of q, 8, got 16"),
    ({"q": torch.randn(2, 6, 4, 16).half()}, TypeError, r"one dtype, got torch.float16"),
    ({"q": torch.randn(2, 6, 4, 16, device=META)}, ValueError, r"one device, got meta, cpu, cpu"),
    ({"v": torch.randn(2, 9, 2, 16, device=META)}, ValueError, r"one device, got cpu, cpu, meta"),
]
VARLEN = [
    ({"q": torch.randn(2, 6, 4, 16)}, ValueError, r"q must be \(total, .* got shape"),
    ({"q": torch.randn(12, 3, 16)}, ValueError, r"num_heads .* got 3 and 2"),
    ({"cu_seqlens_q": [0, 5, 12]}, TypeError, r"cu_seqlens_q must be a torch.Tensor, got list"),
    ({"cu_seqlens_q": torch.tensor([0, 5, 12])}, TypeError, r"cu_seqlens_q must be int32"),
    ({"cu_seqlens_k": lengths(0, 9, 18)[None]}, ValueError, r"cu_seqlens_k must have one dim"),
    ({"cu_seqlens_q": lengths()}, ValueError, r"cu_seqlens_q must have batch \+ 1 .* got 0"),
    ({"cu_seqlens_k": lengths(0, 18)}, ValueError, r"cu_seqlens_k must have as many .* 3, got 2"),
    ({"cu_seqlens_q": lengths(1, 5, 12)}, ValueError, r"cu_seqlens_q must start at 0, got 1"),
    ({"cu_seqlens_q": lengths(0, 13, 12)}, ValueError, r"cu_seqlens_q must not decrease, got 13 f"),
    ({"cu_seqlens_k": lengths(0, 9, 19)}, ValueError, r"cu_seqlens_k must end .* 18 .* got 19"),
    ({"cu_seqlens_k": lengths(0, -9, 18)}, ValueError, r"cu_seqlens_k must not decrease, got 0 f"),
    ({"cu_seqlens_k": lengths(0, 9, 18).to(META)}, ValueError, r"cu_seqlens_k .* cpu, got meta"),
    ({"max_seqlen_q": 6}, ValueError, r"max_seqlen_q must not be below .* 7, got 6"),
    ({"max_seqlen_k": 8}, ValueError, r"max_seqlen_k must not be below .* 9, got 8"),
    ({"max_seqlen_q": -1}, ValueError, r"max_seqlen_q must be from 0 to \d+, got -1"),
    ({"max_seqlen_k": 2**31}, ValueError, r"max_seqlen_k must be from 0 to \d+, got 2147483648"),
    ({"max_seqlen_q": 7.0}, TypeError, r"max_seqlen_q must be an int, got float"),
    (
        {"max_seqlen_k": torch.tensor([9])},
        TypeError,
        r"max_seqlen_k must be an int .* shape \(1,\)",
    ),
    (
        {"max_seqlen_k": torch.tensor(9.0)},
        TypeError,
        r"max_seqlen_k must be an int .* torch.float32",
    ),
    ({"max_seqlen_q": True}, TypeError, r"max_seqlen_q must be an int, got bool True"),
    ({"seqused_k": lengths(9)}, ValueError, r"seqused_k must have one element .* 2, got 1"),
    ({"seqused_k": lengths(9, 10)}, ValueError, r"seqused_k must be from 0 .* got 10 of 9 rows at"),
    ({"seqused_k": lengths(-1, 9)}, ValueError, r"seqused_k must be from 0 .* got -1"),
    ({"seqused_k": lengths(9, 9).long()}, TypeError, r"seqused_k must be int32, got torch.int64"),
]


@pytest.mark.parametrize(("bad", "error", "message"), [*SHARED, *DENSE])
def test_dense(bad: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        flash_attn_func(**dense_arguments() | bad)


HEADS_FIRST = r"if q, k and v are \(batch, num_heads, seqlen, head_dim\), .* q.transpose\(1, 2\)"


@pytest.mark.parametrize(
    ("q", "k", "options"),
    [
        ((2, 8, 5, 16), (2, 8, 7, 16), {}),
        ((2, 8, 5, 16), (2, 2, 7, 16), {}),
        ((2, 8, 5, 16), (2, 8, 5, 16), {"sink": torch.zeros(8)}),
        ((2, 8, 5, 16), (2, 8, 5, 16), {"alibi_slopes": torch.ones(2, 8)}),
        ((2, 8, 5, 16), (2, 8, 5, 16), {"bias": torch.zeros(5, 5)}),
    ],
)
def test_heads_before_rows(q: tuple[int, ...], k: tuple[int, ...], options: dict[str, Any]) -> None:
    """As scaled_dot_product_attention has them."""
    tensors = torch.randn(q), torch.randn(k), torch.randn(k)
    with pytest.raises(ValueError, match=HEADS_FIRST):
        flash_attn_func(*tensors, **options)
    flash_attn_func(*(x.transpose(1, 2) for x in tensors), **options)


@pytest.mark.parametrize(
    ("q", "k", "options"),
    [
        ((2, 6, 3, 16), (2, 9, 2, 16), {}),
        ((2, 8, 5, 16), (2, 8, 5, 16), {"sink": torch.zeros(3)}),
        ((2, 8, 5, 16), (2, 8, 5, 16), {"bias": torch.zeros(5, 4)}),
    ],
)
def test_no_advice_that_would_not_help(
    q: tuple[int, ...], k: tuple[int, ...], options: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="must") as info:
        flash_attn_func(torch.randn(q), torch.randn(k), torch.randn(k), **options)
    assert "transpose" not in str(info.value)


@pytest.mark.parametrize(("bad", "error", "message"), [*SHARED, *VARLEN])
def test_varlen(bad: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        flash_attn_varlen_func(**varlen_arguments() | bad)


def backward_arguments() -> dict[str, Any]:
    arguments = dense_arguments()
    out, lse, _ = torch.ops.flash_attn2.forward(**arguments)
    grads = {"grad_out": torch.randn_like(out), "grad_lse": torch.randn_like(lse)}
    return grads | arguments | {"out": out, "lse": lse, "rng_state": None}


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (
            {"grad_out": torch.randn(2, 6, 4, 8)},
            ValueError,
            r"grad_out must have shape \(2, 6, 4, 1",
        ),
        ({"grad_out": torch.randn(2, 6, 4, 16, device=META)}, ValueError, r"grad_out .* got meta"),
        ({"grad_lse": torch.randn(2, 6, 4)}, ValueError, r"grad_lse must have shape \(2, 4, 6\)"),
        ({"out": torch.randn(2, 5, 4, 16)}, ValueError, r"out must have shape \(2, 6, 4, 16\)"),
        ({"out": torch.randn(2, 6, 4, 16).half()}, TypeError, r"out must be torch.float32, got"),
        ({"lse": torch.randn(4, 6)}, ValueError, r"lse must have shape \(2, 4, 6\), got \(4, 6\)"),
        ({"lse": torch.randn(2, 4, 6).double()}, TypeError, r"lse must be torch.float32, got"),
        ({"dropout_p": 0.5}, ValueError, r"rng_state must be that of the forward pass, got None"),
        ({"dropout_p": 0.5, "rng_state": torch.zeros(1)}, ValueError, r"rng_state .* \(2,\)"),
        ({"k": torch.randn(2, 8, 2, 16)}, ValueError, r"v must have the shape of k"),
        ({"sink": torch.rand(2)}, ValueError, r"sink must have shape \(4,\)"),
        ({"softcap": NAN}, ValueError, r"softcap .* got nan"),
    ],
)
def test_backward(bad: dict[str, Any], error: type[Exception], message: str) -> None:
    """The op, which may be called with anything."""
    with pytest.raises(error, match=message):
        torch.ops.flash_attn2.backward(**backward_arguments() | bad)


def test_varlen_backward_checks_lengths() -> None:
    arguments = varlen_arguments()
    out, lse, _ = torch.ops.flash_attn2.varlen_forward(**arguments, seqused_k=None)
    saved = {"out": out, "lse": lse, "rng_state": None, "grad_out": out, "grad_lse": None}
    bad = {"cu_seqlens_k": lengths(0, 9, 19), "seqused_k": None}
    with pytest.raises(ValueError, match=r"cu_seqlens_k must end .* 18 .* got 19"):
        torch.ops.flash_attn2.varlen_backward(**arguments | saved | bad)


@pytest.mark.parametrize(
    ("head_dim", "message"), [(577, r"head_dim.* 1 to 576, got 577"), (0, r"head_dim.* got 0")]
)
def test_head_dim(head_dim: int, message: str) -> None:
    x = torch.randn(1, 4, 2, head_dim)
    with pytest.raises(ValueError, match=message):
        flash_attn_func(x, x, x)
    with pytest.raises(ValueError, match=message):
        flash_attn_varlen_func(x[0], x[0], x[0], cumulative(4), cumulative(4), 4, 4)


@pytest.mark.parametrize("dtype", [torch.int32, torch.complex64, torch.bool])
def test_dtype(dtype: torch.dtype) -> None:
    x = torch.zeros(1, 4, 2, 16, dtype=dtype)
    with pytest.raises(TypeError, match=rf"q must be float16, .* got {dtype}"):
        flash_attn_func(x, x, x)


@targets([Target("sm80-emulated", torch.float32), Target("sm80-emulated", torch.float64)])
def test_dtype_that_the_backend_lacks(target: Target) -> None:
    x = target.tensor(1, 4, 2, 16)
    with pytest.raises(TypeError, match=r"q must be float16 or bfloat16 on the sm80-emulated"):
        flash_attn_func(x, x, x)


def test_sequence_too_long() -> None:
    x = torch.zeros(1, 1, 1, 1, dtype=torch.float16).expand(1, 2**29, 1, 1)
    with pytest.raises(ValueError, match=r"at most 536870911 rows, got 536870912"):
        flash_attn_func(x, x, x)


def test_packed_shapes() -> None:
    q = torch.randn(2, 6, 4, 16)
    with pytest.raises(ValueError, match=r"kv must be \(batch, seqlen_k, 2, .* got shape"):
        flash_attn_kvpacked_func(q, torch.randn(2, 9, 3, 2, 16))
    with pytest.raises(ValueError, match=r"qkv must be \(batch, seqlen, 3, .* got shape"):
        flash_attn_qkvpacked_func(torch.randn(2, 9, 3, 16))
    with pytest.raises(ValueError, match=r"qkv must be \(total, 3, .* got shape"):
        flash_attn_varlen_qkvpacked_func(torch.randn(9, 2, 4, 16), cumulative(9), 9)
    with pytest.raises(TypeError, match=r"kv must be a torch.Tensor, got tuple"):
        flash_attn_kvpacked_func(q, (q, q))


def test_unpad_mask_shape() -> None:
    with pytest.raises(ValueError, match=r"attention_mask must have shape .* \(2, 6\), got \(2, 5"):
        unpad_input(torch.randn(2, 6, 8), torch.ones(2, 5))


def test_module_that_was_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backends.MODULES, "cuda", "_no_such_module")
    with pytest.raises(RuntimeError, match=r"no cuda kernels here .* FLASH_ATTN2_CUDA=on"):
        backends.load.__wrapped__("cuda")


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("FLASH_ATTN2_BACKEND", "cudnn", "FLASH_ATTN2_BACKEND must be one of auto, cpu, sm80-emu"),
        ("FLASH_ATTN2_CPU_ISA", "x86-64-v9", "x86-64-v9"),
    ],
)
def test_environment(variable: str, value: str, message: str) -> None:
    script = "import torch, flash_attn2 as f; f.flash_attn_func(*[torch.zeros(1, 2, 1, 8)] * 3)"
    result = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {variable: value},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode != 0
    assert message in result.stderr
