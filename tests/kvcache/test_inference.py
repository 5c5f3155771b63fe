"""PagedKVCache against lists of tokens: contents page by page, sharing, memory, errors."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from torch import Tensor

from flash_attn2 import flash_attn_with_kvcache
from flash_attn2.inference import OutOfPagesError, PagedKVCache, Step

LAYERS, PAGES, PAGE_SIZE, MAX_BATCH = 2, 12, 4, 5


def small_cache(**options: Any) -> PagedKVCache:
    return PagedKVCache(LAYERS, PAGES, PAGE_SIZE, 1, 2, **options)


def pages_of(cache: PagedKVCache, sequence: int) -> list[int]:
    step = cache.append([sequence], 0)
    count = -(-int(step.cache_seqlens) // cache.page_size)
    return step.block_table[0, :count].tolist()


def write(cache: PagedKVCache, step: Step, tokens: list[list[int]]) -> set[int]:
    """What attention does with a step: keys become the tokens, values their negatives, plus 1000
    for each layer. Returns the pages written.
    """
    written = set()
    for before, table, new in zip(step.cache_seqlens, step.block_table, tokens, strict=True):
        for position, token in enumerate(new, int(before)):
            page, row = int(table[position // cache.page_size]), position % cache.page_size
            assert 0 <= page < cache.num_pages
            written.add(page)
            for layer, (k, v) in enumerate(cache.layers):
                k[page, row], v[page, row] = token + 1000 * layer, -token - 1000 * layer
    return written


def read(cache: PagedKVCache, sequence: int) -> list[int]:
    """The tokens of a sequence, which all layers hold."""
    pages, length = pages_of(cache, sequence), cache.length(sequence)
    layers = []
    for layer, (k, v) in enumerate(cache.layers):
        keys: Tensor = k[pages].flatten(0, 1)[:length]
        assert torch.equal(v[pages].flatten(0, 1)[:length], -keys)
        assert torch.equal(keys[..., :1].expand_as(keys), keys)
        layers.append((keys[:, 0, 0] - 1000 * layer).tolist())
    assert all(tokens == layers[0] for tokens in layers)
    return [int(token) for token in layers[0]]


def append(cache: PagedKVCache, sequence: int, tokens: list[int]) -> None:
    write(cache, cache.append([sequence], len(tokens)), [tokens])


class Decoding(RuleBasedStateMachine):
    """Random steps, forks, rejections and ends, beside a list of tokens for each sequence."""

    max_batch: int | None = None

    def __init__(self) -> None:
        super().__init__()
        self.cache = small_cache(max_batch=self.max_batch)
        for k, v in self.cache.layers:
            k.fill_(torch.nan), v.fill_(torch.nan)
        self.model: dict[int, list[int]] = {}
        self.tokens = itertools.count()

    def pick(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(sorted(self.model)))

    @rule()
    def allocate(self) -> None:
        sequence = self.cache.allocate()
        assert sequence not in self.model
        self.model[sequence] = []

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def append(self, data: st.DataObject) -> None:
        ids = st.lists(st.sampled_from(sorted(self.model)), unique=True, max_size=MAX_BATCH)
        sequences = data.draw(ids)
        counts = [data.draw(st.integers(0, 2 * PAGE_SIZE + 1)) for _ in sequences]
        lengths = [len(self.model[sequence]) for sequence in sequences]
        tables = {sequence: pages_of(self.cache, sequence) for sequence in self.model}
        needed = self.needed(sequences, counts, tables)
        free = self.cache.usage().pages_free
        if needed > free:
            with pytest.raises(OutOfPagesError) as caught:
                self.cache.append(sequences, counts)
            assert (caught.value.needed, caught.value.free) == (needed, free)
            assert tables == {sequence: pages_of(self.cache, sequence) for sequence in self.model}
            return
        step = self.cache.append(sequences, counts)
        assert self.cache.usage().pages_free == free - needed
        assert step.cache_seqlens.tolist() == lengths
        assert step.cu_seqlens_q.tolist() == list(itertools.accumulate(counts, initial=0))
        assert step.max_seqlen_q == max(counts, default=0)
        assert step.block_table.shape[0] == len(sequences)
        assert {tensor.dtype for tensor in step[:3]} == {torch.int32}
        new = [list(itertools.islice(self.tokens, count)) for count in counts]
        written = write(self.cache, step, new)
        for sequence, tokens in zip(sequences, new, strict=True):
            self.model[sequence] += tokens
        holders = Counter(page for s in self.model for page in pages_of(self.cache, s))
        assert all(holders[page] == 1 for page in written)

    def needed(self, sequences: list[int], counts: list[int], tables: dict[int, list[int]]) -> int:
        """Pages, by going through the sequences one by one."""
        holders = Counter(page for table in tables.values() for page in table)
        needed = 0
        for sequence, count in zip(sequences, counts, strict=True):
            length, table = len(self.model[sequence]), tables[sequence]
            needed += -(-(length + count) // PAGE_SIZE) - len(table)
            if count > 0 and length % PAGE_SIZE != 0 and holders[table[-1]] > 1:
                holders[table[-1]] -= 1
                needed += 1
        return needed

    @precondition(lambda self: self.model)
    @rule(data=st.data(), whole=st.booleans())
    def fork(self, data: st.DataObject, whole: bool) -> None:
        parent = self.pick(data)
        tokens = self.model[parent]
        length = None if whole else data.draw(st.integers(0, len(tokens)))
        used = self.cache.usage().pages_used
        child = self.cache.fork(parent, length)
        assert child not in self.model
        assert self.cache.usage().pages_used == used
        self.model[child] = tokens[:length]

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        sequence = self.pick(data)
        length = data.draw(st.integers(0, len(self.model[sequence])))
        self.cache.truncate(sequence, length)
        del self.model[sequence][length:]

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        sequence = self.pick(data)
        self.cache.free(sequence)
        del self.model[sequence]
        assert sequence not in self.cache

    @invariant()
    def contents_are_those_of_the_model(self) -> None:
        for sequence, tokens in self.model.items():
            assert read(self.cache, sequence) == tokens
        assert len(self.cache) == len(self.model)

    @invariant()
    def pages_are_those_of_the_sequences(self) -> None:
        tables = [pages_of(self.cache, sequence) for sequence in self.model]
        holders = Counter(page for table in tables for page in table)
        usage = self.cache.usage()
        assert usage.pages_used == len(holders)
        assert usage.pages_used + usage.pages_free == PAGES
        assert usage.pages_shared == sum(count > 1 for count in holders.values())
        assert usage.pages_unshared == holders.total()
        assert all(len(table) == len(set(table)) for table in tables)

    def teardown(self) -> None:
        for sequence in self.model:
            self.cache.free(sequence)
        assert self.cache.usage().pages_free == PAGES


class DecodingAtFixedAddresses(Decoding):
    max_batch = MAX_BATCH


def stress(machine: type[Decoding]) -> Any:
    explore = settings().max_examples > settings.get_profile("fixed").max_examples
    examples = settings().max_examples if explore else 25
    machine.TestCase.settings = settings(max_examples=examples, stateful_step_count=40)
    return machine.TestCase


TestDecoding = stress(Decoding)
TestDecodingAtFixedAddresses = stress(DecodingAtFixedAddresses)


def test_shared_page_is_copied_when_written() -> None:
    cache = small_cache()
    parent = cache.allocate()
    append(cache, parent, [1, 2, 3, 4, 5, 6])
    child = cache.fork(parent)
    assert pages_of(cache, child) == pages_of(cache, parent)
    assert cache.usage()[:4] == (2, PAGES - 2, 2, 4)

    append(cache, child, [7])
    assert pages_of(cache, child)[0] == pages_of(cache, parent)[0]
    assert pages_of(cache, child)[1] != pages_of(cache, parent)[1]
    assert cache.usage()[:4] == (3, PAGES - 3, 1, 4)

    pages = pages_of(cache, parent)
    append(cache, parent, [8, 9, 10])  # the page at its end is no longer shared
    assert pages_of(cache, parent)[:2] == pages
    assert read(cache, parent) == [1, 2, 3, 4, 5, 6, 8, 9, 10]
    assert read(cache, child) == [1, 2, 3, 4, 5, 6, 7]


def test_full_pages_are_shared_for_good() -> None:
    cache = small_cache()
    prefix = cache.allocate()
    append(cache, prefix, list(range(8)))
    children = [cache.fork(prefix) for _ in range(3)]
    write(cache, cache.append(children, 1), [[10], [11], [12]])
    assert cache.usage()[:3] == (2 + 3, PAGES - 5, 2)
    cache.free(prefix)
    assert [read(cache, child) for child in children] == [[*range(8), i] for i in (10, 11, 12)]


def test_rejected_tokens_leave_the_page_of_a_fork_alone() -> None:
    cache = small_cache()
    sequence = cache.allocate()
    append(cache, sequence, [1, 2, 3, 4, 5])
    other = cache.fork(sequence)
    cache.truncate(sequence, 2)
    append(cache, sequence, [6, 7, 8, 9])
    assert read(cache, sequence) == [1, 2, 6, 7, 8, 9]
    assert read(cache, other) == [1, 2, 3, 4, 5]


def test_all_or_none_get_room() -> None:
    cache = small_cache()
    first, second = cache.allocate(), cache.allocate()
    append(cache, first, [1])
    with pytest.raises(OutOfPagesError, match="12 pages are needed, 11 are free") as caught:
        cache.append([first, second], [4, 11 * PAGE_SIZE])
    assert (caught.value.needed, caught.value.free) == (12, 11)
    assert read(cache, first) == [1]
    assert cache.length(second) == 0
    cache.append([first, second], [3, 11 * PAGE_SIZE])
    assert cache.usage().pages_free == 0


def test_memory() -> None:
    cache = PagedKVCache(3, 10, 16, 2, 64, torch.bfloat16)
    (k, v), *_ = cache.layers
    assert k.shape == v.shape == (10, 16, 2, 64)
    assert k.dtype is cache.dtype is torch.bfloat16
    assert len(cache.layers) == 3
    sequence = cache.allocate()
    assert cache.usage().bytes_used == 0
    cache.append([sequence], 17)
    page = 3 * 2 * 16 * 2 * 64 * 2
    assert cache.usage()[-2:] == (2 * page, 10 * page)


def test_fixed_addresses() -> None:
    cache = small_cache(max_batch=3, max_seqlen=20)
    sequences = [cache.allocate() for _ in range(3)]
    step = cache.append(sequences, [9, 3, 1])
    assert step.block_table.shape == (3, 5)
    addresses = [tensor.data_ptr() for tensor in step[:3]]
    captured = step

    step = cache.append(sequences[1:], [2, 1])
    assert [tensor.data_ptr() for tensor in step[:3]] == addresses
    assert step.cache_seqlens.tolist() == [3, 1]
    # What a graph that was captured with three sequences sees.
    assert captured.cache_seqlens.tolist() == [3, 1, 0]
    assert captured.cu_seqlens_q.tolist() == [0, 2, 3, 3]
    assert captured.block_table[2, 0] == -1

    with pytest.raises(ValueError, match="sequences must be at most max_batch = 3, got 4"):
        cache.append([*sequences, cache.allocate()], 1)


def test_empty_batch() -> None:
    for cache in (small_cache(), small_cache(max_batch=2)):
        step = cache.append([], [])
        assert [tensor.tolist() for tensor in step[:3]] == [[], [], [0]]
        assert step.max_seqlen_q == 0


def test_cache_of_inference_mode_serves_outside_it() -> None:
    with torch.inference_mode():
        cache = small_cache(max_batch=1)
        sequence = cache.allocate()
        append(cache, sequence, [1])
        codes = PagedKVCache(1, 2, 4, 1, 8, torch.float8_e5m2, head_dim_v=16)
    append(cache, sequence, [2])
    assert read(cache, sequence) == [1, 2]
    for x in (*codes.layers[0], *codes.descales[0]):
        assert not x.is_inference()


CALLS: dict[str, Callable[[PagedKVCache, int], object]] = {
    "sequence must be one that the cache holds, got 7": lambda cache, _: cache.length(7),
    "sequence must be one that the cache holds, got 8": lambda cache, _: cache.append([8], 1),
    "sequence must be one that the cache holds, got 9": lambda cache, _: cache.free(9),
    "sequences must differ, got 0 more than once": lambda cache, s: cache.append([s, s], 1),
    "one number per sequence, 1, got 2": lambda cache, s: cache.append([s], [1, 2]),
    "counts must not be negative, got -1 of sequence 0": lambda cache, s: cache.append([s], -1),
    "max_seqlen = 20: sequence 0 holds 5 tokens, got 16 more": (
        lambda cache, s: cache.append([s], [16])
    ),
    "length must be from 0 to the length of the sequence, 5, got 6": (
        lambda cache, s: cache.truncate(s, 6)
    ),
    "length must be from 0 to the length of the sequence, 5, got -1": (
        lambda cache, s: cache.fork(s, -1)
    ),
}


BAD_STEPS: list[tuple[Any, Any, str]] = [
    ([0], [1.5], r"counts\[0\] must be an int, got float 1.5"),
    ([0], [True], r"counts\[0\] must be an int, got bool"),
    ([0], ["1"], r"counts\[0\] must be an int, got str"),
    ([0], [None], r"counts\[0\] must be an int, got NoneType"),
    ([0], 1.5, r"counts must be an int, got float"),
    ([0], True, r"counts must be an int, got bool"),
    ([0], None, r"counts must be an int, got NoneType"),
    ([0], "1", r"counts must be integers in order, got '1'"),
    ([0], {1: 1}, r"counts must be integers in order, got"),
    ([0], [2**70], r"counts must not lead beyond max_seqlen"),
    ([0], [-(2**70)], r"counts must not be negative"),
    ([0], torch.tensor([1.0]), r"counts\[0\] must be an int"),
    ([0], torch.tensor([[1]]), r"counts\[0\] must be an int"),
    ([0], torch.tensor([True]), r"counts\[0\] must be an int"),
    ([0], np.array([1.0]), r"counts\[0\] must be an int"),
    ([0, 1], [1], r"counts must have one number per sequence, 2, got 1"),
    ([0, 1], [1, -1], r"counts must not be negative, got -1 of sequence 1"),
    ([0, 1], [9, 16], r"counts must not lead beyond max_seqlen"),
    ([0, 7], 1, r"sequence must be one that the cache holds, got 7"),
    ([1, 0, 1], 1, r"sequences must differ, got 1 more than once"),
    (0, 1, r"sequences must be a sequence of ids, \[s\] for a single one, got 0"),
    (None, 1, r"sequences must be a sequence of ids"),
    (torch.tensor([0], device="meta"), 1, r"sequences must have values, got a tensor on .* meta"),
    (torch.tensor([0]).to_sparse(), 1, r"sequences must be a dense tensor"),
    ([0], torch.tensor([1]).to_sparse(), r"counts must be a dense tensor"),
    ([0], torch.tensor([1], device="meta"), r"counts must have values"),
    ("0", 1, r"sequences must be integers in order, got '0'"),
    ({0}, 1, r"sequences must be integers in order"),
    ([0.0], 1, r"sequences\[0\] must be an int, got float"),
    ([False], 1, r"sequences\[0\] must be an int, got bool"),
    ([[0]], 1, r"sequences\[0\] must be an int, got list"),
    (torch.tensor([0.0]), 1, r"sequences\[0\] must be an int"),
]
BAD_IDS: list[Any] = [0.0, False, "0", [0], None, torch.tensor(0.0), torch.tensor([0, 1]), 2**70]
BAD_IDS += [torch.tensor(0, device="meta"), torch.tensor(0).to_sparse()]
BAD_LENGTHS: list[Any] = [1.5, True, "1", [1], -1, 6, 2**70, torch.tensor(1.0)]


def state(cache: PagedKVCache) -> Any:
    """All that a cache knows, its memory included."""
    held = {s: (x.length, list(x.pages)) for s, x in cache._sequences.items()}
    return held, list(cache._pages.references), sorted(cache._pages.free), cache._storage.tolist()


def two_sequences(**options: Any) -> PagedKVCache:
    cache = small_cache(max_seqlen=20, **options)
    append(cache, cache.allocate(), [1, 2, 3, 4, 5])
    cache.fork(0)
    cache._storage.nan_to_num_(0.0)
    return cache


@pytest.mark.parametrize("message", CALLS)
def test_wrong_calls_change_nothing(message: str) -> None:
    cache = small_cache(max_seqlen=20)
    sequence = cache.allocate()
    append(cache, sequence, [1, 2, 3, 4, 5])
    cache._storage.nan_to_num_(0.0)
    before = state(cache)
    with pytest.raises(ValueError, match=message):
        CALLS[message](cache, sequence)
    assert state(cache) == before


def test_wrong_steps_change_nothing() -> None:
    cache = two_sequences()
    before = state(cache)
    for sequences, counts, message in BAD_STEPS:
        with pytest.raises((TypeError, ValueError), match=message):
            cache.append(sequences, counts)
        assert state(cache) == before


@pytest.mark.parametrize("name", ["length", "fork", "truncate", "free"])
def test_wrong_ids_and_lengths_change_nothing(name: str) -> None:
    cache = two_sequences()
    before = state(cache)
    more = (1,) if name == "truncate" else ()
    for sequence in BAD_IDS:
        with pytest.raises((TypeError, ValueError), match="sequence must"):
            getattr(cache, name)(sequence, *more)
        assert state(cache) == before
        assert sequence not in cache
    if name in ("fork", "truncate"):
        for length in BAD_LENGTHS:
            with pytest.raises((TypeError, ValueError), match="length must be"):
                getattr(cache, name)(0, length)
            assert state(cache) == before


@pytest.mark.parametrize("failing", ["page", "step", "fixed"])
def test_without_memory_nothing_changes(failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a page is copied, or the tensors of the step are made."""
    cache = two_sequences(max_batch=2 if failing == "fixed" else None)
    before = state(cache)

    def fail(*_: Any, **__: Any) -> Any:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(*(torch, "frombuffer") if failing == "step" else (Tensor, "copy_"), fail)
        with pytest.raises(MemoryError):
            cache.append([1, 0], [9, 1])
    assert state(cache)[:3] == before[:3]
    assert read(cache, 0) == [1, 2, 3, 4, 5]
    append(cache, 1, [6])
    assert read(cache, 1) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("sequences", "counts"),
    [
        ((0, 1), (2, 2)),
        (np.array([0, 1]), np.array([2, 2])),
        (torch.tensor([0, 1]), torch.tensor([2, 2], dtype=torch.int32)),
        ([np.int64(0), torch.tensor(1)], [torch.tensor(2), np.int32(2)]),
        (range(2), np.int64(2)),
        ([0, 1], torch.tensor(2)),
    ],
)
def test_integers_of_all_kinds(sequences: Any, counts: Any) -> None:
    cache = two_sequences()
    step = cache.append(sequences, counts)
    assert (step.cu_seqlens_q.tolist(), step.max_seqlen_q) == ([0, 2, 4], 2)
    assert [cache.length(np.int64(0)), cache.length(torch.tensor(1))] == [7, 7]
    cache.truncate(np.int64(0), np.uint8(3))  # whose negative is a large number
    pages = [-(-tokens // PAGE_SIZE) for tokens in (3, 7)]
    assert cache.usage().pages_unshared == sum(pages)
    assert np.int64(0) in cache
    cache.free(np.int64(0))
    assert 0 not in cache


def test_sequences_end() -> None:
    cache = small_cache()
    sequence = cache.allocate()
    cache.free(sequence)
    assert cache.allocate() != sequence
    with pytest.raises(ValueError, match=f"got {sequence}"):
        cache.append([sequence], 1)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"num_layers": 0}, ValueError, "num_layers must be at least 1, got 0"),
        ({"num_pages": -1}, ValueError, "num_pages must be at least 1, got -1"),
        ({"page_size": 0}, ValueError, "page_size must be at least 1, got 0"),
        ({"num_pages": 2**63}, ValueError, "num_pages must be at most 2147483647, got"),
        ({"max_batch": 2**31}, ValueError, "max_batch must be at most 2147483647, got"),
        ({"dtype": np.zeros(2)}, TypeError, "dtype must be float16"),
        ({"head_dim": 577}, ValueError, "head_dim must be at most 576, got 577"),
        ({"head_dim": 513}, ValueError, "head_dim_v, or head_dim .* at most 512, got 513"),
        ({"head_dim_v": 0}, ValueError, "head_dim_v must be at least 1, got 0"),
        ({"max_batch": 0}, ValueError, "max_batch must be at least 1, got 0"),
        ({"dtype": torch.int16}, TypeError, "dtype must be float16, .*, got torch.int16"),
        ({"dtype": "float16"}, TypeError, "dtype must be float16, .*, got float16"),
        ({"num_layers": 1.5}, TypeError, "num_layers must be an int, got float 1.5"),
        ({"page_size": True}, TypeError, "page_size must be an int, got bool"),
        ({"head_dim": None}, TypeError, "head_dim must be an int, got NoneType"),
        ({"max_seqlen": "8"}, TypeError, "max_seqlen must be an int, got str"),
    ],
)
def test_wrong_sizes(change: dict[str, Any], error: type[Exception], message: str) -> None:
    sizes = {"num_layers": 1, "num_pages": 1, "page_size": 1, "num_heads_kv": 1, "head_dim": 1}
    with pytest.raises(error, match=message):
        PagedKVCache(**sizes | change)


