"""Circuit breaker: while a server fails, leave it alone, and try it again now and then.

::

    closed --- THRESHOLD failures in a row ---> open --- after its pause ---> half-open
       ^                                         ^                              |   |
       |                                         +---- the probe failed, -------+   |
       |                                               and the pause doubles        |
       +----------------- the probe succeeded --------------------------------------+
"""

from __future__ import annotations

from typing import Final

THRESHOLD: Final = 3
"""Failures in a row that open the circuit. One may be a broken connection, or a slow fork."""
FIRST_PAUSE: Final = 0.5
"""Seconds before the first probe."""
LONGEST_PAUSE: Final = 2.0
"""Seconds between probes at most, and so about the longest that a healed server goes unused."""


class Breaker:
    """Decides whether to try. No I/O and no clock: `now` is in seconds from any starting point.

    A caller that is admitted gets a ticket, and reports with it. A ticket is valid until the next
    failure or change of state, so what was under way together counts as one failure, and a late
    result says nothing about a state that came after it.
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
        """Whether everybody is admitted."""
        return not self._pause

    def wait(self, now: float) -> float:
        """Seconds until the next probe; 0.0 while closed."""
        return max(0.0, self._reopens - now) if self._pause else 0.0

    def admit(self, now: float) -> int | None:
        """A ticket, or None: do not try now."""
        if self._pause:
            if self._probing or now < self._reopens:
                return None
            self._probing = True
        return self._ticket

    def succeeded(self, ticket: int) -> bool:
        """Report success; False if it is too old to say anything of the present."""
        if ticket != self._ticket:
            return False
        self._failures = 0
        if self._pause:
            self._ticket += 1
            self._pause = 0.0
            self._probing = False
        return True

    def failed(self, ticket: int, now: float) -> bool:
        """Report failure; True if that opened the closed circuit."""
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
        """Report that there is no result (the caller was cancelled): the next one may probe."""
        if ticket == self._ticket:
            self._probing = False
