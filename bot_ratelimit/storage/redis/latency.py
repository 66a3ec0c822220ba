"""Latency: how long a server takes to answer, and whether callers wait that long."""

from __future__ import annotations

import logging
from collections.abc import Callable

from bot_ratelimit.storage.loops import Seldom

log = logging.getLogger("bot_ratelimit")


class Latency:
    """Measures answers, and warns if they come too late.

    A late answer still shows that the server is alive, and how slow it is.

    Args:
        where: Returns the address of the server, for the warning.
    """

    def __init__(self, where: Callable[[], str]) -> None:
        self._where = where
        self.last: float | None = None
        """The latency of the last answer in seconds; None before the first."""
        self._seldom = Seldom()
        self.forget()

    def forget(self) -> None:
        """Forget all but the last latency: the next connection may be another one."""
        self.late: float | None = None
        """`last` if that answer came too late, otherwise None."""
        self._seldom.forget()

    def measure(self, took: float, timeout: float) -> None:
        """Record how long an answer took, and how long its callers wait, in seconds."""
        self.last = took
        self.late = took if took > timeout else None
        if self.late is not None and self._seldom():
            log.warning(
                "Redis at %s is alive, but took %.2f s to answer, longer than its caller waited "
                "(%.2g s): raise the timeout to %.2g or more (timeout=, RATE_LIMIT_TIMEOUT), or "
                "move the bot closer to Redis",
                self._where(),
                took,
                timeout,
                # Four times the round trip, as docs/storages.md says; less after a long stall.
                max(took * 1.25, min(took * 4, 1.0)),
            )
