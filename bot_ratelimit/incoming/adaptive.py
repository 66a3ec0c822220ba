"""AdaptiveLimit: how many updates this process can handle at a time, learned from latencies.

The gradient of Netflix's concurrency-limits (https://github.com/Netflix/concurrency-limits): twice
a second, the latency of handlers is compared with what it is without load::

    gradient = tolerance * unloaded / latency        between 0.5 and 1
    limit    = limit * gradient + sqrt(limit)        between the two bounds

So the limit grows slowly while handlers are as fast as without load, and shrinks in proportion to
how much slower they are. The lag of the event loop is added to the latency, because an update whose
handler has not begun yet waits for it too.

While less than half of the limit is used, the latency without load may grow with that of handlers,
so a bot that becomes slower is not taken for one under load. Otherwise it may not: in a long
overload the limit would grow to its upper bound.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from math import sqrt
from typing import Final

_WINDOW: Final = 0.5
"""Seconds between two changes of the limit."""
_SAMPLES: Final = 8
"""The least number of updates in a window."""
_TOLERANCE: Final = 1.1
"""Handlers may be this much slower than without load."""
_SMOOTHING: Final = 0.3
"""How much of a change is made in one window."""
_DRIFT: Final = 1.005
"""How much the latency without load may grow in a window."""
_RELEARN: Final = 120
"""Windows with slow handlers and half of the limit in use, until the latency without load is
measured again, at the lower bound."""


class AdaptiveLimit:
    """A limit between two bounds that follows the latency of handlers.

    Args:
        low: The lower bound.
        high: The upper bound.
        clock: Returns seconds from any starting point.
    """

    def __init__(self, low: int, high: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self._low, self._high, self._clock = low, high, clock
        self._limit = float(low)
        self._unloaded = 0.0  # seconds; 0 before the first window
        self._slow = 0  # slow windows since handlers were fast, with half of the limit in use
        self._window_began = clock()
        self._latencies: list[float] = []
        self._most = 0  # updates at a time in this window
        self._lag = 0.0  # of the loop, the longest in this window

    @property
    def current(self) -> int:
        """How many updates may be handled at a time now."""
        return int(self._limit) if self._slow < _RELEARN else self._low

    def lagged(self, seconds: float) -> None:
        """Report how late the event loop was."""
        self._lag = max(self._lag, seconds)

    def handled(self, seconds: float, running: int) -> None:
        """Report the latency of an update, and how many were being handled with it."""
        self._latencies.append(seconds)
        self._most = max(self._most, running)
        now = self._clock()
        if len(self._latencies) < _SAMPLES or now - self._window_began < _WINDOW:
            return
        self._latencies.sort()
        self._adapt(self._latencies[len(self._latencies) * 9 // 10])
        self._window_began, self._latencies, self._most, self._lag = now, [], 0, 0.0

    def _adapt(self, latency: float) -> None:
        if self._most <= self._low or not self._unloaded:
            self._unloaded, self._slow = latency, 0
        is_used = self._most >= self._limit / 2
        self._unloaded = min(self._unloaded * (1.0 if is_used else _DRIFT), latency)
        slowness = (latency + self._lag) / self._unloaded
        if slowness <= _TOLERANCE:
            self._slow = 0
        elif is_used:
            self._slow += 1
        gradient = min(1.0, max(0.5, _TOLERANCE / slowness))
        wanted = self._limit * gradient + sqrt(self._limit)
        if wanted > self._limit and not is_used:
            return  # too few updates to learn whether more would be as fast
        self._limit += _SMOOTHING * (wanted - self._limit)
        self._limit = min(float(self._high), max(float(self._low), self._limit))
