"""Statistics: decisions by hour, rule and outcome, over all instances, without Prometheus.

They are counted in the process and added to the storage's `Tallies` about every ten seconds. Hours
are those of the process that decided. The last hour is also kept by minute. What a bot sends is
counted in the same way, with the method in place of the rule.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, TypeVar

from bot_ratelimit.errors import ConfigError, RateLimitError, StorageError
from bot_ratelimit.limiter.decision import Decision
from bot_ratelimit.limiter.observer import (
    FloodScope,
    Names,
    Observer,
    RequestOutcome,
    outcome_of,
)
from bot_ratelimit.rules.checks import check_whole
from bot_ratelimit.rules.rule import Subject
from bot_ratelimit.storage.base import Storage
from bot_ratelimit.storage.loops import PerLoop, Seldom, Ticker
from bot_ratelimit.storage.tallies import KEPT_HOURS, MAX_USERS, Tally

log = logging.getLogger("bot_ratelimit")

T = TypeVar("T")

FLUSH_EVERY: Final = 10.0
"""Seconds between two writes if there were decisions."""

DECISIONS: Final = frozenset({"allowed", "refused", "banned"})
"""The outcomes of decisions."""
FLOOD: Final = "429"
"""The outcome that stands for an answer 429 of Telegram."""
REQUESTS: Final = frozenset({"sent", "failed", "flooded", "unsent", FLOOD})
"""The outcomes of what the bot sends."""


@dataclass(frozen=True, slots=True)
class HourCount:
    """How many decisions of one rule had one outcome in one hour.

    Attributes:
        hour: When the hour began, in UTC.
        rule: The rule, as metrics name it: `user`, `chat`, or the rule's own name.
        outcome: `"allowed"`, `"refused"` or `"banned"`.
        count: How many decisions.
    """

    hour: datetime
    rule: str
    outcome: str
    count: int


@dataclass(frozen=True, slots=True)
class MinuteCount:
    """How many decisions of one rule, or requests of one method, had one outcome in one minute.

    Attributes:
        minute: When the minute began, in UTC.
        rule: The rule, as metrics name it; or the method, such as `SendMessage`; or for a 429 what
            it was about, such as `chat`.
        outcome: `"allowed"`, `"refused"` or `"banned"`; for requests see `Observer.request_done`,
            and `"429"` for each answer 429.
        count: How many.
    """

    minute: datetime
    rule: str
    outcome: str
    count: int


@dataclass(frozen=True, slots=True)
class Refusals:
    """How often a user was refused.

    Attributes:
        user: Id of the user.
        count: How many refusals.
    """

    user: int
    count: int


class Statistics(Observer):
    """Counts decisions, and reads the counts of all instances; the clock is Unix time.

    Raises:
        ConfigError: The storage keeps no statistics.
    """

    def __init__(
        self,
        storage: Storage,
        key_prefix: str,
        timeout: float,
        *,
        clock: Callable[[], float] = time.time,
        every: float = FLUSH_EVERY,
    ) -> None:
        self._tallies = storage.tallies(key_prefix)
        self._timeout = max(timeout, 1.0)  # no update waits for this
        self._clock = clock
        self._process = secrets.token_hex(6)
        self._number = 0
        self._hours: dict[int, Tally] = {}
        self._sending: tuple[Tally, int] | None = None
        self._lock = PerLoop(asyncio.Lock)
        self._ticker = Ticker(self._tick, every)
        self._names, self._seldom = Names(), Seldom()

    def decided(self, decision: Decision, subject: Subject, seconds: float) -> None:
        """Count a decision, and schedule the next write."""
        tally = self._count(outcome_of(decision), decision.rule.label)
        if not decision.allowed and subject.user is not None:
            tally.refused[subject.user] += 1
            if len(tally.refused) > 2 * MAX_USERS:  # a flood from many accounts fits in memory
                tally.refused = Counter(dict(tally.refused.most_common(MAX_USERS)))

    def request_done(self, method: str, outcome: RequestOutcome, waited: float) -> None:
        """Count a request that the bot sent."""
        self._count(outcome, method)

    def flood_waited(self, scope: FloodScope, seconds: float) -> None:
        """Count a 429."""
        self._count(FLOOD, scope)

    def _count(self, outcome: str, label: str) -> Tally:
        hour, minute = divmod(int(self._clock() // 60), 60)
        tally = self._hours.get(hour) or self._hours.setdefault(hour, Tally(hour))
        field = f"{outcome} {self._names(label)}"
        tally.counts[field] += 1
        tally.minutes[f"{minute} {field}"] += 1
        self._ticker.start()
        return tally

    async def flush(self) -> None:
        """Write the decisions since the last flush.

        Raises:
            StorageError: Redis is unreachable; the counts are kept and written later.
            ConfigError: Redis refuses the command.
        """
        async with self._lock.get():
            self._forget_old()
            # What is counted meanwhile waits for the next write: else a busy bot goes on forever.
            for _ in range((self._sending is not None) + len(self._hours)):
                if self._sending is None:
                    hour = min(self._hours)
                    self._number += 1
                    self._sending = self._hours.pop(hour), self._number
                tally, number = self._sending
                await self._tallies.add(tally, self._process, number, timeout=self._timeout)
                self._sending = None

    async def flush_at_end(self) -> None:
        """Write the rest for the last time; if that fails, log how much is lost."""
        await self._ticker.stop()
        try:
            for _ in range(2):  # the second time what was counted during the first
                await self.flush()
        except RateLimitError as error:
            unwritten = [*self._hours.values(), *([self._sending[0]] if self._sending else [])]
            lost = sum(tally.counts.total() for tally in unwritten)
            log.warning("The statistics of %d decisions could not be written: %s", lost, error)

    async def read(
        self, hours: int, outcomes: Collection[str] = DECISIONS
    ) -> tuple[HourCount, ...]:
        """Read the counts of all instances; see `Limiter.statistics`."""
        return tuple(
            HourCount(datetime.fromtimestamp(hour * 3_600, UTC), rule, outcome, count)
            for hour, fields in await self._of_each_hour(hours, self._tallies.counts)
            for field, count in sorted(fields.items())
            for outcome, _, rule in [field.partition(" ")]
            if outcome in outcomes
        )

    async def read_minutes(self) -> tuple[MinuteCount, ...]:
        """Read the counts of the last 60 minutes; see `Limiter.last_hour`."""
        await self.flush()
        now = int(self._clock() // 60)
        found = []
        for hour in (now // 60 - 1, now // 60):
            fields = await self._tallies.counts(hour, by_minute=True, timeout=self._timeout)
            for field, count in fields.items():
                minute, outcome, rule = field.split(" ", 2)
                if now - 60 < (at := 60 * hour + int(minute)) <= now:
                    found.append(
                        MinuteCount(datetime.fromtimestamp(at * 60, UTC), rule, outcome, count)
                    )
        return tuple(sorted(found, key=lambda each: (each.minute, each.outcome, each.rule)))

    async def top_refused(self, n: int, hours: int) -> tuple[Refusals, ...]:
        """Read the users refused most often; see `Limiter.top_refused`."""
        check_whole("n", n, 1, MAX_USERS)
        total: Counter[int] = Counter()
        for _, users in await self._of_each_hour(hours, self._tallies.refused):
            total.update(users)
        worst = heapq.nsmallest(n, total.items(), key=lambda each: (-each[1], each[0]))
        return tuple(Refusals(user, count) for user, count in worst)

    async def refused(self, user: int, hours: int) -> int | None:
        """How often one user was refused; see `Limiter.refused`."""
        found = [users for _, users in await self._of_each_hour(hours, self._tallies.refused)]
        is_known = all(len(users) < MAX_USERS for users in found)
        return sum(users.get(user, 0) for users in found) or (0 if is_known else None)

    async def _tick(self) -> bool:
        """Write; an outage is reported elsewhere, and what could not be written is kept."""
        try:
            await self.flush()
        except StorageError:
            pass
        except ConfigError as error:
            if self._seldom():
                log.warning("The statistics cannot be written: %s", error)
        return self._sending is not None or bool(self._hours)

    def _forget_old(self) -> None:
        oldest = int(self._clock() // 3_600) - KEPT_HOURS
        for hour in [hour for hour in self._hours if hour < oldest]:
            del self._hours[hour]

    async def _of_each_hour(
        self, hours: int, ask: Callable[..., Awaitable[T]]
    ) -> list[tuple[int, T]]:
        """What the tallies of all instances say of the current hour and those before it."""
        check_whole("hours", hours, 1, KEPT_HOURS)
        await self.flush()
        now = int(self._clock() // 3_600)
        wanted = range(now - hours + 1, now + 1)
        replies = await asyncio.gather(*(ask(each, timeout=self._timeout) for each in wanted))
        return list(zip(wanted, replies, strict=True))
