"""Tensors that are not simply strides over memory: read right, or refused by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import ONE_DTYPE, Target, cumulative, lengths, targets
from torch import Tensor
from torch.nn import Parameter
from torch.utils._pytree import tree_map

from flash_attn2 import (
    attention_probs,
    flash_attn_func,
    flash_attn_kvpacked_func,
    flash_attn_qkvpacked_func,
    pad_input,
    unpad_input,
    varlen_attention_probs,
)
from flash_attn2 import flash_attn_varlen_func as varlen
from flash_attn2.nn import Attention, RotaryEmbedding
from flash_attn2.padding import index_first_axis

CPU = Target("cpu", torch.float32)
ARGUMENTS = ("q", "k", "v", "sink", "alibi_slopes", "cu_seqlens_q", "cu_seqlens_k", "seqused_k")
each_argument = pytest.mark.parametrize("name", ARGUMENTS)


def dense_inputs(target: Target) -> dict[str, Tensor]:
    q, k, v = (target.tensor(1, n, 2, 16) for n in (5, 8, 8))
    return {"q": q, "k": k, "v": v}


def inputs_with(name: str, target: Target) -> dict[str, Tensor]:
    """Arguments of a function that takes `name`."""
    inputs = dense_inputs(target)
    if "seq" not in name:
        return inputs | {"sink": torch.randn(2), "alibi_slopes": torch.rand(2)}
    inputs = {key: x[0] for key, x in inputs.items()}
    cu_q, cu_k = cumulative(2, 3), cumulative(7, 1)
    return inputs | {"cu_seqlens_q": cu_q, "cu_seqlens_k": cu_k, "seqused_k": lengths(4, 1)}


def attend(**inputs: Any) -> Any:
    if "cu_seqlens_q" in inputs:
        return varlen(**inputs, max_seqlen_q=3, max_seqlen_k=7)
    return flash_attn_func(**inputs)


def ordinary(x: Tensor) -> Tensor:
    """What any result says, as an ordinary tensor."""
    if torch._is_functional_tensor(x):
        torch._sync(x)
        x = torch._from_functional_tensor(x)
    if isinstance(x, Wrapper):
        x = x.held
    return x.as_subclass(Tensor)


def results(name: str, inputs: dict[str, Any], of: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Out and the gradients of q, k and v, with argument `name` passed as `of` makes it."""
    leaves = {x: inputs[x].detach().clone().requires_grad_() for x in ("q", "k", "v")}
    given = inputs | leaves
    given[name] = of(given[name])
    out = attend(**given)
    grads = torch.autograd.grad(out.square().sum(), list(leaves.values()), allow_unused=True)
    return [ordinary(out), *(inputs["q"] if x is None else ordinary(x) for x in grads)]


# Kinds of tensors that stand for others.


class Subclass(Tensor):
    pass


class Function(Tensor):
    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return super().__torch_function__(func, types, args, kwargs or {})


class Wrapper(Tensor):
    """Holds another tensor, which the dispatcher brings out."""

    held: Tensor

    @staticmethod
    def __new__(cls: Any, held: Tensor) -> Any:
        result = Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), dtype=held.dtype, requires_grad=False
        )
        result.held = held
        return result

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def bare(x: Any) -> Any:
            return x.held if isinstance(x, Wrapper) else x

        result = func(*tree_map(bare, args), **tree_map(bare, kwargs or {}))
        return tree_map(lambda x: Wrapper(x) if isinstance(x, Tensor) else x, result)


SAME: dict[str, Callable[[Tensor], Tensor]] = {
    "subclass": lambda x: x.as_subclass(Subclass),
    "function": lambda x: x.as_subclass(Function),
    "wrapper": lambda x: Wrapper(x.detach()),
    "negated": lambda x: torch._neg_view(-x.detach()),
    "functional": lambda x: torch._to_functional_tensor(x.detach()),
    "functional_with_offset": lambda x: torch._to_functional_tensor(
        torch.stack([x, x])[1].detach()
    ),
    "parameter": lambda x: Parameter(x.detach(), requires_grad=False),
    "strided": lambda x: torch.stack([x, x], -1)[..., 1],
}


@each_argument
@pytest.mark.parametrize("kind", SAME)
def test_read_as_what_they_stand_for(name: str, kind: str) -> None:
    inputs = inputs_with(name, CPU)
    detached = kind not in ("subclass", "function", "strided")
    expected = results(name, inputs, Tensor.detach if detached else Tensor.clone)
    actual = results(name, inputs, SAME[kind])
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@targets(ONE_DTYPE)
@pytest.mark.parametrize("name", ["q", "v", "sink", "seqused_k"])
@pytest.mark.parametrize("kind", ["wrapper", "negated", "functional"])
def test_read_as_what_they_stand_for_on(name: str, kind: str, target: Target) -> None:
    inputs = inputs_with(name, target)
    expected, actual = attend(**inputs), attend(**inputs | {name: SAME[kind](inputs[name])})
    assert torch.equal(ordinary(actual), expected)


