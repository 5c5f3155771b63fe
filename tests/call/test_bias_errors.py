"""What is said of a wrong `bias` or `relative_bias`, before any memory is touched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import cumulative, lengths

import flash_attn2
from flash_attn2 import (
    attention_probs,
    flash_attn_func,
    flash_attn_kvpacked_func,
    flash_attn_qkvpacked_func,
)
from flash_attn2._impl import backends
from flash_attn2.nn import Attention

SEQLEN_Q, SEQLEN_K = 10, 13
Q, K = torch.randn(2, SEQLEN_Q, 4, 8), torch.randn(2, SEQLEN_K, 2, 8)
QKV = torch.randn(2, SEQLEN_Q, 3, 4, 8)
BIAS, RELATIVE = torch.randn(4, SEQLEN_Q, SEQLEN_K), torch.randn(4, 22)
Attend = Callable[..., Any]
ATTEND: dict[str, Attend] = {
    "dense": lambda **options: flash_attn_func(Q, K, K, **options),
    "kvpacked": lambda **options: flash_attn_kvpacked_func(Q, torch.stack([K, K], 2), **options),
    "probs": lambda **options: attention_probs(Q, K, **options),
    "op": lambda **options: torch.ops.flash_attn2.forward(Q, K, K, **options),
}
FULL = r"\(2, 4, 10, 13\)"
WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"bias": BIAS.double()}, TypeError, "bias must be float32, got torch.float64"),
    ({"bias": BIAS.half()}, TypeError, "bias must be float32, got torch.float16"),
    ({"bias": BIAS > 0}, TypeError, "bias must be float32, got torch.bool"),
    ({"bias": BIAS[:3]}, ValueError, rf"broadcast to .*{FULL}, got shape \(3, 10, 13\)"),
    ({"bias": BIAS[:2]}, ValueError, r"got shape \(2, 10, 13\)"),
    ({"bias": BIAS.mT}, ValueError, r"got shape \(4, 13, 10\)"),
    ({"bias": BIAS[..., :12]}, ValueError, r"got shape \(4, 10, 12\)"),
    ({"bias": BIAS[:, :0]}, ValueError, r"got shape \(4, 0, 13\)"),
    ({"bias": BIAS[None, None]}, ValueError, r"1 to 4 dimensions .*got shape \(1, 1, 4, 10, 13\)"),
    ({"bias": torch.tensor(1.0)}, ValueError, r"1 to 4 dimensions .*got shape \(\)"),
    ({"bias": BIAS.to("meta")}, ValueError, "bias must be on the device of q, cpu, got meta"),
    ({"relative_bias": RELATIVE.half()}, TypeError, "relative_bias must be float32.*float16"),
    ({"relative_bias": RELATIVE.double()}, TypeError, "float64 as q is, got torch.float64"),
    ({"relative_bias": RELATIVE[:3]}, ValueError, r"\(4 or 1, 22\), got shape \(3, 22\)"),
    ({"relative_bias": RELATIVE[:2]}, ValueError, r"got shape \(2, 22\)"),
    ({"relative_bias": RELATIVE[:, 1:]}, ValueError, r"\(4 or 1, 22\), got shape \(4, 21\)"),
    ({"relative_bias": RELATIVE[0]}, ValueError, r"got shape \(22,\)"),
    ({"relative_bias": RELATIVE[None]}, ValueError, r"got shape \(1, 4, 22\)"),
    ({"relative_bias": RELATIVE.to("meta")}, ValueError, "relative_bias must be on the device"),
]


@pytest.mark.parametrize("attend", ATTEND.values(), ids=ATTEND)
@pytest.mark.parametrize(("given", "error", "text"), WRONG, ids=[x[2] for x in WRONG])
def test_wrong(attend: Attend, given: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        attend(**given)


@pytest.mark.parametrize("name", ["bias", "relative_bias"])
@pytest.mark.parametrize("attend", list(ATTEND.values())[:3], ids=list(ATTEND)[:3])
def test_no_tensor(attend: Attend, name: str) -> None:
    for value, got in ((True, "bool True"), ([[0.0]], "list"), (1.0, "float 1.0")):
        with pytest.raises(TypeError, match=f"{name} must be a torch.Tensor, got {got}"):
            attend(**{name: value})
    with pytest.raises(TypeError, match=f"{name} must be a dense tensor, got layout"):
        attend(**{name: torch.randn(4, 22).to_sparse()})


@pytest.mark.parametrize("name", ["bias", "relative_bias"])
def test_without_memory(name: str) -> None:
    given = {"bias": BIAS, "relative_bias": RELATIVE}[name].clone()
    given.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match=f"{name} must be in memory"):
        flash_attn_func(Q, K, K, **{name: given})
    with pytest.raises(ValueError, match=f"{name} must be in memory"):
        attention_probs(Q, K, **{name: given})


def test_dtype_of_half_queries() -> None:
    q, k = Q.bfloat16(), K.bfloat16()
    with pytest.raises(
        TypeError, match=r"bias must be float32, or torch.bfloat16 as q is, got .*16"
    ):
        flash_attn_func(q, k, k, bias=BIAS.half())
    with pytest.raises(TypeError, match=r"relative_bias must be float32.*got torch.bfloat16"):
        flash_attn_func(q, k, k, relative_bias=RELATIVE.bfloat16())


def test_qkvpacked() -> None:
    with pytest.raises(ValueError, match=r"broadcast to .*\(2, 4, 10, 10\), got"):
        flash_attn_qkvpacked_func(QKV, bias=BIAS)


CU = cumulative(4, 6)
OTHERS: dict[str, Attend] = {
    "varlen": lambda **x: flash_attn2.flash_attn_varlen_func(Q[0], K[0], K[0], CU, CU, 6, 6, **x),
    "varlen_kvpacked": lambda **x: flash_attn2.flash_attn_varlen_kvpacked_func(
        Q[0], torch.stack([K[0], K[0]], 1), CU, CU, 6, 6, **x
    ),
    "varlen_qkvpacked": lambda **x: flash_attn2.flash_attn_varlen_qkvpacked_func(
        QKV[0], CU, 6, **x
    ),
    "kvcache": lambda **x: flash_attn2.flash_attn_with_kvcache(
        Q, K, K, cache_seqlens=lengths(3, 4), **x
    ),
    "varlen_probs": lambda **x: flash_attn2.varlen_attention_probs(Q[0], K[0], CU, CU, 6, 6, **x),
}


@pytest.mark.parametrize("name", ["bias", "relative_bias"])
@pytest.mark.parametrize("attend", OTHERS.values(), ids=OTHERS)
def test_functions_without(attend: Attend, name: str) -> None:
    with pytest.raises(TypeError, match=f"no argument '{name}': flash_attn_func takes it"):
        attend(**{name: BIAS})


def test_other_names() -> None:
    with pytest.raises(TypeError, match="no argument 'attn_bias': use bias"):
        flash_attn_func(Q, K, K, attn_bias=BIAS)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="no argument 'relative_biases': use relative_bias"):
        flash_attn_func(Q, K, K, relative_biases=BIAS)  # type: ignore[call-arg]


@pytest.mark.parametrize("name", ["bias", "relative_bias"])
def test_packed_modules(name: str) -> None:
    attention, x = Attention(32, 4), torch.randn(10, 32)
    with pytest.raises(ValueError, match=f"{name} must come without cu_seqlens"):
        attention(x, cu_seqlens=CU, max_seqlen=6, **{name: BIAS})


# The raw op of the gradients.


def backward_arguments(**changes: Any) -> dict[str, Any]:
    out, lse, _ = torch.ops.flash_attn2.forward(Q, K, K, bias=BIAS, relative_bias=RELATIVE)
    given = {"grad_out": out, "grad_lse": None, "q": Q, "k": K, "v": K, "out": out, "lse": lse}
    biases = {"bias": BIAS, "relative_bias": RELATIVE, "of_bias": True, "of_relative_bias": True}
    return {**given, "rng_state": None, **biases, **changes}


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        *(x for x in WRONG if "meta" not in x[2]),
        ({"lse": torch.zeros(2, 4, 9)}, ValueError, "lse must have shape"),
        ({"out": torch.zeros(2, 10, 4, 7)}, ValueError, "out must have shape"),
        ({"grad_out": torch.zeros(2, 9, 4, 8)}, ValueError, "grad_out must have shape"),
        ({"dropout_p": 0.5}, ValueError, "rng_state must be that of the forward pass"),
        ({"q": Q[..., 0]}, ValueError, r"q must be \(batch, seqlen, num_heads, head_dim\)"),
    ],
)
def test_backward_op(changes: dict[str, Any], error: type[Exception], text: str) -> None:
    op = torch.ops.flash_attn2.bias_backward
    assert [x.shape for x in op(**backward_arguments())] == [BIAS.shape, RELATIVE.shape]
    with pytest.raises(error, match=text):
        op(**backward_arguments(**changes))


def test_backward_op_without_biases() -> None:
    """Nothing is there, or nothing is wanted."""
    op = torch.ops.flash_attn2.bias_backward
    for changes in (
        {"bias": None, "relative_bias": None},
        {"of_bias": False, "of_relative_bias": False},
    ):
        assert [x.shape for x in op(**backward_arguments(**changes))] == [(0,), (0,)]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"dtype": "float64"}, "sums|float32 .* float64|bias in float64 for q in float32"),
        ({"dtype": "int8"}, "unknown dtype"),
        ({"strides": (1, 2)}, "unknown field"),
    ],
)
def test_native_modules_refuse(changes: dict[str, Any], text: str) -> None:
    module = backends.load("cpu").module
    calls: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            backends.Backend, "run", lambda _, entry, problem, device: calls.append(problem)
        )
        flash_attn_func(Q, K, K, bias=BIAS)
    (problem,) = calls
    problem["score_mod"]["bias"] |= changes
    with pytest.raises((RuntimeError, TypeError), match=text):
        module.forward(problem, 1, None)
