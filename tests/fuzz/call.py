"""A problem -> the call of a public function, as data: its name, its arguments, its gradients."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, replace
from typing import Any

import torch

from .biases import bias_specs
from .codes import CodeSpec, ScaleSpec
from .layout import PLAIN, Columns, Layout, Spec
from .masks import MaskSpec
from .memory import guarded_copy
from .problem import Problem

NONSENSE = (-1, 2**31 - 1, -(2**31), 10**6)


@dataclass(frozen=True)
class Integers:
    """An int32 tensor; `size` is that of the values unless it is given."""

    values: list[Any]
    size: tuple[int, ...] = (-1,)


@dataclass(frozen=True)
class Numbers:
    """A float32 tensor."""

    values: list[Any]


@dataclass(frozen=True)
class Call:
    """What is called. Arguments are specifications of tensors, and numbers."""

    function: str
    arguments: dict[str, Any]
    differentiated: tuple[str, ...]  # of the arguments
    grad_out: Spec | None
    end: int | None  # rows of packed queries that belong to a sequence


def described(problem: Problem) -> Call:
    """The call of a problem."""
    functions = {
        "dense": f"flash_attn_{problem.packing}{'packed_' if problem.packing else ''}func",
        "varlen": f"flash_attn_varlen_{problem.packing}{'packed_' if problem.packing else ''}func",
        "paged": "flash_attn_varlen_func",
        "cache": "flash_attn_with_kvcache",
    }
    arguments = (_cache_arguments if problem.kind == "cache" else _arguments)(problem)
    arguments |= _options(problem) | _block_mask(problem) | _biases(problem)
    names = ("q", "k", "v", "kv", "qkv", "sink", "bias", "relative_bias")
    gradient = problem.path == "gradient"
    packed = problem.kind in ("varlen", "paged") or problem.cache.packed
    end = sum(problem.seqlens_q) if packed else None
    size = (*_size_q(problem)[:-1], problem.head_dim_v)
    grad_out = Spec(
        "grad_out",
        size,
        _dtype(problem),
        layout=_holed(problem.layouts[3]) if packed else problem.layouts[3],
        seed=problem.seed + 9,
        filled=_rows(problem.seqlens_q, problem) if packed else None,
    )
    return Call(
        functions[problem.kind],
        arguments,
        tuple(name for name in names if name in arguments) if gradient else (),
        grad_out if gradient else None,
        end,
    )


def build(call: Call, behind: bool) -> dict[str, Any]:
    """The arguments, in guarded memory."""
    return with_views(call, {name: built(value, behind) for name, value in call.arguments.items()})


def with_views(call: Call, arguments: dict[str, Any]) -> dict[str, Any]:
    """With those that are views of others as views of what these are here."""
    views = {name: x for name, x in call.arguments.items() if isinstance(x, Columns)}
    return arguments | {name: view.of_arguments(arguments) for name, view in views.items()}


def built(value: Any, behind: bool) -> Any:
    if isinstance(value, (Spec, MaskSpec, CodeSpec, ScaleSpec)):
        return value.build(behind)
    if isinstance(value, Integers):
        tensor = torch.tensor(value.values, dtype=torch.int32).view(value.size)
        return guarded_copy(tensor, behind)
    if isinstance(value, Numbers):
        return guarded_copy(torch.tensor(value.values, dtype=torch.float32), behind)
    return value


def _dtype(problem: Problem) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, problem.dtype)
    return dtype


def _size_q(problem: Problem) -> tuple[int, ...]:
    heads = problem.heads[0] * problem.heads[1], problem.head_dim
    if problem.kind == "dense" or (problem.kind == "cache" and not problem.cache.packed):
        return (len(problem.seqlens_q), max(problem.seqlens_q, default=3), *heads)
    return (sum(problem.seqlens_q) + problem.spare, *heads)


def _rows(seqlens: tuple[int, ...], problem: Problem, used: tuple[int, ...] = ()) -> Any:
    """The filled rows of packed tensors."""
    begins = itertools.accumulate(seqlens, initial=0)
    return tuple(
        ((begin, begin + count),)
        for begin, count in zip(begins, used or seqlens, strict=False)
        if count
    )


def _cumulative(seqlens: tuple[int, ...]) -> Integers:
    return Integers(list(itertools.accumulate(seqlens, initial=0)))


def _holed(layout: Layout) -> Layout:
    """Tensors with holes are written part by part."""
    return replace(layout, expanded=())


def _arguments(problem: Problem) -> dict[str, Any]:
    num_heads_kv = problem.heads[0]
    varlen = problem.kind != "dense"
    size_q = _size_q(problem)
    size_k = (sum(problem.seqlens_k) + problem.spare,)
    if not varlen:
        size_k = (len(problem.seqlens_k), max(problem.seqlens_k, default=3))
    if problem.packing == "qkv":
        size_k = size_q[: 1 if varlen else 2]

    def spec(name: str, size: tuple[int, ...], index: int, filled: Any) -> Spec:
        layout = problem.layouts[index]
        if filled is not None:
            layout = _holed(layout)
        seed = problem.seed + index
        return Spec(name, size, _dtype(problem), problem.values, layout, seed, filled)

    # What does not count is NaN, but for queries that are keys as well.
    used_q = () if problem.packing == "qkv" else problem.used_q
    filled_q = _rows(problem.seqlens_q, problem, used_q) if varlen else None
    filled_k = _rows(problem.seqlens_k, problem, problem.used) if varlen else None
    heads_k, heads_v = (num_heads_kv, problem.head_dim), (num_heads_kv, problem.head_dim_v)
    arguments: dict[str, Any] = {}
    if problem.packing == "qkv":
        # One range of rows for all three: NaN among queries would reach their results.
        size = (*size_q[:-2], 3, num_heads_kv, problem.head_dim)
        arguments["qkv"] = spec("qkv", size, 0, filled_q)
    else:
        arguments["q"] = spec("q", size_q, 0, filled_q)
        if problem.packing == "kv":
            arguments["kv"] = spec("kv", (*size_k, 2, *heads_k), 1, filled_k)
        elif problem.kind == "dense" or problem.kind == "varlen":
            arguments["k"] = spec("k", (*size_k, *heads_k), 1, filled_k)
            arguments["v"] = spec("v", (*size_k, *heads_v), 2, filled_k)
        else:
            arguments |= _pages(problem, ("k", "v"), problem.used or problem.seqlens_k, ())
    if varlen:
        longest_q, longest_k = (
            max(seqlens, default=0) + problem.slack
            for seqlens in (problem.seqlens_q, problem.seqlens_k)
        )
        if problem.packing == "qkv":
            arguments["cu_seqlens"] = _cumulative(problem.seqlens_q)
            arguments["max_seqlen"] = longest_q
        else:
            arguments["cu_seqlens_q"] = _cumulative(problem.seqlens_q)
            arguments["cu_seqlens_k"] = _cumulative(problem.seqlens_k)
            arguments["max_seqlen_q"] = longest_q
            arguments["max_seqlen_k"] = longest_k
        if problem.used:
            arguments["seqused_k"] = Integers(list(problem.used))
        if problem.used_q:
            arguments["seqused_q"] = Integers(list(problem.used_q))
    return arguments


def _block_mask(problem: Problem) -> dict[str, Any]:
    mask, (heads_kv, group) = problem.mask, problem.heads
    if not mask.heads:
        return {}
    batch = max(1, len(problem.seqlens_q)) if mask.per_sequence else 1
    heads = {"one": 1, "kv": heads_kv, "all": heads_kv * group}[mask.heads]
    lengths = (max(x, default=3) for x in (problem.seqlens_q, problem.seqlens_k))
    return {"block_mask": MaskSpec((batch, heads, *lengths), mask, problem.seed + 11)}


def _biases(problem: Problem) -> dict[str, Any]:
    size = len(problem.seqlens_q), problem.heads[0] * problem.heads[1]
    lengths = (max(x, default=3) for x in (problem.seqlens_q, problem.seqlens_k))
    return bias_specs(problem.biases, (*size, *lengths), _dtype(problem), problem.seed + 12)


def _options(problem: Problem) -> dict[str, Any]:
    options = problem.options
    num_heads = problem.heads[0] * problem.heads[1]
    draw = random.Random(problem.seed)
    arguments: dict[str, Any] = {}
    if options.causal:
        arguments["causal"] = True
    if options.window != (-1, -1):
        arguments["window_size"] = options.window
    for name in ("softcap", "dropout_p", "deterministic"):
        if getattr(options, name):
            arguments[name] = getattr(options, name)
    if options.softmax_scale is not None:
        arguments["softmax_scale"] = options.softmax_scale
    if options.alibi:
        slopes = [
            [round(draw.uniform(0, 0.5), 3) for _ in range(num_heads)] for _ in problem.seqlens_q
        ]
        per_head = [round(draw.uniform(0, 0.5), 3) for _ in range(num_heads)]
        arguments["alibi_slopes"] = Numbers(
            slopes if options.alibi == "batch" and slopes else per_head
        )
    if options.sink:
        sink = [round(draw.gauss(0, 2), 3) for _ in range(num_heads)]
        if draw.random() < 0.2:
            sink[0] = float("-inf")
        arguments["sink"] = Numbers(sink)
    return arguments


def _table(problem: Problem, ends: list[int], pages_of_a_row: int) -> list[list[int]]:
    """Pages in any order, and nonsense where no row is."""
    draw = random.Random(problem.seed)
    page_size = problem.cache.page_size
    used = [-(-end // page_size) for end in ends]
    pages = list(range(sum(used) + 2))
    draw.shuffle(pages)
    place = iter(pages)
    return [
        [next(place) if i < count else draw.choice(NONSENSE) for i in range(pages_of_a_row)]
        for count in used
    ]


def _pages(
    problem: Problem, names: tuple[str, str], held: tuple[int, ...], begins: tuple[int, ...]
) -> dict[str, Any]:
    """The caches, and how sequences find their rows there."""
    use, batch = problem.cache, len(problem.seqlens_q)
    ends = [a + b for a, b in itertools.zip_longest(problem.seqlens_k, use.new, fillvalue=0)]
    arguments: dict[str, Any] = {}
    draw = random.Random(problem.seed + 1)
    if use.page_size:
        columns = max(1, -(-max(ends, default=0) // use.page_size)) + draw.choice((0, 0, 1))
        table = _table(problem, ends, columns)
        count, rows = sum(-(-end // use.page_size) for end in ends) + 2, use.page_size
        arguments["block_table"] = Integers(table, (batch, columns))
    elif use.batch_idx:
        places = list(range(batch + 2))
        draw.shuffle(places)
        table = [[place] for place in places[:batch]]
        count, rows = batch + 2, use.capacity
        arguments["cache_batch_idx"] = Integers(places[:batch])
    else:
        table, count, rows = [[i] for i in range(batch)], batch, use.capacity
    filled = []
    for b, (begin, end) in enumerate(itertools.zip_longest(begins, held, fillvalue=0)):
        for position in range(begin, end):
            page = table[b][position // rows]
            filled.append(((page, page + 1), (position % rows, position % rows + 1)))
    merged = _merged(filled)
    widths = problem.head_dim, problem.head_dim_v
    for i, (name, width) in enumerate(zip(names, widths, strict=True)):
        layout = _cache_layout(problem.layouts[1], width)
        arguments[name] = Spec(
            name,
            (count, rows, problem.heads[0], width),
            _dtype(problem),
            problem.values,
            layout,
            problem.seed + 1 + i,
            merged,
        )
        if use.codes:
            numbers = replace(arguments[name], dtype=torch.float32)
            # As many pages as sequences would not say of which of them scales are.
            unclear = use.page_size and use.scales == "sequence" and count == batch
            codes = CodeSpec(numbers, use.codes, "page" if unclear else use.scales)
            arguments[name] = codes
            arguments[f"{name[0]}_descale"] = ScaleSpec(codes, batch)
    if use.shared:
        arguments[names[1]] = Columns(names[0], problem.head_dim_v)
        # Scales that follow from rows are those of keys; so are those that new rows go by.
        if use.codes and (use.new or use.scales == "row"):
            arguments["v_descale"] = Columns("k_descale")
    return arguments


def _merged(filled: list[Any]) -> tuple[Any, ...]:
    """Runs of rows of a page in one."""
    merged: list[Any] = []
    for page, (begin, end) in filled:
        if merged and merged[-1][0] == page and merged[-1][1][1] == begin:
            merged[-1] = (page, (merged[-1][1][0], end))
        else:
            merged.append((page, (begin, end)))
    return tuple(merged)


def _cache_layout(layout: Layout, width: int) -> Layout:
    """One that is used in place."""
    order = tuple(dim for dim in layout.order if dim != -1)
    if not order:
        return PLAIN
    aligned = -width % 8 == 0
    room = (0,) * len(order) + ((8 if layout.room else 0),) if aligned else ()
    return Layout((*order, -1), room, (), 0)


def _cache_arguments(problem: Problem) -> dict[str, Any]:
    use, batch = problem.cache, len(problem.seqlens_q)
    num_heads = problem.heads[0] * problem.heads[1]
    dtype = _dtype(problem)
    packed = use.packed
    draw = random.Random(problem.seed + 2)

    def rows(name: str, counts: tuple[int, ...], heads: int, index: int) -> Spec:
        width = problem.head_dim_v if name == "v" else problem.head_dim
        size: tuple[int, ...] = (batch, max(counts, default=1), heads, width)
        if packed:
            size = (sum(counts), heads, width)
        layout = problem.layouts[index]
        return Spec(name, size, dtype, problem.values, layout, problem.seed + 4 + index)

    held: tuple[int, ...] = problem.seqlens_k
    arguments: dict[str, Any] = {"q": rows("q", problem.seqlens_q, num_heads, 0)}
    # Rows in front of the padding hold NaN.
    arguments |= _pages(problem, ("k_cache", "v_cache"), held, use.leftpad)
    arguments["cache_seqlens"] = held[0] if use.one_length and held else Integers(list(held))
    if use.leftpad:
        arguments["cache_leftpad"] = Integers(list(use.leftpad))
    if packed:
        arguments["cu_seqlens_q"] = _cumulative(problem.seqlens_q)
        if use.bound:
            arguments["max_seqlen_q"] = max(problem.seqlens_q, default=0)
    if use.new or (batch == 0 and draw.random() < 0.5):
        arguments["k"] = rows("k", use.new, problem.heads[0], 1)
        if not use.shared:
            arguments["v"] = rows("v", use.new, problem.heads[0], 2)
        elif use.new_v:
            arguments["v"] = Columns("k", problem.head_dim_v)
        if packed and use.new != problem.seqlens_q:
            arguments["cu_seqlens_k_new"] = _cumulative(use.new)
    if use.rotary:
        rotary_dim = problem.head_dim // 2 * 2
        if use.rotary.endswith("partial"):
            rotary_dim = max(2, rotary_dim // 4 * 2)
        positions = max(
            (a + max(b, c) for a, b, c in zip(held, use.new, problem.seqlens_q, strict=True)),
            default=1,
        )
        size = (max(1, positions), rotary_dim // 2)
        if draw.random() < 0.3:
            dtype = torch.float32
        for i, name in enumerate(("rotary_cos", "rotary_sin")):
            arguments[name] = Spec(name, size, dtype, "angles", seed=problem.seed + 7 + i)
        if use.rotary.startswith("neox"):
            arguments["rotary_interleaved"] = False
    if use.num_splits:
        arguments["num_splits"] = use.num_splits
    return arguments
