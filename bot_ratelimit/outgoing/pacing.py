"""Pacing: a request waits for a permit of its chat, and a broadcast for one of the whole bot."""

from __future__ import annotations

import asyncio
import random
from typing import Final, NamedTuple

from bot_ratelimit.errors import NotSentError
from bot_ratelimit.limiter.decision import Decision
from bot_ratelimit.limiter.waiting_allowed import waiting_allowed
from bot_ratelimit.outgoing.budgets import Budgets, Owed, subject_of
from bot_ratelimit.outgoing.chat_queue import ChatQueue, Request
from bot_ratelimit.outgoing.floods import Floods, describe, retry_after
from bot_ratelimit.outgoing.permits import Permits
from bot_ratelimit.outgoing.sleeper import Sleeper
from bot_ratelimit.rules.rule import Rules, Subject

# Random delays, so that instances that wait for the same permit do not all ask at once.
_JITTER: Final = 0.005
_JITTER_AFTER_429: Final = 0.2
# The largest delay compared with the fastest request that counts as network delay. A longer one is
# put down to the size of the request.
_LONGEST_LAG: Final = 0.5
_LAG_LASTS: Final = 2.0


class Permit(NamedTuple):
    """A permit that was taken."""

    asked: float
    """When it was requested, by the loop's clock."""
    fresh: bool
    """Whether the chat had been quiet before this permit."""