def test_what_to_do_without_pages() -> None:
    """Each of the remedies that the error names works."""
    cache = PagedKVCache(1, 2, 4, 1, 8)
    first, second = cache.allocate(), cache.allocate()
    cache.append([first, second], 4)
    with pytest.raises(OutOfPagesError, match=r"1 pages are needed, 0 .*free\(\).*num_pages"):
        cache.append([first], 1)
    cache.free(second)
    cache.append([first], 1)
    assert cache.length(first) == 5


def test_repr() -> None:
    cache = PagedKVCache(2, 8, 4, 1, 16, torch.bfloat16, "cpu", max_batch=3)
    cache.append([cache.allocate()], 5)
    assert repr(cache) == (
        "PagedKVCache(num_layers=2, num_pages=8, page_size=4, num_heads_kv=1, head_dim=16, "
        "dtype=torch.bfloat16, device='cpu', max_seqlen=32, max_batch=3: 1 sequences in 2 pages)"
    )


def attend(cache: PagedKVCache, layer: int, step: Step) -> None:
    rows = int(step.cu_seqlens_q[-1])
    x = torch.randn(rows, 1, 8)
    flash_attn_with_kvcache(x, *cache.layers[layer], x, x, causal=True, **step._asdict())


def test_appending_once_per_layer_is_caught() -> None:
    cache = PagedKVCache(3, 8, 4, 1, 8)
    sequence, other = cache.allocate(), cache.allocate()
    for _ in range(3):  # as it should be
        step = cache.append([sequence], 1)
        for layer in range(3):
            attend(cache, layer, step)
    attend(cache, 0, cache.append([sequence], 1))
    before = cache.usage(), cache.length(sequence)
    with pytest.raises(RuntimeError, match=r"once per step.* 1 of 3 layers .* sequence 0 was to"):
        cache.append([sequence], 1)
    assert (cache.usage(), cache.length(sequence)) == before
    for again in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        again.append([sequence], 1)  # which knows nothing of it
    attend(cache, 0, cache.append([other], 1))  # another sequence may begin
    with pytest.raises(RuntimeError, match="sequence 1 was to be continued"):
        cache.append([sequence, other], 1)


def test_a_step_that_failed_midway_is_taken_back() -> None:
    cache = PagedKVCache(3, 8, 4, 1, 8)
    sequence = cache.allocate()
    attend(cache, 0, cache.append([sequence], 5))
    cache.truncate(sequence, 0)
    step = cache.append([sequence], 5)
    for layer in range(3):
        attend(cache, layer, step)
    cache.append([sequence], 0)
    cache.append([sequence], 1)
    cache.append([sequence], 1)  # of which nothing was seen: a graph may have written it
