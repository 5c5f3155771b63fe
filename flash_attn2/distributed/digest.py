"""64 bits of what ranks have to agree on."""

from __future__ import annotations

import hashlib
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor


def digest(*parts: Any) -> int:
    """The same number for equal parts in every process, from 1 to 2^63 - 1.

    Parts are numbers, strings, None, dtypes and the like, tensors (by value), tuples, lists,
    dictionaries and dataclasses of them. Functions count by their names.
    """
    state = hashlib.blake2b(digest_size=8)
    _feed(state, parts)
    return int.from_bytes(state.digest(), "little") >> 1 or 1


def _feed(state: Any, part: Any) -> None:
    if isinstance(part, Tensor):
        values = part.detach().to("cpu").contiguous()
        _feed(state, ("tensor", str(values.dtype), tuple(values.shape)))
        state.update(values.numpy().tobytes())
    elif isinstance(part, (tuple, list)):
        state.update(f"({len(part)};".encode())
        for inner in part:
            _feed(state, inner)
    elif isinstance(part, dict):
        _feed(state, sorted(part.items()))
    elif is_dataclass(part):
        _feed(state, (type(part).__name__, *(getattr(part, x.name) for x in fields(part))))
    elif callable(part) and hasattr(part, "__qualname__"):
        _feed(state, f"{part.__module__}.{part.__qualname__}")
    else:
        text = f"{type(part).__name__} {part!r}"
        state.update(f"{len(text)}:{text}".encode())
