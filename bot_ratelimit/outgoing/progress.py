"""Progress: how far a broadcast is, as text and in a message."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from contextlib import suppress
from typing import Any

from aiogram.types import Message

from bot_ratelimit.errors import ConfigError
from bot_ratelimit.limiter.waiting_allowed import without_waiting
from bot_ratelimit.outgoing.scope import broadcast_scope
from bot_ratelimit.outgoing.sent import Sent, Status
from bot_ratelimit.rules.checks import check_whole, describe_type, number

log = logging.getLogger("bot_ratelimit")


class Progress:
    """Counts the outcomes of a broadcast, and shows them in a message every few seconds.

    ::

        progress = Progress(len(chats), message=await bot.send_message(admin, "Starting"))
        async for sent in outgoing.broadcast(chats, send, progress=progress):
            ...

    `str(progress)` is for example `12,345 of 100,000 (12 %): 12,300 sent, 45 blocked; 25.0/s,
    58 min left`.

    Args:
        total: The number of chats, if it is known.
        message: A message of the bot that is edited to show the text.
        every: Seconds between two updates, 1 or more; 5 by default.

    Raises:
        ConfigError: An argument is invalid.
    """

    def __init__(
        self,
        total: int | None = None,
        *,
        message: Message | None = None,
        every: float = 5.0,
    ) -> None:
        if total is not None:
            check_whole("total", total, 0)
        if message is not None and not isinstance(message, Message):
            raise ConfigError(f"message is {describe_type(message)}: expected a message of the bot")
        if not number(every) >= 1:
            raise ConfigError(f"every={every!r}: expected seconds from 1 up; each is an edit")
        self.counts: Counter[Status] = Counter()
        """The number of chats for each outcome."""
        self.skipped = 0
        """The number of chats that are skipped, because the journal has them from earlier runs."""
        self._total = total
        self._message = message
        self._every = every
        self._began = self._shown = 0.0
        self._seconds = 0.0
        self._edit: asyncio.Task[None] | None = None
        self.is_running = False
        """Whether the broadcast has begun and not ended."""

    def report(self) -> dict[str, Any]:
        """The progress as JSON: `total` is None, and the rate 0.0, if they are unknown."""
        return {
            "done": self.counts.total() + self.skipped,
            "total": self._total,
            "skipped": self.skipped,
            "counts": {status.value: count for status, count in self.counts.items()},
            "per_second": round(self.counts.total() / self._seconds, 1) if self._seconds else 0.0,
        }

    def __str__(self) -> str:
        done = self.counts.total() + self.skipped
        text = f"{done:,}"
        if self._total:
            text += f" of {self._total:,} ({100 * done // self._total} %)"
        parts = [f"{self.counts[s]:,} {s.value}" for s in Status if self.counts[s]]
        if self.skipped:
            parts.append(f"{self.skipped:,} in earlier runs")
        if parts:
            text += f": {', '.join(parts)}"
        if self._seconds > 0 and self.counts:
            rate = self.counts.total() / self._seconds
            text += f"; {rate:.1f}/s"
            if self._total and done < self._total:
                text += f", {_duration((self._total - done) / rate)} left"
        return text

    def begin(self) -> None:
        """Record the start of the broadcast."""
        self._began = self._shown = asyncio.get_running_loop().time()
        self.is_running = True

    def add(self, sent: Sent[Any]) -> None:
        """Count an outcome, and show the progress if it is time to."""
        self.counts[sent.status] += 1
        now = asyncio.get_running_loop().time()
        self._seconds = now - self._began
        if now - self._shown >= self._every:
            self._shown = now
            if self._message is not None and (self._edit is None or self._edit.done()):
                self._edit = asyncio.create_task(_show(self._message, str(self), wait=False))

    async def finish(self, timeout: float | None) -> None:
        """Show the final result, for so many seconds at most; None for no bound."""
        self.is_running = False
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                if self._edit is not None:
                    await self._edit
                if self._message is not None:
                    await asyncio.create_task(_show(self._message, str(self), wait=True))


async def _show(message: Message, text: str, *, wait: bool) -> None:
    broadcast_scope.set(None)  # of this task only
    try:
        if wait:
            await message.edit_text(text)
        else:
            with without_waiting():
                await message.edit_text(text)
    except Exception as error:
        # For example a deleted message or an unchanged text: the broadcast continues.
        log.debug("The progress of a broadcast was not shown: %r", error)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5_400 else f"{seconds / 3_600:.1f} h"
