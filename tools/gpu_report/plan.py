"""How the time is shared: each part gets its share of what is left when its turn comes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

_LAST = 10.0  # seconds for what comes after all parts
_SHORTEST = 2.0


class Plan:
    """`minutes` in all, from now on; `weights` of the parts by name, in their order.

    What a part leaves goes to those after it. One without a weight may take all that is left.
    """

    def __init__(
        self,
        minutes: float,
        weights: Mapping[str, float | None],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._now = now
        self._start = now()
        self._end = self._start + 60 * minutes
        self._weights = dict(weights)

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return self._now() - self._start

    @property
    def left(self) -> float:
        """Seconds that parts may still take."""
        return max(self._end - _LAST - self._now(), 0.0)

    def leave_out(self, part: str) -> None:
        """A part is not wanted after all: the others share its time."""
        del self._weights[part]

    def take(self, part: str) -> float:
        """Seconds for a part, which is not asked for again; a few where nothing is left."""
        total = sum(weight or 0.0 for weight in self._weights.values())
        weight = self._weights.pop(part)
        share = 1.0 if weight is None else weight / total
        return max(self.left * share, _SHORTEST)
