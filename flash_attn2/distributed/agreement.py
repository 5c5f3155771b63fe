"""Do all ranks make the same call? Asked before anything else is sent, so that none waits for
others that raised an error, or reads what was meant otherwise.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from flash_attn2._impl import env
from flash_attn2.distributed.exchange import all_gathered

_REFUSED = 0
# Numbers on which a group has agreed, by its name and identity.
_agreed: dict[tuple[str, int], set[int]] = {}


def agree(group: Any, number: int) -> None:
    """Returns once all ranks of the group have called with this number, which is not 0. ValueError,
    on all of them, where they differ or one has refused its arguments.

    FLASH_ATTN2_DISTRIBUTED_CHECK says when: at the first call with a number, always, or never.
    """
    when = env.distributed_check()
    known = _agreed.setdefault((group.group_name, id(group)), set())
    if group.size() == 1 or when == "off" or (when == "first" and number in known):
        return
    numbers = _numbers(group, number)
    refused = [rank for rank, x in enumerate(numbers) if x == _REFUSED]
    if refused:
        raise ValueError(
            f"context_attention was refused by {_named(refused)} of the group, whose error says why"
        )
    others = [rank for rank, x in enumerate(numbers) if x != number]
    if others:
        raise ValueError(
            "context_attention must be called with the same plan and arguments on all ranks: those "
            f"of rank {group.rank()} are not those of {_named(others)}; compare plans, dtypes, "
            "shapes, options, and which tensors require grad"
        )
    known.add(number)


def refuse(group: Any) -> None:
    """Tells the other ranks that the arguments here are no good: they raise an error, too."""
    if group.size() > 1 and env.distributed_check() != "off":
        _numbers(group, _REFUSED)


def _numbers(group: Any, number: int) -> list[int]:
    own = torch.tensor([number], device=device_of(group))
    return [int(x) for x in all_gathered(group, own)]


def _named(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (" ..." if len(ranks) > 8 else "")
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}"


def device_of(group: Any) -> torch.device:
    """Where a group takes tensors that belong to no call."""
    if dist.get_backend(group) == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
