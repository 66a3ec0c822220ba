"""InFlight: shutting down without dropping the updates that are being handled."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from math import isfinite
from typing import Any

from aiogram import BaseMiddleware, Dispatcher
from aiogram.types import TelegramObject

from bot_ratelimit.errors import ConfigError
from bot_ratelimit.incoming.registration import check_dispatcher

log = logging.getLogger("bot_ratelimit")


class InFlight(BaseMiddleware):
    """Counts the updates that are being handled, so that shutdown can wait for them.

    ::

        InFlight().setup(dp)

    aiogram waits neither for the tasks of long polling nor for the webhook's requests before it
    calls the shutdown callbacks and closes the bot's session. Without this class, a handler that is
    still running finds closed connections, and its user gets no answer.

    Args:
        patience: Seconds to wait at most; less than the 10 that Docker gives a container to stop.

    Raises:
        ConfigError: `patience` is not a number of seconds, 0 or more.
    """

    def __init__(self, patience: float = 8.0) -> None:
        if isinstance(patience, bool) or not isinstance(patience, (int, float)):
            raise ConfigError(f"patience={patience!r}: expected seconds, such as 8.0")
        if not isfinite(patience) or patience < 0:
            raise ConfigError(f"patience={patience!r}: expected seconds, 0 or more")
        self.patience = float(patience)
        self._count = 0
        # Made when it is needed: an event belongs to the event loop that waits for it first.
        self._waiting: set[asyncio.Event] = set()

    def setup(self, dispatcher: Dispatcher) -> InFlight:
        """Count the updates of this dispatcher, and wait for them first when it shuts down.

        It does not matter whether this is called before or after the `setup` of the limits: the
        other shutdown callbacks run when the wait is over, so nothing that a handler still needs
        is closed before.

        Args:
            dispatcher: The root of the bot's routers.

        Raises:
            ConfigError: This is not a Dispatcher.
        """
        check_dispatcher(dispatcher)
        dispatcher.update.outer_middleware(self)
        callbacks = dispatcher.shutdown
        callbacks.register(self.drain)
        callbacks.handlers.insert(0, callbacks.handlers.pop())
        return self

    async def __call__(
        self,
        handler: Callable[[TelegramObject, dict[str, Any]], Awaitable[Any]],
        event: TelegramObject,
        data: dict[str, Any],
    ) -> Any:
        """Handle the update, and count it until the handler has ended."""
        self._count += 1
        try:
            return await handler(event, data)
        finally:
            self._count -= 1
            if not self._count:
                for idle in self._waiting:
                    idle.set()

    async def drain(self) -> None:
        """Wait until no update is being handled, or until `patience` is over."""
        if not self._count:
            return
        idle = asyncio.Event()
        self._waiting.add(idle)
        try:
            async with asyncio.timeout(self.patience):
                await idle.wait()
        except TimeoutError:
            log.warning("%d updates were still being handled at shutdown", self._count)
        finally:
            self._waiting.discard(idle)
