"""A failing problem -> the smallest one that still fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

from .biases import NO_BIASES, Biases
from .layout import PLAIN
from .masks import NO_MASK
from .problem import CacheUse, Options, Problem, possible
from .script import script
from .worker import Worker

Fails = Callable[[Problem], bool]


def smallest(worker: Worker, problem: Problem, message: str) -> str:
    """The smallest problem that fails in the same way, as a program."""
    way = message.split()[:2]
    small = shrunk(problem, lambda other: worker.failure(other).split()[:2] == way)
    program = script(small, guarded=message.startswith("crashes"))
    return f"\n# shrunk: {small!r}\n# {worker.failure(small)}\n{program}"


def shrunk(problem: Problem, fails: Fails, seconds: float = 60.0) -> Problem:
    """Greedy: the first simpler problem that fails is the next one."""
    end = time.monotonic() + seconds
    tried = {problem}
    while time.monotonic() < end:
        for simpler in simplifications(problem):
            simpler = possible(simpler)
            if simpler in tried:
                continue
            tried.add(simpler)
            if fails(simpler):
                problem = simpler
                break
            if time.monotonic() > end:
                break
        else:
            break
    return problem


def simplifications(problem: Problem) -> Iterator[Problem]:
    """Simpler problems, the simplest first."""
    yield from _with_less(problem)
    batch = len(problem.seqlens_q)
    for i in range(batch):
        yield _only(problem, [i])
    for i in range(batch):
        yield _only(problem, [j for j in range(batch) if j != i])
    if problem.heads != (1, 1):
        yield replace(problem, heads=(1, 1))
        yield replace(problem, heads=(1, problem.heads[1]))
        yield replace(problem, heads=(problem.heads[0], 1))
        if problem.heads[1] > 2:
            yield replace(problem, heads=(problem.heads[0], 2))
    for head_dim in _smaller(problem.head_dim, 1):
        yield replace(problem, head_dim=head_dim)
    if problem.other_width:
        yield replace(problem, other_width=0)
        for width in _smaller(problem.other_width, 1):
            yield replace(problem, other_width=width)
    for name in ("seqlens_q", "seqlens_k"):
        yield from _shorter(problem, name)
    if problem.cache.page_size > 1:
        yield replace(problem, cache=replace(problem.cache, page_size=problem.cache.page_size // 2))


def _with_less(problem: Problem) -> Iterator[Problem]:
    """Each feature left out."""
    for field in fields(Options):
        if getattr(problem.options, field.name) != field.default:
            yield replace(problem, options=replace(problem.options, **{field.name: field.default}))
    for field in fields(CacheUse):
        if field.name in ("page_size", "capacity", "packed") or (
            getattr(problem.cache, field.name) == field.default
        ):
            continue
        cache = replace(problem.cache, **{field.name: field.default})
        if field.name == "new":
            ends = problem.seqlens_k
            leftpad = tuple(map(min, cache.leftpad, ends))
            cache = replace(cache, rotary="", leftpad=leftpad)
        yield replace(problem, cache=cache)
    if problem.kind == "cache" and problem.cache.page_size:
        yield replace(problem, cache=replace(problem.cache, page_size=0, capacity=_most(problem)))
    equal = len(set(problem.seqlens_q)) == 1 and len(set(problem.cache.new)) <= 1
    if problem.kind == "cache" and problem.cache.packed and equal:
        yield replace(problem, cache=replace(problem.cache, packed=False, bound=False))
    if problem.mask.heads:
        yield replace(problem, mask=NO_MASK)
        for name, value in (("heads", "one"), ("per_sequence", False), ("as_partial", 0.0)):
            yield replace(problem, mask=replace(problem.mask, **{name: value}))
    if problem.biases != NO_BIASES:
        yield replace(problem, biases=NO_BIASES)
        for field in fields(Biases):
            if getattr(problem.biases, field.name) != field.default:
                biases = replace(problem.biases, **{field.name: field.default})
                yield replace(problem, biases=biases)
    simple: dict[str, Any] = {
        "path": "direct",
        "more": "",
        "packing": "",
        "values": "normal",
        "used": (),
        "used_q": (),
        "spare": 0,
        "slack": 0,
        "hostile": 0,
        "threads": 1,
        "dtype": "float32",
        "behind": True,
    }
    for name, value in simple.items():
        if getattr(problem, name) != value:
            yield replace(problem, **{name: value})
    yield replace(problem, layouts=(PLAIN,) * 4)
    for i in range(4):
        layouts = list(problem.layouts)
        layouts[i] = PLAIN
        yield replace(problem, layouts=tuple(layouts))


def _most(problem: Problem) -> int:
    return max(problem.seqlens_k, default=0) + max(problem.cache.new, default=0)


def _only(problem: Problem, kept: list[int]) -> Problem:
    """With some of the sequences."""

    def of(values: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(values[i] for i in kept) if values else ()

    cache = replace(problem.cache, new=of(problem.cache.new), leftpad=of(problem.cache.leftpad))
    return replace(
        problem,
        seqlens_q=of(problem.seqlens_q),
        seqlens_k=of(problem.seqlens_k),
        used=of(problem.used),
        used_q=of(problem.used_q),
        cache=cache,
    )


def _smaller(value: int, least: int) -> list[int]:
    """Fewer, fewest first."""
    candidates = (least, 8, 16, 64, value // 2, value - 8, value - 1)
    return sorted({n for n in candidates if least <= n < value})


def _shorter(problem: Problem, name: str) -> Iterator[Problem]:
    """With shorter sequences, all or one of them."""
    seqlens: tuple[int, ...] = getattr(problem, name)
    equal = (
        problem.kind == "dense"
        or (name == "seqlens_q" and not problem.cache.packed)
        or (problem.cache.one_length)
    )
    for shorter in _smaller(max(seqlens, default=0), 0):
        yield _with_lengths(problem, name, tuple(min(n, shorter) for n in seqlens))
    if equal and problem.kind != "varlen":
        return
    for i, seqlen in enumerate(seqlens):
        for shorter in _smaller(seqlen, 0):
            changed = list(seqlens)
            changed[i] = shorter
            yield _with_lengths(problem, name, tuple(changed))


def _with_lengths(problem: Problem, name: str, seqlens: tuple[int, ...]) -> Problem:
    changes: dict[str, Any] = {name: seqlens}
    if problem.packing == "qkv":
        changes = {"seqlens_q": seqlens, "seqlens_k": seqlens}
    seqlens_k = changes.get("seqlens_k", problem.seqlens_k)
    seqlens_q = changes.get("seqlens_q", problem.seqlens_q)
    changes["used"] = tuple(map(min, problem.used, seqlens_k))
    changes["used_q"] = tuple(map(min, problem.used_q, seqlens_q))
    use = problem.cache
    if use.new and use.new == problem.seqlens_q:
        use = replace(use, new=seqlens_q)
    ends = [a + b for a, b in zip(seqlens_k, use.new or (0,) * len(seqlens_k), strict=True)]
    use = replace(use, leftpad=tuple(map(min, use.leftpad, ends)))
    return replace(problem, **changes, cache=use)
