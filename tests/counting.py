"""The work of each of several processes whose metrics are added up; run by test_metrics.py."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import Counter
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier

import redis.asyncio as aioredis

from bot_ratelimit import Limiter, RedisStorage, Subject
from tests.servers import PATIENCE

FIRST_USER, USERS, UPDATES = 7_000_000_000, 100, 800


def run(
    port: int, directory: str, ready: Barrier, reports: SimpleQueue[Counter[str]], end: str
) -> None:
    """Decide in prometheus_client's multi-process mode, and end without closing anything."""
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory  # read when it is imported
    reports.put(asyncio.run(decide(port)))
    ready.wait(PATIENCE)  # everything is counted
    ready.wait(PATIENCE)  # and was read
    if end == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if end == "exit":
        sys.exit(1)


async def decide(port: int) -> Counter[str]:
    from bot_ratelimit.metrics import PrometheusMetrics

    metrics = PrometheusMetrics()
    metrics.disconnected("gone:6379")
    async with aioredis.Redis(port=port) as client:
        limiter = Limiter(RedisStorage(client), timeout=5, observer=metrics)
        users = [Subject(user=FIRST_USER + number % USERS) for number in range(UPDATES)]
        decisions = await asyncio.gather(*(limiter.hit("5/h", user) for user in users))
    return Counter("allowed" if decision.allowed else "refused" for decision in decisions)
