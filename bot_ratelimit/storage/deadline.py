"""Deadlines: what must be done in time, watched over by a single timer."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from operator import attrgetter
from types import TracebackType
from typing import Final, Protocol

_AGAIN: Final = 0.01
"""Seconds between two attempts to cancel."""


class Due(Protocol):
    """Something that must be done in time."""

    @property
    def at(self) -> float:
        """Until when, by the clock of the loop."""
        ...

    def done(self) -> bool:
        """Whether it was done."""
        ...

    def ring(self) -> None:
        """It is not done, and its time is over."""
        ...


class Deadlines:
    """Rings whatever is not done in time in this event loop.

    A timer for each would be much of what a decision costs. It is meant for deadlines that come in
    order, as those of one limiter do; others are sorted in.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._due: deque[Due] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._rings_at = math.inf

    def add(self, due: Due) -> None:
        """Watch over this, too."""
        at, others = due.at, self._due
        overtakes = others and at < others[-1].at
        others.append(due)
        if overtakes:
            self._due = deque(sorted(others, key=attrgetter("at")))
        if at < self._rings_at:
            self._arm(at)

    def forget_done(self) -> None:
        """Let go of what was done, as far as nothing earlier is still due."""
        while self._due and self._due[0].done():
            self._due.popleft()

    def _arm(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._rings_at = self.loop.call_at(at, self._ring), at

    def _ring(self) -> None:
        self._timer, self._rings_at = None, math.inf
        while self._due and self._due[0].at <= self.loop.time():
            due = self._due.popleft()
            if not due.done():
                due.ring()
        self.forget_done()
        if self._due:
            self._arm(self._due[0].at)


class Deadline:
    """Cancels the task that is in its block when it is time; the block ends in TimeoutError then.

    redis-py connects and sends by `asyncio.wait_for`, which in Python 3.11 swallows a cancellation
    that meets the end of what it waits for; with `asyncio.timeout` the task would go on, for a
    minute on a client that retries. So this one cancels again until the block is left.

    Args:
        at: When, by the clock of the running loop.
        deadlines: Where it is kept; with many of them, together with others.
    """

    __slots__ = ("_again", "_cancelling", "_deadlines", "_left", "_rung", "_task", "at")

    def __init__(self, at: float, deadlines: Deadlines | None = None) -> None:
        self.at = at
        self._deadlines = deadlines or Deadlines(asyncio.get_running_loop())
        self._again: asyncio.TimerHandle | None = None
        self._left = False
        self._rung = 0

    def __enter__(self) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a deadline can only be kept by a task")
        self._task = task
        self._cancelling = task.cancelling()
        self._deadlines.add(self)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._left = True
        self._deadlines.forget_done()
        if self._again is None:
            return
        self._again.cancel()
        for _ in range(self._rung):
            self._task.uncancel()
        # Else somebody else wants the task cancelled too, and his wish goes first.
        if self._task.cancelling() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def done(self) -> bool:
        """Whether the block was left."""
        return self._left

    def ring(self) -> None:
        """Cancel the task, and again until it hears."""
        self._rung += 1
        self._task.cancel()
        self._again = self._deadlines.loop.call_later(_AGAIN, self.ring)
