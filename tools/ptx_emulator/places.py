"""Where in the sources the instructions come from, after the ``.loc`` directives."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tools.ptx_emulator.statements import Statement

_FILE = re.compile(r'\.file\s+(\d+)\s+"(.*?)"')
_LOC = re.compile(r"\.loc\s+(\d+)\s+(\d+)\s+(\d+)(?:.*\binlined_at\s+(\d+)\s+(\d+)\s+(\d+))?")
_Loc = tuple[str, str, str]  # file, line, column
Chain = tuple[_Loc, ...]  # the innermost one first, then what it is inlined in

NOWHERE = -1


@dataclass(frozen=True)
class Place:
    """A line of a file; ``caller`` is the place that it is inlined in, by index."""

    file: int
    line: int
    caller: int


class Places:
    """The places of a module, each once."""

    def __init__(self, module: list[Statement]) -> None:
        found = (_FILE.match(s.text) for s in module)
        self._names = {match[1]: match[2] for match in found if match}
        self.files: list[str] = []
        self.places: list[Place] = []
        self._file_index: dict[str, int] = {}
        self._place_index: dict[Place, int] = {}
        self._callers: dict[_Loc, _Loc | None] = {}
        self._current: _Loc | None = None

    def move_to(self, directive: str) -> None:
        """Take a ``.loc`` directive."""
        match = _LOC.match(directive)
        if match is None:
            return
        here = (match[1], match[2], match[3])
        self._callers[here] = (match[4], match[5], match[6]) if match[4] else None
        self._current = here

    def start_function(self) -> None:
        """Forget where the function before ended."""
        self._callers.clear()
        self._current = None

    def current(self) -> Chain:
        """Where the instruction that comes next is from."""
        chain: list[_Loc] = []
        at = self._current
        while at is not None and at not in chain:
            chain.append(at)
            at = self._callers.get(at)
        return tuple(chain)

    def index(self, chain: Chain) -> int:
        """Index of a place."""
        index = NOWHERE
        for file, line, _ in reversed(chain):
            if line != "0":
                index = self._add(Place(self._file(file), int(line), index))
        return index

    def _file(self, number: str) -> int:
        name = self._names.get(number, "?")
        if name not in self._file_index:
            self._file_index[name] = len(self.files)
            self.files.append(name)
        return self._file_index[name]

    def _add(self, place: Place) -> int:
        if place not in self._place_index:
            self._place_index[place] = len(self.places)
            self.places.append(place)
        return self._place_index[place]
