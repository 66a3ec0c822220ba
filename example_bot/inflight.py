"""InFlight: shutting down without dropping the updates that are being handled."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from aiogram import BaseMiddleware
from aiogram.types import TelegramObject

_logger = logging.getLogger(__name__)


class InFlight(BaseMiddleware):
    """Counts the updates being handled, so that shutdown can wait for them.

    aiogram awaits neither the tasks of long polling nor the webhook's requests before it calls
    the shutdown callbacks and closes the bot's session: a handler that is still at work would
    meet closed connections, and its user would never get the answer.

    Args:
        patience: Seconds to wait at most; below the 10 that Docker gives before it kills.
    """

    def __init__(self, patience: float = 8.0) -> None:
        self._patience = patience
        self._count = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def __call__(
        self,
        handler: Callable[[TelegramObject, dict[str, Any]], Awaitable[Any]],
        event: TelegramObject,
        data: dict[str, Any],
    ) -> Any:
        """Handle the update, counted while it takes."""
        self._count += 1
        self._idle.clear()
        try:
            return await handler(event, data)
        finally:
            self._count -= 1
            if not self._count:
                self._idle.set()

    async def drain(self) -> None:
        """Wait until no update is being handled, or patience ends."""
        try:
            async with asyncio.timeout(self._patience):
                await self._idle.wait()
        except TimeoutError:
            _logger.warning("%d updates were still being handled at shutdown", self._count)
