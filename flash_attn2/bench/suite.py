"""What a suite of the benchmark is: named cases, contenders, and what is measured of them.

Everything else is the same for every suite: `race` times contenders in turns, `runner` goes through
the cases and keeps what it has, `record` writes it, and `report` and `plots` show a record.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

# A line of a record: the result of one case, in the terms of JSON.
Outcome = dict[str, Any]


class UsageError(Exception):
    """The options do not fit together or this machine; the message says how."""


class UnavailableError(Exception):
    """A contender cannot run a case; the message is the reason, in two or three words."""


class Named(Protocol):
    @property
    def name(self) -> str: ...


Case = TypeVar("Case", bound=Named)


class Suite(ABC, Generic[Case]):
    """Cases, and how one is measured."""

    cases: Sequence[Case]

    @abstractmethod
    def measure(self, case: Case) -> Outcome:
        """The line of `case`. What it raises costs the suite this case only."""

    @abstractmethod
    def describe(self, case: Case) -> Outcome:
        """What the line says of `case` if it fails."""

    def section(self, case: Case) -> str | None:
        """Neighbours with the same section share a child process; None: measured in this one."""
        del case
        return None

    def environment(self, section: str) -> Mapping[str, str]:
        """Variables that the child process of a section has besides."""
        del section
        return {}
