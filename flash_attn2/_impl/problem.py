"""One attention call, in the words of csrc/core/params.h.

The structs are those of C++, with tensors for pointers. What a tensor says itself (strides, rows of
a packed tensor or of a page) is not a field here; `lower` adds it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

# Limits of what kernels can count, as in csrc/core/params.h.
MAX_HEAD_DIM = 576  # of q and k
MAX_HEAD_DIM_V = 512  # of v and out
MAX_SEQLEN = 2**29 - 1
MAX_SPLITS = 128
BLOCK = 64  # queries and keys of a block of a mask

# Within these ranges no kernel rounds a probability, scale or cap to 0 or infinity.
MAX_DROPOUT_P = 1 - 2.0**-10  # where steps of 2^-16 change the share of kept entries by 1%
MIN_FACTOR, MAX_FACTOR = 2.0**-100, 2.0**100  # likewise in csrc/bindings/direct_call.cpp
MAX_FACTOR_RATIO = 2.0**120

UNLIMITED = -1


class SeqLens(NamedTuple):
    """Lengths of the sequences on one side; without any, those of the tensor."""

    cu_seqlens: Tensor | None = None  # int32 (batch + 1,), of packed tensors
    seqused: Tensor | None = None  # int32 (batch,): rows that count; of a cache: before the call
    max_seqlen: int | None = None  # an upper bound; of a cache: rows that each sequence holds
    leftpad: Tensor | None = None  # int32 (batch,): rows in front that do not count
    cu_appended: Tensor | None = None  # int32 (batch + 1,): packed rows that the call appends
    appended: int = 0  # rows that it appends to every sequence


class PagedKV(NamedTuple):
    """Where the keys and values of a sequence lie in a cache."""

    block_table: Tensor | None = None  # int32 (batch, pages of a sequence)
    batch_idx: Tensor | None = None  # int32 (batch,): a table of one page for each sequence
    of_varlen: bool = False  # by the function for packed sequences, not that for caches


class Window(NamedTuple):
    """Sliding window around the bottom-right diagonal; causal is right = 0."""

    left: int = UNLIMITED
    right: int = UNLIMITED


class BlockMask(NamedTuple):
    """Which keys each query sees, listed by blocks of 64 queries and 64 keys.

    A row of blocks lists entries row_offsets[..., r] to row_offsets[..., r + 1].
    """

    row_offsets: Tensor | None = None  # int64 (batch or 1, heads, blocks of queries + 1); None: no
    # mask. heads: 1, num_heads_kv or num_heads
    cols: Tensor | None = None  # int32 (entries,): key blocks of a row, ascending
    tiles: Tensor | None = None  # int32 (entries,): index into bits; 0: all pairs are visible
    bits: Tensor | None = None  # int64 (tiles, 64): a word for each query, a bit for each key


class ScoreMod(NamedTuple):
    """Score modifications that come before the softmax."""

    softcap: float = 0.0  # 0: none
    alibi_slopes: Tensor | None = None  # float32 (num_heads,) or (batch, num_heads)
    bias: Tensor | None = None  # broadcasts to (batch, num_heads, seqlen_q, seqlen_k)
    relative_bias: Tensor | None = None  # (num_heads or 1, seqlen_q + seqlen_k - 1), by key - query


class Dropout(NamedTuple):
    """Dropped softmax entries."""

    drop_prob: float = 0.0  # 0: none
    rng_state: Tensor | None = None  # int64 (2,) = {seed, offset}; None: to be drawn


class Rotary(NamedTuple):
    """Rotary embedding by tables of angles."""

    cos: Tensor | None = None  # (positions, rotary_dim / 2); None: none
    sin: Tensor | None = None
    interleaved: bool = False


class Append(NamedTuple):
    """New keys and values, to be written behind those that a cache holds."""

    new_k: Tensor
    new_v: Tensor | None  # None: the cache of values is the leading columns of that of keys
    rotary: Rotary = Rotary()
    q_advances: bool = False  # query i turns by its own position, not all by that of the first


class Positions(NamedTuple):
    """Where the rows of a dense call stand in longer sequences, if they are a part of these."""

    q_start: int = 0  # of the first query
    k_start: int = 0  # of the first key
    seqlen_q: int = 0  # of the whole sequence
    seqlen_k: int = 0


class QuantisedKV(NamedTuple):
    """The scales of a cache of 8 bits; `quantised` says which shapes they have."""

    k_descale: Tensor | None = None  # float32; None: the cache is of q's dtype
    v_descale: Tensor | None = None


# The defaults. `lower` leaves out what is one of these.
NO_SEQLENS = SeqLens()
NO_PAGES = PagedKV()
NO_WINDOW = Window()
CAUSAL = Window(UNLIMITED, 0)
NO_BLOCK_MASK = BlockMask()
NO_SCORE_MOD = ScoreMod()
NO_DROPOUT = Dropout()
NO_QUANTISED = QuantisedKV()
NO_SHARD = (0, 0, None)  # of the last fields of a Problem


class Options(NamedTuple):
    """What every call takes beside its tensors and lengths; see `functional` for the meaning."""

    softmax_scale: float | None = None  # None: 1 / sqrt(head_dim), of q and k
    window: Window = NO_WINDOW
    score_mod: ScoreMod = NO_SCORE_MOD
    sink: Tensor | None = None
    dropout: Dropout = NO_DROPOUT
    deterministic: bool = False  # of the gradients
    block_mask: BlockMask = NO_BLOCK_MASK  # dense calls only


NO_OPTIONS = Options()


class Problem(NamedTuple):
    """FwdParams, and AppendParams where there is something to append first.

    Dense: (batch, seqlen, num_heads, head_dim). Packed, with cu_seqlens: (total, num_heads,
    head_dim). v may have heads of another width, head_dim_v, and so has out. Over a cache k and v
    are the caches. Without v, k is (..., 2, num_heads_kv, head_dim) and holds keys and values;
    without k, q is (..., 3, num_heads, head_dim) and holds all three.

    What torch.compile sees gives every struct, and replaces none: torch 2.4 can trace neither
    defaults that are structs nor `_replace`.
    """

    q: Tensor
    k: Tensor | None
    v: Tensor | None
    seqs_q: SeqLens = NO_SEQLENS
    seqs_k: SeqLens = NO_SEQLENS
    options: Options = NO_OPTIONS
    pages: PagedKV = NO_PAGES
    num_splits: int = 0  # 0: the family chooses
    append: Append | None = None
    quantised: QuantisedKV | None = None  # of calls over a cache
    out: Tensor | None = None  # of a forward pass: memory for it, if there is some already
    lse: Tensor | None = None  # for a backward pass, which reads both
    # Of a part of sequences: bias has the part's rows and keys, relative_bias is that of the whole.
    positions: Positions | None = None
    # Of a shard: where it lies in the whole problem, which dropout is numbered by.
    batch_start: int = 0
    head_start: int = 0
    num_heads_total: int | None = None  # None: these heads are all


class Gradient(NamedTuple):
    """BwdParams: what comes in at the results of a problem."""

    grad_out: Tensor | None  # None: zeros
    grad_lse: Tensor | None
    forward: Problem


class BiasGradient(NamedTuple):
    """BiasBwdParams: the same, and of which biases the gradients are wanted."""

    grad_out: Tensor | None
    grad_lse: Tensor | None
    forward: Problem
    of_bias: bool = False
    of_relative_bias: bool = False


Result = tuple[Tensor, Tensor, Tensor | None]  # out, lse, rng_state
Gradients = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]  # of q, k, v, sink
BiasGradients = tuple[Tensor | None, Tensor | None]  # of bias, relative_bias


def unpacked(q: Tensor, k: Tensor | None, v: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Views of queries, keys and values of a `Problem`."""
    if k is None:
        return q.unbind(-3)  # type: ignore[return-value]
    if v is None:
        return q, *k.unbind(-3)  # type: ignore[return-value]
    return q, k, v


def with_qkv(p: Problem, q: Tensor, k: Tensor, v: Tensor) -> Problem:
    """The problem with these instead; much faster than `_replace`."""
    return tuple.__new__(Problem, (q, k, v, *p[3:]))


def out_shape(q: Tensor, v: Tensor) -> tuple[int, ...]:
    """Of the result: heads as wide as values are."""
    return (*q.shape[:-1], v.shape[-1])


def lse_shape(q: Tensor) -> tuple[int, ...]:
    """Of the lse of dense or packed queries."""
    *batch, rows, num_heads, _ = q.shape
    return (*batch, num_heads, rows)


def batch_size(p: Problem) -> int:
    """Sequences of a call."""
    cu_seqlens = p.seqs_q.cu_seqlens
    return p.q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1


def capacity(k_cache: Tensor, pages: PagedKV) -> int:
    """Rows of a cache that a sequence can have."""
    columns = 1 if pages.block_table is None else pages.block_table.shape[1]
    return 0 if k_cache.shape[0] == 0 else columns * k_cache.shape[1]


Values = tuple[Any, ...]  # the flat arguments of an op
