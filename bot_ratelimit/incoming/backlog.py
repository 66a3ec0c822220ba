"""Backlog: drops messages that are too old to answer, for example after an outage."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from aiogram.types import Message, TelegramObject

from bot_ratelimit.errors import ConfigError
from bot_ratelimit.limiter.observer import Observer
from bot_ratelimit.rules.checks import seconds_of
from bot_ratelimit.storage.loops import Tasks

log = logging.getLogger("bot_ratelimit")

_LOGGED_AFTER: Final = 10.0
"""Seconds after the first of them when a line says how many there were; earlier if the bot ends."""


class Backlog:
    """Drops old messages and counts them.

    Args:
        max_age: Seconds, or a text such as `"2m"`.
        observer: Is told of every dropped message.
        clock: Unix time in seconds.

    Raises:
        ConfigError: `max_age` is not a period.
    """

    def __init__(
        self,
        max_age: float | str,
        observer: Observer | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._max_age = period_of("max_age", max_age)
        self._observer = observer
        self._clock = clock
        self._unlogged = 0
        self._logging = Tasks()
        self.dropped = 0
        """How many were dropped since the start."""

    def drops(self, event: TelegramObject) -> bool:
        """Whether an event is a message, new or edited, that is too old."""
        if not isinstance(event, Message):
            return False
        written = event.edit_date or event.date.timestamp()
        if self._clock() - written <= self._max_age:
            return False
        self.dropped += 1
        if self._observer is not None:
            self._observer.turned_away("old")
        self._unlogged += 1
        if self._unlogged == 1:
            self._logging.begin(self._log())
        return True

    async def _log(self) -> None:
        try:
            await asyncio.sleep(_LOGGED_AFTER)
        finally:  # the loop may be ending
            count, self._unlogged = self._unlogged, 0
            log.warning(
                "%d updates were dropped, because their messages were older than %g s (max_age)",
                count,
                self._max_age,
            )


def period_of(name: str, value: float | str) -> float:
    """Return the seconds of an argument.

    Raises:
        ConfigError: It is neither seconds above 0 nor a period.
    """
    seconds = seconds_of(value)
    if not 0 < seconds < 1e9:
        raise ConfigError(f"{name}={value!r}: expected seconds above 0, or a text such as '2m'")
    return seconds
