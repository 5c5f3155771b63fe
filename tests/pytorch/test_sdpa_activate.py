"""torch.nn.functional.scaled_dot_product_attention with these kernels in the dispatcher."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from support import HALF, ONE_DTYPE, Target, assert_within_rule, targets
from torch import Tensor
from torch.nn import attention
from torch.nn.functional import scaled_dot_product_attention

from flash_attn2._impl import backends, launch
from flash_attn2.integrations import sdpa
from flash_attn2.integrations.sdpa import cpu, cuda, registration
from flash_attn2.reference import attention_reference

REGISTRY = hasattr(attention, "restore_flash_attention_impl")
needs_registry = pytest.mark.skipif(not REGISTRY, reason="this PyTorch has no registry")
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
each_device = pytest.mark.parametrize("device", DEVICES)


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    yield
    sdpa.deactivate()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Passes that reached the kernels of this package."""
    seen: list[str] = []
    for name in ("forward", "backward"):
        original = getattr(launch, name)

        def counted(*args: Any, original: Any = original, name: str = name) -> Any:
            seen.append(name)
            return original(*args)

        monkeypatch.setattr(launch, name, counted)
    from flash_attn2._impl import forms

    for form in (forms.DENSE, forms.VARLEN):
        monkeypatch.setattr(form, "backward", lambda gradient: launch.backward(gradient))
    return seen


Layout = Callable[..., Tensor]


def by_heads(*shape: int) -> Tensor:
    return torch.randn(shape)


def by_rows(batch: int, heads: int, rows: int, width: int) -> Tensor:
    return torch.randn(batch, rows, heads, width).transpose(1, 2)


def of_packed(batch: int, heads: int, rows: int, width: int) -> Tensor:
    return torch.randn(batch, rows, 3, heads, width)[:, :, 1].transpose(1, 2)


def by_width(batch: int, heads: int, rows: int, width: int) -> Tensor:
    """With a last stride that is not 1, as are those of results like it."""
    return torch.randn(batch, heads, width, rows).transpose(2, 3)


def problem(
    layout: Layout = by_rows,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    rows: tuple[int, int] = (70, 70),
    heads: tuple[int, int] = (4, 4),
) -> list[Tensor]:
    q = layout(2, heads[0], rows[0], 24)
    k, v = layout(2, heads[1], rows[1], 24), layout(2, heads[1], rows[1], 24)
    return [x.to(device, dtype) for x in (q, k, v)]


def attend(
    tensors: list[Tensor], grad_out: Tensor, between: Callable[[], Any] = bool, **options: Any
) -> tuple[Tensor, ...]:
    """out and gradients; `between` the passes."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    out = scaled_dot_product_attention(*leaves, **options)
    between()
    return out.detach(), *torch.autograd.grad(out, leaves, grad_out)


def check(
    tensors: list[Tensor], grad_out: Tensor, results: tuple[Tensor, ...], **options: Any
) -> None:
    """By the rule of tolerance."""

    def refer(dtype: torch.dtype) -> tuple[Tensor, ...]:
        leaves = [x.detach().to(dtype).requires_grad_() for x in tensors]
        rows = (x.transpose(1, 2) for x in leaves)
        out, *_ = attention_reference(
            *rows, causal=options.get("is_causal", False), softmax_scale=options.get("scale")
        )
        out = out.transpose(1, 2)
        return out.detach(), *torch.autograd.grad(out, leaves, grad_out.to(dtype))

    dtype = tensors[0].dtype
    for name, actual, exact, low in zip(
        ("out", "q", "k", "v"), results, refer(torch.float64), refer(dtype), strict=True
    ):
        assert actual.dtype == dtype
        assert_within_rule(name, actual, exact, low, 2 if name == "out" else 3)


PROBLEMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "causal": ({}, {"is_causal": True}),
    "few queries": ({"rows": (3, 70)}, {"scale": 0.3}),
    "grouped": ({"heads": (4, 2)}, {"is_causal": True, "enable_gqa": True}),
}


@needs_registry
@each_device
@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
@pytest.mark.parametrize("case", PROBLEMS)
def test_results_and_gradients(
    case: str, dtype: torch.dtype, device: str, calls: list[str]
) -> None:
    if device == "cuda" and dtype not in HALF:
        pytest.skip("flash kernels on CUDA take 16 bits")
    sizes, options = PROBLEMS[case]
    tensors = problem(dtype=dtype, device=device, **sizes)
    grad_out = torch.randn_like(tensors[0])
    sdpa.activate(device)
    results = attend(tensors, grad_out, **options)
    assert calls == ["forward", "backward"]
    check(tensors, grad_out, results, **options)


@needs_registry
@each_device
@pytest.mark.parametrize("active", ["forward", "backward"])
@pytest.mark.parametrize("case", PROBLEMS)
def test_one_pass_only(case: str, active: str, device: str, calls: list[str]) -> None:
    """What one kernel leaves, the other's backward pass reads."""
    sizes, options = PROBLEMS[case]
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    tensors = problem(dtype=dtype, device=device, **sizes)
    grad_out = torch.randn_like(tensors[0])
    if active == "forward":
        sdpa.activate(device)
        results = attend(tensors, grad_out, sdpa.deactivate, **options)
    else:
        results = attend(tensors, grad_out, lambda: sdpa.activate(device), **options)
    assert calls == [active]
    check(tensors, grad_out, results, **options)


