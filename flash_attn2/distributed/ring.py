"""Scheme "ring": keys and values go from rank to rank, and each adds what its queries see of them.

While a kernel runs, the next keys are on their way. Results are merged in float32 or float64, in an
order that is the same in every run. In the backward pass keys come by again, and the sums of their
gradients go on one rank behind them, home in the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from flash_attn2._impl import parts
from flash_attn2._impl.bias_backward import add_bias_gradients, zeros_for
from flash_attn2._impl.problem import BiasGradient, Gradient
from flash_attn2.distributed import transfer
from flash_attn2.distributed.head_shares import HeadShare
from flash_attn2.distributed.kv_heads import expanded, reduced
from flash_attn2.distributed.outer import (
    Call,
    Outer,
    OuterGradients,
    Part,
    concatenated,
    finished_biases,
)
from flash_attn2.distributed.transfer import Message, Pending
from flash_attn2.masks.leaves import Window


class Shape(NamedTuple):
    """Of a row of keys and values."""

    batch: int
    heads: int
    head_dim: int
    head_dim_v: int

    def elements(self, rows: int) -> int:
        """Of keys and values of so many rows."""
        return self.batch * rows * self.heads * (self.head_dim + self.head_dim_v)

    def views(self, buffer: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a buffer that holds first the ones and then the others."""
        size = self.batch * rows * self.heads
        shape = (self.batch, rows, self.heads)
        k, v = torch.split(buffer, [size * self.head_dim, size * self.head_dim_v])
        return k.view(*shape, self.head_dim), v.view(*shape, self.head_dim_v)


class Ring:
    """The ring of one rank, for its heads."""

    lse_dtype = torch.float64

    def __init__(self, outer: Outer, share: HeadShare, window: Window) -> None:
        self._outer = outer
        self._share = share
        self._window = window

    # Forward

    def forward(self, q: Tensor, k: Tensor, v: Tensor, call: Call) -> tuple[Tensor, Tensor]:
        """out and lse (batch, heads, rows), in float64, of the rank's rows."""
        sink, call = call.options["sink"], call.without_sink()
        shape = Shape(k.shape[0], k.shape[2], k.shape[3], v.shape[3])
        sums = [_start(part, q, v, sink) for part in self._outer.own]
        for step, buffer in self._around(_packed(k, v), shape):
            of_source = self._outer.parts[self._source(step)]
            keys, values = shape.views(buffer, self._outer.rows(self._source(step)))
            for of_k in of_source:
                own_k, own_v = (expanded(self._share, of_k.of(x, 1)) for x in (keys, values))
                for of_q, (out, lse) in zip(self._outer.own, sums, strict=True):
                    if self._sees(of_q, of_k):
                        p = call.problem(of_q.of(q, 1), own_k, own_v, of_q, of_k)
                        parts.merge(p, out, lse)
        empty = _start(Part(0, 0, 0), q, v, None)
        out = concatenated([x[0] for x in sums], 1, empty[0])
        return out.to(q.dtype), concatenated([x[1] for x in sums], 2, empty[1])

    def _source(self, step: int) -> int:
        """Whose keys are here."""
        return (self._outer.index - step) % self._outer.size

    def _around(self, buffer: Tensor, shape: Shape) -> Iterator[tuple[int, Tensor]]:
        """Keys and values of each rank, the own ones first; the next are on their way."""
        for step in range(self._outer.size):
            coming, pending = self._pass_on(step, buffer, shape)
            yield step, buffer
            pending.wait()
            buffer = coming

    def _pass_on(self, step: int, buffer: Tensor, shape: Shape) -> tuple[Tensor, Pending]:
        if step + 1 == self._outer.size:
            return buffer, Pending((), ())
        rows = self._outer.rows(self._source(step + 1))
        return self._exchange(buffer, shape.elements(rows))

    def _exchange(self, sent: Tensor, elements: int) -> tuple[Tensor, Pending]:
        """To the next rank, and what comes from the one before."""
        outer = self._outer
        received = transfer.empty(elements, dtype=sent.dtype, device=sent.device)
        pending = transfer.post(
            outer.group,
            [Message((outer.index + 1) % outer.size, sent)],
            [Message((outer.index - 1) % outer.size, received)],
        )
        return received, pending

    def _sees(self, of_q: Part, of_k: Part) -> bool:
        """Whether some query sees some key."""
        left, right = self._window.left, self._window.right
        before = right >= 0 and of_q.end - 1 + right < of_k.start
        behind = left >= 0 and of_q.start - left > of_k.end - 1
        return not (before or behind)

    # Backward

    def backward(
        self,
        grad_out: Tensor,
        grad_lse: Tensor | None,
        saved: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
        call: Call,
        wanted: tuple[bool, bool, bool],
    ) -> OuterGradients:
        """`saved` are q, k, v and the results of `forward`; `wanted` is of sink, bias and
        relative_bias."""
        q, k, v, out, lse = saved
        sink, call = call.options["sink"], call.without_sink()
        step_gradients = _Gradients(self, grad_out, grad_lse, saved, call, wanted)
        shape = Shape(k.shape[0], k.shape[2], k.shape[3], v.shape[3])
        own = self._sums_of_keys(step_gradients, _packed(k, v), shape)
        grad_k, grad_v = shape.views(own, self._outer.rows(self._outer.index))
        learned = sink if wanted[0] else None
        grad_sink = self._outer.grad_of_sink(learned, (out, lse), (grad_out, grad_lse))
        bias, relative_bias = step_gradients.of_biases()
        return OuterGradients(
            *(step_gradients.of_q.to(q.dtype), grad_k.to(k.dtype), grad_v.to(v.dtype)),
            *(grad_sink, bias, relative_bias),
        )

    def _sums_of_keys(self, step_gradients: _Gradients, buffer: Tensor, shape: Shape) -> Tensor:
        """Gradients of the own keys and values. Those of others are added to what comes from the
        rank before, which had them a step ago, and go on while the next step is computed."""
        size = self._outer.size
        own = outgoing = buffer.new_empty(0)
        for step, keys in self._around(buffer, shape):
            source = self._source(step)
            rows = self._outer.rows(source)
            pending = Pending((), ())
            if step >= 2:
                received, pending = self._exchange(outgoing, shape.elements(rows))
            of_keys = step_gradients.add(source, *shape.views(keys, rows))
            pending.wait()
            if step == 0:
                own = of_keys
            else:
                outgoing = of_keys if step == 1 else received.add_(of_keys)
        if size > 1:
            received, pending = self._exchange(outgoing, own.numel())
            pending.wait()
            own = received.add_(own)
        return own