class Pacer:
    """Takes permits, and waits for them.

    Only the entry that has the turn in its queue asks the limiter. If it is refused, it sleeps for
    as long as the limiter says and asks again: about two decisions for each permit, however many
    requests wait.

    Args:
        permits: Grants the permits.
        budgets: The rules.
        floods: Knows what Telegram has blocked.
        sleeper: Sleeps that end when the bot shuts down.
        max_wait: Seconds of a block that a request waits for.
    """

    def __init__(
        self, permits: Permits, budgets: Budgets, floods: Floods, sleeper: Sleeper, max_wait: float
    ) -> None:
        self.closed = False
        """Whether requests may no longer wait, because the bot shuts down."""
        self._permits = permits
        self._budgets = budgets
        self._floods = floods
        self._sleeper = sleeper
        self._max_wait = max_wait
        self._gates: dict[tuple[int, bool], asyncio.Lock] = {}
        self._gates_loop: asyncio.AbstractEventLoop | None = None
        self._fastest = _LONGEST_LAG
        self._lag = self._lag_until = 0.0

    async def close(self) -> None:
        """Stop asking the shared limiter; late requests use this process's own record."""
        self._permits.close()

    def open(self) -> None:
        """Let requests wait again."""
        self.closed = False
        self._permits.open()

    async def take(self, queue: ChatQueue, request: Request) -> Permit:
        """Take the permits of a request in its chat; return when it may be sent.

        What exceeds a burst, for example an album, is taken afterwards, before the next request is
        sent.

        Raises:
            NotSentError: The request would have to wait, and may not.
            TelegramRetryAfter: A block lasts longer than requests wait.
        """
        while queue.owed:
            part, rest = self._budgets.split(queue.owed)
            await self._take(queue, request, part)
            queue.owed = rest
        part, rest = self._budgets.split(
            self._budgets.owed(queue.chat, request.traffic.cost(request.method))
        )
        permit = await self._take(queue, request, part)
        queue.owed = rest
        return permit

    async def take_for_broadcast(self, queue: ChatQueue, request: Request) -> None:
        """Take a broadcast permit, in the order of the requests, while replies go first."""
        paid = bool(getattr(request.method, "allow_paid_broadcast", False))
        budget = self._budgets.broadcast(paid)
        if budget is None:
            return
        rule, capacity = budget
        bot = request.bot.id
        rules, subject = Rules((self._budgets.bot_block, rule)), Subject(bot=bot)
        left = request.traffic.cost(request.method)
        queue.release(request.entry)
        async with self._gate(bot, paid):
            while left:
                self._check_may_wait(request, refused=False)
                part = min(left, capacity)
                decision = await self._permits.take(rules, subject, part)
                if decision.allowed:
                    left -= part
                else:
                    self._check_may_wait(request)
                    await self._sleeper.sleep(decision.retry_after + _jitter(_JITTER))
        await self.retake_turn(queue, request)
        await self._wait_for_block(queue, request)

    async def try_once(self, queue: ChatQueue, request: Request) -> bool:
        """Take a permit if one is free now, without waiting for the turn."""
        if queue.waiting or self._floods.blocked_for(queue, request.bot.id) > 0:
            return False
        decision, _ = await self._ask(queue, request, self._budgets.owed(queue.chat, 1))
        if not decision.allowed:
            self._floods.note_refusal(queue, request.bot.id, decision)
        return decision.allowed

    async def retake_turn(self, queue: ChatQueue, request: Request) -> None:
        """Get the turn again, before all others of the same kind."""
        if (turn := queue.step_back(request)) is not None:
            await turn

    def learn(self, queue: ChatQueue, permit: Permit) -> None:
        """Record the time from taking the permit to the answer.

        A request that arrived late moves Telegram's count back. The next request must not be sent
        exactly on time, or it arrives too early. The late request may be another instance's: what
        is slow here is probably slow there.
        """
        now = asyncio.get_running_loop().time()
        took = now - permit.asked
        self._fastest = min(self._fastest, took)
        lag = min(took - self._fastest, _LONGEST_LAG)
        queue.lag = max(queue.lag, lag)
        if lag >= self._lag or now >= self._lag_until:
            self._lag, self._lag_until = lag, now + _LAG_LASTS

    def _gate(self, bot: int, paid: bool) -> asyncio.Lock:
        """The lock that keeps broadcasts of a bot in order: one asks, the others wait."""
        loop = asyncio.get_running_loop()
        if loop is not self._gates_loop:  # another asyncio.run(): a lock belongs to its loop
            self._gates, self._gates_loop = {}, loop
        return self._gates.setdefault((bot, paid), asyncio.Lock())

    async def _take(self, queue: ChatQueue, request: Request, part: Owed) -> Permit:
        waited = False
        while True:
            await self._wait_for_block(queue, request)
            decision, asked = await self._ask(queue, request, part)
            if decision.allowed:
                if not waited and not decision.remaining and queue.lag and waiting_allowed.get():
                    await self._sleep(queue, request, queue.lag)  # the last request of a burst
                    asked += queue.lag
                # Without the shared limiter it is unknown what the other instances have sent.
                known = decision.source == self._permits.source
                fresh = known and self._budgets.was_unused(queue.chat, part, decision.remaining)
                return Permit(asked, fresh)
            if not self._floods.note_refusal(queue, request.bot.id, decision):
                self._check_may_wait(request)
                if asked < self._lag_until:
                    queue.lag = max(queue.lag, self._lag)
                wait = decision.retry_after + queue.lag + _jitter(_JITTER)
                await self._sleep(queue, request, wait)
                waited = True

    async def _ask(self, queue: ChatQueue, request: Request, part: Owed) -> tuple[Decision, float]:
        now = asyncio.get_running_loop().time()
        rules = self._budgets.rules(queue.chat, part, queue.slow if now < queue.slow_until else 0)
        business = getattr(request.method, "business_connection_id", None)
        subject = subject_of(request.bot.id, queue.chat, business)
        decision = await self._permits.take(rules, subject)
        if decision.allowed:
            queue.idle_until = max(queue.idle_until, now + decision.reset_after)
        return decision, now

    async def _wait_for_block(self, queue: ChatQueue, request: Request) -> None:
        while (rest := self._floods.blocked_for(queue, request.bot.id)) > 0:
            self._check_may_wait(request)
            if rest > self._max_wait and not request.broadcast:
                raise retry_after(request, rest)
            await self._sleep(queue, request, rest + _jitter(_JITTER_AFTER_429))

    async def _sleep(self, queue: ChatQueue, request: Request, seconds: float) -> None:
        """Sleep; during the sleep of a broadcast, replies to the same chat go first."""
        if not request.broadcast:
            await self._sleeper.sleep(seconds)
            return
        queue.release(request.entry)
        await self._sleeper.sleep(seconds)
        await self.retake_turn(queue, request)

    def _check_may_wait(self, request: Request, *, refused: bool = True) -> None:
        if self.closed:
            raise NotSentError(f"{describe(request)} was not sent: the bot is shutting down")
        if refused and not waiting_allowed.get():
            raise NotSentError(f"{describe(request)} was not sent: it would have to wait")


def _jitter(most: float) -> float:
    return random.uniform(0, most)  # noqa: S311 - spreads wake-ups, keeps no secret