LEFT: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "mask": ({}, {"attn_mask": torch.rand(70, 70) > 0.3}),
    "bias": ({}, {"attn_mask": torch.randn(70, 70)}),
    "more keys": ({"rows": (5, 70)}, {"is_causal": True}),
    "more queries": ({"rows": (70, 5)}, {"is_causal": True}),
    "float64": ({"dtype": torch.float64}, {}),
    "negative scale": ({}, {"scale": -0.2}),
}


@needs_registry
@pytest.mark.parametrize("between", ["nothing", "deactivate", "activate"])
@pytest.mark.parametrize("case", LEFT)
def test_what_is_left_to_pytorch(case: str, between: str, calls: list[str]) -> None:
    """Both passes, bit for bit, whatever is active when."""
    sizes, options = LEFT[case]
    tensors = problem(**sizes)
    grad_out = torch.randn_like(tensors[0])
    expected = attend(tensors, grad_out, **options)
    if between != "activate":
        sdpa.activate("cpu")
    then: dict[str, Callable[[], Any]] = {
        "nothing": bool,
        "deactivate": sdpa.deactivate,
        "activate": lambda: sdpa.activate("cpu"),
    }
    results = attend(tensors, grad_out, then[between], **options)
    assert calls == []
    for actual, given in zip(results, expected, strict=True):
        assert torch.equal(actual, given)


@needs_registry
@pytest.mark.parametrize("layout", [by_heads, by_rows, of_packed], ids=lambda x: x.__name__)
def test_layouts_are_those_of_pytorch(layout: Layout) -> None:
    """Of results, as what compiles programs expects them."""
    ops = torch.ops.aten
    q, k, v = problem(layout, rows=(9, 13))

    def results() -> list[Tensor]:
        out, lse = ops._scaled_dot_product_flash_attention_for_cpu(q, k, v)
        grads = ops._scaled_dot_product_flash_attention_for_cpu_backward(
            out, q, k, v, out, lse, 0.0, False
        )
        return [out, lse, *grads]

    expected = results()
    sdpa.activate("cpu")
    for actual, given in zip(results(), expected, strict=True):
        assert actual.stride() == given.stride()
        torch.testing.assert_close(actual, given, rtol=1e-4, atol=1e-5)


