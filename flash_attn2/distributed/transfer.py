"""Messages between the ranks of a group that go on while kernels run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

# Where tensors that are received lie; through this name, so that tests can poison them.
empty = torch.empty


class Message(NamedTuple):
    """A contiguous tensor to or from a rank of the group. Those between two ranks go in order."""

    rank: int
    tensor: Tensor


class Pending:
    """Messages that are on their way."""

    def __init__(self, works: Sequence[Any], messages: Sequence[Message]) -> None:
        self._works = works
        self._messages = messages  # whose memory is in use

    def wait(self) -> None:
        """Returns when all have been sent and received. RuntimeError where a rank is gone."""
        for work in self._works:
            work.wait()
        self._works, self._messages = (), ()


def post(group: Any, sent: Sequence[Message], received: Sequence[Message]) -> Pending:
    """Starts messages; memory of those sent may not change, and of those received not be read,
    before they are awaited. Messages without elements are none."""
    ops = [
        dist.P2POp(
            call,
            message.tensor.view(torch.uint8),
            dist.get_global_rank(group, message.rank),
            group,
        )
        for call, messages in ((dist.isend, sent), (dist.irecv, received))
        for message in messages
        if message.tensor.numel()
    ]
    return Pending(dist.batch_isend_irecv(ops) if ops else (), (*sent, *received))
