"""Scheme "gather": every rank gets the keys and values that its queries see, of one KV head after
the other, or of several at a time if the plan says so. While some are computed, the next are on
their way.

Queries see all of their keys in one call, so that a forward pass is that of one process. They lie
in their places of the whole sequence, with zeros where none are needed. Gradients of keys are
summed over the rank's own queries, sent to those who have the keys, and summed there in the order
of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from flash_attn2._impl import launch, parts
from flash_attn2._impl.bias_backward import add_bias_gradients, zeros_for
from flash_attn2._impl.problem import BLOCK, BiasGradient, Gradient, Problem
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


class Slice(NamedTuple):
    """KV heads of a rank's share, and the query heads that read them."""

    kv: slice
    """Their places among the share's different KV heads."""
    share: HeadShare
    """Of them alone; its query heads count from the first one of the rank's."""

    @property
    def queries(self) -> slice:
        return slice(self.share.begin, self.share.end)


def slices_of(share: HeadShare, at_once: int) -> list[Slice]:
    """Of so many KV heads, or of fewer the last one."""
    each = share.size // max(len(share.kv), 1)  # query heads of a KV head of the call
    different = share.different_kv
    found = []
    end = 0
    for first in range(0, len(different), at_once):
        kv = slice(first, min(first + at_once, len(different)))
        own = tuple(head for head in share.kv if head in different[kv])
        begin, end = end, end + each * len(own)
        found.append(Slice(kv, HeadShare(begin, end, own)))
    return found


class _Blocks(NamedTuple):
    """A part whose queries are filled up to whole blocks under a block mask: then each is in a tile
    with what it would be with in the whole, and kernels find its block."""

    part: Part
    front: int
    """Rows before the part's, and"""
    back: int
    """behind them."""

    @staticmethod
    def of(call: Call, part: Part) -> _Blocks:
        if call.options.get("block_mask_offsets") is None:
            return _Blocks(part, 0, 0)
        return _Blocks(part, part.start % BLOCK, min(-part.end % BLOCK, call.seqlen - part.end))

    def filled(self, x: Tensor, dim: int, value: float = 0.0) -> Tensor:
        """The part's rows of a rank's, with others around them."""
        rows = self.part.of(x, dim)
        if not (self.front or self.back):
            return rows
        return pad(rows, (*[0, 0] * (x.ndim - 1 - dim), self.front, self.back), value=value)

    def own(self, x: Tensor, dim: int) -> Tensor:
        """The part's rows of what has been filled up."""
        return x.narrow(dim, self.front, self.part.rows)

    def put_back(self, x: Tensor, to: Tensor, dim: int) -> None:
        """The part's rows of what has been filled up, to those of a rank's that it came from."""
        if self.front or self.back:
            self.part.of(to, dim).copy_(self.own(x, dim))

    def problem(
        self,
        call: Call,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        results: tuple[Tensor, Tensor] | tuple[None, None] = (None, None),
    ) -> Problem:
        """Of the filled part; q has a rank's rows."""
        bias = call.options["bias"]
        if bias is not None and call.bias_has_rows:
            call = call._replace(options={**call.options, "bias": self.filled(bias, 2)})
        rows = self.part.rows + self.front + self.back
        of_q = Part(self.part.start - self.front, 0, rows)
        everything = Part(0, 0, call.seqlen)
        return call.problem(self.filled(q, 1), keys, values, of_q, everything, results)


