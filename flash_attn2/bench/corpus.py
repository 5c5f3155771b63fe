"""Sequence lengths of real text: the source files of Python's standard library.

A document is one `.py` file. Its length is its number of bytes, or of tokens, where a token is a
word, a number, a run of punctuation or a run of white space, as the pre-tokenisers of byte-pair
encoders cut text. (The `tokenize` module would count a whole docstring as one token.)
"""

from __future__ import annotations

import hashlib
import re
import sysconfig
from dataclasses import dataclass
from pathlib import Path

UNITS = ("token", "byte")

_TOKEN = re.compile(rb" ?\w+| ?[^\w\s]+|\s+")
_EXCLUDED = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}


@dataclass(frozen=True)
class Corpus:
    """Document lengths in `unit`s, in an order that is shuffled but always the same."""

    unit: str
    lengths: tuple[int, ...]
    num_bytes: int

    def closest(self, length: int) -> int:
        """The document length closest to `length`."""
        return min(self.lengths, key=lambda candidate: (abs(candidate - length), candidate))

    def packed(self, total: int, max_length: int) -> tuple[int, ...]:
        """Lengths of the documents that fill exactly `total` rows.

        Each document is cut at `max_length`, and the last one where the rows end.
        """
        packed: list[int] = []
        room = total
        for length in self.lengths:
            packed.append(min(length, max_length, room))
            room -= packed[-1]
            if room == 0:
                return tuple(packed)
        raise ValueError(f"the corpus is {room} {self.unit}s too short to fill {total}")


def read_corpus(unit: str = "token", root: Path | None = None) -> Corpus:
    """Measures every `.py` file below `root` (default: the running Python's standard library)."""
    if unit not in UNITS:
        raise ValueError(f"unit must be one of {UNITS}, got {unit!r}")
    root = root or Path(sysconfig.get_path("stdlib"))
    sources = [
        (path.relative_to(root).as_posix(), path)
        for path in root.rglob("*.py")
        if not _EXCLUDED.intersection(path.relative_to(root).parts)
    ]
    sources.sort(key=lambda source: hashlib.sha256(source[0].encode()).digest())
    texts = [text for _, path in sources if (text := path.read_bytes())]
    if not texts:
        raise FileNotFoundError(f"no Python source files below {root}")
    lengths = tuple(len(text) if unit == "byte" else len(_TOKEN.findall(text)) for text in texts)
    return Corpus(unit, lengths, sum(map(len, texts)))
