"""Small problems with every kind of kernel, compared with attention in float64.

Also the program that compute-sanitizer runs (`python -m tools.gpu_report.problems`): it ends with
status 1 if a result is wrong, or if there is nothing to run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from flash_attn2 import (
    flash_attn_func,
    flash_attn_varlen_func,
    flash_attn_with_kvcache,
    masks,
)
from flash_attn2.bench.accuracy import max_error
from flash_attn2.bench.suite import Outcome
from flash_attn2.reference import (
    Packing,
    attention_reference,
    kvcache_attention_reference,
    varlen_attention_reference,
)
from tools.gpu_report.families import families, plans_of

_SEED = 1234
_FEW = (100, 140)  # more than a tile, both
_FACTORS = {"out": 2, "lse": 2}  # gradients: 3
_SLACK = {"lse": 1e-4}  # all others: 1e-5


@dataclass(frozen=True)
class Problem:
    """One call; `options` takes a device and gives what the call has besides."""

    name: str
    head_dim: int
    dtype: torch.dtype = torch.float16
    heads: tuple[int, int] = (4, 2)
    seqlens: tuple[int, int] = (150, 200)  # of queries and keys
    lengths: tuple[tuple[int, int], ...] = ()  # of packed sequences
    cached: tuple[int, ...] = ()  # lengths in a paged cache
    gradients: bool = True
    options: Callable[[str], dict[str, Any]] = field(default=lambda device: {})
    head_dim_v: int | None = None  # where it is another (dense calls)


def _causal(device: str) -> dict[str, Any]:
    return {"causal": True}


def _modified(device: str) -> dict[str, Any]:
    slopes = torch.tensor([0.5, 0.25, 0.125, 0.0625], device=device)
    return {"causal": True, "softcap": 10.0, "alibi_slopes": slopes}


def _dropped(device: str) -> dict[str, Any]:
    return {**_modified(device), "dropout_p": 0.2}


def _biased(device: str) -> dict[str, Any]:
    return {"bias": torch.randn(4, 150, 200, device=device)}


def _listed(device: str) -> dict[str, Any]:
    return {"block_mask": masks.bigbird().build(256, device=device)}


def problems(quick: bool) -> Iterator[Problem]:
    """`quick`: one of each kind of kernel, and of wide heads, whose warpgroups hand tiles to each
    other; else every head dim and dtype of it."""
    square = (256, 256)
    for head_dim in (64,) if quick else (64, 128, 256, 32, 96, 192):
        for dtype in (torch.float16,) if quick else (torch.float16, torch.bfloat16):
            name = f"d{head_dim}/{str(dtype).removeprefix('torch.')}"
            yield Problem(f"full/{name}", head_dim, dtype)
            yield Problem(f"causal/{name}", head_dim, dtype, options=_causal)
            yield Problem(f"modified/{name}", head_dim, dtype, options=_modified)
            yield Problem(f"dropout/{name}", head_dim, dtype, options=lambda _: {"dropout_p": 0.2})
            yield Problem(f"mask/{name}", head_dim, dtype, seqlens=square, options=_listed)
            yield Problem(f"packed/{name}", head_dim, dtype, lengths=((70, 90), (1, 33), (129, 60)))
            yield Problem(
                f"cache/{name}", head_dim, dtype, (8, 2), cached=(300, 40, 1), gradients=False
            )
    yield Problem("biased/d64/float16", 64, options=_biased)
    yield Problem("deterministic/d64/float16", 64, options=lambda _: {"deterministic": True})
    yield Problem("unaligned/d40/float16", 40)
    if quick:
        yield Problem("full/d256/float16", 256, seqlens=_FEW)
    yield Problem("modified-dropout/d192/float16", 192, seqlens=_FEW, options=_dropped)
    yield Problem("full/d192v128/float16", 192, seqlens=_FEW, head_dim_v=128)


def toy() -> Iterator[Problem]:
    """A few that the emulator runs in no time."""
    for problem in problems(quick=True):
        if problem.name == "full/d64/float16":
            yield replace(problem, seqlens=(20, 30), heads=(2, 1))
        elif problem.lengths:
            yield replace(problem, lengths=((9, 7), (1, 5)), heads=(2, 1))


def outcomes(found: Sequence[Problem], device: str) -> Iterator[Outcome]:
    """The largest errors of each problem, and whether they keep to the project's rule."""
    for problem in found:
        errors = _errors(problem, device)
        wrong = [name for name, (error, allowed) in errors.items() if not error <= allowed]
        yield {"case": {"name": problem.name}, "errors": errors, "wrong": wrong}


def _errors(problem: Problem, device: str) -> dict[str, tuple[float, float]]:
    """Of out and each gradient: the error, and what is allowed."""
    results, refer = call(problem, device)
    exact, low = refer(torch.float64), refer(problem.dtype)
    errors = {}
    for name, value in results.items():
        slack = _SLACK.get(name, 1e-5)
        allowed = _FACTORS.get(name, 3) * max_error(low[name], exact[name].double()) + slack
        errors[name] = max_error(value, exact[name].double()), allowed
    return errors


Results = dict[str, Tensor]
Refer = Callable[[torch.dtype], Results]


def call(problem: Problem, device: str) -> tuple[Results, Refer]:
    """The results, and what gives those of the formula in a dtype."""
    torch.manual_seed(_SEED)
    if problem.cached:
        return _over_cache(problem, device)
    return (_packed if problem.lengths else _dense)(problem, device)


