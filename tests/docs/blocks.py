"""Code blocks of the documentation, and what a page says about running them.

A page is a program: its blocks of Python run one after another and see each other's names. Comments
of HTML, which no reader sees, stand before a block:

    <!-- setup: CODE -->     runs first; what the blocks after it take for granted
    <!-- needs: MODULES -->  from here on the page runs where these can be imported
    <!-- not run: REASON --> the next block does not run
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_COMMENT_OR_BLOCK = re.compile(
    r"^<!-- (?P<kind>setup|needs|not run):\s(?P<text>.*?)-->|"
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^ *```$",
    re.DOTALL | re.MULTILINE,
)


class Block(NamedTuple):
    line: int  # of its first line of code, from 1
    code: str
    skipped: str = ""  # why it does not run


def blocks(text: str) -> Iterator[Block]:
    """The Python of a page, in order. Raises ValueError for a comment that no block follows."""
    missing = reason = ""
    for found in _COMMENT_OR_BLOCK.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        kind = found["kind"]
        if kind == "setup":
            yield Block(line, found["text"].strip() + "\n", missing)
        elif kind == "needs":
            missing = _absent(found["text"])
        elif kind == "not run":
            reason = found["text"].strip()
        elif found["language"] == "python":
            code = _unindented(found["code"], found["indent"])
            yield Block(line + 1, code, reason or missing)
            reason = ""
    if reason:
        raise ValueError(f"no block follows what is said about one: {reason}")


def _unindented(code: str, indent: str) -> str:
    return "".join(line.removeprefix(indent) for line in code.splitlines(keepends=True))


def _absent(modules: str) -> str:
    names = [name.strip() for name in modules.split(",") if name.strip()]
    absent = [name for name in names if importlib.util.find_spec(name) is None]
    return f"needs {', '.join(absent)}" if absent else ""


def run(path: Path) -> int:
    """Runs a page; returns how many blocks ran. An error's traceback leads to the page's line."""
    names: dict[str, object] = {"__name__": "page"}
    ran = 0
    for block in blocks(path.read_text()):
        if block.skipped:
            continue
        code = compile("\n" * (block.line - 1) + block.code, str(path), "exec")
        exec(code, names)
        ran += 1
    return ran
