"""The work of each of several bots whose metrics are added up; run by test_metrics.py."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import Counter
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier

import redis.asyncio as aioredis

from tests.benches import eventually
from tests.servers import PATIENCE

FIRST_USER = 7_000_000_000
USERS = 100
UPDATES = 1_200
AMOUNT = 5


def run(
    port: int, directory: str, ready: Barrier, reports: SimpleQueue[Counter[tuple[str, str]]]
) -> None:
    """Send updates through a dispatcher, in prometheus_client's multi-process mode."""
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory  # read when it is imported
    reports.put(asyncio.run(work(port, ready)))


async def work(port: int, ready: Barrier) -> Counter[tuple[str, str]]:
    from bot_ratelimit import RateLimitMiddleware
    from bot_ratelimit.metrics import PrometheusMetrics
    from tests.incoming.support import Instance, chat, user
    from tests.recorder import Recorder

    recorder = Recorder()
    async with aioredis.Redis(port=port) as client:
        observers = [PrometheusMetrics(), recorder]
        bot = Instance(
            RateLimitMiddleware(
                f"{AMOUNT}/h", client, timeout=5, on_limited=None, observer=observers
            )
        )
        handled: Counter[str] = Counter()

        async def send(first: int, last: int) -> None:
            for i in range(first, last, 200):
                users = [FIRST_USER + n % USERS for n in range(i, i + 200)]
                updates = [
                    bot.send("hello", **{"from": user(who), "chat": chat(who)}) for who in users
                ]
                for (was_handled,) in await asyncio.gather(*updates):
                    handled["allowed" if was_handled else "refused"] += 1

        await asyncio.to_thread(ready.wait, PATIENCE)
        await send(0, 400)
        await asyncio.to_thread(ready.wait, PATIENCE)
        await eventually(lambda: recorder.named("disconnected"), within=PATIENCE)
        await send(400, 800)
        await asyncio.to_thread(ready.wait, PATIENCE)
        await asyncio.to_thread(ready.wait, PATIENCE)
        await asyncio.sleep(2.5)  # longer than the circuit stays open
        await send(800, UPDATES)
        await asyncio.to_thread(ready.wait, PATIENCE)
        await asyncio.to_thread(ready.wait, PATIENCE)
        await bot.dispatcher.emit_shutdown()
    sources = Counter(
        ("allowed" if decision.allowed else "refused", decision.source)
        for _, decision, _, _ in recorder.named("decided")
    )
    by_outcome = Counter(outcome for outcome, _ in sources.elements())
    # The handlers decide what is right; only the decisions have the sources.
    assert by_outcome == handled, (by_outcome, handled)
    return sources


def report(directory: str, ready: Barrier, alive: SimpleQueue[None], end: str) -> None:
    """Report to Prometheus, wait, and end without closing anything."""
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory
    from bot_ratelimit.metrics import PrometheusMetrics

    metrics = PrometheusMetrics()
    metrics.disconnected("localhost:6379")
    metrics.banned("bot:ratelimit:ban:42", 60.0)
    ready.wait(60)
    alive.get()
    if end == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if end == "exit":
        sys.exit(1)


def collected(directory: str) -> str:
    """The metrics page over all processes."""
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.multiprocess import MultiProcessCollector

    from bot_ratelimit.metrics import forget_dead_processes

    forget_dead_processes()
    registry = CollectorRegistry()
    MultiProcessCollector(registry, directory)  # type: ignore[no-untyped-call]  # of prometheus_client
    return generate_latest(registry).decode()