def _dense(problem: Problem, device: str) -> tuple[Results, Refer]:
    batch, options = 2, problem.options(device)
    (rows, keys), (heads, heads_kv) = problem.seqlens, problem.heads
    shapes = [
        (batch, rows, heads, problem.head_dim),
        (batch, keys, heads_kv, problem.head_dim),
        (batch, keys, heads_kv, problem.head_dim_v or problem.head_dim),
    ]
    inputs = [torch.randn(shape, device=device).to(problem.dtype) for shape in shapes]
    dropout = options.get("dropout_p", 0.0)
    reference = {name: value for name, value in options.items() if name != "deterministic"}
    state = _next_rng_state(device) if dropout else None

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = flash_attn_func(q, k, v, **options)
        return out

    def refer(dtype: torch.dtype) -> Results:
        return _results(
            lambda q, k, v: attention_reference(q, k, v, rng_state=state, **reference)[0],
            [x.to(dtype) for x in inputs],
            problem.gradients,
        )

    return _results(attend, inputs, problem.gradients), refer


def _next_rng_state(device: str) -> Tensor:
    """What the next call draws; as launches draw it, from torch's generator of the device."""
    torch.manual_seed(_SEED)
    state = torch.randint(-(2**63), 2**63 - 1, (2,), dtype=torch.int64, device=device)
    torch.manual_seed(_SEED)
    return state


def _packed(problem: Problem, device: str) -> tuple[Results, Refer]:
    queries, keys = zip(*problem.lengths, strict=True)
    ends = [torch.tensor([0, *lengths]).cumsum(0).int().to(device) for lengths in (queries, keys)]
    rows = (sum(queries), sum(keys), sum(keys))
    heads = (problem.heads[0], problem.heads[1], problem.heads[1])
    inputs = [
        torch.randn(total, count, problem.head_dim, device=device).to(problem.dtype)
        for total, count in zip(rows, heads, strict=True)
    ]
    packing = Packing(ends[0], ends[1], None, max(queries), max(keys))

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return flash_attn_varlen_func(
            q,
            k,
            v,
            packing.cu_seqlens_q,
            packing.cu_seqlens_k,
            max(queries),
            max(keys),
            causal=True,
        )

    def refer(dtype: torch.dtype) -> Results:
        return _results(
            lambda q, k, v: varlen_attention_reference(q, k, v, packing, causal=True)[0],
            [x.to(dtype) for x in inputs],
            problem.gradients,
        )

    return _results(attend, inputs, problem.gradients), refer


def _over_cache(problem: Problem, device: str) -> tuple[Results, Refer]:
    """One new query, key and value of each sequence, over pages."""
    page, lengths = 16, torch.tensor(problem.cached, dtype=torch.int32, device=device)
    batch, pages = len(problem.cached), -(-(max(problem.cached) + 1) // page)
    table = torch.randperm(batch * pages).view(batch, pages).int().to(device)
    heads, heads_kv = problem.heads

    def tensor(*shape: int) -> Tensor:
        return torch.randn(*shape, problem.head_dim, device=device).to(problem.dtype)

    q, k, v = tensor(batch, 1, heads), tensor(batch, 1, heads_kv), tensor(batch, 1, heads_kv)
    k_cache, v_cache = (tensor(batch * pages, page, heads_kv) for _ in range(2))
    options: Any = {"cache_seqlens": lengths, "block_table": table, "causal": True}
    given = k_cache.clone(), v_cache.clone()
    out: Any = flash_attn_with_kvcache(q, k_cache, v_cache, k, v, **options)

    def refer(dtype: torch.dtype) -> Results:
        exact, _, *left = kvcache_attention_reference(q, *given, k, v, dtype=dtype, **options)
        return {"out": exact, "k_cache": left[0], "v_cache": left[1]}

    return {"out": out, "k_cache": k_cache, "v_cache": v_cache}, refer


def _results(attend: Callable[..., Tensor], inputs: Sequence[Tensor], gradients: bool) -> Results:
    """out and, where asked for, the gradients, of an incoming one that is always the same."""
    if not gradients:
        return {"out": attend(*inputs)}
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = attend(*leaves)
    generator = torch.Generator().manual_seed(_SEED)
    incoming = torch.randn(out.shape, generator=generator).half().to(out)
    grads = torch.autograd.grad(out, leaves, incoming)
    return {"out": out.detach()} | dict(zip(("grad_q", "grad_k", "grad_v"), grads, strict=True))


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="tools.gpu_report.problems", description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--all", action="store_true", help="every head dim and dtype")
    parser.add_argument("--family", default="", help="only problems that its kernels serve")
    given = parser.parse_args(arguments)
    found = list(problems(quick=not given.all))
    if given.family:
        found = [one for one in found if is_served(one, given.device, given.family)]
    failed = 0
    for outcome in outcomes(found, given.device):
        failed += bool(outcome["wrong"])
        verdict = f"WRONG: {', '.join(outcome['wrong'])}" if outcome["wrong"] else "ok"
        print(f"{outcome['case']['name']}: {verdict}", flush=True)
    return 1 if failed or not found else 0


def is_served(problem: Problem, device: str, family: str) -> bool:
    """Whether any pass of it is by the family's kernels."""
    return family in families(plans_of(lambda: call(problem, device))).values()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
