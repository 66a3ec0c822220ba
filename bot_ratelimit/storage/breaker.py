"""Circuit breaker: stops requests to a server that fails, and tries it again now and then.

::

    closed --- THRESHOLD failures in a row ---> open --- after its pause ---> half-open
       ^                                         ^                              |   |
       |                                         +---- the probe failed, -------+   |
       |                                               and the pause doubles        |
       +----------------- the probe succeeded --------------------------------------+
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

THRESHOLD: Final = 3
"""Failures in a row that open the circuit; fewer may be a broken connection or a slow fork."""
FIRST_PAUSE: Final = 0.5
"""Seconds before the first probe."""
LONGEST_PAUSE: Final = 2.0
"""The longest pause between probes in seconds, and so about the longest time for which a server
that works again is not used."""


class Breaker:
    """Decides whether to send a request. It does no I/O.

    `now` and `clock` are in seconds from any starting point. An admitted caller gets a ticket and
    reports its result with it. A ticket is valid until the next failure or change of state. So all
    failures that were in progress together count as one, and a late result does not affect a newer
    state.
    """

    __slots__ = ("_failures", "_pause", "_probing", "_reopens", "_ticket")

    def __init__(self) -> None:
        self._ticket = 0
        self._failures = 0
        self._pause = 0.0  # above 0 while open or half-open
        self._reopens = 0.0  # when the next probe may go
        self._probing = False

    @property
    def closed(self) -> bool:
        """Whether all requests are admitted."""
        return not self._pause

    def wait(self, now: float) -> float:
        """Seconds until the next probe; 0.0 while closed."""
        return max(0.0, self._reopens - now) if self._pause else 0.0

    def admit(self, clock: Callable[[], float]) -> int | None:
        """Return a ticket, or None if the request must not be sent now."""
        if self._pause:
            if self._probing or clock() < self._reopens:
                return None
            self._probing = True
        return self._ticket

    def succeeded(self, ticket: int) -> bool:
        """Report success; return False if the result is outdated."""
        if ticket != self._ticket:
            return False
        self._failures = 0
        if self._pause:
            self._ticket += 1
            self._pause = 0.0
            self._probing = False
        return True

    def failed(self, ticket: int, now: float) -> bool:
        """Report failure; return True if this opened the closed circuit."""
        if ticket != self._ticket:
            return False
        self._ticket += 1
        self._failures += 1
        self._probing = False
        if self._failures < THRESHOLD:
            return False
        opened = not self._pause
        self._pause = min(self._pause * 2 or FIRST_PAUSE, LONGEST_PAUSE)
        self._reopens = now + self._pause
        return opened

    def abandoned(self, ticket: int) -> None:
        """Report that there is no result, since the caller was cancelled; the next may probe."""
        if ticket == self._ticket:
            self._probing = False
