"""Deadline: one update waits for at most one `timeout` in all, whatever it asks the storage."""

from __future__ import annotations

import time
from typing import Final

_LEAST: Final = 0.1


class Deadline:
    """The time that the steps of one update share: live limits, a slot, the hit, bans, a notice.

    ::

        |-- live: 0.1 s --|------ hit: 0.12 s ------|- bans -|      with a timeout of 0.25 s

    When a step had no answer, the further ones do not wait at all. While the storage answers, each
    step may wait for at least a tenth of the time-out: a busy event loop uses up the time as well,
    although the storage is fast.

    Args:
        timeout: Seconds.
    """

    __slots__ = ("_began", "_is_over", "_timeout")

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._began = time.monotonic()
        self._is_over = False

    def left(self) -> float:
        """Seconds that the next step may wait; 0.0 if it must not ask."""
        if self._is_over:
            return 0.0
        used = time.monotonic() - self._began
        return max(self._timeout - used, self._timeout * _LEAST)

    def end(self) -> None:
        """Note that a step had no answer."""
        self._is_over = True
