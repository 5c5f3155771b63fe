"""What is known of a build with faults: which ones tests come to, and which they have noticed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Run:
    """A test without a fault: whether it passes, its processor time, the faults it comes to."""

    passes: bool
    seconds: float
    met: frozenset[int]


def hash_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Record:
    """Kept in a file, which is of use while the native module and a test's file stay the same."""

    def __init__(self, path: Path, module: Path) -> None:
        self._path, self._module = path, hash_of(module)
        self._runs: dict[str, dict[str, Any]] = {}
        self._noticed: dict[str, dict[str, str]] = {}
        self._withstood: dict[str, list[str]] = {}
        if path.is_file():
            known = json.loads(path.read_text())
            if known["module"] == self._module:
                self._runs, self._noticed = known["runs"], known["noticed"]
                self._withstood = known["withstood"]

    def save(self) -> None:
        known = {
            **{"module": self._module, "runs": self._runs, "noticed": self._noticed},
            "withstood": self._withstood,
        }
        self._path.write_text(json.dumps(known))

    def run_of(self, test: str, file: str) -> Run | None:
        """What is known of a test in a file of this hash."""
        known = self._runs.get(test)
        if known is None or known["file"] != file:
            return None
        return Run(known["passes"], known["seconds"], frozenset(_numbers(known["met"])))

    def keep_run(self, test: str, file: str, run: Run) -> None:
        """What a fault has withstood is forgotten of a test that is another one than before."""
        for number, tests in self._withstood.items():
            self._withstood[number] = [name for name in tests if name != test]
        self._runs[test] = {
            **{"file": file, "passes": run.passes, "seconds": run.seconds},
            "met": _ranges(run.met),
        }

    def noticed(self, number: int, tests: Iterable[str]) -> dict[str, str] | None:
        """How a fault was noticed, if it was one of these tests that did."""
        known = self._noticed.get(str(number))
        return known if known is not None and known["test"] in set(tests) else None

    def keep_noticed(self, number: int, result: dict[str, str]) -> None:
        self._noticed[str(number)] = result

    def withstood(self, number: int) -> frozenset[str]:
        """Tests that have not noticed a fault."""
        return frozenset(self._withstood.get(str(number), ()))

    def keep_withstood(self, number: int, tests: Iterable[str]) -> None:
        self._withstood.setdefault(str(number), []).extend(tests)


def _ranges(numbers: Iterable[int]) -> list[list[int]]:
    """First and last of what follows on one another."""
    result: list[list[int]] = []
    for number in sorted(numbers):
        if result and result[-1][1] == number - 1:
            result[-1][1] = number
        else:
            result.append([number, number])
    return result


def _numbers(ranges: list[list[int]]) -> list[int]:
    return [number for first, last in ranges for number in range(first, last + 1)]
