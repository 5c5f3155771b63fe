"""The mask function: what the attention layers of a model get as `attention_mask`.

It is called once for a forward pass and each kind of mask, and returns what `attention` takes:

    None          causal, windowed or no mask as the layer says, of all keys
    1 dimension   packed sequences: int32 bounds, as `cu_seqlens`, in the flattened batch
    2 dimensions  int32 (batch, keys): 1 for a token, 0 for padding, -1 for a place of the cache
                  that is not filled yet. Tokens are one run in each row. Keys past the last column
                  do not count
    4 dimensions  bool (batch or 1, heads or 1, queries, keys): anything else

Whatever needs the values of a mask is decided here, so that a layer never waits for the device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.masking_utils import (
    bidirectional_mask_function,
    causal_mask_function,
    sdpa_mask,
)

from flash_attn2.integrations.transformers.patterns import MaskFunction, Pattern, pattern_of

# Configurations of models that were written for dense masks: nothing else is handed to these.
dense_configs: set[type] = set()


def make_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int | Tensor = 0,
    mask_function: MaskFunction = causal_mask_function,
    attention_mask: Tensor | None = None,
    config: Any = None,
    device: torch.device | str = "cpu",
    use_vmap: bool = False,
    **_: Any,
) -> Tensor | None:
    """The mask of a forward pass: see above. The arguments are transformers'."""

    def dense() -> Tensor:
        mask: Tensor = sdpa_mask(
            batch_size=batch_size,
            q_length=q_length,
            kv_length=kv_length,
            q_offset=q_offset,
            kv_offset=kv_offset,
            mask_function=mask_function,
            attention_mask=attention_mask,
            allow_is_causal_skip=False,
            allow_is_bidirectional_skip=False,
            use_vmap=use_vmap,
            device=device,
        )
        return mask

    if type(config) in dense_configs:
        return dense()
    pattern = pattern_of(mask_function, causal_mask_function, bidirectional_mask_function)
    if pattern is None:
        return dense()
    if pattern.documents is not None:
        return dense() if attention_mask is not None else bounds_of(pattern.documents)
    if not torch.compiler.is_compiling():
        q_offset, kv_offset = int(q_offset), int(kv_offset)
    filled = _filled(pattern, q_length, kv_length, q_offset, kv_offset)
    if filled is None:
        return dense()
    if attention_mask is None:
        return _unpadded(batch_size, kv_length, filled, device)
    visible = _columns(attention_mask, kv_offset, kv_length).bool()
    labels = _labels(visible, filled)
    if torch.compiler.is_compiling():
        torch._assert_async(
            is_one_run(labels),
            "flash_attn2: attention_mask has holes, which a compiled model cannot take: run it "
            "uncompiled, or give it a mask of 4 dimensions",
        )
        return labels
    if isinstance(filled, int) and filled == kv_length and bool(visible.all()):
        return None
    return labels if bool(is_one_run(labels)) else dense()


def _filled(
    pattern: Pattern,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor,
    kv_offset: int | Tensor,
) -> int | Tensor | None:
    """How many keys count: those up to the last query's, to which masks are aligned. None where
    that query lies elsewhere."""
    if not pattern.causal and not pattern.window:
        return kv_length
    filled = q_offset + q_length - kv_offset
    if not isinstance(filled, int):
        return filled if pattern.causal else None
    if filled < q_length or filled > kv_length or (filled < kv_length and not pattern.causal):
        return None
    return filled


def _columns(attention_mask: Tensor, kv_offset: int | Tensor, kv_length: int) -> Tensor:
    """Of these keys; what the mask does not reach to is padding."""
    if isinstance(kv_offset, int):
        columns = attention_mask[:, kv_offset : kv_offset + kv_length]
        return pad(columns, (0, kv_length - columns.shape[1]))
    places = torch.arange(kv_length, device=attention_mask.device) + kv_offset
    columns = attention_mask[:, places.clamp(max=attention_mask.shape[1] - 1)]
    return columns * (places < attention_mask.shape[1])


def _unpadded(
    batch: int, kv_length: int, filled: int | Tensor, device: torch.device | str
) -> Tensor | None:
    """Without padding, what is filled of a cache counts."""
    if isinstance(filled, int) and filled == kv_length:
        return None
    ones = torch.ones((batch, kv_length), dtype=torch.bool, device=device)
    return _labels(ones, filled)


def _labels(visible: Tensor, filled: int | Tensor) -> Tensor:
    if isinstance(filled, int):
        return visible[:, :filled].to(torch.int32)
    places = torch.arange(visible.shape[1], device=visible.device)
    return torch.where(places < filled, visible.to(torch.int32), -1)


def is_one_run(labels: Tensor) -> Tensor:
    """Whether the tokens of every row are one run, or none: a bool without dimensions."""
    token = pad((labels > 0).to(torch.int8), (1, 0))
    return ((token.diff(dim=1) > 0).sum(1) <= 1).all()


def bounds_of(documents: Tensor) -> Tensor:
    """cu_seqlens of a flattened batch, whose sequences do not go on in the next row. While
    compiling, there are as many as tokens, and the last ones are empty."""
    batch, seqlen = documents.shape
    places = torch.arange(batch * seqlen, dtype=torch.int32, device=documents.device)
    begins = pad(documents.diff(dim=1) != 0, (1, 0), value=True).flatten()
    if torch.compiler.is_compiling():
        total = batch * seqlen
        return pad(torch.where(begins, places, total).sort().values, (0, 1), value=total)
    return pad(places[begins], (0, 1), value=batch * seqlen)
