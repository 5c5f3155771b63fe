"""Which widths of heads kernels are built for: head_dim of q and k, head_dim_v of v and out.

CPU kernels take every pair up to MAX_HEAD_DIM and MAX_HEAD_DIM_V. Those for CUDA take equal ones.
"""

from __future__ import annotations

from torch import Tensor
from torch.compiler import is_compiling

from flash_attn2._impl import backends
from flash_attn2._impl.backends import Backend
from flash_attn2._impl.problem import MAX_HEAD_DIM_V

MAX_EQUAL = 256  # of CUDA kernels


def require_built(backend: Backend, head_dim: int, head_dim_v: int) -> None:
    """NotImplementedError for widths that CUDA kernels, real or emulated, are not built for."""
    if head_dim == head_dim_v and head_dim <= MAX_EQUAL:
        return
    advice = ""
    if max(head_dim, head_dim_v) <= MAX_EQUAL:
        advice = (
            f": pad all of q, k and v with zeros to {max(head_dim, head_dim_v)} columns, pass "
            f"softmax_scale={head_dim}**-0.5, and drop what out has beyond {head_dim_v} columns"
        )
    raise NotImplementedError(
        f"kernels of the {backend.name} backend are built for values as wide as keys, up to "
        f"{MAX_EQUAL} columns, got head_dim {head_dim} and head_dim_v {head_dim_v}{advice}"
    )


def takes_pairs(q: Tensor) -> bool:
    """Whether kernels where q is take values that are not as wide as keys."""
    if not q.is_cpu:
        return False
    backend = backends.for_cpu_tensors if is_compiling() else backends.serving(q)
    return backend is None or not backend.aligned


def keys_hold_values(k: Tensor, v: Tensor) -> bool:
    """Whether values are the leading columns of keys, in the same memory."""
    return (
        k.data_ptr() == v.data_ptr()
        and k.stride() == v.stride()
        and k.shape[:-1] == v.shape[:-1]
        and v.shape[-1] <= k.shape[-1]
    )


def widest_equal(q: Tensor) -> int:
    """The widest heads that kernels where q is take."""
    return MAX_HEAD_DIM_V if takes_pairs(q) else MAX_EQUAL