class Gather:
    """The gather of one rank, for its heads."""

    lse_dtype = torch.float32

    def __init__(self, outer: Outer, share: HeadShare, at_once: int) -> None:
        self._outer = outer
        self._share = share
        self._slices = slices_of(share, at_once)

    # Forward

    def forward(self, q: Tensor, k: Tensor, v: Tensor, call: Call) -> tuple[Tensor, Tensor]:
        """out and lse (batch, heads, rows) of the rank's rows."""
        out = q.new_empty((*q.shape[:3], v.shape[3]))
        lse = q.new_empty((q.shape[0], q.shape[2], q.shape[1]), dtype=torch.float32)
        for own, keys, values in self._gathered(k, v):
            results = out[:, :, own.queries], lse[:, own.queries]
            self._attend(own, q[:, :, own.queries], keys, values, call, results)
            del keys, values  # before the next are put in their places
        return out, lse

    def _attend(
        self,
        own: Slice,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        call: Call,
        results: tuple[Tensor, Tensor],
    ) -> None:
        """Writes the results of a slice's queries."""
        keys, values = (expanded(own.share, x) for x in (keys, values))
        of_heads = call.of_heads(own.queries, self._share.size)
        for part in self._outer.own:
            blocks = _Blocks.of(of_heads, part)
            out, lse, _ = launch.forward(
                blocks.problem(of_heads, q, keys, values), over_cache=False
            )
            part.of(results[0], 1).copy_(blocks.own(out, 1))
            part.of(results[1], 2).copy_(blocks.own(lse, 2))

    def _gathered(self, k: Tensor, v: Tensor) -> Iterator[tuple[Slice, Tensor, Tensor]]:
        """Keys and values (batch, seqlen, heads, size) in their places, slice after slice."""
        waiting = [self._ask_for(own, k, v) for own in self._slices[:1]]
        for i, own in enumerate(self._slices):
            received, pending = waiting.pop()
            pending.wait()
            heads = own.kv.stop - own.kv.start
            keys = self._in_order(received, 0, (heads, k.shape[3]))
            values = self._in_order(received, heads * k.shape[3], (heads, v.shape[3]))
            del received
            waiting += [self._ask_for(x, k, v) for x in self._slices[i + 1 : i + 2]]
            yield own, keys, values
            del keys, values

    def _ask_for(self, own: Slice, k: Tensor, v: Tensor) -> tuple[list[Tensor], Pending]:
        """(batch, rows, columns of keys and then of values) of what is needed of each rank, on
        their way."""
        mine = torch.cat([x[:, :, own.kv].flatten(2) for x in (k, v)], 2)
        return self._exchange(
            [_rows(mine, [(x.first, x.rows) for x in parts]) for parts in self._outer.sent],
            self._outer.got,
        )

    def _exchange(
        self, sent: Sequence[Tensor], got: Sequence[tuple[Part, ...]]
    ) -> tuple[list[Tensor], Pending]:
        """sent[r] to rank r, and what comes from it, which is those rows; what is sent to itself
        is there at once."""
        outer, mine = self._outer, sent[self._outer.index]
        received = [
            mine
            if rank == outer.index
            else transfer.empty(
                (mine.shape[0], sum(part.rows for part in parts), mine.shape[2]),
                dtype=mine.dtype,
                device=mine.device,
            )
            for rank, parts in enumerate(got)
        ]
        others = [rank for rank in range(outer.size) if rank != outer.index]
        pending = transfer.post(
            outer.group,
            [Message(rank, sent[rank]) for rank in others],
            [Message(rank, received[rank]) for rank in others],
        )
        return received, pending

    def _in_order(self, received: list[Tensor], first: int, shape: tuple[int, int]) -> Tensor:
        """Columns of what came, by places in the sequence, as (batch, seqlen, *shape)."""
        batch, size = received[0].shape[0], shape[0] * shape[1]
        whole = received[0].new_zeros((batch, self._outer.seqlen, size))
        for x, rows_of in zip(received, self._outer.got, strict=True):
            came = torch.split(x.narrow(2, first, size), [part.rows for part in rows_of], 1)
            for part, rows in zip(rows_of, came, strict=True):
                part.of_whole(whole, 1).copy_(rows)
        return whole.view(batch, self._outer.seqlen, *shape)

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
        sink = call.options["sink"]
        biases = call.options["bias"], call.options["relative_bias"]
        of_biases = (
            zeros_for(biases[0] if wanted[1] else None, q),
            zeros_for(biases[1] if wanted[2] else None, q),
        )
        grad_q, grad_k, grad_v = (torch.empty_like(x) for x in (q, k, v))
        sums_of_biases = call._replace(
            options={**call.options, "bias": of_biases[0], "relative_bias": of_biases[1]}
        )
        sent: list[tuple[Slice, list[Tensor], Pending]] = []
        for own, keys, values in self._gathered(k, v):
            own_call, own_sums = (
                x.of_heads(own.queries, self._share.size) for x in (call, sums_of_biases)
            )
            of_lse = None if grad_lse is None else grad_lse[:, own.queries]
            incoming = grad_out[:, :, own.queries], of_lse
            of_slice = q[:, :, own.queries], out[:, :, own.queries], lse[:, own.queries]
            grad, of_keys = self._add(own, incoming, of_slice, keys, values, own_call, own_sums)
            grad_q[:, :, own.queries] = grad
            sent.append((own, *self._send_home(of_keys)))
            del keys, values
            if len(sent) == 2:
                self._receive(*sent.pop(0), grad_k, grad_v)
        for last in sent:
            self._receive(*last, grad_k, grad_v)
        learned = sink if wanted[0] else None
        grad_sink = self._outer.grad_of_sink(learned, (out, lse), (grad_out, grad_lse))
        found = finished_biases(self._outer, call, of_biases)
        return OuterGradients(grad_q, grad_k, grad_v, grad_sink, *found)

    def _add(
        self,
        own: Slice,
        incoming: tuple[Tensor, Tensor | None],
        of_slice: tuple[Tensor, Tensor, Tensor],
        keys: Tensor,
        values: Tensor,
        call: Call,
        sums_of_biases: Call,
    ) -> tuple[Tensor, Tensor]:
        """Gradients of the queries, and sums (batch, seqlen, columns of keys and then of values) of
        theirs, of a slice."""
        q, out, lse = of_slice
        grad_out, grad_lse = incoming
        dtype = parts.sums_dtype(q.dtype)
        grad_q = torch.zeros(q.shape, dtype=dtype, device=q.device)
        keys, values = (expanded(own.share, x) for x in (keys, values))
        grad_k, grad_v = (grad_q.new_zeros(x.shape) for x in (keys, values))
        of_bias, of_relative = (sums_of_biases.options[x] for x in ("bias", "relative_bias"))
        for part in self._outer.own:
            blocks = _Blocks.of(call, part)
            # Rows that attend to nothing have no gradients.
            results = blocks.filled(out, 1), blocks.filled(lse, 2, -torch.inf).contiguous()
            p = blocks.problem(call, q, keys, values, results)
            of_lse = None if grad_lse is None else blocks.filled(grad_lse, 2)
            grads = blocks.filled(grad_out, 1), of_lse
            own_grad_q = blocks.filled(grad_q, 1)
            parts.add_gradients(Gradient(*grads, p), own_grad_q, grad_k, grad_v)
            blocks.put_back(own_grad_q, grad_q, 1)
            has_rows = of_bias is not None and call.bias_has_rows
            own_bias = blocks.filled(of_bias, 2) if has_rows else of_bias
            add_bias_gradients(BiasGradient(*grads, p), (own_bias, of_relative))
            if has_rows:
                blocks.put_back(own_bias, of_bias, 2)
        sums = [reduced(own.share, x).flatten(2) for x in (grad_k, grad_v)]
        return grad_q, torch.cat(sums, 2)

    def _send_home(self, of_keys: Tensor) -> tuple[list[Tensor], Pending]:
        """Sums to the ranks that have the keys; those of the own rows by each, on their way."""
        return self._exchange(
            [_rows(of_keys, [(x.start, x.rows) for x in parts]) for parts in self._outer.got],
            self._outer.sent,
        )

    def _receive(
        self, own: Slice, received: list[Tensor], pending: Pending, grad_k: Tensor, grad_v: Tensor
    ) -> None:
        """Sums what comes, in the order of ranks."""
        pending.wait()
        first = received[0]
        rows = self._outer.rows(self._outer.index)
        total = first.new_zeros((first.shape[0], rows, first.shape[2]))
        for x, rows_of in zip(received, self._outer.sent, strict=True):
            came = torch.split(x, [part.rows for part in rows_of], 1)
            for part, sums in zip(rows_of, came, strict=True):
                part.of(total, 1).add_(sums)
        grads = grad_k[:, :, own.kv], grad_v[:, :, own.kv]
        columns = [x.shape[2] * x.shape[3] for x in grads]
        for grad, sums in zip(grads, torch.split(total, columns, 2), strict=True):
            grad.copy_(sums.reshape(grad.shape))


def _rows(x: Tensor, places: Sequence[tuple[int, int]]) -> Tensor:
    """(first, count) of rows of (batch, rows, columns), one after the other; contiguous."""
    parts = [x.narrow(1, first, count) for first, count in places]
    return concatenated(parts, 1, x).contiguous()
