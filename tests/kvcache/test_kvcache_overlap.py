"""Arguments of an append that share memory with the caches it writes."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import Target, cumulative, lengths, targets
from torch import Tensor

from flash_attn2 import flash_attn_with_kvcache
from flash_attn2._impl.overlap import layout, overlaps_itself, tensors_overlap
from flash_attn2.inference import PagedKVCache

BFLOAT16 = [Target("cpu", torch.bfloat16), Target("sm80-emulated", torch.bfloat16)]
BATCH, ROWS, HEADS, DIM = 2, 12, 2, 16


def arguments(target: Target) -> dict[str, Any]:
    """Caches are views of one storage, with room in front, between and behind."""
    storage = target.tensor(5 * BATCH * ROWS * HEADS * DIM)
    k_cache, v_cache = (
        storage[first * BATCH * ROWS * HEADS * DIM :][: BATCH * ROWS * HEADS * DIM].view(
            BATCH, ROWS, HEADS, DIM
        )
        for first in (1, 3)
    )
    return {
        "q": target.tensor(BATCH, 2, HEADS, DIM),
        "k_cache": k_cache,
        "v_cache": v_cache,
        "k": target.tensor(BATCH, 2, HEADS, DIM),
        "v": target.tensor(BATCH, 2, HEADS, DIM),
        "cache_seqlens": lengths(5, 9),
        "causal": True,
    }


def run(given: dict[str, Any], like: dict[str, Any]) -> tuple[Tensor, ...]:
    out, lse = flash_attn_with_kvcache(**given, return_softmax_lse=True)
    return out, lse, like["k_cache"].clone(), like["v_cache"].clone()


def in_row_5(cache: Tensor, values: Tensor) -> Tensor:
    """In memory that the append writes."""
    return cache[0, 5, 0, :4].view(values.dtype).copy_(values)


INTO_ROWS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    # Shifted by a row: each row written spoils one that is still to be read.
    "k_of_k_cache": lambda x: {"k": x["k_cache"][:, 4:6]},
    "k_of_written_rows": lambda x: {"k": x["k_cache"][:, 5:7]},
    "v_of_v_cache": lambda x: {"v": x["v_cache"][:, 8:10]},
    "k_and_v_crossed": lambda x: {"k": x["v_cache"][:, 5:7], "v": x["k_cache"][:, 9:11]},
    "v_of_one_sequence": lambda x: {"v": x["v_cache"][:1, 9:11].expand(BATCH, 2, HEADS, DIM)},
    "q_of_v_cache": lambda x: {"q": x["v_cache"][:, 8:10]},
    "q_of_every_other_row": lambda x: {"q": x["k_cache"][:, 5:9:2]},
    "rotary_tables": lambda x: {
        "rotary_cos": x["k_cache"].view(-1, 8)[:20],
        "rotary_sin": x["v_cache"].view(-1, 8)[10:30],
    },
    "lengths": lambda x: {"cache_seqlens": in_row_5(x["k_cache"], lengths(5, 9))},
    "sink": lambda x: {"sink": in_row_5(x["v_cache"], torch.rand(HEADS))},
}


@targets(BFLOAT16)
@pytest.mark.parametrize("observed", [False, True])
@pytest.mark.parametrize("overlap", INTO_ROWS.values(), ids=INTO_ROWS.keys())
def test_arguments_are_read_as_they_were(
    overlap: Callable[[dict[str, Any]], dict[str, Any]], observed: bool, target: Target
) -> None:
    given = arguments(target)
    given |= overlap(given)
    apart = {name: x.clone() if isinstance(x, Tensor) else x for name, x in given.items()}
    expected = run(apart, apart)
    with torch.profiler.profile() if observed else torch.no_grad():
        actual = run(given, given)
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a, b)


def packed_caches(dim: int) -> Callable[[Target], tuple[Tensor, Tensor]]:
    def views(target: Target) -> tuple[Tensor, Tensor]:
        shape = [BATCH, ROWS, HEADS, DIM]
        k, v = target.tensor(*shape[:dim], 2, *shape[dim:]).unbind(dim)
        return k, v

    return views


def strided(shape: tuple[int, ...], *views: tuple[tuple[int, ...], int]) -> Any:
    def caches(target: Target) -> list[Tensor]:
        storage = target.tensor(8 * BATCH * ROWS * HEADS * DIM)
        return [storage.as_strided(shape, strides, offset) for strides, offset in views]

    return caches


SHAPE = (BATCH, ROWS, HEADS, DIM)
CACHES_APART = {
    **{f"pairs_in_dimension_{dim}": packed_caches(dim) for dim in range(4)},
    "side_by_side": lambda target: target.tensor(BATCH, ROWS, HEADS, 2 * DIM).chunk(2, -1),
    "rows_by_turns": lambda target: (
        target.tensor(BATCH, 2 * ROWS, HEADS, DIM).unflatten(1, (ROWS, 2)).unbind(2)
    ),
    "layouts_that_differ": strided(SHAPE, ((768, 64, 32, 1), 0), ((768, 32, 384, 1), 16)),
}
CACHES_OVERLAPPING = {
    "same": lambda target: [target.tensor(*SHAPE)] * 2,
    "one_row_later": strided(SHAPE, ((384, 32, 16, 1), 0), ((384, 32, 16, 1), 32)),
    "in_the_last_row": strided(SHAPE, ((384, 32, 16, 1), 0), ((384, 32, 16, 1), 767)),
    "half_a_head_later": strided(SHAPE, ((384, 32, 16, 1), 0), ((384, 32, 16, 1), 760)),
    "pairs_too_close": strided(SHAPE, ((1536, 64, 16, 1), 0), ((1536, 64, 16, 1), 24)),
    "v_within_k": strided(SHAPE, ((1536, 64, 32, 1), 0), ((384, 32, 16, 1), 200)),
}
CACHES_OVERLAPPING_THEMSELVES = {
    "rows": (384, 8, 192, 1),
    "batch": (192, 32, 16, 1),
    "heads": (384, 32, 8, 1),
    "expanded": (0, 32, 16, 1),
    "batch_in_rows": (64, 32, 16, 1),
}


@targets(BFLOAT16)
@pytest.mark.parametrize("caches", CACHES_APART.values(), ids=CACHES_APART.keys())
def test_caches_of_one_storage(caches: Callable[[Target], Any], target: Target) -> None:
    """Interleaved, but apart."""
    given = arguments(target)
    given["k_cache"], given["v_cache"] = caches(target)
    apart = {name: x.clone() if isinstance(x, Tensor) else x for name, x in given.items()}
    for a, b in zip(run(given, given), run(apart, apart), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("observed", [False, True])
@pytest.mark.parametrize("caches", CACHES_OVERLAPPING.values(), ids=CACHES_OVERLAPPING.keys())
def test_caches_that_overlap(caches: Callable[[Target], Any], observed: bool) -> None:
    target = Target("cpu", torch.float32)
    given = arguments(target)
    given["k_cache"], given["v_cache"] = caches(target)
    before = [given["k_cache"].clone(), given["v_cache"].clone()]
    with torch.profiler.profile() if observed else torch.no_grad():
        with pytest.raises(ValueError, match="k_cache and v_cache must not be the same memory"):
            run(given, given)
        assert torch.equal(given["k_cache"], before[0])
        assert torch.equal(given["v_cache"], before[1])
        del given["k"], given["v"]
        run(given, given)


@pytest.mark.parametrize("name", ["k_cache", "v_cache"])
@pytest.mark.parametrize(
    "strides", CACHES_OVERLAPPING_THEMSELVES.values(), ids=CACHES_OVERLAPPING_THEMSELVES.keys()
)
def test_caches_that_overlap_themselves(strides: tuple[int, ...], name: str) -> None:
    given = arguments(Target("cpu", torch.float32))
    given[name] = torch.randn(2000).as_strided(SHAPE, strides)
    before = given[name].clone()
    with pytest.raises(ValueError, match=rf"{name} must not overlap itself .* strides"):
        run(given, given)
    assert torch.equal(given[name], before)


def test_nothing_is_copied_that_is_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """New keys and queries of one projection; caches and everything else in one arena."""

    def clone(*_: Any, **__: Any) -> Any:
        raise AssertionError("copied")

    arena = torch.randn(4 * 768)
    kv = arena[: 2 * 768].view(BATCH, ROWS, 2, HEADS, DIM)
    qkv = arena[2 * 768 :].view(BATCH, -1, 3, HEADS, DIM)[:, :2]
    cache = PagedKVCache(1, 4, 8, HEADS, DIM)
    step = cache.append([cache.allocate(), cache.allocate()], [2, 2])
    monkeypatch.setattr(Tensor, "clone", clone)
    flash_attn_with_kvcache(
        qkv[:, :, 0], *kv.unbind(2), *qkv[:, :, 1:].unbind(2), cache_seqlens=lengths(5, 9)
    )
    q, k, v = qkv.reshape(-1, 3, HEADS, DIM)[:4].unbind(1)
    flash_attn_with_kvcache(q, *cache.layers[0], k, v, **step._asdict())
    assert step.cu_seqlens_q.tolist() == cumulative(2, 2).tolist()


def test_overlap_against_sets_of_addresses() -> None:
    draw = random.Random(0)
    storage = torch.zeros(400)

    def view() -> Tensor:
        while True:
            shape = [draw.randint(1, 4) for _ in range(draw.randint(1, 4))]
            strides = [draw.choice((0, 1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 48)) for _ in shape]
            last = sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
            if last < 390:
                return storage.as_strided(shape, strides, draw.randint(0, min(60, 399 - last)))

    def places(x: Tensor) -> list[int]:
        found = [x.storage_offset()]
        for size, stride in zip(x.shape, x.stride(), strict=True):
            found = [place + i * stride for place in found for i in range(size)]
        return found

    counts = [0, 0]
    for _ in range(3000):
        a, b = view(), view()
        overlap = not set(places(a)).isdisjoint(places(b))
        assert tensors_overlap(a, b) == overlap
        assert overlaps_itself(*layout(a)) == (len(set(places(a))) < len(places(a)))
        counts[overlap] += 1
    assert min(counts) > 500
