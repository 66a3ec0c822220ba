"""Candidate: a limiter that is measured, and the limits that all candidates use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain, count
from typing import Any, ClassVar, Final, NamedTuple, Protocol

from redis.asyncio import BlockingConnectionPool, ConnectionPool, Redis, RedisCluster

DAY: Final = 86_400

# (amount, days). The first limit refuses; the others, for the benchmarks with four rules, never do.
# The periods are longer than every run, so the exact number of allowed hits is known.
LIMITS: Final = ((20, 1), (30, 2), (40, 3), (50, 4))
AMOUNT: Final = LIMITS[0][0]


class Setting(NamedTuple):
    """What a candidate has to do."""

    url: str
    concurrency: int = 1
    algorithm: str = "fixed window"
    rules: int = 1
    users: int = 20_000
    """How many users the candidate must distinguish; candidates in memory get room for them."""
    cluster: bool = False


class Candidate(Protocol):
    """A limiter to measure."""

    name: ClassVar[str]

    async def setup(self, setting: Setting) -> None:
        """Prepare. Raises UnableError if the candidate cannot do what the setting requires."""
        ...

    async def hit(self, user: int) -> bool:
        """Return whether the hit is allowed; it is charged if so."""
        ...

    async def close(self) -> None: ...


Entry = Callable[[], Candidate]


class UnableError(Exception):
    """A candidate does not support a setting; the message says why."""


def pool(setting: Setting) -> ConnectionPool:
    """The same connection pool for all candidates: the one that was best for the peers in trials.

    This is redis-py's default pool up to its 100 connections. Beyond them the default pool raises
    MaxConnectionsError, so callers wait for one of 100 connections.
    """
    if setting.concurrency <= 100:
        return ConnectionPool.from_url(setting.url)
    return BlockingConnectionPool.from_url(setting.url, max_connections=100, timeout=60)


def client(setting: Setting) -> Any:
    """A separate client for a candidate; `aclose` also closes its connections."""
    if setting.cluster:
        return RedisCluster.from_url(setting.url)
    return Redis.from_pool(pool(setting))


FLOODER: Final = 0
CROWD: Final = 10_000


def visitor(i: int) -> int:
    """The user of the i-th hit: every tenth hit is the flooder's, the others rotate."""
    return 1 + i % CROWD if i % 10 else FLOODER


def visitors(shift: int = 0) -> Iterator[int]:
    """The users of all hits in order; with a shift, different users with higher ids."""
    return (shift + visitor(i) for i in count())


def allowance(*hits: int) -> int:
    """How many of the first `hits` must be allowed: for each user up to the limit.

    With several numbers, that many hits went to each of several instances.
    """
    visits = Counter(chain.from_iterable(map(visitor, range(n)) for n in hits))
    return sum(min(AMOUNT, n) for n in visits.values())
