"""What the mask function returns shows the same pairs as transformers' own dense masks."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import masking_utils

from flash_attn2.integrations.transformers.call import Call
from flash_attn2.integrations.transformers.dense_masks import dense_of
from flash_attn2.integrations.transformers.masks import bounds_of, is_one_run, make_mask
from flash_attn2.integrations.transformers.memory import remembered

pytestmark = pytest.mark.usefixtures("registered")

WINDOW = 5


def rules() -> dict[str, Any]:
    return {
        "causal": masking_utils.causal_mask_function,
        "window": masking_utils.sliding_window_causal_mask_function(WINDOW),
        "bidirectional": masking_utils.bidirectional_mask_function,
    }


def paddings(keys: int) -> dict[str, Tensor | None]:
    ones = torch.ones((2, keys), dtype=torch.bool)
    left, right, hole = ones.clone(), ones.clone(), ones.clone()
    left[1, :3], right[1, -2:], hole[1, 4:6] = False, False, False
    return {"none": None, "ones": ones, "left": left, "right": right, "hole": hole}


def shown(mask: Tensor | None, rule: str, queries: int, keys: int) -> Tensor:
    """bool (2, 1, queries, keys): what the attention function makes of a mask."""
    if mask is not None and mask.ndim == 4:
        return mask.expand(2, 1, queries, keys)
    columns = keys if mask is None else mask.shape[1]
    labels = torch.ones((2, columns), dtype=torch.int32) if mask is None else mask
    q, k = torch.empty(2, queries, 1, 8), torch.empty(2, columns, 1, 8)
    call = Call("Layer", q, k, k)
    call.set_pattern(rule != "bidirectional", WINDOW if rule == "window" else None)
    return torch.nn.functional.pad(dense_of(call, labels), (0, keys - columns))


# Queries, keys, and how many keys there were before the queries: a prompt, a prompt in a static
# cache, a step of decoding in dynamic and static caches, a few queries at once.
LENGTHS = [(12, 12, 0), (12, 20, 0), (1, 12, 11), (1, 20, 11), (4, 12, 8), (4, 20, 8)]


@pytest.mark.parametrize(
    ("rule", "padding", "lengths", "tensors"),
    itertools.product(("causal", "window", "bidirectional"), paddings(1), LENGTHS, (False, True)),
)
def test_same_pairs(rule: str, padding: str, lengths: tuple[int, int, int], tensors: bool) -> None:
    queries, keys, before = lengths
    sizes = {"batch_size": 2, "q_length": queries, "kv_length": keys}
    attention_mask = paddings(before + queries)[padding]
    if rule == "bidirectional" and attention_mask is not None:
        attention_mask = paddings(keys)[padding]
    offset = torch.tensor(before) if tensors else before
    options = {"mask_function": rules()[rule], "attention_mask": attention_mask}
    mask = make_mask(**sizes, q_offset=offset, **options)
    expected = masking_utils.sdpa_mask(
        **sizes, q_offset=before, **options, allow_is_causal_skip=False
    )
    got = shown(mask, rule, queries, keys)
    rows = expected.any(-1, keepdim=True)
    if attention_mask is not None and rule != "bidirectional":
        # Nothing is promised of queries that are padding.
        rows &= attention_mask[:, None, before:, None]
    assert torch.equal(got & rows, expected & rows)
    if padding in ("none", "ones") and keys == before + queries:
        assert mask is None
    if padding != "hole":
        assert mask is None or mask.ndim == 2


def test_unknown_rules_are_dense() -> None:
    def every_second(batch: Any, head: Any, query: Tensor, key: Tensor) -> Tensor:
        return (query - key) % 2 == 0

    causal = masking_utils.causal_mask_function
    for combine in (masking_utils.and_masks, masking_utils.or_masks):
        rule = combine(causal, every_second)
        sizes = {"batch_size": 2, "q_length": 8, "kv_length": 8, "mask_function": rule}
        mask = make_mask(**sizes)
        assert mask is not None
        assert torch.equal(mask, masking_utils.sdpa_mask(**sizes, allow_is_causal_skip=False))


def test_bounds() -> None:
    documents = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 2, 2]])
    expected = [0, 2, 5, 6, 8, 10]
    assert bounds_of(documents).tolist() == expected
    compiled = torch.compile(bounds_of, fullgraph=True, backend="eager")
    assert compiled(documents).tolist() == [*expected, *[10] * 5]


def test_one_run() -> None:
    rows = {(1, 1): True, (0, 1, 1, 0): True, (0, 0): True, (1, 0, 1): False, (1, -1, -1): True}
    for row, one in rows.items():
        assert bool(is_one_run(torch.tensor([row]))) == one


def test_remembered_until_it_changes() -> None:
    tensor = torch.zeros(2)
    made = iter(range(10))

    def ask(*key: object) -> int:
        return remembered(tensor, *key, make=lambda: next(made))

    assert [ask(1), ask(1), ask(2)] == [0, 0, 1]
    tensor += 1
    assert [ask(2), ask(2)] == [2, 2]
