"""PTX text as statements."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Statement:
    """An instruction or directive without its semicolon, a brace, or a label with its colon."""

    line: int
    text: str


# Directives that end with their line.
_OF_ONE_LINE = re.compile(r"\s*\.(?:loc|file|version|target|address_size)\s")
_LABEL = re.compile(r"\s*([\w$%]+):(?!:)\s*")
# Of a function or a section: its brace opens a body, not a list of operands.
_OPENS_BODY = re.compile(r"\s*(\.visible |\.weak |\.extern |\.entry|\.func|\.section)")
_SIMPLE = re.compile(r"\s*([a-z@][^;{}:\"/]*|[a-z@][^;:\"/]*\}[^;:\"/]*);\s*$")


def statements(text: str) -> Iterator[Statement]:
    """The statements of a PTX file; debug sections are left out."""
    text = re.sub(r"/\*.*?\*/", lambda found: "\n" * found[0].count("\n"), text, flags=re.DOTALL)
    pending = _Pending()
    in_section = False
    for number, raw in enumerate(text.split("\n"), 1):
        if in_section or raw.lstrip().startswith(".section"):
            in_section = raw.strip() != "}"
            continue
        code = raw.split("//", 1)[0]
        if pending.is_empty():
            if _OF_ONE_LINE.match(code):
                yield Statement(number, code.strip())
                continue
            simple = _SIMPLE.match(code)
            if simple:
                yield Statement(number, simple[1].strip())
                continue
        yield from pending.take(number, code)


class _Pending:
    """A statement that goes over lines, or lines that hold several."""

    def __init__(self) -> None:
        self._text = ""
        self._line = 0
        self._depth = 0  # of brackets, and of braces around operands

    def is_empty(self) -> bool:
        return not self._text

    def _flush(self, end: str = "") -> Iterator[Statement]:
        text, self._text = self._text.strip() + end, ""
        if text:
            yield Statement(self._line, text)

    def take(self, line: int, code: str) -> Iterator[Statement]:
        for char in code + "\n":
            if not self._text:
                if char.isspace():
                    continue
                self._line = line
            yield from self._add(line, char)
        label = _LABEL.fullmatch(self._text)
        if label:
            yield from self._flush()

    def _add(self, line: int, char: str) -> Iterator[Statement]:
        if char in "([":
            self._depth += 1
        elif char in ")]":
            self._depth -= 1
        elif char == "{" and (self._depth or (self._text and not _OPENS_BODY.match(self._text))):
            self._depth += 1
        elif char == "}" and self._depth:
            self._depth -= 1
        elif char in "{}":
            yield from self._flush()
            yield Statement(line, char)
            return
        elif char == ";" and not self._depth:
            yield from self._flush()
            return
        elif not self._depth and _LABEL.fullmatch(self._text) and char != ":":
            yield from self._flush()
            self._line = line
            if char.isspace():
                return
        self._text += char


def split_operands(text: str) -> list[str]:
    """At the commas outside of brackets and braces."""
    operands, depth, start = [], 0, 0
    for at, char in enumerate(text):
        if char in "{[(":
            depth += 1
        elif char in "}])":
            depth -= 1
        elif char == "," and not depth:
            operands.append(text[start:at].strip())
            start = at + 1
    last = text[start:].strip()
    return [*operands, last] if last else operands
