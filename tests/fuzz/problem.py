"""A random problem: what is called, with which tensors and options. Its repr makes it again."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, replace
from typing import Any

from .biases import NO_BIASES, Biases, drawn_biases
from .codes import drawn_codes
from .layout import OF_OTHERS, PLAIN, VALUES, Layout, drawn_layout, short_repr
from .masks import NO_MASK, Mask, drawn_mask

KINDS = ("dense", "dense", "varlen", "varlen", "paged", "cache", "cache")
PATHS = ("direct", "direct", "gradient", "gradient", "mode", "profiler")
DTYPES = ("float32", "float16", "bfloat16", "float64")
HALF = DTYPES[1:3]


@dataclass(frozen=True)
class Options:
    """Those that all functions share; the defaults change nothing."""

    causal: bool = False
    window: tuple[int, int] = (-1, -1)
    softcap: float = 0.0
    softmax_scale: float | None = None
    alibi: str = ""  # or "heads" or "batch"
    sink: bool = False
    dropout_p: float = 0.0
    deterministic: bool = False

    def __repr__(self) -> str:
        return short_repr(self)


@dataclass(frozen=True)
class CacheUse:
    """Of `flash_attn_with_kvcache`, and in part of paged varlen calls."""

    page_size: int = 0  # 0: none
    capacity: int = 64  # rows of a sequence, without pages
    new: tuple[int, ...] = ()  # rows to append for each sequence
    rotary: str = ""  # or neox, interleaved, or either with -partial
    leftpad: tuple[int, ...] = ()
    batch_idx: bool = False
    packed: bool = False
    one_length: bool = False  # an int as cache_seqlens
    num_splits: int = 0
    bound: bool = False  # max_seqlen_q is given
    codes: str = ""  # the type of a cache of 8 bits
    scales: str = "row"  # and what one of its scales is for
    shared: bool = False  # values are the leading columns of keys
    new_v: bool = False  # then: new values are given, as a view of new keys

    def __repr__(self) -> str:
        return short_repr(self)


@dataclass(frozen=True)
class Problem:
    """`dense` problems have sequences of equal lengths."""

    kind: str  # dense, varlen, paged (varlen) or cache
    dtype: str
    seqlens_q: tuple[int, ...]
    seqlens_k: tuple[int, ...]  # held by the cache, where there is one
    heads: tuple[int, int]  # (num_heads_kv, group)
    head_dim: int
    path: str = "direct"  # or gradient, mode, profiler, compiled
    more: str = ""  # what is asked for beside out: lse, or probs (with lse)
    packing: str = ""  # or "kv" or "qkv": what is in one tensor
    layouts: tuple[Layout, ...] = (PLAIN, PLAIN, PLAIN, PLAIN)  # q, k, v, gradient of out
    values: str = "normal"
    used: tuple[int, ...] = ()  # seqused_k
    used_q: tuple[int, ...] = ()
    spare: int = 0  # rows of no sequence
    slack: int = 0  # of the bounds of lengths
    options: Options = Options()
    cache: CacheUse = CacheUse()
    mask: Mask = NO_MASK  # of dense problems
    biases: Biases = NO_BIASES  # likewise
    behind: bool = True  # where guard pages lie
    threads: int = 1
    other_width: int = 0  # of values and out; 0: head_dim
    hostile: int = 0  # seed of lengths, tables and positions that no check has seen; 0: none
    seed: int = 0

    @property
    def head_dim_v(self) -> int:
        return self.other_width or self.head_dim

    def __repr__(self) -> str:
        return short_repr(self)


@dataclass(frozen=True)
class Limits:
    """How large problems get."""

    dtypes: tuple[str, ...]
    seqlens: tuple[int, ...]  # typical bounds
    work: int  # most of rows of queries * keys * heads * head_dim
    compiled: float  # share of calls under torch.compile


LIMITS = {
    "cpu": Limits(DTYPES, (8, 8, 70, 70, 150, 300, 700), 6_000_000, 0.01),
    "sm80-emulated": Limits(HALF, (8, 8, 40, 70, 140), 600_000, 0.005),
    "sm90-emulated": Limits(HALF, (8, 40, 70, 140, 200), 600_000, 0.005),
}
_HOSTILE = 0.05  # share of problems
_MASKED = 0.4  # share of dense ones
_BIASED = 0.3  # likewise
_WIDER = 0.4  # share of problems with values of another width or heads beyond 256
_CODES = 0.3  # share of problems over a cache of 8 bits
_SHARED = 0.3  # share of problems over a cache whose keys hold the values
_SHARED_WIDTHS = ((576, 512), (576, 512), (512, 512), (512, 256), (320, 256), (64, 64), (48, 8))
_EDGES = (0, 1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 191, 192, 193, 256, 257)
_HEAD_DIMS = (1, 2, 7, 8, 16, 32, 33, 40, 64, 64, 64, 72, 80, 96, 100, 128, 128, 160, 192, 256)
_SETTINGS = (
    "causal",
    "window",
    "softcap",
    "softmax_scale",
    "alibi",
    "sink",
    "dropout_p",
    "deterministic",
)
# Every option, and every pair and triple of them, in turn.
_SUBSETS = [subset for size in range(4) for subset in itertools.combinations(_SETTINGS, size)]


def drawn(seed: int, number: int, backend: str = "cpu") -> Problem:
    """Problem `number` of the series that `seed` begins."""
    draw = random.Random(f"{seed} {number}")
    limits = LIMITS[backend]
    kind, path = draw.choice(KINDS), draw.choice(PATHS)
    if draw.random() < limits.compiled:
        path = "compiled"
    cached = kind in ("paged", "cache")
    if cached and path == "gradient":
        path = "direct"
    subset = _SUBSETS[(number * 37) % len(_SUBSETS)]
    if cached:
        subset = tuple(name for name in subset if name not in ("dropout_p", "deterministic"))
    values = (
        "normal"
        if draw.random() < 0.6
        else draw.choice([name for name in VALUES if name not in OF_OTHERS])
    )
    problem = Problem(
        kind,
        draw.choice(limits.dtypes),
        *_drawn_lengths(draw, limits, kind),
        heads=(draw.choice((1, 1, 2, 3)), draw.choice((1, 1, 2, 3, 4, 8))),
        head_dim=draw.choice(_HEAD_DIMS) if draw.random() < 0.8 else draw.randint(1, 256),
        path=path,
        more=draw.choice(("", "", "lse", "probs")),
        layouts=tuple(drawn_layout(draw) for _ in range(4)),
        values=values,
        spare=draw.choice((0, 0, 1, 9)) if kind in ("varlen", "paged") else 0,
        slack=draw.choice((0, 0, 1, 50)) if kind in ("varlen", "paged") else 0,
        options=_drawn_options(draw, subset, limits),
        behind=draw.random() < 0.7,
        threads=draw.choice((1, 1, 1, 2, 3)),
        seed=draw.randrange(10**6),
    )
    problem = _with_packing(draw, problem)
    if kind == "varlen" and draw.random() < 0.3:
        problem = replace(problem, used=tuple(draw.randint(0, n) for n in problem.seqlens_k))
    if cached:
        problem = _with_cache(draw, problem, backend)
    if kind != "dense" and draw.random() < _HOSTILE:
        problem = replace(problem, hostile=1 + draw.randrange(10**6))
    if kind == "varlen" and draw.random() < 0.25:
        problem = replace(problem, used_q=tuple(draw.randint(0, n) for n in problem.seqlens_q))
    if kind == "dense" and draw.random() < _MASKED:
        hostile = 1 + draw.randrange(10**6) if draw.random() < _HOSTILE else 0
        problem = replace(problem, mask=drawn_mask(draw), hostile=hostile)
    other = random.Random(f"{seed} {number} biases")
    if kind == "dense" and other.random() < _BIASED:
        problem = replace(problem, biases=drawn_biases(other))
    widths = random.Random(f"{seed} {number} widths")
    if widths.random() < _WIDER:
        problem = _with_widths(widths, problem, backend)
    codes = random.Random(f"{seed} {number} codes")
    if kind == "cache" and codes.random() < _CODES:
        problem = replace(problem, cache=replace(problem.cache, **drawn_codes(codes)))
    shared = random.Random(f"{seed} {number} shared")
    if cached and shared.random() < _SHARED:
        problem = _with_values_in_keys(shared, problem)
    return possible(_cut(problem, limits.work))


def _with_values_in_keys(draw: random.Random, problem: Problem) -> Problem:
    """As latents have them, or heads of any width; often of one head, with many queries on it."""
    if draw.random() < 0.6:
        head_dim, head_dim_v = draw.choice(_SHARED_WIDTHS)
        problem = replace(problem, head_dim=head_dim, other_width=head_dim_v)
    if draw.random() < 0.5:
        problem = replace(problem, heads=(1, draw.choice((1, 4, 8, 16, 20))))
    cache = replace(problem.cache, shared=True, new_v=draw.random() < 0.5)
    return replace(problem, cache=cache)


def _drawn_lengths(
    draw: random.Random, limits: Limits, kind: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    most = draw.choice(limits.seqlens)

    def length(most: int) -> int:
        edges = [n for n in _EDGES if n <= most]
        return draw.choice(edges) if draw.random() < 0.4 else draw.randint(1, most)

    batch = draw.choice((1, 1, 2, 3, 5))
    if draw.random() < 0.03:
        batch = 0
    few_queries = draw.random() < (0.6 if kind == "cache" else 0.3)
    if kind == "dense":
        length_q, length_k = length(8 if few_queries else most), length(most)
        if draw.random() < 0.3:
            length_k = length_q
        return (length_q,) * batch, (length_k,) * batch
    return (
        tuple(length(8 if few_queries else most) for _ in range(batch)),
        tuple(0 if draw.random() < 0.1 else length(most) for _ in range(batch)),
    )


def _with_widths(draw: random.Random, problem: Problem, backend: str) -> Problem:
    if draw.random() < 0.3:
        problem = replace(problem, head_dim=draw.choice((257, 320, 500, 512, 576)))
        if backend != "cpu" and problem.kind not in ("paged", "cache"):
            problem = replace(problem, head_dim=min(problem.head_dim, 512))
    if problem.packing:  # which makes widths equal
        return replace(problem, head_dim=min(problem.head_dim, 512))
    other = draw.choice(_HEAD_DIMS) if draw.random() < 0.7 else draw.randint(1, 512)
    problem = replace(problem, other_width=other)
    return _aligned(problem) if backend != "cpu" and problem.kind in ("paged", "cache") else problem


def _aligned(problem: Problem) -> Problem:
    """With rows of whole units of 8 columns: caches are read in place, which CUDA kernels need."""
    head_dim, other_width = (-(-n // 8) * 8 for n in (problem.head_dim, problem.other_width))
    return replace(problem, head_dim=head_dim, other_width=other_width)


def _drawn_options(draw: random.Random, subset: tuple[str, ...], limits: Limits) -> Options:
    most = max(limits.seqlens)

    def side() -> int:
        return draw.choice((-1, 0, 1, 5, draw.randint(0, 100), draw.randint(0, most), 10**6))

    drawn: dict[str, Any] = {
        "causal": True,
        "window": (side(), side()),
        "softcap": draw.choice((0.1, 1.0, 5.0, 30.0, 1e4)),
        "softmax_scale": draw.choice((0.0, 0.01, 0.25, 1.0, 2.0)),
        "alibi": draw.choice(("heads", "batch")),
        "sink": True,
        "dropout_p": draw.choice((0.01, 0.1, 0.5, 0.9)),
        "deterministic": True,
    }
    return Options(**{name: drawn[name] for name in subset})


def _with_packing(draw: random.Random, problem: Problem) -> Problem:
    if problem.kind not in ("dense", "varlen") or draw.random() < 0.7:
        return problem
    if draw.random() < 0.5:
        return replace(problem, packing="kv")
    return replace(problem, packing="qkv", heads=(problem.heads[0], 1), seqlens_k=problem.seqlens_q)


def _with_cache(draw: random.Random, problem: Problem, backend: str) -> Problem:
    page_size = draw.choice((1, 3, 16, 48, 64, 256))
    if problem.kind == "cache" and draw.random() < 0.5:
        page_size = 0
    if backend != "cpu":
        problem = _aligned(problem)
    if problem.kind == "paged":
        used = tuple(draw.randint(0, n) for n in problem.seqlens_k)
        return replace(
            problem,
            cache=CacheUse(page_size=page_size),
            used=used if draw.random() < 0.5 else (),
        )
    packed = draw.random() < 0.4
    batch = len(problem.seqlens_q)
    if not packed:
        problem = replace(problem, seqlens_q=problem.seqlens_q[:1] * batch)
    one_length = draw.random() < 0.2
    if one_length:
        problem = replace(problem, seqlens_k=problem.seqlens_k[:1] * batch)
    new: tuple[int, ...] = ()
    if draw.random() < 0.7:
        new = problem.seqlens_q
        if draw.random() < 0.3:
            extra = draw.randint(1, 5)
            new = tuple(n + (draw.randint(0, extra) if packed else extra) for n in new)
    rotary = draw.choice(("", "neox", "interleaved", "neox-partial", "interleaved-partial"))
    ends = [a + b for a, b in itertools.zip_longest(problem.seqlens_k, new, fillvalue=0)]
    leftpad: tuple[int, ...] = ()
    if draw.random() < 0.3:
        leftpad = tuple(draw.choice((0, end, draw.randint(0, end))) for end in ends)
    cache = CacheUse(
        page_size=page_size,
        capacity=max(ends, default=0) + draw.choice((0, 1, 40)),
        new=new,
        rotary=rotary if new and problem.head_dim > 1 else "",
        leftpad=leftpad,
        batch_idx=page_size == 0 and draw.random() < 0.3,
        packed=packed,
        one_length=one_length,
        num_splits=draw.choice((0, 0, 1, 2, 3, 16, 128)),
        bound=packed and draw.random() < 0.5,
    )
    return replace(problem, cache=cache)


def _cut(problem: Problem, most: int) -> Problem:
    """With fewer heads, then shorter sequences, if it would take too long."""
    if work(problem) > most:
        problem = replace(problem, heads=(1, 1))
    while work(problem) > most:
        halved: dict[str, Any] = {
            name: tuple(n // 2 for n in getattr(problem, name))
            for name in ("seqlens_q", "seqlens_k", "used", "used_q")
        }
        cache = replace(
            problem.cache,
            new=tuple(n // 2 for n in problem.cache.new),
            leftpad=tuple(max(0, n // 2 - 1) for n in problem.cache.leftpad),
        )
        problem = replace(problem, **halved, cache=cache)
    return problem


def work(problem: Problem) -> int:
    lengths_k = [
        a + b for a, b in itertools.zip_longest(problem.seqlens_k, problem.cache.new, fillvalue=0)
    ]
    pairs = sum(a * b for a, b in zip(problem.seqlens_q, lengths_k, strict=True))
    rows = max((*problem.seqlens_q, 1)) * 64
    return (
        max(pairs, rows)
        * problem.heads[0]
        * problem.heads[1]
        * ((problem.head_dim + problem.head_dim_v) // 2 + 16)
    )


def possible(problem: Problem) -> Problem:
    """Without what does not go together."""
    options, values = problem.options, problem.values
    if problem.mask.heads:
        options = replace(options, causal=False, window=(-1, -1))
    if problem.hostile:  # which modes, and the matrix of probabilities, check in their own way
        gradient = problem.path == "gradient"
        problem = replace(problem, path="gradient" if gradient else "direct", more="")
    if values == "minus_inf" and (
        options.softmax_scale == 0 or problem.packing or problem.cache.rotary
    ):
        values = "normal"  # there would be NaN
    if problem.dtype == "float16" and values in ("large", "steps"):
        values = "wide"
    if values == "minus_inf" and problem.path == "gradient":
        problem = replace(problem, path="direct")
    if problem.dtype == "float64" and problem.cache.codes:
        problem = replace(problem, cache=replace(problem.cache, codes=""))
    if problem.cache.shared:
        problem = _possible_with_values_in_keys(problem)
        if values == "minus_inf":
            values = "normal"  # of values, too
    if not problem.seqlens_q and problem.kind == "cache":
        problem = replace(problem, cache=replace(problem.cache, one_length=False))
    return replace(problem, values=values, options=options)


def _possible_with_values_in_keys(problem: Problem) -> Problem:
    """No wider than these, and never turned."""
    if problem.head_dim_v > problem.head_dim:
        problem = replace(problem, other_width=0)
    return replace(problem, cache=replace(problem.cache, rotary=""))
