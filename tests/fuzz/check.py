"""Runs a problem and compares it with the float64 reference.

The tolerance is the rule of the project: twice the error of the same formula at the tensors' own
dtype, three times for gradients, plus 1e-5. A few entries may happen to come out better than they
should, so that error is the largest of several runs, on inputs that differ in their last bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from support import tanh_slack
from torch import Tensor

import flash_attn2
from flash_attn2._impl import backends, launch
from flash_attn2.reference import (
    Packing,
    attention_reference,
    gathered,
    kvcache_attention_reference,
    varlen_attention_reference,
)

from .biases import NO_BIASES
from .call import Call, build, described, with_views
from .hostile import make_hostile, unchecked
from .masks import tensors_of
from .memory import guarded_copy, guarded_results
from .problem import Problem

RUNS_OF_LOW = 3
WRITTEN = ("k_cache", "v_cache", "k_descale", "v_descale")  # by calls that append
# Up to here gradients are exact to the rule.
LARGE_SCORE = 2000
Results = dict[str, Tensor]


class WrongResultError(Exception):
    """What is wrong with a result."""


def check(problem: Problem) -> None:
    """Raises `WrongResultError`, or whatever the call raises."""
    torch.set_num_threads(problem.threads)
    schedule_emulator(problem)
    call = described(problem)
    arguments = build(call, problem.behind)
    if problem.hostile:
        make_hostile(arguments, problem.hostile)
    before = {name: x.clone() for name, x in arguments.items() if isinstance(x, Tensor)}
    mask = arguments.get("block_mask")
    lists = [] if mask is None else [x.clone() for x in tensors_of(mask)]
    rng_state = drawn_rng_state(problem.seed)
    with guarded_results(problem.behind), unchecked() if problem.hostile else nullcontext():
        torch.manual_seed(problem.seed)
        actual = run(problem, call, arguments)
    for name in before.keys() - set(WRITTEN):
        if not same_bits(arguments[name], before[name]):
            raise WrongResultError(f"{name} was changed")
    if mask is not None and not all(map(torch.equal, lists, tensors_of(mask))):
        raise WrongResultError("block_mask was changed")
    if not problem.hostile:  # then it is enough to get here
        given: dict[str, Any] = before if mask is None else before | {"block_mask": mask}
        compare(problem, call, actual, given, rng_state)


def schedule_emulator(problem: Problem) -> None:
    """Each problem has a schedule of its own. Hostile sequences overlap: then writes may race."""
    backend = backends.serving(torch.empty(0))
    if backend.name.endswith("-emulated"):
        races = ",races=off" if problem.hostile else ""
        backend.module.set_options(f"seed={problem.seed},async=random{races}")


def drawn_rng_state(seed: int) -> Tensor:
    """What a call draws after the generator has been seeded so."""
    torch.manual_seed(seed)
    return launch.draw_rng_state(torch.device("cpu"))


def run(problem: Problem, call: Call, arguments: dict[str, Any]) -> Results:
    """out, perhaps lse and probs, the gradients by name, and the caches."""
    function: Callable[..., Any] = getattr(flash_attn2, call.function)
    if problem.path == "compiled":
        torch.compiler.reset()
        function = torch.compile(function, backend="aot_eager", dynamic=False)
    leaves = {name: arguments[name].detach().requires_grad_(True) for name in call.differentiated}
    arguments = arguments | leaves
    more = {more_of(problem): True} if problem.more else {}
    with observer(problem.path):
        result = function(**arguments, **more)
        if not isinstance(result, tuple):
            result = (result,)
        actual = dict(zip(("out", "lse", "probs"), result, strict=False))
        if not problem.options.dropout_p and actual.pop("probs", torch.empty(0)).numel() != 0:
            raise WrongResultError("probs are not empty")
        if leaves:
            actual |= gradients(problem, call, actual, leaves, own_memory=True)
    for name in WRITTEN:
        if name in arguments:
            actual[name] = arguments[name]
    return {name: x.detach() for name, x in actual.items()}


def more_of(problem: Problem) -> str:
    """The argument that asks for more than out."""
    if problem.kind == "cache":
        return "return_softmax_lse"
    return "return_lse" if problem.more == "lse" else "return_attn_probs"


@contextmanager
def observer(path: str) -> Iterator[None]:
    if path == "mode":
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False):
            yield
    elif path == "profiler":
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
            yield
    else:
        yield


def incoming(problem: Problem, call: Call, lse: Tensor | None, own_memory: bool) -> list[Tensor]:
    """Gradients of out and, where it is differentiated, of lse."""
    assert call.grad_out is not None
    torch.manual_seed(problem.seed + 10)
    grads = [call.grad_out.build(problem.behind)]
    if lse is not None:
        grad_lse = torch.randn(lse.shape)
        if call.end is not None:
            grad_lse[..., call.end :] = torch.nan
        grads.append(guarded_copy(grad_lse, problem.behind) if own_memory else grad_lse)
    return grads


def gradients(
    problem: Problem, call: Call, results: Results, leaves: Results, own_memory: bool = False
) -> Results:
    """Of leaves, through out and, where probs are asked for, through lse."""
    lse = results["lse"] if problem.more else None
    outputs = [results["out"], *([] if lse is None else [lse])]
    given = incoming(problem, call, lse, own_memory)
    given = [g if own_memory else g.to(x.dtype) for g, x in zip(given, outputs, strict=True)]
    grads = torch.autograd.grad(outputs, list(leaves.values()), given)
    return {f"gradient of {name}": grad for name, grad in zip(leaves, grads, strict=True)}


def expected(
    problem: Problem, call: Call, arguments: dict[str, Any], dtype: torch.dtype, rng_state: Tensor
) -> Results:
    """The results by the reference, computed in `dtype`."""
    given = with_views(call, arguments)
    if problem.cache.shared and problem.kind == "cache":
        given.pop("v", None)  # of a cache that is written once
    for name in ("num_splits", "max_seqlen_q") if problem.kind == "cache" else ():
        given.pop(name, None)
    given.pop("deterministic", None)
    if problem.kind == "cache":
        results = kvcache_attention_reference(**given, dtype=dtype)
        return dict(zip(("out", "lse", *WRITTEN), results, strict=False))
    tensors = ("q", "k", "v", "kv", "qkv")
    given |= {name: given[name].to(dtype) for name in tensors if name in given}
    leaves = {name: given[name].detach().requires_grad_(True) for name in call.differentiated}
    given |= leaves
    if "dropout_p" in given:
        given["rng_state"] = rng_state
    if "qkv" in given:
        given["q"], given["k"], given["v"] = given.pop("qkv").unbind(-3)
    if "kv" in given:
        given["k"], given["v"] = given.pop("kv").unbind(-3)
    if problem.kind == "dense":
        results = attention_reference(**given)
    else:
        results = varlen_attention_reference(**packed(problem, given))
    expected = dict(zip(("out", "lse", "probs"), results, strict=True))
    if leaves:
        expected |= gradients(problem, call, expected, leaves)
    return {name: x.detach() for name, x in expected.items()}


def packed(problem: Problem, given: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the reference for packed sequences."""
    if "cu_seqlens" in given:
        given["cu_seqlens_q"] = given["cu_seqlens_k"] = given.pop("cu_seqlens")
        given["max_seqlen_q"] = given["max_seqlen_k"] = given.pop("max_seqlen")
    names = (
        "cu_seqlens_q",
        "cu_seqlens_k",
        "seqused_k",
        "max_seqlen_q",
        "max_seqlen_k",
        "seqused_q",
    )
    packing = Packing(*(given.pop(name, None) for name in names))
    if problem.kind == "paged":
        table, cu_seqlens = given.pop("block_table"), packing.cu_seqlens_k
        lengths = cu_seqlens.diff() if packing.seqused_k is None else packing.seqused_k
        rows = []
        for name in ("k", "v"):
            first = torch.zeros_like(lengths)
            dense = gathered(given[name], table, first, lengths, packing.max_seqlen_k)
            exists = torch.arange(packing.max_seqlen_k) < lengths[:, None]
            rows.append(dense[exists])
        given["k"], given["v"] = rows
        cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
        packing = packing._replace(cu_seqlens_k=cu_seqlens, seqused_k=None)
    return given | {"packing": packing}


