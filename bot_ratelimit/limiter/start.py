"""Start: finds out whether the storage can decide, at the start and when somebody asks."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final

from bot_ratelimit.errors import printable
from bot_ratelimit.limiter.decider import Decider
from bot_ratelimit.rules.limit import MAX_AMOUNT, Limit
from bot_ratelimit.storage.base import Ask, Count, Op
from bot_ratelimit.storage.guarded import Missing
from bot_ratelimit.storage.loops import Ticker

log = logging.getLogger("bot_ratelimit")

PATIENCE: Final = 6.0
"""Seconds that the first question waits: a little longer than an attempt to connect takes."""
AGAIN: Final = 1.0
"""Seconds between two attempts while there is no connection."""
_LIMIT: Final = Limit(MAX_AMOUNT, 1.0)


class Start:
    """Asks the storage in the background until it answers; the guard logs why it does not."""

    def __init__(self, decider: Decider) -> None:
        self._decider = decider
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
        ask = Ask([_count(decider)], Op.PEEK)  # which leaves no key
        answer = await decider.guard.run(ask.counts, decider.storage.ask, ask, timeout=PATIENCE)
        if isinstance(answer, Missing):
            return True
        storage = decider.storage
        log.info("Connected to %s (%s)", storage.title, storage.server(ask.counts))
        await asyncio.sleep(0)  # the rules of a bot are complete when it has started
        await _try_rules(decider)
        return False


async def tried(decider: Decider) -> tuple[str, float, str]:
    """Return which server a test call asked, its seconds, and what is wrong; it charges no user."""
    began, problem, ask = time.perf_counter(), "", Ask([_count(decider)])
    server = decider.storage.server(ask.counts)
    if not decider.is_local:
        try:
            await decider.storage.ask(ask, timeout=decider.timeout)
        except Exception as error:
            problem = printable(str(error) or repr(error))
    seconds = time.perf_counter() - began
    if not problem:
        await _try_rules(decider)
    return server, seconds, problem


async def _try_rules(decider: Decider) -> None:
    """Find out whether the storage can decide by the rules of this bot, and log if not."""
    asks = decider.trials()

    async def call(ask: Ask) -> object:  # an error is always raised by the awaitable then
        return await decider.storage.ask(ask, timeout=decider.timeout)

    calls = map(call, asks)
    answers = await asyncio.gather(*calls, return_exceptions=True)
    for ask, answer in zip(asks, answers, strict=True):
        if isinstance(answer, Exception):
            decider.guard.record(ask.counts, answer)
        elif not isinstance(answer, BaseException):
            decider.guard.record(ask.counts, None)


def _count(decider: Decider) -> Count:
    return Count(f"{decider.key_prefix}:ratelimit:check", _LIMIT)
