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
        self._away = 0.0
        self.is_ticking = False
        self._due = math.inf  # when the next tick is due, by the loop's time
        self._timer: asyncio.TimerHandle | None = None
        self._tick = LONGEST_TICK

    def now(self) -> float:
        """Seconds from some starting point."""
        time, due = monotonic(), self._due
        # After that moment the loop is busy.
        return (time if time < due else due) - self._away

    def start(self, timeout: float) -> None:
        """Start ticking, often enough for this time-out."""
        if self.is_ticking:
            return
        self.is_ticking = True
        self._tick = min(max(timeout / TICKS, SHORTEST_TICK), LONGEST_TICK)
        self._arm(monotonic())

    def stop(self) -> None:
        """Stop ticking."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._due, self.is_ticking = None, math.inf, False

    def _arm(self, time: float) -> None:
        self._due = time + self._tick
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._tick, self._fire, context=self._context)

    def _fire(self) -> None:
        time = monotonic()
        self._away += max(0.0, time - self._due)
        self._due = math.inf
        if self._on_tick(time - self._away):
            self._arm(time)
        else:
            self.is_ticking = False
