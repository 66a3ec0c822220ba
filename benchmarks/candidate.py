"""Candidate: a limiter that takes part, and the limits that all of them decide by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain, count
from typing import Any, ClassVar, Final, NamedTuple, Protocol

from redis.asyncio import BlockingConnectionPool, ConnectionPool, Redis, RedisCluster

DAY: Final = 86_400

# (amount, days). The first one refuses; the further ones, in the races of four rules, never get
# that far. The period outlasts every run, so that what must be allowed can be told exactly.
LIMITS: Final = ((20, 1), (30, 2), (40, 3), (50, 4))
AMOUNT: Final = LIMITS[0][0]


class Setting(NamedTuple):
    """What a candidate is asked to do."""

    url: str
    concurrency: int = 1
    algorithm: str = "fixed window"
    rules: int = 1
    users: int = 20_000
    """How many the candidate must keep apart; those in memory are given room for them."""
    cluster: bool = False


class Candidate(Protocol):
    """One way of limiting."""

    name: ClassVar[str]

    async def setup(self, setting: Setting) -> None:
        """Get ready. Raises UnableError if the candidate cannot do what the setting asks."""
        ...

    async def hit(self, user: int) -> bool:
        """Whether the user may go on; charged if so."""
        ...

    async def close(self) -> None: ...


Entry = Callable[[], Candidate]


class UnableError(Exception):
    """A candidate cannot take part, and why."""


def pool(setting: Setting) -> ConnectionPool:
    """The same connections for everybody: whatever did best for the peers in trials.

    That is redis-py's own default up to its 100 connections, and beyond them, where the default
    raises MaxConnectionsError, a pool that makes callers wait for one of 100.
    """
    if setting.concurrency <= 100:
        return ConnectionPool.from_url(setting.url)
    return BlockingConnectionPool.from_url(setting.url, max_connections=100, timeout=60)


def client(setting: Setting) -> Any:
    """A client of its own for a candidate; `aclose` closes its connections too."""
    if setting.cluster:
        return RedisCluster.from_url(setting.url)
    return Redis.from_pool(pool(setting))


FLOODER: Final = 0
CROWD: Final = 10_000


def visitor(i: int) -> int:
    """Who sends the i-th hit: every tenth is one flooder's, the others take turns."""
    return 1 + i % CROWD if i % 10 else FLOODER


def visitors(shift: int = 0) -> Iterator[int]:
    """Everybody's hits in order; with a shift the same by others, whose ids are so much higher."""
    return (shift + visitor(i) for i in count())


def allowance(*hits: int) -> int:
    """How many of the first `hits` must be allowed: of each user as many as the limit grants.

    Given several numbers, so many visitors came to each of several instances.
    """
    visits = Counter(chain.from_iterable(map(visitor, range(n)) for n in hits))
    return sum(min(AMOUNT, n) for n in visits.values())
