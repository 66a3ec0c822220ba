"""Stars: how many Telegram Stars a paid broadcast may spend."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Final

from bot_ratelimit.errors import ConfigError, NotSentError
from bot_ratelimit.rules.checks import number

log = logging.getLogger("bot_ratelimit")

FREE: Final = 30
"""Messages in a second that cost nothing, also with `allow_paid_broadcast`."""
_PER_STAR: Final = 10
"""https://core.telegram.org/bots/api#sendmessage: each further message costs 0.1 Stars."""


class StarsSpentError(NotSentError):
    """The broadcast stops here, because its Stars are spent."""


class Stars:
    """Counts what paid messages cost.

    Args:
        most: How many Stars may be spent; None for no bound.
        when_spent: `"unpaid"` sends the rest without payment, `"stop"` ends the broadcast.

    Raises:
        ConfigError: An argument is invalid.
    """

    def __init__(self, most: float | None, when_spent: str) -> None:
        if most is not None and not 0 <= number(most) < 1e9:
            raise ConfigError(f"stars={most!r}: expected Stars from 0 up, for example 5000")
        if when_spent not in ("unpaid", "stop"):
            raise ConfigError(f"when_spent={when_spent!r}: expected 'unpaid' or 'stop'")
        self._left = None if most is None else int(most * _PER_STAR)
        self._most = most
        self._stops = when_spent == "stop"
        self._free: deque[float] = deque()
        self.is_spent = False
        """Whether a message was not paid for because the Stars were spent."""

    @property
    def has_stopped(self) -> bool:
        """Whether nothing more is sent."""
        return self.is_spent and self._stops

    def pay(self, messages: int) -> bool:
        """Pay for a request of so many messages; return False if the Stars do not suffice.

        Raises:
            StarsSpentError: They do not, and the broadcast stops.
        """
        now = asyncio.get_running_loop().time()
        if self._left is None:
            return True
        if not self.is_spent:
            while self._free and now - self._free[0] > 1:
                self._free.popleft()
            free = min(messages, FREE - len(self._free))
            if messages - free <= self._left:
                self._free.extend([now] * free)
                self._left -= messages - free
                return True
            self.is_spent = True
            then = "it stops here" if self._stops else "the rest is sent unpaid"
            log.warning("Broadcast: %g Stars are spent, so %s", self._most, then)
        if self._stops:
            raise StarsSpentError("not sent: the Stars of this broadcast are spent")
        return False
