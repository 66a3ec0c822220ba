"""Permits: the limiter that all instances share; a local one while Redis is unreachable."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from bot_ratelimit.limiter.decision import Decision
from bot_ratelimit.limiter.limiter import Limiter
from bot_ratelimit.rules.penalty import Penalty, blocking
from bot_ratelimit.rules.rule import Rules, Subject, rules_of
from bot_ratelimit.storage.memory import MemoryStorage

log = logging.getLogger("bot_ratelimit")

_LOG_EVERY: Final = 60.0
# If a thousand chats wake up together and all ask at once, they wait for each other longer than the
# timeout of an answer, and the server is mistaken for dead. A few batches keep it busy.
_AT_ONCE: Final = 32


class Permits:
    """Asks the shared limiter, and records locally what this process was granted.

    When the storage does not answer, the local record decides. It already holds the recent permits:
    otherwise an outage, or a single late answer, would give every chat a second burst.

    Args:
        limiter: The limiter that all instances share.
    """

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter
        self.source = limiter.storage.source
        """The source of normal answers, `"redis"` or `"memory"`."""
        self._local: Limiter | None = None
        if self.source != "memory":
            self._local = Limiter(MemoryStorage(), key_prefix=limiter.key_prefix)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._permits = asyncio.Semaphore(_AT_ONCE)
        self._asking: set[object] = set()  # an object for each question in progress
        self._answered: asyncio.Future[None] | None = None  # for those who wait for all answers
        self._closed = False
        self._log_again = 0.0

    async def close(self) -> None:
        """Stop asking the limiter, and wait for the answers in progress."""
        self._closed = True
        self._use_loop()
        while self._asking:
            if self._answered is None:
                self._answered = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._answered)  # others may wait for it, too

    def open(self) -> None:
        """Start asking the limiter again."""
        self._closed = False

    async def take(self, rules: Rules, subject: Subject, cost: int | None = None) -> Decision:
        """Take a permit from each of the rules, or from none of them."""
        if self._local is None:
            return await _hit(self._limiter, rules, subject, cost)
        self._use_loop()
        async with self._permits:
            if self._closed:
                return await _hit(self._local, rules, subject, cost)
            decision = await self._ask(rules, subject, cost)
        if decision.source == self.source:
            if decision.allowed:
                await _hit(self._local, rules, subject, cost)
            return decision
        self._warn()
        return await _hit(self._local, rules, subject, cost)

    async def block(self, rule: Penalty, subject: Subject, seconds: float) -> None:
        """Let `rule` refuse everything for `seconds`, on all instances."""
        await _hit(self._limiter, rules_of(blocking(rule, seconds)), subject)

    async def _ask(self, rules: Rules, subject: Subject, cost: int | None) -> Decision:
        """Ask the shared limiter, twice if it has no answer."""
        asking, question = self._asking, object()
        asking.add(question)
        try:
            decision = await _hit(self._limiter, rules, subject, cost)
            if decision.source != self.source:
                # A permit that was perhaps taken twice only delays one message. If this process
                # paces by itself while others share the budget, Telegram answers with 429s. With an
                # open circuit this second attempt costs nothing.
                decision = await _hit(self._limiter, rules, subject, cost)
            return decision
        finally:
            asking.discard(question)
            if not self._asking and self._answered is not None:
                self._answered.set_result(None)
                self._answered = None

    def _use_loop(self) -> None:
        """Start from scratch in another `asyncio.run()`: a semaphore belongs to its loop."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop, self._permits = loop, asyncio.Semaphore(_AT_ONCE)
            self._asking, self._answered = set(), None

    def _warn(self) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._log_again:
            self._log_again = now + _LOG_EVERY
            log.warning(
                "Outgoing limits: without Redis this process paces by itself: n instances send up "
                "to n times the budget, and a 429 blocks its chat in one process only"
            )


async def _hit(
    limiter: Limiter, rules: Rules, subject: Subject, cost: int | None = None
) -> Decision:
    """Decide about a request of the bot: bans of users and their observers do not apply to it."""
    return await limiter.hit(rules, subject, cost, _notify=False, _outgoing=True)