class _Gradients:
    """Of one rank's queries, step by step."""

    def __init__(
        self,
        ring: Ring,
        grad_out: Tensor,
        grad_lse: Tensor | None,
        saved: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
        call: Call,
        wanted: tuple[bool, bool, bool],
    ) -> None:
        self._ring = ring
        self._incoming = grad_out, grad_lse
        self._q, _, _, self._out, lse = saved
        self._lse = {part: part.of(lse, 2).contiguous() for part in ring._outer.own}
        self._call = call
        self._dtype = parts.sums_dtype(self._q.dtype)
        self.of_q = torch.zeros_like(
            self._q, dtype=self._dtype, memory_format=torch.contiguous_format
        )
        bias, relative_bias = call.options["bias"], call.options["relative_bias"]
        self._of_biases = (
            zeros_for(bias if wanted[1] else None, self._q),
            zeros_for(relative_bias if wanted[2] else None, self._q),
        )

    def add(self, source: int, keys: Tensor, values: Tensor) -> Tensor:
        """Adds those of queries and biases, and returns those of the keys and values of a rank, one
        after the other."""
        ring = self._ring
        k, v = (expanded(ring._share, x) for x in (keys, values))
        grad_k, grad_v = (
            torch.zeros_like(x, dtype=self._dtype, memory_format=torch.contiguous_format)
            for x in (k, v)
        )
        for of_k in ring._outer.parts[source]:
            for of_q in ring._outer.own:
                if ring._sees(of_q, of_k):
                    self._add_part(of_q, of_k, *(of_k.of(x, 1) for x in (k, v, grad_k, grad_v)))
        return _packed(reduced(ring._share, grad_k), reduced(ring._share, grad_v))

    def _add_part(
        self, of_q: Part, of_k: Part, k: Tensor, v: Tensor, grad_k: Tensor, grad_v: Tensor
    ) -> None:
        grad_out, grad_lse = self._incoming
        results = of_q.of(self._out, 1), self._lse[of_q]
        p = self._call.problem(of_q.of(self._q, 1), k, v, of_q, of_k, results)
        incoming = of_q.of(grad_out, 1), None if grad_lse is None else of_q.of(grad_lse, 2)
        parts.add_gradients(Gradient(*incoming, p), of_q.of(self.of_q, 1), grad_k, grad_v)
        of_bias, of_relative_bias = self._of_biases
        if of_bias is not None:
            of_bias = self._call.bias_part(of_bias, of_q, of_k)
        add_bias_gradients(BiasGradient(*incoming, p), (of_bias, of_relative_bias))

    def of_biases(self) -> tuple[Tensor | None, Tensor | None]:
        """Summed over all rows where they are for all, in their dtypes."""
        return finished_biases(self._ring._outer, self._call, self._of_biases)


def _packed(k: Tensor, v: Tensor) -> Tensor:
    return torch.cat([k.reshape(-1), v.reshape(-1)])


def _start(part: Part, q: Tensor, v: Tensor, sink: Tensor | None) -> tuple[Tensor, Tensor]:
    """Results over no keys: those of the sink, a key without a value."""
    batch, _, heads, _ = q.shape
    out = q.new_zeros(batch, part.rows, heads, v.shape[3], dtype=parts.sums_dtype(q.dtype))
    lse = q.new_full((batch, heads, part.rows), -torch.inf, dtype=torch.float64)
    if sink is not None:
        lse.copy_(sink.double()[:, None].expand_as(lse[0]))
    return out, lse
