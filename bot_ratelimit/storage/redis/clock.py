"""ListeningClock: the clock of time-outs, which stands still while the event loop is busy."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from contextvars import Context
from time import monotonic
from typing import Final

SHORTEST_TICK: Final = 0.001
LONGEST_TICK: Final = 0.025
TICKS: Final = 10
"""A time-out is checked this many times before it ends."""


class ListeningClock:
    """Counts the seconds in which an event loop could receive answers.

    A handler that blocks the loop for a second, or a flood that keeps it busy, keeps answers from
    being received. So this clock is driven by a timer that ticks while requests wait. If the timer
    fires late, the clock stands still for the delay::

        loop     |----|----|----|=======busy=======|----|----|
        timer    ^    ^    ^    ^                  ^    ^    ^
        clock    0    1    2    3                  4    5    6   ticks

    At every tick it calls `on_tick` with the time, which returns whether to keep ticking.
    """

    def __init__(self, on_tick: Callable[[float], bool]) -> None:
        self._on_tick = on_tick
        self._context = Context()  # so that the timer does not keep a caller's context
        self._timer: asyncio.TimerHandle | None = None
        self._marked, self._marked_at = 0.0, monotonic()  # a time, and when it was
        self._limit = math.inf  # how much may pass after that, until the next tick

    def now(self) -> float:
        """Seconds from some starting point."""
        passed = monotonic() - self._marked_at
        return self._marked + (passed if passed < self._limit else self._limit)

    def start(self, timeout: float) -> None:
        """Start ticking, often enough for this time-out."""
        if self._timer is None:
            self._arm(min(max(timeout / TICKS, SHORTEST_TICK), LONGEST_TICK))

    def stop(self) -> None:
        """Stop ticking."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        self._mark(math.inf)

    def _mark(self, limit: float) -> None:
        self._marked, self._marked_at, self._limit = self.now(), monotonic(), limit

    def _arm(self, tick: float) -> None:
        self._mark(tick)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(tick, self._fire, context=self._context)

    def _fire(self) -> None:
        tick, self._timer = self._limit, None
        self._mark(math.inf)
        if self._on_tick(self._marked) and self._timer is None:
            self._arm(tick)
