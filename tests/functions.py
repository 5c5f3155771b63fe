"""The public functions as functions of tensors alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import cumulative
from torch import Tensor

from flash_attn2 import (
    flash_attn_func,
    flash_attn_kvpacked_func,
    flash_attn_qkvpacked_func,
    flash_attn_varlen_func,
    flash_attn_varlen_kvpacked_func,
    flash_attn_varlen_qkvpacked_func,
)

CU = cumulative(3, 0, 5)
CU_K = cumulative(4, 2, 6)
# Function, shapes of its tensors, arguments after them.
FUNCTIONS: dict[str, tuple[Callable[..., Any], tuple[tuple[int, ...], ...], tuple[Any, ...]]] = {
    "dense": (flash_attn_func, ((2, 3, 4, 5), (2, 6, 2, 5), (2, 6, 2, 5)), ()),
    "kvpacked": (flash_attn_kvpacked_func, ((2, 3, 4, 5), (2, 6, 2, 2, 5)), ()),
    "qkvpacked": (flash_attn_qkvpacked_func, ((2, 4, 3, 2, 5),), ()),
    "varlen": (flash_attn_varlen_func, ((9, 4, 5), (13, 2, 5), (13, 2, 5)), (CU, CU_K, 5, 6)),
    "varlen_kvpacked": (
        flash_attn_varlen_kvpacked_func,
        ((9, 4, 5), (13, 2, 2, 5)),
        (CU, CU_K, 5, 6),
    ),
    "varlen_qkvpacked": (flash_attn_varlen_qkvpacked_func, ((9, 3, 2, 5),), (CU, 5)),
}
each_function = pytest.mark.parametrize("form", FUNCTIONS)


def problem(form: str, dtype: torch.dtype = torch.float32) -> tuple[Any, list[Tensor]]:
    """A function of tensors alone, and tensors for it."""
    function, shapes, rest = FUNCTIONS[form]

    def attend(*tensors: Tensor, **options: Any) -> Any:
        return function(*tensors, *rest, **options)

    return attend, [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]
