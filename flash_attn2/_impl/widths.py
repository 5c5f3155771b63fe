"""Which widths of heads kernels are built for: head_dim of q and k, head_dim_v of v and out.

CPU kernels take every pair up to MAX_HEAD_DIM and MAX_HEAD_DIM_V, those for CUDA up to MAX_CUDA,
and up to MAX_CUDA_GRADIENTS where gradients are asked for.
"""

from __future__ import annotations

from torch import Tensor
from torch.compiler import is_compiling

from flash_attn2._impl import backends
from flash_attn2._impl.backends import Backend
from flash_attn2._impl.problem import MAX_HEAD_DIM, MAX_HEAD_DIM_V

MAX_CUDA = 512  # of both
MAX_CUDA_GRADIENTS = 256


def require_built(
    backend: Backend, head_dim: int, head_dim_v: int, gradients: bool = False
) -> None:
    """NotImplementedError for widths that CUDA kernels, real or emulated, are not built for."""
    most = _most(gradients)
    if max(head_dim, head_dim_v) <= most:
        return
    kind = "backward kernels" if gradients else "kernels"
    raise NotImplementedError(
        f"{kind} of the {backend.name} backend are built for keys and values of up to {most} "
        f"columns, got head_dim {head_dim} and head_dim_v {head_dim_v}"
    )


def require_gradients(q: Tensor, v: Tensor) -> None:
    """The same of a call whose gradients are asked for, before anything is saved for them."""
    head_dim, head_dim_v = q.shape[-1], v.shape[-1]
    if max(head_dim, head_dim_v) > MAX_CUDA_GRADIENTS:
        backend = backends.serving(q)
        if backend.aligned:
            require_built(backend, head_dim, head_dim_v, gradients=True)


def widest(q: Tensor, gradients: bool) -> tuple[int, int]:
    """The largest head_dim and head_dim_v that kernels where q is take, with gradients or
    without."""
    if q.is_cpu:
        backend = backends.for_cpu_tensors if is_compiling() else backends.serving(q)
        if backend is None or not backend.aligned:
            return MAX_HEAD_DIM, MAX_HEAD_DIM_V
    return _most(gradients), _most(gradients)


def _most(gradients: bool) -> int:
    """Columns that CUDA kernels are built for."""
    return MAX_CUDA_GRADIENTS if gradients else MAX_CUDA


def keys_hold_values(k: Tensor, v: Tensor) -> bool:
    """Whether values are the leading columns of keys, in the same memory."""
    return (
        k.data_ptr() == v.data_ptr()
        and k.stride() == v.stride()
        and k.shape[:-1] == v.shape[:-1]
        and v.shape[-1] <= k.shape[-1]
    )
