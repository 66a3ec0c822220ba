"""Naps: waits that end at once when the bot does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from bot_ratelimit.errors import NotSentError


class Naps:
    """Sleeps, all of which can be ended."""

    def __init__(self) -> None:
        self._sleepers: set[asyncio.Future[None]] = set()

    async def sleep(self, seconds: float) -> None:
        """Sleep, no shorter than that.

        Raises:
            NotSentError: `end` was called meanwhile.
        """
        loop = asyncio.get_running_loop()
        sleeper: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(seconds, _wake, sleeper)
        self._sleepers.add(sleeper)
        try:
            await sleeper
        finally:
            timer.cancel()
            self._sleepers.discard(sleeper)

    def end(self, reason: Callable[[], NotSentError]) -> None:
        """Wake everybody with an error."""
        for sleeper in self._sleepers:
            if not sleeper.done():
                sleeper.set_exception(reason())
        self._sleepers.clear()


def _wake(sleeper: asyncio.Future[None]) -> None:
    if not sleeper.done():
        sleeper.set_result(None)