# Zero tensors, as derivatives of sign and round are, have no memory.


@targets([*ONE_DTYPE, CPU])
@each_argument
def test_zero_tensors(name: str, target: Target) -> None:
    inputs = inputs_with(name, target)
    if name == "cu_seqlens_k":
        del inputs["seqused_k"]
    x = inputs[name]
    zero = torch._efficientzerotensor(x.shape, dtype=x.dtype)
    inputs[name] = torch.zeros_like(x)
    expected = results(name, inputs, Tensor.detach)
    for a, b in zip(results(name, inputs, lambda _: zero), expected, strict=True):
        torch.testing.assert_close(a, b)


@targets([*ONE_DTYPE, CPU])
@pytest.mark.parametrize("of", [torch.sgn, torch.round, torch.floor])
def test_zero_gradients(of: Callable[[Tensor], Tensor], target: Target) -> None:
    inputs = inputs_with("sink", target)
    leaves = [x.requires_grad_() for x in inputs.values() if x.ndim == 4] + [inputs["sink"]]
    inputs["sink"].requires_grad_()
    plain = dict(zip("qkv", leaves, strict=False))
    for given in (plain, inputs):
        out, lse = flash_attn_func(**given, return_lse=True)
        for loss in (of(flash_attn_func(**given)).sum(), of(out).sum(), of(lse).sum()):
            grads = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
            assert all(grad is None or not grad.any() for grad in grads)
    grads = torch.autograd.grad(out.sum() + of(lse).sum(), leaves[:3])
    for a, b in zip(grads, torch.autograd.grad(attend(**inputs).sum(), leaves[:3]), strict=True):
        torch.testing.assert_close(a, b)


# Freed memory: storages of no bytes.


def freed(x: Tensor, offset: int = 0) -> Tensor:
    """A copy with the strides of `x`."""
    copy = torch.empty_like(x)
    memory = copy.new_empty(offset + copy.untyped_storage().size() // copy.element_size())
    copy = memory.as_strided(copy.shape, copy.stride(), offset)
    memory.untyped_storage().resize_(0)
    return copy


@targets([*ONE_DTYPE, CPU])
@pytest.mark.parametrize("offset", [0, 3, 2**20])
@each_argument
def test_freed_tensors(name: str, offset: int, target: Target) -> None:
    inputs = inputs_with(name, target)
    for requires_grad in (False, True):
        inputs["v" if name == "q" else "q"].requires_grad_(requires_grad)
        with pytest.raises(ValueError, match=rf"^{name} must be in memory, got shape \("):
            attend(**inputs | {name: freed(inputs[name].detach(), offset)})
    if name in "qkv":  # would be copied first
        transposed = freed(inputs[name].detach().mT.contiguous().mT, offset)
        with pytest.raises(ValueError, match=rf"^{name} must be in memory"):
            attend(**inputs | {name: transposed})


def test_freed_packed_tensors() -> None:
    q, qkv = torch.randn(1, 5, 2, 16), torch.randn(1, 5, 3, 2, 16)
    with pytest.raises(ValueError, match=r"^qkv must be in memory"):
        flash_attn_qkvpacked_func(freed(qkv))
    with pytest.raises(ValueError, match=r"^kv must be in memory"):
        flash_attn_kvpacked_func(q, freed(qkv[:, :, 1:]))
    with pytest.raises(ValueError, match=r"^sink must be in memory"):
        torch.ops.flash_attn2.forward(q, q, q, sink=freed(torch.zeros(2)))


@targets([*ONE_DTYPE, CPU])
@pytest.mark.parametrize("sink", [False, True])
def test_saved_tensors_that_were_freed(sink: bool, target: Target) -> None:
    inputs = dense_inputs(target) | ({"sink": torch.zeros(2)} if sink else {})
    names = ["q", "k", "v", "out", "lse", *(["sink"] if sink else [])]
    for i, name in enumerate(names):
        saved: list[Tensor] = []

        def keep(x: Tensor, saved: list[Tensor] = saved) -> Tensor:
            saved.append(x)
            return x

        leaves = {key: x.clone().requires_grad_() for key, x in inputs.items()}
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            out = flash_attn_func(**leaves)
        grad = torch.randn_like(out)
        saved[i].untyped_storage().resize_(0)
        with pytest.raises(ValueError, match=rf"^{name} must be in memory"):
            torch.autograd.grad(out, list(leaves.values()), grad)


@pytest.mark.parametrize("name", ["grad_out", "grad_lse"])
def test_gradients_that_were_freed(name: str) -> None:
    q = torch.randn(1, 5, 2, 16, requires_grad=True)
    result = flash_attn_func(q, q, q, return_lse=True)[name == "grad_lse"]
    with pytest.raises(ValueError, match=rf"^{name} must be in memory"):
        torch.autograd.grad(result, q, freed(result.detach()))


# What hooks put in the place of saved tensors.

CHANGES: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "half_lse": (lambda x: x.half() if x.ndim == 3 else x, "lse must be torch.float32"),
    "fewer_rows": (lambda x: x[:, :2] if x.ndim == 4 else x, "must have shape"),
    "fewer_lse": (lambda x: x[:, :, :2] if x.ndim == 3 else x, "lse must have shape"),
    "more_keys": (lambda x: x[:, :0] if x.shape[1] == 8 else x, ""),
    "strided_lse": (lambda x: x.mT.contiguous().mT if x.ndim == 3 else x, ""),
    "strided": (lambda x: x.mT.contiguous().mT, ""),
}