@needs_registry
def test_compiled(calls: list[str]) -> None:
    tensors = problem()
    grad_out = torch.randn_like(tensors[0])
    sdpa.activate("cpu")

    def attention_of(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return scaled_dot_product_attention(q * 2, k, v, is_causal=True)

    compiled = torch.compile(attention_of, backend="aot_eager", fullgraph=True)
    leaves = [x.requires_grad_() for x in tensors]
    out = compiled(*leaves)
    grads = torch.autograd.grad(out, leaves, grad_out)
    assert calls == ["forward", "backward"]
    expected = torch.autograd.grad(attention_of(*leaves), leaves, grad_out)
    for actual, given in zip(grads, expected, strict=True):
        assert torch.equal(actual, given)


# The registry.


@needs_registry
def test_the_registry_knows_what_is_active() -> None:
    assert attention.current_flash_attention_impl() is None
    for _ in range(2):
        sdpa.activate()
        assert attention.current_flash_attention_impl() == sdpa.NAME == "flash_attn2"
    for _ in range(2):
        sdpa.deactivate()
        assert attention.current_flash_attention_impl() is None
    attention.activate_flash_attention_impl("flash_attn2")
    assert attention.current_flash_attention_impl() == "flash_attn2"


@needs_registry
def test_another_implementation_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    class Handle:
        def remove(self) -> None: ...

    from torch.nn.attention import _registry

    monkeypatch.setattr(_registry, "_FLASH_ATTENTION_IMPLS", dict(_registry._FLASH_ATTENTION_IMPLS))
    attention.register_flash_attention_impl("other", register_fn=lambda: Handle())
    attention.activate_flash_attention_impl("other")
    sdpa.deactivate()
    assert attention.current_flash_attention_impl() == "other"
    attention.restore_flash_attention_impl()


def test_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in registration.NEEDED:
        monkeypatch.delattr(attention, name, raising=False)
    with pytest.raises(RuntimeError, match=rf"PyTorch {torch.__version__.split('+')[0]}"):
        sdpa.activate()
    sdpa.deactivate()
    monkeypatch.undo()
    if REGISTRY:
        with pytest.raises(ValueError, match="'cpu' or 'cuda', got 'xpu'"):
            sdpa.activate("xpu")
        assert attention.current_flash_attention_impl() is None


@pytest.mark.parametrize("name", [*cpu.OVERRIDES, *cuda.OVERRIDES])
def test_overrides_take_what_the_ops_take(name: str) -> None:
    override = (cpu.OVERRIDES | cuda.OVERRIDES)[name]
    _, _, *ours = inspect.signature(override).parameters.values()
    op = getattr(torch.ops.aten, name).default
    theirs = op._schema.arguments
    if not REGISTRY:
        pytest.skip("an older PyTorch has other arguments")
    assert [x.name for x in ours] == [x.name for x in theirs]
    for parameter, argument in zip(ours, theirs, strict=True):
        assert (parameter.kind is parameter.KEYWORD_ONLY) == argument.kwarg_only
        default = argument.default_value if argument.has_default_value() else parameter.empty
        assert parameter.default is default or parameter.default == default


@needs_registry
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to try it on")
def test_kernels_of_cuda_are_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where PyTorch has none itself."""

    class Kernel:
        call_boxed = None

    monkeypatch.setattr(backends, "load", lambda name: None)
    monkeypatch.setattr(torch.library, "get_kernel", lambda op, key: Kernel())
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    before = {name: has(f"aten::{name}", "CUDA") for name in cuda.OVERRIDES}
    sdpa.activate("cuda")
    assert all(has(f"aten::{name}", "CUDA") for name in cuda.OVERRIDES)
    sdpa.deactivate()
    assert {name: has(f"aten::{name}", "CUDA") for name in cuda.OVERRIDES} == before


# Overrides of CUDA's ops, on tensors of the CPU: its kernels in the emulator.


def refused(*_: Any, **__: Any) -> Any:
    raise AssertionError("went to PyTorch's kernel")


def fakes(*tensors: Tensor | None) -> list[Any]:
    """On a GPU that need not be there."""
    return [
        x if x is None else torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda")
        for x in tensors
    ]


def assert_laid_out_as(name: str, results: tuple[Any, ...], *args: Any, **kwargs: Any) -> None:
    """As PyTorch's op says of such tensors on a GPU."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    op = getattr(torch.ops.aten, name).default
    with FakeTensorMode():
        given = [x if x is None or isinstance(x, (int, float, bool)) else fakes(x)[0] for x in args]
        expected = op(*given, **kwargs)
    assert len(results) == len(expected)
    for actual, told in zip(results, expected, strict=True):
        if not isinstance(told, Tensor):
            assert actual == told
            continue
        assert (actual.dtype, actual.shape) == (told.dtype, told.shape)
        assert actual.stride() == told.stride()


@needs_registry
@targets(ONE_DTYPE)
@pytest.mark.parametrize("layout", [of_packed, by_width], ids=lambda x: x.__name__)
def test_dense_on_cuda(target: Target, layout: Layout) -> None:
    is_causal = layout is of_packed
    tensors = problem(layout, target.dtype, target.device, (70, 70), (4, 2))
    grad_out = torch.randn_like(tensors[0])
    name = "_scaled_dot_product_flash_attention"
    results = cuda.forward(refused, None, *tensors, 0.0, is_causal)
    assert_laid_out_as(name, results, *tensors, 0.0, is_causal)
    out, lse, *rest, rng_state, unused, _ = results
    args = (grad_out, *tensors, out, lse, *rest, 0.0, is_causal, rng_state, unused)
    grads = cuda.backward(refused, None, *args)
    check(tensors, grad_out, (out, *grads), is_causal=is_causal)
    assert [x.dtype for x in grads] == [target.dtype] * 3


@needs_registry
@targets(ONE_DTYPE)
def test_packed_on_cuda(target: Target) -> None:
    """As nested tensors come."""
    lengths = [5, 0, 40]
    cu = torch.tensor([0, 5, 5, 45], dtype=torch.int32, device=target.device)
    q, k, v, grad_out = (target.tensor(45, heads, 16) for heads in (4, 2, 2, 4))
    more = cu, cu, 40, 40, 0.0, True, False
    results = cuda.rows_forward(refused, None, q, k, v, *more, window_size_left=7)
    assert_laid_out_as("_flash_attention_forward", results, q, k, v, *more, window_size_left=7)
    out, lse, rng_state, unused, _ = results
    grads = cuda.rows_backward(
        *(refused, None, grad_out, q, k, v, out, lse, *more[:-1], rng_state, unused),
        window_size_left=7,
    )
    begin = 0
    for length in lengths:
        rows = slice(begin, begin := begin + length)

        def refer(dtype: torch.dtype, rows: slice = rows) -> tuple[Tensor, ...]:
            leaves = [x[None, rows].to(dtype).detach().requires_grad_() for x in (q, k, v)]
            out, *_ = attention_reference(*leaves, causal=True, window_size=(7, -1))
            return out.detach(), *torch.autograd.grad(out, leaves, grad_out[None, rows].to(dtype))

        exact, low = refer(torch.float64), refer(target.dtype)
        for actual, x, y in zip((out, *grads), exact, low, strict=True):
            assert_within_rule("packed", actual[None, rows], x, y, 3)


@needs_registry
@pytest.mark.parametrize(
    "options",
    [{"dropout_p": 0.5}, {"return_debug_mask": True}, {"scale": -1.0}, {"rows": (5, 9)}],
    ids=str,
)
def test_what_cuda_leaves_to_pytorch(options: dict[str, Any]) -> None:
    seen: list[Any] = []

    def old(*args: Any, **kwargs: Any) -> Any:
        seen.append((args, kwargs))

    rows = options.pop("rows", (9, 9))
    q, k, v = problem(dtype=torch.float16, rows=rows)
    dropout_p, scale = options.get("dropout_p", 0.0), options.get("scale")
    debug = options.get("return_debug_mask", False)
    cuda.forward(old, "keys", q, k, v, dropout_p, True, debug, scale=scale)
    assert seen == [(("keys", q, k, v, dropout_p, True, debug), {"scale": scale})]
    lse, state = torch.zeros(2, 4, rows[0]), torch.zeros(2)
    if not debug:
        args = (q, q, k, v, q, lse, None, None, *rows, dropout_p, True, state, state)
        cuda.backward(old, "keys", *args, scale=scale)
        assert seen[1] == (("keys", *args), {"scale": scale})
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        args = (q, q, k, v, q, lse, None, None, *rows, dropout_p, True, state, state)
        cuda.rows_backward(old, "keys", *args, scale=scale)
        assert seen[2][0] == ("keys", *args)
    else:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    args = (q, k, v, None, None, *rows, dropout_p, True, debug)
    cuda.rows_forward(old, "keys", *args, scale=scale)
    assert seen[-1][0] == ("keys", *args)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch packs nested tensors on a GPU")
@needs_registry
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors(calls: list[str]) -> None:
    parts = [torch.randn(n, 4, 16, device="cuda", dtype=torch.float16) for n in (5, 17)]
    nested = torch.nested.nested_tensor(parts, layout=torch.jagged).transpose(1, 2)
    sdpa.activate()
    out = scaled_dot_product_attention(nested, nested, nested, is_causal=True)
    assert calls == ["forward"]
    for part, actual in zip(parts, out.transpose(1, 2).unbind(), strict=True):
        alone = part.transpose(0, 1)[None]
        expected = scaled_dot_product_attention(alone, alone, alone, is_causal=True)
        torch.testing.assert_close(actual.transpose(0, 1)[None], expected, rtol=2e-3, atol=2e-3)