def compare(
    problem: Problem, call: Call, actual: Results, given: dict[str, Any], rng_state: Tensor
) -> None:
    given = described_numbers(call) | given
    if problem.kind == "cache" and actual["out"].numel() == 0:
        return  # which the reference does not know
    dtype = given[next(name for name in ("q", "qkv") if name in given)].dtype
    exact = expected(problem, call, given, torch.float64, rng_state)
    largest = largest_term(problem, given)
    cancelling = cancelling_terms(problem, call, given, exact["out"])
    errors = dict.fromkeys(exact, 0.0)
    for i in range(RUNS_OF_LOW):
        inputs = given if i == 0 else nudged(given, dtype, problem.seed + i)
        right = exact if i == 0 else expected(problem, call, inputs, torch.float64, rng_state)
        low = expected(problem, call, inputs, dtype, rng_state)
        for name in errors.keys() - set(WRITTEN):
            errors[name] = max(errors[name], distance(low[name], right[name]))
    for name, x in actual.items():
        rounding = cancelling if name.startswith("gradient") else 0.0
        if name.endswith("bias"):
            rounding = cancelling_in_bias(problem, call, exact["out"], x)
        compare_one(problem, name, x, exact[name], errors[name] + rounding, largest)


def described_numbers(call: Call) -> dict[str, Any]:
    return {
        name: value
        for name, value in call.arguments.items()
        if isinstance(value, (int, float, tuple))
    }


