"""A `BiasGradient` -> one call of a native module, as `launch` makes those of other gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flash_attn2._impl import backends, launch, widths
from flash_attn2._impl.biases import lower_bias, lower_relative_bias
from flash_attn2._impl.lower import lower, rows_to_diagonal, with_addresses
from flash_attn2._impl.problem import BiasGradient, BiasGradients, unpacked, with_qkv


def bias_backward(gradient: BiasGradient) -> BiasGradients:
    """Gradients of the biases that they are wanted of, None of others."""
    p = gradient.forward
    _, _, bias, relative_bias = p.options.score_mod
    sums = (
        zeros_for(bias if gradient.of_bias else None, p.q),
        zeros_for(relative_bias if gradient.of_relative_bias else None, p.q),
    )
    add_bias_gradients(gradient, sums)
    return _rounded(sums[0], bias), _rounded(sums[1], relative_bias)


def add_bias_gradients(gradient: BiasGradient, sums: BiasGradients) -> None:
    """To sums like the biases in float32, or float64 of float64 q; None where not wanted."""
    grad_out, grad_lse, p, *_ = gradient
    if p.v is None:
        p = with_qkv(p, *unpacked(p.q, p.k, p.v))
    backend = backends.serving(p.q)
    dtype_name = backend.dtype_name(p.q.dtype)
    assert p.v is not None
    head_dim = p.q.shape[-1]
    if backend.aligned:
        widths.require_built(backend, head_dim, p.v.shape[-1])
    p = launch.readable_problem(p, backend, over_cache=False)
    q = p.q
    assert p.out is not None
    assert p.lse is not None
    if p.lse.numel() != 0 and (sums[0] is not None or sums[1] is not None):
        out = launch.readable(p.out, backend)
        incoming = launch.readable_incoming(grad_out, grad_lse, out, backend)
        problem: dict[str, Any] = {**incoming}  # addresses, of what is held until kernels have run
        with_addresses(problem)
        if sums[0] is not None:
            problem["grad_bias"] = lower_bias(sums[0])
        if sums[1] is not None:
            problem["grad_relative_bias"] = lower_relative_bias(sums[1], rows_to_diagonal(p))
        lse, rng_state = p.lse.contiguous(), p.options.dropout.rng_state
        rng_state = None if rng_state is None else rng_state.contiguous()
        problem["forward"] = lower(p, dtype_name, out, lse, rng_state, head_dim)
        backend.run(backend.module.bias_backward, problem, q.device)


def zeros_for(bias: Tensor | None, q: Tensor) -> Tensor | None:
    """Where the gradient of a bias is summed."""
    if bias is None:
        return None
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    return launch.empty(bias.shape, dtype=dtype, device=q.device).zero_()


def _rounded(sums: Tensor | None, bias: Tensor | None) -> Tensor | None:
    return None if sums is None or bias is None else sums.to(bias.dtype)
