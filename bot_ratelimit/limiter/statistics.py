"""Statistics: decisions by hour, rule and outcome, over all instances, without Prometheus.

They are counted in the process and written to Redis about every ten seconds in one command:

==========================================  =======================================================
`<prefix>:ratelimit:stats:{<hour>}`          a hash: `<outcome> <rule>` to a number, and for each
                                             process the number of its last flush that is included
`<prefix>:ratelimit:stats:{<hour>}:refused`  a sorted set: users by how often they were refused
==========================================  =======================================================

Hours are counted from 1970 in UTC, by the clock of the process that decided.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import secrets
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

from bot_ratelimit.errors import ConfigError, RateLimitError
from bot_ratelimit.limiter.decision import Decision
from bot_ratelimit.limiter.observer import MAX_LABELS, OTHER, Observer, label_of, outcome_of
from bot_ratelimit.rules.rule import Subject
from bot_ratelimit.storage.base import Storage
from bot_ratelimit.storage.redis.encoding import encode_key

log = logging.getLogger("bot_ratelimit")

FLUSH_EVERY: Final = 10.0
"""Seconds between two writes if there were decisions."""
KEPT_HOURS: Final = 48
TTL: Final = (KEPT_HOURS + 1) * 3_600
MAX_USERS: Final = 1_000
"""How many refused users are kept for each hour; those refused least often are dropped."""

Execute: TypeAlias = Callable[..., Awaitable[Any]]
_Key: TypeAlias = tuple[str, str]  # outcome, rule

# A flush whose answer was lost is sent again and must not count twice. So each process numbers its
# flushes, and the hash stores the last number. ARGV: process, number, TTL, users to keep, number of
# counts, then pairs of field and count, then pairs of user and refusals.
_ADD: Final = b"""\
if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then return 0 end
local last = 5 + 2 * ARGV[5]
for i = 6, last, 2 do redis.call('HINCRBY', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[3])
if #ARGV > last then
  for i = last + 1, #ARGV, 2 do redis.call('ZINCRBY', KEYS[2], ARGV[i + 1], ARGV[i]) end
  redis.call('ZREMRANGEBYRANK', KEYS[2], 0, -ARGV[4] - 1)
  redis.call('EXPIRE', KEYS[2], ARGV[3])
