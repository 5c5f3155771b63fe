"""Which widths of heads kernels are built for: head_dim of q and k, head_dim_v of v and out.

CPU kernels take every pair up to MAX_HEAD_DIM and MAX_HEAD_DIM_V, and so do those for CUDA over a
KV cache. Elsewhere these go up to MAX_CUDA.
"""

from __future__ import annotations

from torch import Tensor
from torch.compiler import is_compiling

from flash_attn2._impl import backends
from flash_attn2._impl.backends import Backend
from flash_attn2._impl.problem import MAX_HEAD_DIM, MAX_HEAD_DIM_V

MAX_CUDA = 512  # of both


def require_built(
    backend: Backend, head_dim: int, head_dim_v: int, over_cache: bool = False
) -> None:
    """NotImplementedError for widths that CUDA kernels, real or emulated, are not built for."""
    if not over_cache and max(head_dim, head_dim_v) > MAX_CUDA:
        raise NotImplementedError(
            f"kernels of the {backend.name} backend are built for keys and values of up to "
            f"{MAX_CUDA} columns, and for keys of up to {MAX_HEAD_DIM} over a KV cache alone, got "
            f"head_dim {head_dim} and head_dim_v {head_dim_v}"
        )


def widest(q: Tensor) -> tuple[int, int]:
    """The largest head_dim and head_dim_v that kernels where q is take."""
    if q.is_cpu:
        backend = backends.for_cpu_tensors if is_compiling() else backends.serving(q)
        if backend is None or not backend.aligned:
            return MAX_HEAD_DIM, MAX_HEAD_DIM_V
    return MAX_CUDA, MAX_CUDA


def keys_hold_values(k: Tensor, v: Tensor) -> bool:
    """Whether values are the leading columns of keys, in the same memory.

    Strides of dimensions of one, such as a single head's, mean nothing.
    """
    return (
        k.data_ptr() == v.data_ptr()
        and k.shape[:-1] == v.shape[:-1]
        and v.shape[-1] <= k.shape[-1]
        and all(n == 1 or a == b for n, a, b in zip(v.shape, k.stride(), v.stride(), strict=True))
    )
