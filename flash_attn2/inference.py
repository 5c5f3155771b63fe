"""The memory of a decoding loop: keys and values of many sequences in pages (Kwon et al. 2023).

`PagedKVCache` knows which page belongs to whom; `flash_attn_with_kvcache` writes and reads them:

    cache = PagedKVCache(num_layers, num_pages, page_size, num_heads_kv, head_dim)
    sequences = [cache.allocate() for _ in prompts]

    step = cache.append(sequences, [len(prompt) for prompt in prompts])  # then 1 for each new token
    for layer, (k_cache, v_cache) in zip(model, cache.layers):
        q, k, v = ...  # of the new tokens of all sequences, packed: (total, heads, head_dim)
        out = flash_attn_with_kvcache(q, k_cache, v_cache, k, v, causal=True, **step._asdict())

`flash_attn2.nn.Attention` does what stands in the loop: `attention(x, cache=cache.layers[i],
step=step)`.

All bookkeeping is done on the host. Sequences may share pages; a page that is shared is never
written.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from flash_attn2._impl.arguments import (
    as_int,
    named_only,
    refuse_keywords,
    require_bool,
    require_tensor,
    require_values,
)
from flash_attn2._impl.checks import FLOAT_DTYPES
from flash_attn2._impl.pages import Extended, HeldTokens, Pages
from flash_attn2._impl.problem import MAX_HEAD_DIM, MAX_HEAD_DIM_V, MAX_SEQLEN
from flash_attn2._impl.quantised import ALLOWED, CODE_NAMES
from flash_attn2._impl.step_tensors import FixedStep, step_tensors
from flash_attn2._impl.written_layers import WrittenLayers

__all__ = ["OutOfPagesError", "PagedKVCache", "Step", "Usage"]

_MAX_TOTAL = 2**31 - 1  # rows of a step, whose offsets are int32


class OutOfPagesError(RuntimeError):
    """The cache has fewer free pages than were needed (`free`, `needed`); nothing has changed.

    What helps: to `free` a sequence, one that is done or one that is preempted, whose tokens are
    all appended to a new sequence later; to append fewer tokens in a step; a cache with more pages.
    """

    def __init__(self, needed: int, free: int) -> None:
        super().__init__(needed, free)
        self.needed = needed
        self.free = free

    def __str__(self) -> str:
        return (
            f"{self.needed} pages are needed, {self.free} are free: free() a sequence that is "
            "done; or preempt one, free() it now and append all its tokens to a new one later; or "
            "append fewer tokens; or make the cache with a larger num_pages"
        )


class Step(NamedTuple):
    """Arguments of `flash_attn_with_kvcache` for a batch of sequences, on the cache's device."""

    cache_seqlens: Tensor
    """int32 (batch,): tokens that each sequence held before the step."""
    block_table: Tensor
    """int32 (batch, columns): the pages of each sequence, which are enough for the step's tokens
    too; what follows them is never read."""
    cu_seqlens_q: Tensor
    """int32 (batch + 1,): the rows of each sequence's tokens in the step, packed."""
    max_seqlen_q: int
    """The most tokens of one sequence in the step."""


class Usage(NamedTuple):
    """What a `PagedKVCache` holds."""

    pages_used: int
    pages_free: int
    pages_shared: int
    """Pages of more than one sequence."""
    pages_unshared: int
    """Pages that the sequences would take if they shared none."""
    bytes_used: int
    bytes_total: int
    """Of keys and values, and their scales; allocated once, in the constructor."""


class _Ids:
    """Ever new ids; an object, so that all who hold the cache get different ones."""

    def __init__(self) -> None:
        self._used = 0

    def next(self) -> int:
        self._used += 1
        return self._used - 1