def nudged(given: dict[str, Any], dtype: torch.dtype, seed: int) -> dict[str, Any]:
    """With values that differ by about a unit in the last place."""
    torch.manual_seed(seed)
    eps = torch.finfo(dtype).eps
    return given | {
        name: x * (1 + eps * torch.randint(-1, 2, x.shape)).to(x.dtype)
        for name, x in given.items()
        if isinstance(x, Tensor) and x.dtype == dtype and name not in ("sink", "alibi_slopes")
    }


def distance(x: Tensor, exact: Tensor) -> float:
    if x.numel() == 0:
        return 0.0
    return (x.double() - exact).nan_to_num(0, 0, 0).abs().max().item()


def largest_term(problem: Problem, given: dict[str, Any]) -> float:
    """How large what is added up to a score may be: its rounding errors are relative to that."""
    scale = problem.options.softmax_scale
    scale = problem.head_dim**-0.5 if scale is None else scale
    norms = []
    for name in ("q", "k", "kv", "qkv", "k_cache"):
        if name in given:
            x = given[name].double().nan_to_num(0, 0, 0)
            if name == "k_cache" and "k_descale" in given and x.numel():
                x = x * given["k_descale"].nan_to_num(0).max()
            norms.append(x.norm(dim=-1).amax().item() if x.numel() else 0.0)
    largest = scale * norms[0] * norms[-1]
    for name in ("bias", "relative_bias"):
        if name in given and given[name].numel():
            largest += given[name].double().nan_to_num(0, 0, 0).abs().max().item()
    if "alibi_slopes" in given and given["alibi_slopes"].numel():
        longest = max((*problem.seqlens_q, *problem.seqlens_k, 0)) + max(
            problem.cache.new, default=0
        )
        largest += given["alibi_slopes"].max().item() * longest
    return largest


