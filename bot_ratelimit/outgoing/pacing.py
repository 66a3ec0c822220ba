"""Pacing: a request waits for a permit of its chat, and in a broadcast of the whole bot, too."""

from __future__ import annotations

import asyncio
import math
import random
from collections import defaultdict
from collections.abc import Hashable, Mapping
from typing import Final, NamedTuple

from bot_ratelimit.errors import NotSentError
from bot_ratelimit.limiter.decision import Decision
from bot_ratelimit.outgoing.budgets import BroadcastRule, Budgets
from bot_ratelimit.outgoing.chat_queue import ChatQueue, Entry, Request
from bot_ratelimit.outgoing.floods import Floods, describe, retry_after
from bot_ratelimit.outgoing.methods import Kind
from bot_ratelimit.outgoing.pace import Pace
from bot_ratelimit.outgoing.permits import Permits
from bot_ratelimit.rules.limit import Limit
from bot_ratelimit.rules.rule import Rules
from bot_ratelimit.storage.loops import PerLoop

# Random delays, so that instances that wait for the same permit do not all ask at once.
_JITTER: Final = 0.005
_JITTER_AFTER_429: Final = 0.2


class Permit(NamedTuple):
    """A permit that was taken."""

    parts: int
    """Of how many parts it consists."""
    begins: float
    """When its refill begins, by the loop's clock: at once, or after that of earlier permits.
    Infinite if it took nothing that is refilled."""
    quiet: bool
    """Whether nothing had been sent to the chat for a while."""


