"""How a tensor lies in memory, and what it holds."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from .memory import guarded


def short_repr(value: Any) -> str:
    """A dataclass's, without what has its default."""
    given = (
        f"{field.name}={getattr(value, field.name)!r}"
        for field in fields(value)
        if getattr(value, field.name) != field.default
    )
    return f"{type(value).__name__}({', '.join(given)})"


@dataclass(frozen=True)
class Layout:
    """Dimensions from the outermost to the innermost one, with room behind each.

    Negative dimensions count from the last. Those in `expanded` have a stride of 0.
    """

    order: tuple[int, ...] = ()  # of the dimensions but those in front, which stay outermost
    room: tuple[int, ...] = ()  # elements behind each dimension of `order`
    expanded: tuple[int, ...] = ()
    offset: int = 0  # elements in front

    def __repr__(self) -> str:
        return short_repr(self)

    def strides(self, size: tuple[int, ...]) -> tuple[int, ...]:
        rank = len(size)
        order = [dim % rank for dim in self.order if -rank <= dim]
        order = [*(dim for dim in range(rank) if dim not in order), *order]
        room = dict(
            zip((dim % rank for dim in self.order if -rank <= dim), self.room, strict=False)
        )
        expanded = {dim % rank for dim in self.expanded if -rank <= dim}
        strides, step = [0] * rank, 1
        for dim in reversed(order):
            if dim not in expanded:
                strides[dim] = step
                step *= max(size[dim], 1) + room.get(dim, 0)
        return tuple(strides)


PLAIN = Layout()
_LAYOUTS = (
    Layout((-3, -2, -1), (1, 2, 8), offset=8),  # a slice of something larger
    Layout((-2, -3, -1)),  # heads outside
    Layout((-3, -4, -2, -1)),  # rows outside
    Layout((-2, -1, -3)),  # channels last: rows inside
    Layout((-3, -1, -2)),  # heads inside
    Layout((-1, -2, -3), (0, 0, 3)),
    Layout((-3, -2, -1), (0, 0, 1), offset=3),  # rows on odd addresses
    Layout((), (), offset=1),
    Layout((-2, -3, -1), (3, 5, 16), offset=5),
    Layout((), (), (-2,)),  # one head for all
    Layout((), (), (-4,)),  # one sequence for all
    Layout((), (), (-3,)),  # one row for all
    Layout((-3, -1, -2), (0, 0, 1)),  # last stride: heads and one more
)


def drawn_layout(draw: random.Random) -> Layout:
    return draw.choice(_LAYOUTS) if draw.random() < 0.6 else PLAIN


# What tensors hold: expressions of `size`, for queries, keys, and the rest. NaN in a key or query
# has nothing to compare with; test_nan_inf.py is about it.
_NORMAL = "torch.randn(size)"
_STEPS = "torch.cat([{}, torch.zeros(*size[:-1], size[-1] - 1)], -1)"
VALUES: dict[str, tuple[str, str, str]] = {
    "normal": (_NORMAL, _NORMAL, _NORMAL),
    "small": (_NORMAL + " / 100", _NORMAL + " / 100", _NORMAL),
    "wide": (_NORMAL + " * 5", _NORMAL + " * 5", _NORMAL + " * 5"),
    "large": (_NORMAL + " * 300", _NORMAL + " * 300", _NORMAL),
    # Scores that a 24-bit significand holds, either equal or far apart.
    "steps": (
        _STEPS.format("2.0 ** torch.randint(0, 15, (*size[:-1], 1))"),
        _STEPS.format("256.0 * torch.randint(-3, 4, (*size[:-1], 1))"),
        _NORMAL,
    ),
    "constant": (
        "torch.full(size, 30.0)",
        "torch.full(size, -30.0)",
        "torch.full(size, 1.5)",
    ),
    "zero": ("torch.zeros(size)", "torch.zeros(size)", _NORMAL),
    "tiny": (_NORMAL + " * tiny", _NORMAL + " * tiny", _NORMAL + " * tiny"),
    "minus_inf": (
        _NORMAL + ".abs()",
        _STEPS.format("torch.where(torch.rand(*size[:-1], 1) < 0.5, -torch.inf, 1.0)"),
        _NORMAL,
    ),
}
# cos and sin of angles need not belong together.
VALUES["angles"] = ("", "", "torch.randn(size).cos()")
# Of biases.
VALUES["hiding"] = ("", "", "torch.where(torch.rand(size) < 0.3, -torch.inf, torch.randn(size))")
OF_OTHERS = ("angles", "hiding")  # than queries, keys and values
_ROLES = {"q": 0, "qkv": 0, "k": 1, "kv": 1, "k_cache": 1}


@dataclass(frozen=True)
class Spec:
    """A tensor of floating-point numbers, before there is memory for it."""

    name: str
    size: tuple[int, ...]
    dtype: torch.dtype
    values: str = "normal"
    layout: Layout = PLAIN
    seed: int = 0
    # Slices that hold something: ((begin, end), ...) for leading dimensions. Others hold NaN.
    filled: tuple[tuple[tuple[int, int], ...], ...] | None = field(default=None)

    @property
    def strides(self) -> tuple[int, ...]:
        return self.layout.strides(self.size)

    @property
    def count(self) -> int:
        """Elements of memory."""
        if 0 in self.size:
            return 0
        last = sum((n - 1) * stride for n, stride in zip(self.size, self.strides, strict=True))
        return self.layout.offset + last + 1

    @property
    def expression(self) -> str:
        return VALUES[self.values][_ROLES.get(self.name, 2)]

    def build(self, behind: bool) -> Tensor:
        memory = guarded(self.count, self.dtype, behind)
        if self.count == 0:
            return memory.view(self.size)
        tensor = memory.as_strided(self.size, self.strides, self.layout.offset)
        # Of a dimension with stride 0 the first element stands for all.
        once = tuple(slice(0, 1) if stride == 0 else slice(None) for stride in self.strides)
        torch.manual_seed(self.seed)
        size, tiny = self.size, torch.finfo(self.dtype).tiny  # noqa: F841 (read by the expression)
        values = eval(self.expression).to(self.dtype)
        if self.filled is None:
            tensor[once].copy_(values[once])
        else:
            for ranges in self.filled:
                where = tuple(slice(*pair) for pair in ranges)
                tensor[where] = values[where]
        return tensor


@dataclass(frozen=True)
class Columns:
    """The leading columns of another argument, in its memory."""

    of: str
    width: int | None = None  # None: all

    def of_arguments(self, arguments: dict[str, Any]) -> Tensor:
        tensor: Tensor = arguments[self.of][..., : self.width]
        return tensor