def cancelling_terms(problem: Problem, call: Call, given: dict[str, Any], out: Tensor) -> float:
    """The error of a gradient of q or k from the rounding of out, of which its kernel reads D.

    The gradient of a score is P (dP - D). Where few keys share a row, the difference is small and
    the reference, which does not go by out, may make no error at all.
    """
    products = rounding_of_out(problem, call, out)
    if products == 0:
        return 0.0
    scale = problem.options.softmax_scale
    scale = problem.head_dim**-0.5 if scale is None else scale
    entries = max(
        given[name].double().nan_to_num(0, 0, 0).abs().max().item()
        for name in ("q", "k", "kv", "qkv")
        if name in given and given[name].numel()
    )
    return products * scale * entries


def cancelling_in_bias(problem: Problem, call: Call, out: Tensor, gradient: Tensor) -> float:
    """The same of a bias, an entry of which adds up what its rows make of it."""
    if gradient.numel() == 0:
        return 0.0
    rows = out.shape[:-1].numel() // (gradient.numel() // gradient.shape[-1])
    return 4 * rounding_of_out(problem, call, out) * max(1, rows) ** 0.5


def rounding_of_out(problem: Problem, call: Call, out: Tensor) -> float:
    """What it makes of D."""
    if call.grad_out is None or out.numel() == 0:
        return 0.0
    grad_out = call.grad_out.build(problem.behind).double().nan_to_num(0)
    products = (out.double() * grad_out).abs().sum(-1).max().item()
    return torch.finfo(getattr(torch, problem.dtype)).eps / 2 * products


def compare_one(
    problem: Problem, name: str, x: Tensor, exact: Tensor, error: float, largest: float
) -> None:
    if x.shape != exact.shape:
        raise WrongResultError(
            f"{name} has shape {tuple(x.shape)}, expected is {tuple(exact.shape)}"
        )
    if name in WRITTEN:
        if not same_bits(x, exact):
            raise WrongResultError(f"{name} holds something else")
        return
    if x.numel() == 0:
        return
    if not torch.equal(x.isnan(), exact.isnan()):
        raise WrongResultError(
            f"{name} has NaN in other places: {places(x.isnan() != exact.isnan())}"
        )
    if name == "lse":
        if x.dtype != torch.float32:
            raise WrongResultError(f"lse is {x.dtype}")
        slack = 5e-7 * largest + tanh_slack(x.device, problem.options.softcap)
        wrong = (x.double() != exact) & ~((x - exact).abs() <= 1e-5 * (1 + exact.abs()) + slack)
        if wrong.any():
            raise WrongResultError(
                f"lse is {x[wrong][0].item()}, expected {exact[wrong][0].item()}"
            )
        return
    if not x.isfinite().all():
        raise WrongResultError(f"{name} is not finite: {places(~x.isfinite())}")
    eps = torch.finfo(getattr(torch, problem.dtype)).eps
    size = exact.abs().max().item()
    factor = 3 if name.startswith("gradient") else 2
    exact_scores = problem.values in ("steps", "constant", "zero") and not problem.cache.rotary
    exact_scores = exact_scores and problem.biases == NO_BIASES
    # Scores, and lse from which probabilities are made again, are float32.
    rounding = 0.0 if exact_scores else min(1.0, largest * 2**-22)
    allowed = factor * error + 1e-5 + 2 * eps * size + rounding * size
    if name.startswith("gradient") and largest > LARGE_SCORE:
        return  # a unit in the last place of lse is too much; finite is what is promised
    off = distance(x, exact)
    if off > allowed:
        at = places((x.double() - exact).abs() > allowed)
        raise WrongResultError(f"{name} is off by {off:.3g}, allowed is {allowed:.3g}: {at}")


def places(where: Tensor) -> str:
    indices = [tuple(index) for index in where.nonzero()[:3].tolist()]
    return f"{int(where.sum())} of {where.numel()}, as at {', '.join(map(str, indices))}"


def same_bits(x: Tensor, y: Tensor) -> bool:
    if x.is_floating_point():
        integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
        x, y = (tensor.contiguous().view(integer) for tensor in (x, y))
    return torch.equal(x, y)