@pytest.mark.parametrize("sink", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_what_hooks_put_in(change: str, sink: bool) -> None:
    options = {"sink": torch.zeros(2)} if sink else {}
    leaves = [x.requires_grad_() for x in dense_inputs(CPU).values()]
    function, message = CHANGES[change]

    def unpacked(x: Tensor) -> Tensor:
        return function(x) if x.ndim >= 3 else x

    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, unpacked):
        out = flash_attn_func(*leaves, **options)
    if message:
        with pytest.raises((TypeError, ValueError), match=message):
            torch.autograd.grad(out.sum(), leaves)
    elif "strided" in change:
        actual = torch.autograd.grad(out.sum(), leaves)
        expected = torch.autograd.grad(flash_attn_func(*leaves, **options).sum(), leaves)
        for a, b in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, b)


# Other layouts, devices and dtypes.


def nested(layout: torch.layout) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parts = [torch.randn(n, 2, 16) for n in (3, 4)]
        return torch.nested.nested_tensor(parts, layout=layout)


def compressed() -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.randn(5, 16).to_sparse_csr()


def quantized() -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.randn(1, 8, 2, 16), 1, 0, torch.qint8)


REFUSED: dict[str, Callable[[], Tensor]] = {
    "nested": lambda: nested(torch.strided),
    "jagged": lambda: nested(torch.jagged),
    "sparse": lambda: torch.randn(1, 8, 2, 16).to_sparse(),
    "compressed": compressed,
    "mkldnn": lambda: torch.randn(1, 8, 2, 16).to_mkldnn(),
    "meta": lambda: torch.empty(1, 8, 2, 16, device="meta"),
    "quantized": quantized,
    "complex": lambda: torch.randn(1, 8, 2, 16, dtype=torch.complex64),
    "conjugate": lambda: torch.randn(1, 8, 2, 16, dtype=torch.complex64).conj(),
    "bool": lambda: torch.ones(1, 8, 2, 16, dtype=torch.bool),
}


@each_argument
@pytest.mark.parametrize("kind", REFUSED)
def test_refused_by_name(kind: str, name: str) -> None:
    inputs = inputs_with(name, CPU)
    strided = kind not in ("nested", "jagged", "sparse", "compressed", "mkldnn")
    match = r"\b(q|k|v)\b" if strided and name in "qkv" else rf"^{name} must be "
    for requires_grad in (False, True):
        inputs["v" if name == "q" else "q"].requires_grad_(requires_grad)
        with pytest.raises((TypeError, ValueError), match=match):
            attend(**inputs | {name: REFUSED[kind]()})


@pytest.mark.parametrize("kind", [kind for kind in REFUSED if kind != "meta"])
def test_packed_tensors_and_all_alike_are_refused(kind: str) -> None:
    x = REFUSED[kind]()
    for function, count, name in (
        *([] if kind == "jagged" else [(flash_attn_func, 3, "q")]),  # which takes three of them
        (flash_attn_qkvpacked_func, 1, "qkv"),
        (flash_attn_kvpacked_func, 2, "q|kv"),
    ):
        with pytest.raises((TypeError, ValueError), match=rf"^({name}) must be "):
            function(*[x] * count)  # type: ignore[operator]


