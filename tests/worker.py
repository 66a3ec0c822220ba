"""The work of each of several processes that share a Redis; run by test_processes.py."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import random
import time
from collections import Counter
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from typing import NamedTuple

import redis.asyncio as aioredis
import time_machine

from bot_ratelimit import Limiter, RedisStorage, Rule, Subject
from bot_ratelimit.algorithms.script import SCRIPT
from bot_ratelimit.storage.redis import codec

USERS = 200
BURST = 5
"""Hits of one user on one limit from one process: three processes make more than any limit."""


class Report(NamedTuple):
    """The time, as this process believes; the allowed hits of (limit, user); who decided."""

    clock: float
    allowed: Counter[tuple[str, int]]
    sources: set[str]
    longest: float
    """The longest `retry_after`."""


def run(
    port: int, skew: float, limits: list[str], ready: Barrier, reports: SimpleQueue[Report]
) -> None:
    """Let every user hit every limit in random order, with a clock that is off by `skew`."""
    with time_machine.travel(time.time() + skew, tick=True):
        reports.put(asyncio.run(work(port, limits, ready)))


async def work(port: int, limits: list[str], ready: Barrier) -> Report:
    rules = {limit: Rule(limit, name=f"n{i}") for i, limit in enumerate(limits)}
    asking = [(limit, user) for limit in limits for user in range(USERS) for _ in range(BURST)]
    random.shuffle(asking)
    async with aioredis.Redis(port=port) as client:
        limiter = Limiter(RedisStorage(client), timeout=20)
        ready.wait(30)
        decisions = await asyncio.gather(
            *(limiter.hit(rules[limit], Subject(user=user)) for limit, user in asking)
        )
    return Report(
        time.time(),
        Counter(who for who, found in zip(asking, decisions, strict=True) if found.allowed),
        {found.source for found in decisions},
        max(found.retry_after for found in decisions),
    )


DECISIONS = "decisions"
"""The list in Redis in which `record_decisions` logs: `<seconds> <microseconds> <wait> <spec>`."""
# Before Redis 7 the time goes on while a script runs, so it is read once.
_RECORDING = """
local server, time = redis, redis.call('TIME')
local redis = setmetatable({ call = function(name, ...)
  return name == 'TIME' and time or server.call(name, ...)
end }, { __index = server })
local function decide_all() %s end
local answers = decide_all()
for i, spec in ipairs(ARGV) do
  local wait = string.format('%%.0f', answers[3 * i - 2])
  redis.call('RPUSH', 'decisions', table.concat({ time[1], time[2], wait, spec }, ' '))
end
return answers
"""


def record_decisions() -> None:
    """Let the script log each decision of this process with the time by Redis's clock."""
    script = _RECORDING % SCRIPT
    sha = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
    vars(codec).update(_BY_HASH=("EVALSHA", sha), _BY_SOURCE=("EVAL", script))


class Turns(NamedTuple):
    """What the waiters of one process got."""

    order: list[int]
    """The numbers of those who were granted, in that order; they came in the order of theirs."""
    sources: set[str]
    """Who decided."""
    stalled: float
    """For how many seconds the machine kept this process, or its Redis, from running."""


def take_turns(
    port: int, limit: str, seconds: float, ready: Barrier, reports: SimpleQueue[Turns]
) -> None:
    """Let thirty waiters wait for one limit again and again for some seconds."""
    reports.put(asyncio.run(wait_in_turn(port, limit, seconds, ready)))


async def stalls(client: aioredis.Redis, seconds: float) -> float:
    """Return how much of these seconds passed in pauses that nobody asked for."""
    clock = asyncio.get_running_loop().time
    until, stalled = clock() + seconds, 0.0
    while (began := clock()) < until:
        await asyncio.sleep(0.01)
        await client.ping()
        late = clock() - began - 0.01
        stalled += late if late > 0.02 else 0.0
    return stalled


async def wait_in_turn(port: int, limit: str, seconds: float, ready: Barrier) -> Turns:
    order: list[int] = []
    sources: set[str] = set()
    numbers = itertools.count()
    record_decisions()
    async with aioredis.Redis(port=port) as client:
        limiter = Limiter(RedisStorage(client), timeout=5)
        await limiter.peek(limit, Subject(user=1))
        await client.ping()
        ready.wait(30)

        async def wait() -> None:
            while True:
                number = next(numbers)
                decision = await limiter.acquire(limit, Subject(user=1))
                order.append(number)
                sources.add(decision.source)

        waiters = [asyncio.create_task(wait()) for _ in range(30)]
        stalled = await stalls(client, seconds)
        for waiter in waiters:
            waiter.cancel()
        await asyncio.gather(*waiters, return_exceptions=True)
        await limiter.close()
    return Turns(order, sources, stalled)
