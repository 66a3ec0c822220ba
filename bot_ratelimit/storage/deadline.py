"""Deadline: an `asyncio.timeout` that insists."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Final

_AGAIN: Final = 0.01
"""Seconds between two attempts to cancel."""


class Deadline:
    """Cancels the task that is in its block when it is time; the block ends in TimeoutError then.

    redis-py connects and sends by `asyncio.wait_for`, which in Python 3.11 swallows a cancellation
    that meets the end of what it waits for; with `asyncio.timeout` the task would go on, for a
    minute on a client that retries. So this one cancels again until the block is left.

    Args:
        at: When, by the clock of the running loop.
    """

    __slots__ = ("_at", "_cancelling", "_loop", "_rung", "_task", "_timer")

    def __init__(self, at: float) -> None:
        self._at = at
        self._rung = 0

    def __enter__(self) -> None:
        self._loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a deadline can only be kept by a task")
        self._task = task
        self._cancelling = task.cancelling()
        self._timer = self._loop.call_at(self._at, self._ring)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        for _ in range(self._rung):
            self._task.uncancel()
        # Else somebody else wants the task cancelled too, and his wish goes first.
        ours = self._rung and self._task.cancelling() <= self._cancelling
        if ours and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _ring(self) -> None:
        self._rung += 1
        self._task.cancel()
        self._timer = self._loop.call_later(_AGAIN, self._ring)
