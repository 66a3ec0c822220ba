"""Start: finds out at once whether the storage can decide, so that the log says it at the start."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from bot_ratelimit.limiter.decider import Decider
from bot_ratelimit.rules.limit import Limit
from bot_ratelimit.storage.base import Ask, Count, Op
from bot_ratelimit.storage.guarded import Missing
from bot_ratelimit.storage.loops import Ticker

log = logging.getLogger("bot_ratelimit")

PATIENCE: Final = 6.0
"""Seconds that the first question waits: a little longer than an attempt to connect takes."""
AGAIN: Final = 1.0
"""Seconds between two attempts while there is no connection."""


class Start:
    """Asks the storage in the background until it answers; the guard logs why it does not.

    Args:
        decider: Whose storage is asked.
        try_rules: Finds out whether the storage can decide by the rules of this bot.
    """

    def __init__(self, decider: Decider, try_rules: Callable[[], Awaitable[None]]) -> None:
        self._decider = decider
        self._try_rules = try_rules
        self._ticker = Ticker(self._tick, AGAIN)

    def begin(self) -> None:
        """Begin to ask, unless the storage is in this process."""
        if not self._decider.is_local:
            self._ticker.start(at_once=True)

    async def end(self) -> None:
        """Stop asking."""
        await self._ticker.stop()

    async def _tick(self) -> bool:
        decider = self._decider
        count = Count(f"{decider.key_prefix}:ratelimit:check", Limit(1, 1.0))
        ask = Ask([count], Op.PEEK)  # which leaves no key
        answer = await decider.guard.run([count], decider.storage.ask, ask, timeout=PATIENCE)
        if isinstance(answer, Missing):
            return True
        storage = decider.storage
        log.info("Connected to %s (%s)", storage.title, storage.server([count]))
        await asyncio.sleep(0)  # the rules of a bot are complete when it has started
        await self._try_rules()
        return False
