"""Whether strided tensors share memory: exact wherever that is quickly decided.

A layout is (shape, strides). Questions about layouts are remembered, as those of a decoding loop
are the same in every step.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

Layout = tuple[tuple[int, ...], tuple[int, ...]]

_BUDGET = 20_000  # steps of a search, after which tensors count as overlapping


def layout(t: Tensor) -> Layout:
    return tuple(t.shape), t.stride()


def span(t: Tensor) -> tuple[int, int]:
    """The addresses from the first byte of `t` to the end of the last one."""
    begin = t.data_ptr()
    return begin, begin + _extent(t.shape, t.stride()) * t.element_size()


@functools.lru_cache(maxsize=4096)
def _extent(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Elements from the first to the end of the last."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


def any_close(written: Sequence[Tensor], values: Iterable[Any]) -> bool:
    """Whether the range of addresses of a tensor among `values` meets that of one written to."""
    spans: list[tuple[int, int]] = []
    for x in (*written, *values):
        if isinstance(x, Tensor):
            begin = x.data_ptr()  # as `span` does, without a call for each
            end = begin + _extent(x.shape, x.stride()) * x.element_size()
            if len(spans) < len(written):
                spans.append((begin, end))
                continue
            for begin_y, end_y in spans:
                if begin < end_y and begin_y < end:
                    return True
    return False


def tensors_overlap(a: Tensor, b: Tensor) -> bool:
    """Whether any byte belongs to both."""
    (begin_a, end_a), (begin_b, end_b) = span(a), span(b)
    if begin_a >= end_b or begin_b >= end_a:
        return False
    return _layouts_overlap(
        begin_b - begin_a, a.element_size(), layout(a), b.element_size(), layout(b)
    )


@functools.lru_cache(maxsize=4096)
def overlaps_itself(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether two elements lie in one place."""
    if 0 in shape:
        return False
    dims = sorted((stride, size) for stride, size in zip(strides, shape, strict=True) if size > 1)
    reach = 0
    for stride, size in dims:
        if stride <= reach:
            break
        reach += stride * (size - 1)
    else:
        return False  # each stride passes all that smaller ones reach
    # Two elements whose indices first differ in dimension i, there by 1 or more.
    return any(
        _sums_to(
            0,
            [
                (dims[i][0], 1, dims[i][1] - 1),
                *((stride, 1 - size, size - 1) for stride, size in dims[i + 1 :]),
            ],
        )
        for i in range(len(dims))
    )


@functools.lru_cache(maxsize=4096)
def _layouts_overlap(distance: int, size_a: int, a: Layout, size_b: int, b: Layout) -> bool:
    """Of layouts of elements of so many bytes, with b so many bytes behind a; neither is empty."""
    ranges: dict[int, tuple[int, int]] = {1: (1 - size_b, size_a - 1)}  # by stride in bytes

    def add(stride: int, least: int, most: int) -> None:
        before = ranges.get(stride, (0, 0))
        ranges[stride] = before[0] + least, before[1] + most

    for size, stride in zip(*a, strict=True):
        add(stride * size_a, 0, size - 1)
    for size, stride in zip(*b, strict=True):
        add(stride * size_b, 1 - size, 0)
    return _sums_to(distance, [(stride, *bounds) for stride, bounds in ranges.items()])


def _sums_to(total: int, terms: Sequence[tuple[int, int, int]]) -> bool:
    """Whether integers x with least <= x <= most exist so that the sum of stride * x is `total`.

    Terms are (stride, least, most).
    """
    terms = sorted(terms, reverse=True)
    while terms and terms[-1][0] == 0:
        terms.pop()  # contributes nothing, whatever x is
    bounds = [(0, 0)]  # of what the terms from each on can add
    for stride, least, most in reversed(terms):
        low, high = bounds[-1]
        bounds.append((low + stride * least, high + stride * most))
    bounds.reverse()
    budget = _BUDGET

    def search(total: int, i: int) -> bool:
        nonlocal budget
        budget -= 1
        if budget < 0:
            return True
        if i == len(terms):
            return total == 0
        stride, least, most = terms[i]
        low, high = bounds[i + 1]
        first = max(least, -((high - total) // stride))
        last = min(most, (total - low) // stride)
        return any(search(total - x * stride, i + 1) for x in range(first, last + 1))

    return search(total, 0)