def test_sparse_gradients_are_refused() -> None:
    q = torch.randn(1, 5, 2, 16, requires_grad=True)
    with pytest.raises(TypeError, match="grad_out must be a dense tensor, got layout"):
        torch.autograd.grad(flash_attn_func(q, q, q), q, torch.randn_like(q).to_sparse())


@pytest.mark.parametrize("kind", [kind for kind in REFUSED if kind not in ("nested", "jagged")])
def test_packed_tensors_are_named(kind: str) -> None:
    kv = REFUSED[kind]()
    kv = kv.unsqueeze(2).expand(1, 8, 2, 2, 16) if kv.layout == torch.strided else kv
    with pytest.raises((TypeError, ValueError), match=r"^kv must "):
        flash_attn_kvpacked_func(torch.randn(1, 8, 2, 16), kv)


# Functions in PyTorch, which reads freed memory unless it is told not to.


X, ROWS, MASK = torch.randn(2, 4, 2, 16), torch.tensor([0, 1]), torch.ones(2, 4)
IN_PYTORCH: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "probs": (
        attention_probs,
        {"q": X, "k": X, "sink": X[0, 0, :, 0], "alibi_slopes": MASK[0, :2]},
    ),
    "varlen_probs": (
        lambda **inputs: varlen_attention_probs(**inputs, max_seqlen_q=4, max_seqlen_k=4),
        {
            **{"q": X[0], "k": X[1], "seqused_k": lengths(2, 1)},
            **{"cu_seqlens_q": cumulative(2, 2), "cu_seqlens_k": cumulative(3, 1)},
        },
    ),
    "pad": (
        lambda **inputs: pad_input(**inputs, batch=2, seqlen=4),
        {"hidden_states": X, "indices": ROWS},
    ),
    "unpad": (unpad_input, {"hidden_states": X, "attention_mask": MASK, "unused_mask": MASK}),
    "index": (index_first_axis, {"x": X, "indices": ROWS}),
    "rotary": (RotaryEmbedding(16), {"x": X[0], "cu_seqlens": cumulative(1, 3)}),
    "layer": (
        lambda **inputs: Attention(16, 2)(**inputs, max_seqlen=4),
        {"x": X[0, :, 0], "cu_seqlens": cumulative(1, 3)},
    ),
}


@pytest.mark.parametrize(
    ("function", "name"), [(key, name) for key, (_, given) in IN_PYTORCH.items() for name in given]
)
def test_freed_memory_is_not_read(function: str, name: str) -> None:
    call, given = IN_PYTORCH[function]
    call(**given)
    with pytest.raises(ValueError, match=f"^{name} must be in memory"):
        call(**given | {name: freed(given[name])})


def test_freed_memory_is_named_under_autocast() -> None:
    q = torch.randn(1, 4, 2, 16)
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(ValueError, match=r"^k must be in memory"),
    ):
        flash_attn_func(q, freed(q), q)


def test_zero_tensors_as_offsets_are_zeros() -> None:
    zeros = torch._efficientzerotensor((3,), dtype=torch.int32)
    q = torch.randn(4, 2, 16)
    actual = varlen_attention_probs(q, q, zeros, zeros, 1, 1)
    assert torch.equal(actual, torch.zeros(2, 2, 1, 1))
    assert RotaryEmbedding(16)(q, cu_seqlens=zeros).shape == q.shape
    pages = q.view(2, 2, 2, 16)
    table = torch.zeros(2, 1, dtype=torch.int32)
    out = varlen(q, pages, pages, cumulative(2, 2), zeros, 2, 1, block_table=table)
    assert torch.equal(out, torch.zeros_like(q))


@pytest.mark.parametrize("wrong", [quantized, lambda: torch.ones(1, 8, 2, 16, dtype=torch.int32)])
def test_gradients_of_other_dtypes_are_refused(wrong: Callable[[], Tensor]) -> None:
    q = torch.randn(1, 8, 2, 16)
    out, lse, _ = torch.ops.flash_attn2.forward(q, q, q)
    with pytest.raises(TypeError, match="grad_out must be of floating point, got"):
        torch.ops.flash_attn2.backward(wrong(), None, q, q, q, out, lse, None)


def test_paged_keys_of_another_dtype_under_autocast() -> None:
    q, pages, cu = torch.randn(4, 2, 16), torch.randn(2, 4, 2, 16), cumulative(4)
    advice = "k must have .*bfloat16, got torch.float32: create the cache with dtype=torch.bfloat16"
    for queries, error, message in ((q, TypeError, advice), (q[0, 0, 0], ValueError, "q must be")):
        with torch.autocast("cpu", torch.bfloat16), pytest.raises(error, match=message):
            varlen(queries, pages, pages, cu, cu, 4, 4, block_table=torch.zeros(1, 1).int())
