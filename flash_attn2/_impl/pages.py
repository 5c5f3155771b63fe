"""Which page of a `PagedKVCache` belongs to which sequences; bookkeeping of the host alone.

Sequences may share pages; a page that is shared is never written, but copied before.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple


class HeldTokens:
    """A sequence: its tokens lie in its pages, in order, and fill all but the last."""

    __slots__ = ("length", "pages")

    def __init__(self, length: int, pages: array[int]) -> None:
        self.length = length
        self.pages = pages


class Extended(NamedTuple):
    """What a sequence was before it got room for more tokens."""

    sequence: HeldTokens
    length: int
    num_pages: int
    shared_page: int | None
    """Its last one, if it is replaced by a copy."""


class Pages:
    """All pages of a cache. `references[page]` says how many sequences hold it."""

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.page_size = page_size
        self.references = [0] * num_pages
        self.free = list(range(num_pages - 1, -1, -1))  # a stack

    def holding(self, length: int) -> int:
        """How many pages so many tokens take."""
        return -(-length // self.page_size)

    def fork(self, parent: HeldTokens, length: int) -> HeldTokens:
        """Another sequence with the first tokens of `parent`."""
        pages = parent.pages[: self.holding(length)]
        for page in pages:
            self.references[page] += 1
        return HeldTokens(length, pages)

    def truncate(self, sequence: HeldTokens, length: int) -> None:
        sequence.length = length
        self._drop(sequence.pages, self.holding(length))

    def needed(self, held: Sequence[HeldTokens], counts: Sequence[int]) -> int:
        """Free pages that it takes to extend all these sequences."""
        needed = 0
        writers: Counter[int] = Counter()  # by page
        for sequence, count in zip(held, counts, strict=True):
            if count > 0:
                needed += self.holding(sequence.length + count) - len(sequence.pages)
                if sequence.length % self.page_size != 0:
                    writers[sequence.pages[-1]] += 1
        # Once all others that share a page have made copies, it belongs to one sequence alone.
        return needed + sum(min(n, self.references[page] - 1) for page, n in writers.items())

    def extend(
        self,
        sequence: HeldTokens,
        count: int,
        extended: list[Extended],
        copy: Callable[[int, int], None],
    ) -> None:
        """Room for `count` more tokens, of free pages. Before anything changes, `extended` gets
        what `undo` needs; copy(to, source) is called for a page that must not be written."""
        pages = sequence.pages
        shared = sequence.length % self.page_size != 0 and self.references[pages[-1]] > 1
        shared_page = pages[-1] if shared else None
        extended.append(Extended(sequence, sequence.length, len(pages), shared_page))
        if shared_page is not None:
            pages[-1] = self._take()
            self.references[shared_page] -= 1
            copy(pages[-1], shared_page)
        sequence.length += count
        for _ in range(self.holding(sequence.length) - len(pages)):
            pages.append(self._take())

    def undo(self, change: Extended) -> None:
        """Back to before an `extend`, the last one that has not been undone."""
        pages = change.sequence.pages
        self._drop(pages, change.num_pages)
        if change.shared_page is not None and pages[-1] != change.shared_page:
            self.release(pages[-1:])
            pages[-1] = change.shared_page
            self.references[change.shared_page] += 1
        change.sequence.length = change.length

    def release(self, pages: array[int]) -> None:
        """One sequence less holds these pages."""
        for page in reversed(pages):
            self.references[page] -= 1
            if self.references[page] == 0:
                self.free.append(page)

    def _drop(self, pages: array[int], kept: int) -> None:
        self.release(pages[kept:])
        del pages[kept:]

    def _take(self) -> int:
        page = self.free.pop()
        self.references[page] = 1
        return page
