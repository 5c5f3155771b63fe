"""`out=`: memory of the caller's for the result of a call without gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flash_attn2._impl import overlap
from flash_attn2._impl.arguments import require_tensor
from flash_attn2._impl.forms import Form
from flash_attn2._impl.observe import is_ordinary, ordinary, wants_gradient
from flash_attn2._impl.problem import Problem, out_shape, unpacked
from flash_attn2._impl.tensors import require_allocated


def with_out(form: Form, p: Problem, out: Any) -> Problem:
    """The problem, whose result goes into `out` where kernels can write there.

    Where they cannot, `placed` copies: something observes the call, or `out` shares memory with
    what is read. TypeError, ValueError or NotImplementedError for what is no place for the result.
    """
    require_tensor("out", out)
    q, _, v = (p.q, p.k, p.v) if p.q.ndim < 3 else unpacked(p.q, p.k, p.v)
    device_type, dtype = "cuda" if q.is_cuda else "cpu", q.dtype
    if torch.is_autocast_enabled(device_type) and dtype is not torch.float64:
        dtype = torch.get_autocast_dtype(device_type)
    shape = q.shape if v is None or 0 in (q.ndim, v.ndim) else out_shape(q, v)
    if out.shape != shape:
        raise ValueError(f"out must have shape {tuple(shape)}, got {tuple(out.shape)}")
    if out.dtype != dtype:
        raise TypeError(f"out must be {dtype}, got {out.dtype}")
    if out.device != q.device:
        raise ValueError(f"out must be on the device of q, {q.device}, got {out.device}")
    inputs = [x for x in form.signature.flatten(p) if isinstance(x, Tensor)]
    if wants_gradient(out, *inputs):
        raise NotImplementedError(
            "out must be None where a gradient is asked for, got a tensor: call it under "
            "torch.no_grad() or with detached tensors"
        )
    if not ordinary() or not all(map(is_ordinary, (out, *inputs))):
        return p
    require_allocated(out=out)
    if overlap.overlaps_itself(tuple(out.shape), out.stride()):
        raise ValueError(
            f"out must not overlap itself, got shape {tuple(out.shape)} with strides {out.stride()}"
        )
    readable = (x for x in inputs if x.layout is torch.strided and not x._is_zerotensor())
    if out._is_zerotensor() or out.is_neg() or overlap.any_close((out,), readable):
        return p
    return Problem(*p[:10], out=out)


def placed(out: Tensor, result: Any) -> Any:
    """The result, or the tuple that begins with it, in `out`."""
    if isinstance(result, tuple):
        return placed(out, result[0]), *result[1:]
    if result is not out:
        return out.copy_(result)
    if not out.is_inference():  # those have no versions
        torch.autograd.graph.increment_version(out)
    return out
