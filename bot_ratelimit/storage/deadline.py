"""Deadline: one update waits for at most one `timeout` in all, whatever it asks the storage."""

from __future__ import annotations

import time
from typing import Final

_LEAST: Final = 0.3


class Deadline:
    """The time that the steps of one update share: live limits, a slot, the hit, bans, a notice.

    ::

        |-- live: 0.1 s --|------ hit: 0.12 s ------|- bans -|      with a timeout of 0.25 s

    Only waiting counts, not what the bot does in between. When a step had no answer, the further
    ones do not wait at all. While the storage answers, each step may wait for at least 0.3 of the
    time-out, which is more than one round trip: a busy event loop makes waiting longer, although
    the storage is fast.

    Args:
        timeout: Seconds.
    """

    __slots__ = ("_left", "_timeout")

    def __init__(self, timeout: float) -> None:
        self._timeout = self._left = timeout

    def left(self) -> float:
        """Seconds that the next step may wait; 0.0 if it must not ask."""
        return self._left and max(self._left, self._timeout * _LEAST)

    def renew(self) -> None:
        """Begin again, after a pause or for what must not be late, unless a step had no answer."""
        self._left = self._left and self._timeout

    def waited(self, since: float, *, answered: bool) -> None:
        """Note that a step is over, which began at this `time.monotonic`."""
        if answered:
            # Never 0, which means that there was no answer.
            self._left = max(self._left - (time.monotonic() - since), 1e-9)
        else:
            self._left = 0.0
