"""Latency: how long a server takes to answer, and whether callers wait that long."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Final

log = logging.getLogger("bot_ratelimit")

FAR: Final = 0.005
"""The round trip in seconds above which a server counts as far away: requests do not wait for the
batch in progress."""
LOG_EVERY: Final = 60.0


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
        self.forget()

    def forget(self) -> None:
        """Forget all but the last latency: the next connection may be another one."""
        self.round_trip = FAR
        """The shortest recent latency in seconds."""
        self.late: float | None = None
        """`last` if that answer came too late, otherwise None."""
        self._warned_at = -math.inf

    @property
    def is_far(self) -> bool:
        """Whether the server is far away."""
        return self.round_trip > FAR

    def measure(self, took: float, timeout: float, now: float) -> None:
        """Record the latency of an answer.

        Args:
            took: Seconds from the call to the answer.
            timeout: How long its callers wait, in seconds.
            now: The time, for the pauses between warnings.
        """
        self.last = took
        self.round_trip = max(min(took, self.round_trip * 1.1), 1e-4)
        self.late = took if took > timeout else None
        if self.late is not None and now - self._warned_at >= LOG_EVERY:
            self._warned_at = now
            log.warning(
                "Redis at %s is alive, but took %.2f s to answer, longer than timeout=%g: raise it "
                "to %.2g or more (timeout=, RATE_LIMIT_TIMEOUT), or move the bot closer to Redis",
                self._where(),
                took,
                timeout,
                took * 1.25,
            )
