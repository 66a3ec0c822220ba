"""Seldom: what may happen a thousand times a second, and is logged now and then."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

EVERY: Final = 60.0
"""Seconds between two lines about the same thing."""


class Seldom:
    """Says when to log, and how many there were since the last line.

    Args:
        clock: Returns seconds from any starting point.
    """

    def __init__(self, clock: Callable[[], float] = lambda: time.monotonic()) -> None:
        self._clock = clock
        self._count = 0
        self._logged_at = float("-inf")

    def due(self) -> int:
        """Count one more; return their number if it is time for a line, otherwise 0."""
        self._count += 1
        if self._clock() - self._logged_at < EVERY:
            return 0
        self._logged_at, count, self._count = self._clock(), self._count, 0
        return count