end
return 1
"""
# Scripts, because their replies are flat lists with every protocol version.
_READ: Final = b"return redis.call('HGETALL', KEYS[1])"
_TOP: Final = b"return redis.call('ZREVRANGE', KEYS[1], 0, -1, 'WITHSCORES')"
_REFUSED: Final = b"""\
local count = redis.call('ZSCORE', KEYS[1], ARGV[1])
if count then return count end
return redis.call('ZCARD', KEYS[1]) < tonumber(ARGV[2]) and '0' or nil
"""


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
class Refusals:
    """How often a user was refused.

    Attributes:
        user: Id of the user.
        count: How many refusals.
    """

    user: int
    count: int


class _Hour:
    """The decisions of one hour that were not written yet."""

    __slots__ = ("counts", "refused")

    def __init__(self) -> None:
        self.counts: Counter[_Key] = Counter()
        self.refused: Counter[int] = Counter()

    def refused_of(self, user: int) -> int | None:
        """How often a user was refused; None if the user may have been dropped."""
        is_full = len(self.refused) >= MAX_USERS
        return self.refused.get(user, None if is_full else 0)

    def trim(self) -> None:
        """Drop the users refused least often, so that a flood from many accounts fits in memory."""
        if len(self.refused) > 2 * MAX_USERS:
            self.refused = Counter(dict(self.refused.most_common(MAX_USERS)))


class Statistics(Observer):
    """Counts decisions, and reads the counts of all instances.

    Args:
        storage: Where the counts are kept; with a memory storage, only in this process.
        key_prefix: The prefix of every key.
        timeout: The time-out of the server in seconds.
        clock: Returns seconds since 1970.
        every: Seconds between two writes.
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
        self._execute: Execute | None = getattr(storage, "execute", None)
        self._prefix = key_prefix
        self._timeout = max(timeout, 1.0)  # no update waits for this
        self._clock = clock
        self._every = every
        self._process = f"#{secrets.token_hex(6)}".encode()
        self._number = 0
        self._hours: defaultdict[int, _Hour] = defaultdict(_Hour)
        self._sending: tuple[int, _Hour, int] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock: asyncio.Lock | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._labels: set[str] = set()

    def decided(self, decision: Decision, subject: Subject, seconds: float) -> None:
        """Count a decision, and schedule the next write."""
        label = label_of(decision.rule)
        if label not in self._labels:
            if len(self._labels) >= MAX_LABELS:
                label = OTHER
            self._labels.add(label)
        hour = self._hours[int(self._clock() // 3_600)]
        hour.counts[outcome_of(decision), label] += 1
        if not decision.allowed and subject.user is not None:
            hour.refused[subject.user] += 1
            hour.trim()
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # another asyncio.run(): the timer of the last never fires
            self._loop = loop
            self._lock = self._timer = self._task = None
        if self._timer is None:
            self._forget_old()
            self._timer = loop.call_later(self._every, self._start, context=Context())

    async def flush(self) -> None:
        """Write the decisions since the last flush.

        Raises:
            StorageError: Redis is unreachable; the counts are kept and written later.
            ConfigError: Redis refuses the command.
        """
        if self._execute is None:
            return
        if self._lock is None:
            self._lock = asyncio.Lock()
        async with self._lock:
            while self._sending is not None or self._hours:
                if self._sending is None:
                    hour = min(self._hours)
                    self._number += 1
                    self._sending = hour, self._hours.pop(hour), self._number
                await self._write(*self._sending)
                self._sending = None

    async def flush_at_end(self) -> None:
        """Write the rest for the last time; if that fails, log how much is lost."""
        for handle in (self._timer, self._task):
            if handle is not None:
                handle.cancel()
        self._timer = self._task = None
        try:
            await self.flush()
        except RateLimitError as error:
            lost = sum(hour.counts.total() for _, hour in self._unwritten())
            log.warning("The statistics of %d decisions could not be written: %s", lost, error)

    async def read(self, hours: int) -> tuple[HourCount, ...]:
        """Read the counts of all instances; see `Limiter.statistics`."""
        found: list[HourCount] = []
        for hour, fields in (await self._fetch(_READ, "", hours)).items():
            begins = datetime.fromtimestamp(hour * 3_600, UTC)
            for field, count in sorted(fields.items()):
                outcome, _, rule = field.partition(" ")
                if rule:  # otherwise it is the number of a flush
                    found.append(HourCount(begins, rule, outcome, int(count)))
        return tuple(found)

    async def top_refused(self, n: int, hours: int) -> tuple[Refusals, ...]:
        """Read the users refused most often; see `Limiter.top_refused`."""
        if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= MAX_USERS:
            raise ConfigError(f"n={n!r}: expected a whole number from 1 to {MAX_USERS}")
        total: Counter[int] = Counter()
        for fields in (await self._fetch(_TOP, ":refused", hours)).values():
            for user, count in fields.items():
                total[int(user)] += int(float(count))
        worst = heapq.nsmallest(n, total.items(), key=lambda each: (-each[1], each[0]))
        return tuple(Refusals(user, count) for user, count in worst)

    async def refused(self, user: int, hours: int) -> int | None:
        """How often one user was refused; see `Limiter.refused`."""
        wanted = self._wanted(hours)
        if self._execute is None:
            counts = [self._hours[hour].refused_of(user) for hour in wanted if hour in self._hours]
        else:
            await self.flush()
            counts = await asyncio.gather(
                *(
                    self._run(_REFUSED, [f"{self._key(hour)}:refused"], user, MAX_USERS)
                    for hour in wanted
                )
            )
        known = [int(float(count)) for count in counts if count is not None]
        return sum(known) or (0 if len(known) == len(counts) else None)

    def _start(self) -> None:
        self._timer = None
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._flush_quietly())

    async def _flush_quietly(self) -> None:
        """Flush, ignoring errors: outages are reported elsewhere, and later decisions retry."""
        with suppress(RateLimitError):
            await self.flush()

    def _unwritten(self) -> list[tuple[int, _Hour]]:
        sending = [] if self._sending is None else [self._sending[:2]]
        return [*sending, *self._hours.items()]

    def _forget_old(self) -> None:
        oldest = int(self._clock() // 3_600) - KEPT_HOURS
        for hour in [hour for hour in self._hours if hour < oldest]:
            del self._hours[hour]

    def _key(self, hour: int) -> str:
        return f"{self._prefix}:ratelimit:stats:{{{hour}}}"

    async def _write(self, hour: int, counted: _Hour, number: int) -> None:
        counts = [
            part
            for (outcome, label), count in counted.counts.items()
            for part in (f"{outcome} {label}", count)
        ]
        users = [part for each in counted.refused.most_common(MAX_USERS) for part in each]
        key = self._key(hour)
        arguments = [number, TTL, MAX_USERS, len(counts) // 2, *counts, *users]
        await self._run(_ADD, [key, f"{key}:refused"], self._process, *arguments)

    async def _fetch(
        self, script: bytes, ending: str, hours: int
    ) -> dict[int, Mapping[str, str | int]]:
        """Read the counts of each of these hours, the earliest first."""
        wanted = self._wanted(hours)
        if self._execute is None:
            return {
                hour: self._local_counts(hour, ending) for hour in wanted if hour in self._hours
            }
        await self.flush()
        replies = await asyncio.gather(
            *(self._run(script, [self._key(hour) + ending]) for hour in wanted)
        )
        return {hour: _pairs(reply) for hour, reply in zip(wanted, replies, strict=True)}

    def _wanted(self, hours: int) -> range:
        """The current hour and those before it."""
        if isinstance(hours, bool) or not isinstance(hours, int) or not 1 <= hours <= KEPT_HOURS:
            raise ConfigError(f"hours={hours!r}: expected a whole number from 1 to {KEPT_HOURS}")
        now = int(self._clock() // 3_600)
        return range(now - hours + 1, now + 1)

    def _local_counts(self, hour: int, ending: str) -> Mapping[str, str | int]:
        counted = self._hours[hour]
        if ending:
            return {str(user): count for user, count in counted.refused.items()}
        return {f"{outcome} {label}": n for (outcome, label), n in counted.counts.items()}

    async def _run(self, script: bytes, keys: list[str], *arguments: object) -> Any:
        if self._execute is None:
            return []
        parts = [len(keys), *keys, *arguments]
        encoded = [part if isinstance(part, bytes) else encode_key(str(part)) for part in parts]
        command = (b"EVAL", script, *encoded)
        return await self._execute(command, key=keys[0], timeout=self._timeout)


def _pairs(reply: list[Any]) -> dict[str, str | int]:
    texts = [
        each.decode("utf-8", "surrogatepass") if isinstance(each, bytes) else str(each)
        for each in reply
    ]
    return dict(zip(texts[::2], texts[1::2], strict=True))