class Pacer:
    """Takes permits, and waits for them.

    Only the entry that has the turn in its queue asks the limiter. If it is refused, it sleeps for
    as long as the limiter says and asks again: about two decisions for each permit, however many
    requests wait.
    """

    def __init__(
        self, permits: Permits, budgets: Budgets, floods: Floods, max_wait: Mapping[Kind, float]
    ) -> None:
        self.closed = False
        """Whether requests may no longer wait, because the bot shuts down."""
        self._permits = permits
        self._budgets = budgets
        self._floods = floods
        self._max_wait = max_wait
        self._sleeping: set[asyncio.Future[None]] = set()
        # One broadcast of a bot asks for permits, the others wait behind it.
        self._gates = PerLoop[dict[Hashable, asyncio.Lock]](lambda: defaultdict(asyncio.Lock))

    def close(self) -> None:
        """End all waits: each raises NotSentError."""
        self.closed = True
        for sleeping in self._sleeping:
            if not sleeping.done():
                sleeping.set_exception(shutting_down())

    async def sleep(self, seconds: float) -> None:
        """Sleep for `seconds`, or raise NotSentError when the bot shuts down."""
        closing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleeping.add(closing)
        try:
            async with asyncio.timeout(seconds):
                await closing
        except TimeoutError:
            pass
        finally:
            self._sleeping.discard(closing)

    async def take(self, queue: ChatQueue, entry: Entry) -> Permit:
        """Take the permits of an entry; return when it may be sent.

        What exceeds a burst, for example of an album, is charged to the chat afterwards: no
        instance sends to it before the budget covers that.

        Raises:
            NotSentError: The request would have to wait, and may not.
            TelegramRetryAfter: A block lasts longer than the request waits.
        """
        request, budgets = entry.newest, self._budgets
        if request.broadcast is not None and not request.attempts:  # it is paid for once
            request.method = request.broadcast.priced(request.method)
        cost = request.traffic.cost(request.method) * budgets.parts
        if queue.key.kind is Kind.METHOD:  # those that may wait are kept apart in their chat
            apart = request.may_wait and queue.key.chat != ""
            return await self._take(queue, entry, int(apart), cost)
        if request.traffic.kind is Kind.SERVICE:
            permit = await self._take(queue, entry, cost, cost, service=True)
            return permit._replace(begins=math.inf)  # of the chat's bucket it takes nothing
        most = budgets.most(queue, queue.slow(_now()))
        own = min(cost, most)
        behind = queue.counted_until - max(_now(), queue.full_at)
        late = math.ceil(min(behind / budgets.refill, 1) * budgets.parts) if behind > 0 else 0
        if late + own > most:  # what came late goes first
            await self._take(queue, entry, late)
            late = 0
        permit = await self._take(queue, entry, late + own, cost)
        if (left := late + cost - permit.parts) > 0:
            rules, was_open = budgets.rules(queue, 1, queue.slow(_now())), not self.closed
            await self._permits.charge(rules, queue.subject, left)
            if was_open and self.closed:
                raise shutting_down(f"{describe(request)} was ")
            queue.full_at += left / budgets.parts * budgets.refill
        return permit

    async def try_once(self, pace: Pace) -> float:
        """Take the permit of a draft or an action; return 0, or the seconds until one is free."""
        if (blocked := self._floods.blocked_for(pace)) > 0:
            return blocked
        _, decision = await self._ask(pace, self._budgets.rules(pace, 1))
        if not decision.allowed:
            self._floods.note_refusal(pace, decision)
        return decision.retry_after

    async def retake_turn(self, queue: ChatQueue, entry: Entry) -> None:
        """Get the turn again, before all others of the same kind."""
        queue.join(entry, first=True)
        await queue.turn(entry)

    def answered(self, queue: ChatQueue, permit: Permit) -> None:
        """Let a permit count from the moment its request was answered.

        Telegram counts when a request arrives, which is later than its permit was taken. In a busy
        chat that changes nothing. In a quiet one the next requests would be too early: ::

            permits of `1/s burst 5`:   taken 0.0   answered 0.4   full again at 1.0
            what Telegram counts:       at the latest at 0.4       full again at 1.4
        """
        late = min(_now() - permit.begins, self._budgets.refill)
        if late > 0:
            queue.counted_until = max(queue.counted_until, max(queue.full_at, _now()) + late)
            queue.idle_until = max(queue.idle_until, queue.counted_until)

    def may_repeat(self, queue: ChatQueue, entry: Entry, seconds: float) -> bool:
        """Whether an entry may wait for a block of `seconds`."""
        return not self.closed and seconds <= self._patience(queue, entry)

    def _patience(self, queue: ChatQueue, entry: Entry) -> float:
        """How long an entry still waits for a block; of several edits the most patient decides."""
        return max(self._patience_of(queue, request) for request in entry.requests)

    def _patience_of(self, queue: ChatQueue, request: Request) -> float:
        if request.deadline is not None:
            return request.deadline - _now()
        if request.broadcast is not None:
            return math.inf
        return self._max_wait[Kind.EDIT if request.traffic.kind is Kind.EDIT else queue.key.kind]

    async def _take(
        self, queue: ChatQueue, entry: Entry, parts: int, whole: int = 0, *, service: bool = False
    ) -> Permit:
        """Take parts of permits, as many as can be taken at once."""
        was_open = not self.closed
        while True:
            await self._wait_for_block(queue, entry)
            slow = queue.slow(_now())  # which may have changed during a wait
            part = min(parts, self._budgets.most(queue, slow, service=service))
            rules = self._budgets.rules(
                queue, part, slow, whole, entry.newest.paid, service=service
            )
            in_gate = isinstance(rules[-1], BroadcastRule)
            ask = self._ask_in_gate(queue, entry, rules) if in_gate else self._ask(queue, rules)
            asked, decision = await ask
            if was_open and self.closed:  # meanwhile; the log has said that it was not sent
                raise shutting_down(f"{describe(entry.newest)} was ")
            if not decision.allowed and not self._floods.note_refusal(queue, decision):
                self._check_can_wait(entry, decision.retry_after)
                await self._sleep(queue, entry, decision.retry_after + _jitter(_JITTER))
            elif in_gate:
                await self.retake_turn(queue, entry)
            if decision.allowed:
                permit = self._permit(queue, 0 if service else part, decision, asked)
                if in_gate:  # it may have begun meanwhile
                    await self._wait_for_block(queue, entry)
                return permit

    async def _ask_in_gate(
        self, queue: ChatQueue, entry: Entry, rules: Rules
    ) -> tuple[float, Decision]:
        """Ask in the order of the broadcasts, without the turn: replies to the chat go first."""
        queue.release(entry)
        rule, request = rules[-1], entry.newest
        async with self._gates.get()[queue.key.bot, rule.path]:
            asked, decision = await self._ask(queue, rules)
            while not decision.allowed and isinstance(decision.rule, BroadcastRule):
                self._check_can_wait(entry, decision.retry_after)
                await self.sleep(decision.retry_after + _jitter(_JITTER))
                asked, decision = await self._ask(queue, rules)
            items = request.traffic.cost(request.method)
            if decision.allowed and items > rule.cost and isinstance(rule.limit, Limit):
                await self.sleep(items * rule.limit.period / rule.limit.amount)  # more than at once
        return asked, decision

    def _permit(self, queue: ChatQueue, part: int, decision: Decision, asked: float) -> Permit:
        """Describe a permit by the state of the bucket that it was taken from.

        If another rule decided, only what this process itself has taken is known.
        """
        known = decision.source == self._permits.source
        # Without the shared limiter it is unknown what the other instances have sent.
        quiet = known and self._budgets.was_unused(queue, part, decision)
        begins = self._budgets.begins(decision, asked, part)
        if begins is None:
            begins = max(asked, queue.full_at)
        if queue.key.kind is Kind.MESSAGE:
            queue.full_at = begins + part / self._budgets.parts * self._budgets.refill
        return Permit(part, begins, quiet)

    async def _ask(self, pace: Pace, rules: Rules) -> tuple[float, Decision]:
        now = _now()
        decision = await self._permits.take(rules, pace.subject)
        if decision.allowed:
            pace.idle_until = max(pace.idle_until, now + decision.reset_after)
        return now, decision

    async def _wait_for_block(self, queue: ChatQueue, entry: Entry) -> None:
        while (rest := self._floods.blocked_for(queue)) > 0:
            self._check_can_wait(entry, 0)
            if rest > self._patience(queue, entry):
                raise retry_after(entry.newest, rest)
            await self._sleep(queue, entry, rest + _jitter(_JITTER_AFTER_429))

    async def _sleep(self, queue: ChatQueue, entry: Entry, seconds: float) -> None:
        """Sleep; during the sleep of a broadcast, replies to the same chat go first."""
        if entry.newest.broadcast is None:
            await self.sleep(seconds)
            return
        queue.release(entry)
        await self.sleep(seconds)
        await self.retake_turn(queue, entry)

    def _check_can_wait(self, entry: Entry, seconds: float) -> None:
        request = entry.newest
        if self.closed:
            raise shutting_down(f"{describe(request)} was ")
        if not request.may_wait or not any(each.can_wait(seconds) for each in entry.requests):
            raise NotSentError(
                f"{describe(request)} was not sent: it would have to wait"
                + (f" {seconds:.0f} s" if request.may_wait else "")
            )


class ShuttingDownError(NotSentError):
    """The bot is shutting down, or has."""


def shutting_down(what: str = "") -> NotSentError:
    """The error of requests that wait at the shutdown."""
    return ShuttingDownError(f"{what}not sent: the bot is shutting down")


def _now() -> float:
    return asyncio.get_running_loop().time()


def _jitter(most: float) -> float:
    return random.uniform(0, most)  # noqa: S311 - spreads wake-ups, keeps no secret