class PagedKVCache:
    """Keys and values of many sequences, for all layers of a model.

        num_layers, num_heads_kv, head_dim  of the model
        num_pages     pages that all sequences share among them, of `page_size` tokens in each layer
        page_size     tokens per page, at least 1
        dtype, device as of `torch.empty`; dtype may be torch.float8_e4m3fn, float8_e5m2 or int8,
                      half of what 16 bits take and a scale for each token and head, which attention
                      computes as it writes
        head_dim_v    width of values, where it is not that of keys, head_dim
        shared_kv     values are the leading head_dim_v columns of keys, and take no memory of their
                      own: attention is called with k alone
        max_seqlen    most tokens that a sequence may hold; None: what all pages hold
        max_batch     most sequences in a step. Where it is given, every step writes its tensors
                      over those of the last one, at the same addresses, so that CUDA graphs can be
                      captured. Behind the batch they describe empty sequences, up to max_batch: a
                      graph of a larger batch may be replayed for a smaller one

    `layers[i]` is (k_cache, v_cache) of layer i, (num_pages, page_size, num_heads_kv, head_dim) and
    the same with head_dim_v; with shared_kv, v_cache is k_cache[..., :head_dim_v]. `descales[i]` is
    (k_descale, v_descale) of a cache of 8 bits, in float32 (num_pages, page_size, num_heads_kv),
    and () of others; with shared_kv both are the same. Sequences go by ids, which are never used
    again. Sizes, ids, lengths and counts are ints, NumPy integers or integer tensors without
    dimensions. What fails changes nothing.

    A cache may be copied and pickled: a deep copy, or one from a pickle or `torch.save` (load it
    with weights_only=False), has pages of its own, the same sequences under the same ids, and steps
    of its own. `copy.copy` is another name for the same cache. Processes that are given a cache
    share its pages, as torch.multiprocessing has it for all tensors, but not its bookkeeping.
    """

    @named_only
    def __init__(
        self,
        num_layers: int,
        num_pages: int,
        page_size: int,
        num_heads_kv: int,
        head_dim: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        *,
        head_dim_v: int | None = None,
        shared_kv: bool = False,
        max_seqlen: int | None = None,
        max_batch: int | None = None,
        **unknown: NoReturn,
    ) -> None:
        if unknown:
            refuse_keywords(PagedKVCache, unknown)
        num_layers, num_pages = _size("num_layers", num_layers), _size("num_pages", num_pages)
        page_size, head_dim = _size("page_size", page_size), _size("head_dim", head_dim)
        num_heads_kv = _size("num_heads_kv", num_heads_kv)
        head_dim_v = head_dim if head_dim_v is None else _size("head_dim_v", head_dim_v)
        require_bool("shared_kv", shared_kv)
        max_seqlen = None if max_seqlen is None else _size("max_seqlen", max_seqlen, math.inf)
        max_batch = None if max_batch is None else _size("max_batch", max_batch)
        if head_dim > MAX_HEAD_DIM:
            raise ValueError(f"head_dim must be at most {MAX_HEAD_DIM}, got {head_dim}")
        if head_dim_v > MAX_HEAD_DIM_V:
            raise ValueError(
                f"head_dim_v, or head_dim without it, must be at most {MAX_HEAD_DIM_V}, got "
                f"{head_dim_v}"
            )
        if shared_kv and head_dim_v > head_dim:
            raise ValueError(
                f"head_dim_v must be at most head_dim, {head_dim}, with shared_kv, got {head_dim_v}"
            )
        dtype = torch.get_default_dtype() if dtype is None else dtype
        if not isinstance(dtype, torch.dtype) or dtype not in (*FLOAT_DTYPES, *CODE_NAMES):
            raise TypeError(
                f"dtype must be float16, bfloat16, float32 or float64, or {ALLOWED}, got {dtype}"
            )
        capacity = num_pages * page_size

        self.num_pages = num_pages
        self.page_size = page_size
        self.max_seqlen = min(capacity if max_seqlen is None else max_seqlen, MAX_SEQLEN)
        self.max_batch = max_batch
        self._pages = Pages(num_pages, page_size)
        self._shared_kv, self._head_dim_v = bool(shared_kv), head_dim_v
        beside = not shared_kv and head_dim_v == head_dim
        apart = not shared_kv and not beside
        shape = (num_layers, 2 if beside else 1, num_pages, page_size, num_heads_kv)
        self._values: Tensor | None = None  # where they do not lie beside the keys, or in them
        self._scales: Tensor | None = None  # of 8 bits
        self._dtype = dtype
        # Tensors of 8-bit floats cannot be pickled.
        memory_dtype = torch.uint8 if dtype in CODE_NAMES else dtype
        # Tensors of inference mode could not be written outside it.
        with torch.inference_mode(False):
            self._storage = torch.empty((*shape, head_dim), dtype=memory_dtype, device=device)
            if apart:
                self._values = torch.empty((*shape, head_dim_v), dtype=memory_dtype, device=device)
            if dtype in CODE_NAMES:
                of_both = (num_layers, 1 if shared_kv else 2, *shape[2:])
                self._scales = torch.ones(of_both, dtype=torch.float32, device=device)
            self._fixed_step = None
            if max_batch is not None:
                columns = self._pages.holding(min(self.max_seqlen, capacity))
                self._fixed_step = FixedStep(max_batch, columns, self.device)
        self._make_views()

        self._sequences: dict[int, HeldTokens] = {}
        self._ids = _Ids()
        self._watch = WrittenLayers(1 if apart else 2)

    def _make_views(self) -> None:
        # Not kept in copies and pickles, where views become tensors with memory of their own.
        with torch.inference_mode(False):  # where views as another dtype would be tensors of it
            storage = self._storage.view(self._dtype)
            values = None if self._values is None else self._values.view(self._dtype)[:, 0]
        keys = storage[:, 0]
        if values is None:
            values = keys[..., : self._head_dim_v] if self._shared_kv else storage[:, -1]
        self.layers: tuple[tuple[Tensor, Tensor], ...] = tuple(
            zip(keys.unbind(), values.unbind(), strict=True)
        )
        self.descales: tuple[tuple[Tensor, Tensor] | tuple[()], ...] = ((),) * len(self.layers)
        if self._scales is not None:
            of_keys, of_values = self._scales[:, 0], self._scales[:, -1]
            self.descales = tuple(zip(of_keys.unbind(), of_values.unbind(), strict=True))

    def _memory(self) -> tuple[Tensor, ...]:
        """All of it, each (num_layers, ..., num_pages, page_size, num_heads_kv, ...)."""
        return tuple(x for x in (self._storage, self._values, self._scales) if x is not None)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["layers"], state["descales"]
        return state | {"_watch": self._watch.anew()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._make_views()

    @property
    def device(self) -> torch.device:
        return self._storage.device

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    def __len__(self) -> int:
        """How many sequences the cache holds."""
        return len(self._sequences)

    def __contains__(self, sequence: object) -> bool:
        try:
            return as_int("sequence", sequence) in self._sequences
        except (TypeError, ValueError):
            return False

    def __repr__(self) -> str:
        num_layers, _, *_, num_heads_kv, head_dim = self._storage.shape
        used = self.num_pages - len(self._pages.free)
        bounds = "" if self.max_batch is None else f", max_batch={self.max_batch}"
        width = "" if self._head_dim_v == head_dim else f", head_dim_v={self._head_dim_v}"
        width += ", shared_kv=True" if self._shared_kv else ""
        return (
            f"PagedKVCache(num_layers={num_layers}, num_pages={self.num_pages}, "
            f"page_size={self.page_size}, num_heads_kv={num_heads_kv}, head_dim={head_dim}, "
            f"dtype={self.dtype}, device={str(self.device)!r}{width}, "
            f"max_seqlen={self.max_seqlen}{bounds}: {len(self)} sequences in {used} pages)"
        )

    def length(self, sequence: int) -> int:
        """How many tokens a sequence holds."""
        return self._find(sequence).length

    def allocate(self) -> int:
        """The id of a new sequence, which holds nothing yet."""
        return self._add(HeldTokens(0, array("i")))

    def fork(self, sequence: int, length: int | None = None) -> int:
        """The id of a new sequence that holds the first `length` tokens of another; None: all.

        It takes no memory until one of the two continues in the page where it ends.
        """
        parent = self._find(sequence)
        length = parent.length if length is None else _bounded("length", length, parent.length)
        return self._add(self._pages.fork(parent, length))

    def truncate(self, sequence: int, length: int) -> None:
        """Keeps the first `length` tokens of a sequence."""
        held = self._find(sequence)
        self._pages.truncate(held, _bounded("length", length, held.length))
        self._watch.forget(held)

    def free(self, sequence: int) -> None:
        """Forgets a sequence; pages that no other shares become free."""
        self._pages.release(self._find(sequence).pages)
        del self._sequences[as_int("sequence", sequence)]

    def append(
        self, sequences: Sequence[int] | Tensor, counts: int | Sequence[int] | Tensor
    ) -> Step:
        """Makes room for `counts[i]` more tokens in `sequences[i]`; an int stands for all of them.

        The sequences then count as holding these tokens, which attention has to write, in every
        layer, before the next `append`: that is when a page is copied if a sequence continues in
        it that shares it. Either all sequences get room or, with an OutOfPagesError, none. With a
        count of 0 a sequence stays as it is. Ids and counts may be 1-D integer tensors and arrays.

        Once per step, not once per layer: RuntimeError where a sequence is continued of whose last
        tokens some layers but not all have been written. (What replays of CUDA graphs write is not
        seen. `truncate` takes such tokens back, after a step that failed midway.)
        """
        sequences = _integers("sequences", sequences)
        held = [self._find(sequence) for sequence in sequences]
        counts = _integers("counts", counts, len(held))
        self._check_step(sequences, held, counts)
        self._watch.require_all(self._storage, sequences, held, counts)
        needed, free = self._pages.needed(held, counts), len(self._pages.free)
        if needed > free:
            raise OutOfPagesError(needed, free)
        seqlens = [sequence.length for sequence in held]
        extended: list[Extended] = []
        try:
            for sequence, count in zip(held, counts, strict=True):
                if count > 0:
                    self._pages.extend(sequence, count, extended, self._copy_page)
            step = self._step(held, seqlens, counts)
            self._watch.begin(self._storage, held, counts)
            return step
        except BaseException:  # no memory for the step's tensors, or an interrupt
            for change in reversed(extended):
                self._pages.undo(change)
            raise

    def usage(self) -> Usage:
        """Pages and bytes in use."""
        free = len(self._pages.free)
        used = self.num_pages - free
        size = sum(x.nbytes for x in self._memory())
        return Usage(
            pages_used=used,
            pages_free=free,
            pages_shared=sum(count > 1 for count in self._pages.references),
            pages_unshared=sum(self._pages.references),
            bytes_used=size // self.num_pages * used,
            bytes_total=size,
        )

    def _find(self, sequence: int) -> HeldTokens:
        held = self._sequences.get(as_int("sequence", sequence))
        if held is None:
            raise ValueError(f"sequence must be one that the cache holds, got {sequence!r}")
        return held

    def _add(self, held: HeldTokens) -> int:
        sequence = self._ids.next()
        self._sequences[sequence] = held
        return sequence

    def _check_step(
        self, sequences: Sequence[int], held: list[HeldTokens], counts: Sequence[int]
    ) -> None:
        if self.max_batch is not None and len(held) > self.max_batch:
            raise ValueError(
                f"sequences must be at most max_batch = {self.max_batch}, got {len(held)}"
            )
        if len(counts) != len(held):
            raise ValueError(
                f"counts must have one number per sequence, {len(held)}, got {len(counts)}"
            )
        if len(set(sequences)) != len(held):
            twice = next(s for s, times in Counter(sequences).items() if times > 1)
            raise ValueError(f"sequences must differ, got {twice} more than once")
        for sequence, before, count in zip(sequences, held, counts, strict=True):
            if count < 0:
                raise ValueError(f"counts must not be negative, got {count} of sequence {sequence}")
            if before.length + count > self.max_seqlen:
                raise ValueError(
                    f"counts must not lead beyond max_seqlen = {self.max_seqlen}: sequence "
                    f"{sequence} holds {before.length} tokens, got {count} more"
                )
        if sum(counts) > _MAX_TOTAL:
            raise ValueError(
                f"counts must not be more than {_MAX_TOTAL} together, got {sum(counts)}"
            )

    def _copy_page(self, to: int, source: int) -> None:
        for x in self._memory():
            x[:, :, to].copy_(x[:, :, source])

    def _step(self, held: list[HeldTokens], seqlens: list[int], counts: Sequence[int]) -> Step:
        batch = len(held)
        rows = batch if self.max_batch is None else self.max_batch
        tensors = step_tensors(held, seqlens, counts, rows, self.device)
        if self._fixed_step is not None:
            tensors = self._fixed_step.overwrite(tensors)
        cu_seqlens_q, cache_seqlens, block_table = tensors
        return Step(
            cache_seqlens[:batch],
            block_table[:batch],
            cu_seqlens_q[: batch + 1],
            max(counts, default=0),
        )


def _size(name: str, value: Any, most: float = 2**31 - 1) -> int:
    if (size := as_int(name, value)) < 1:
        raise ValueError(f"{name} must be at least 1, got {size}")
    if size > most:
        raise ValueError(f"{name} must be at most {most}, got {size}")
    return size


def _integers(name: str, values: Any, count: int | None = None) -> list[int]:
    """A sequence of integers; with `count`, also a single one, which stands for so many."""
    if isinstance(values, Tensor):
        require_tensor(name, values)
        if values.ndim == 1:
            values = require_values(name, values).tolist()
    if isinstance(values, (str, bytes, Mapping, Set)):
        raise TypeError(f"{name} must be integers in order, got {values!r}")
    try:
        values = list(values)
    except TypeError:  # nothing to go through
        if count is None:
            raise TypeError(
                f"{name} must be a sequence of ids, [s] for a single one, got {values!r}"
            ) from None
        return [as_int(name, values)] * count
    return [as_int(f"{name}[{i}]", value) for i, value in enumerate(values)]


def _bounded(name: str, value: int, most: int) -> int:
    value = as_int(name, value)
    if not 0 <= value <= most:
        raise ValueError(
            f"{name} must be from 0 to the length of the sequence, {most}, got {value}"
        )
    return value
