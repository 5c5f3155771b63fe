"""The forms that a call has: dense, varlen, over a cache, and with an append.

Each is data: its ops, its checks, and whether it has a gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from flash_attn2._impl import cache_checks, cache_values, checks, launch, schema
from flash_attn2._impl.bias_backward import bias_backward
from flash_attn2._impl.problem import Problem, Result, unpacked, with_qkv
from flash_attn2._impl.schema import Signature


@dataclass(eq=False)
class Form:
    """What sets the calls of one op apart from those of the others."""

    op: str
    signature: Signature[Problem]
    check_shapes: Callable[[Problem], None]  # what needs no values: for fake tensors too
    check_values: Callable[[Problem], None] | None  # after `check_shapes`
    backward_op: str | None = None  # None: there is no gradient
    backward_signature: Signature[Any] | None = None
    backward: Callable[[Any], tuple[Tensor | None, ...]] = launch.backward
    over_cache: bool = False


DENSE = Form(
    "forward",
    schema.FORWARD,
    checks.check_dense,
    checks.check_used,
    "backward",
    schema.BACKWARD,
)
# The gradients of biases, by an op of their own.
BIASES = replace(
    DENSE,
    backward_op="bias_backward",
    backward_signature=schema.BIAS_BACKWARD,
    backward=bias_backward,
)
VARLEN = Form(
    "varlen_forward",
    schema.VARLEN_FORWARD,
    checks.check_varlen,
    checks.check_lengths,
    "varlen_backward",
    schema.VARLEN_BACKWARD,
)
KVCACHE = Form(
    "kvcache_forward",
    schema.KVCACHE_FORWARD,
    cache_checks.check_shapes,
    cache_values.check_values,
    over_cache=True,
)
KVCACHE_APPEND = Form(
    "kvcache_append_forward",
    schema.KVCACHE_APPEND_FORWARD,
    cache_checks.check_shapes,
    cache_values.check_values,
    over_cache=True,
)
FORMS = (DENSE, VARLEN, KVCACHE, KVCACHE_APPEND)


def checked(form: Form, p: Problem) -> Problem:
    """With q, k and v each a tensor, after those checks that need no values."""
    if p.v is not None and p.k is not None:
        form.check_shapes(p)
        return p
    if p.v is not None:
        raise ValueError("k must be given with v, got k=None")
    given_q, given_k = p.q, p.k
    q, k, v = unpacked(p.q, p.k, p.v)
    p = with_qkv(p, q, k, v)
    try:
        form.check_shapes(p)
    except (TypeError, ValueError):
        checks.check_qkvpacked(given_q, given_k)  # in the words of those who gave it
        raise
    return p


def run(form: Form, p: Problem) -> Result:
    """The call, when nothing observes it and no gradient is asked for."""
    if p.k is None or p.v is None:
        p = checked(form, p)
    else:
        form.check_shapes(p)
    # A dense call without seqused has no lengths to look at.
    if form.check_values is not None and (form is not DENSE or p.seqs_q.seqused is not None):
        form.check_values(p)
    return launch.forward(p, form.over_cache)


def differentiate(form: Form, gradient: Any) -> tuple[Tensor | None, ...]:
    """Of arguments that a forward pass left, whose values are not checked again.

    Their shapes are, since torch.autograd.graph.saved_tensors_hooks may have put in others.
    """
    checked(form, gradient.forward)
    checks.check_results(gradient)
    return form.backward(gradient)
