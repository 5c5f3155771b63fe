"""Do all ranks make the same call? Asked before anything else is sent, so that none waits for
others that raised an error, or reads what was meant otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from flash_attn2._impl import env
from flash_attn2.distributed.exchange import all_gathered
from flash_attn2.distributed.ranks import Ranks

_REFUSED = 0
# Numbers on which ranks have agreed, by the names and identities of their groups.
_agreed: dict[tuple[Any, ...], set[int]] = {}


def agree(ranks: Ranks, number: int) -> None:
    """Returns once all ranks of a plan have called with this number, which is not 0. ValueError,
    on all of them, where they differ or one has refused its arguments.

    FLASH_ATTN2_DISTRIBUTED_CHECK says when: at the first call with a number, always, or never.
    """
    when = env.distributed_check()
    groups = ranks.groups
    known = _agreed.setdefault(tuple((x.group_name, id(x)) for x in groups), set())
    if ranks.size == 1 or when == "off" or (when == "first" and number in known):
        return
    numbers = _numbers(groups, number)
    refused = [rank for rank, x in enumerate(numbers) if x == _REFUSED]
    if refused:
        raise ValueError(
            f"context_attention was refused by {_named(refused)} of the group, whose error says why"
        )
    others = [rank for rank, x in enumerate(numbers) if x != number]
    if others:
        raise ValueError(
            "context_attention must be called with the same plan and arguments on all ranks: those "
            f"of rank {ranks.rank} are not those of {_named(others)}; compare plans, dtypes, "
            "shapes, options, and which tensors require grad"
        )
    known.add(number)


def refuse(ranks: Ranks) -> None:
    """Tells the other ranks that the arguments here are no good: they raise an error, too."""
    if ranks.groups and ranks.size > 1 and env.distributed_check() != "off":
        _numbers(ranks.groups, _REFUSED)


def _numbers(groups: Sequence[Any], number: int) -> list[int]:
    """Of all ranks, in their order."""
    known = torch.tensor([number], device=device_of(groups[0]))
    for group in groups:
        known = torch.cat(all_gathered(group, known))
    numbers: list[int] = known.tolist()
    return numbers


def _named(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (" ..." if len(ranks) > 8 else "")
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}"


def device_of(group: Any) -> torch.device:
    """Where a group takes tensors that belong to no call."""
    if dist.get_backend(group) == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
