"""Sleeper: waits that end at once when the bot shuts down."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from bot_ratelimit.errors import NotSentError


class Sleeper:
    """Sleeps that can all be interrupted."""

    def __init__(self) -> None:
        self._sleeping: set[asyncio.Future[None]] = set()

    async def sleep(self, seconds: float) -> None:
        """Sleep for at least `seconds`.

        Raises:
            NotSentError: `interrupt` was called during the sleep.
        """
        loop = asyncio.get_running_loop()
        wake: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(seconds, _wake_up, wake)
        self._sleeping.add(wake)
        try:
            await wake
        finally:
            timer.cancel()
            self._sleeping.discard(wake)

    def interrupt(self, reason: Callable[[], NotSentError]) -> None:
        """End all sleeps: each raises the error that `reason` makes."""
        for wake in self._sleeping:
            if not wake.done():
                wake.set_exception(reason())
        self._sleeping.clear()


def _wake_up(wake: asyncio.Future[None]) -> None:
    if not wake.done():
        wake.set_result(None)
