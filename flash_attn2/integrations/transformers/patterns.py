"""What a mask function of transformers shows, where the kernels have a word for it.

transformers builds its masks from nested functions, which say nothing of themselves. While the
adapter is registered, the functions that build them return `Rule`s: the same function, with a note
of what it is. torch.compile traces them, as it would not trace a look into closures.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

MaskFunction = Callable[..., Tensor]


class Rule:
    """A mask function, and what it was made by and of."""

    def __init__(self, function: MaskFunction, kind: str, arguments: tuple[Any, ...]) -> None:
        self.function = function
        self.kind = kind
        self.arguments = arguments

    def __call__(self, batch: Any, head: Any, query: Any, key: Any) -> Tensor:
        return self.function(batch, head, query, key)


class Pattern(NamedTuple):
    """What the kernels do by themselves."""

    causal: bool = False
    window: bool = False  # of a width that the attention layer says
    documents: Tensor | None = None  # (batch, seqlen): the sequence of each token


MAKERS = {
    "and_masks": "and",
    "sliding_window_overlay": "window",
    "sliding_window_bidirectional_overlay": "window",
    "packed_sequence_mask_function": "packed",
    "remap_positions_for_packed_sequence": "remapped",
}
"""The functions of transformers.masking_utils that build rules, and the kinds of these."""


def rule_maker(make: Callable[..., MaskFunction], kind: str) -> Callable[..., MaskFunction]:
    """`make`, with a note on what it returns."""

    def make_rule(*arguments: Any) -> MaskFunction:
        return Rule(make(*arguments), kind, arguments)

    return make_rule


def pattern_of(
    function: MaskFunction, causal: MaskFunction, bidirectional: MaskFunction
) -> Pattern | None:
    """What a mask function shows; None where it may be anything. The two functions are those of
    transformers for a causal mask and for none."""
    leaves = _leaves(function)
    kinds = [leaf.kind for leaf in leaves if isinstance(leaf, Rule)]
    plain = [leaf for leaf in leaves if not isinstance(leaf, Rule)]
    if any(leaf is not causal and leaf is not bidirectional for leaf in plain):
        return None
    documents = [
        leaf.arguments[0] for leaf in leaves if isinstance(leaf, Rule) and leaf.kind == "packed"
    ]
    # Positions that start anew in each sequence are those of a packed batch, and of nothing else.
    if len(documents) > 1 or ("remapped" in kinds and not documents):
        return None
    return Pattern(
        causal=any(leaf is causal for leaf in plain),
        window="window" in kinds,
        documents=documents[0] if documents else None,
    )


def _leaves(function: MaskFunction) -> list[MaskFunction]:
    """The functions of which all have to show a pair. A rule "remapped" stands beside what it
    applies to."""
    if not isinstance(function, Rule):
        return [function]
    if function.kind == "and":
        return [leaf for part in function.arguments for leaf in _leaves(part)]
    if function.kind == "remapped":
        return [function, *_leaves(function.arguments[0])]
    return [function]
