"""Report: what this process sends, for operators; every few seconds, while there is something."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from bot_ratelimit.config.live import REPORTED_FOR, instance_name, live_key
from bot_ratelimit.errors import RateLimitError
from bot_ratelimit.limiter.limiter import Limiter
from bot_ratelimit.limiter.observer import Observer
from bot_ratelimit.limiter.statistics import Statistics
from bot_ratelimit.storage.loops import Ticker

EVERY: Final = 2.0
"""Seconds between two reports."""
SENDING: Final = "instances:sending"
"""The key of the reports of all instances, after the prefix."""


class Report(Observer):
    """Reports what waits, the blocks and the broadcasts of this process, and counts its requests.

    Args:
        limiter: Its storage gets the reports.
        look: Returns what waits, the blocks and the broadcasts, as JSON.

    Raises:
        ConfigError: The storage keeps no statistics or no documents.
    """

    def __init__(self, limiter: Limiter, look: Callable[[], dict[str, Any]]) -> None:
        self.statistics: Final = Statistics(limiter.storage, limiter.key_prefix, limiter.timeout)
        """Counts requests and 429s."""
        self._documents = limiter.storage.documents()
        self._key = live_key(limiter.key_prefix, SENDING)
        self._name = instance_name()
        self._look = look
        self._ticker = Ticker(self._tick, EVERY)

    def queued(self, count: int) -> None:
        """Report in a moment, and until nothing waits, is blocked or broadcast."""
        if count:
            self._ticker.start()

    async def end(self) -> None:
        """Write the last counts, and remove the report."""
        if await self._ticker.stop():
            with suppress(RateLimitError):
                await self._documents.forget(self._key, self._name)
        await self.statistics.flush_at_end()

    async def _tick(self) -> bool:
        told = self._look()
        with suppress(RateLimitError):  # the log says elsewhere that Redis is away
            if not any(told.values()):
                await self._documents.forget(self._key, self._name)
                return any(self._look().values())
            document = json.dumps(told, ensure_ascii=False).encode()
            await self._documents.report(self._key, self._name, document, REPORTED_FOR)
        return True
