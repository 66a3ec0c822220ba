"""What each of several processes does that share a Redis; run by test_processes.py."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from typing import NamedTuple

import redis.asyncio as aioredis
import time_machine

from bot_ratelimit import Limiter, RedisStorage, Rule, Subject

USERS = 200
BURST = 5
"""Hits of one user on one limit from one process: three processes make more than any limit."""


class Report(NamedTuple):
    clock: float
    """What time it was, as this process believes."""
    allowed: Counter[tuple[str, int]]
    """How many hits of (limit, user) were allowed."""
    sources: set[str]
    longest: float
    """The longest `retry_after`."""


def run(
    port: int, skew: float, limits: list[str], ready: Barrier, reports: SimpleQueue[Report]
) -> None:
    """Let every user hit every limit, in random order, with a clock that is off by `skew`."""
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
