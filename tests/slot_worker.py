"""A process that works in slots and logs it; run by test_processes.py."""

from __future__ import annotations

import asyncio
import os

import redis.asyncio as aioredis

from bot_ratelimit import Concurrency, Limiter, RedisStorage, Subject

SLOTS = Concurrency(3, name="report", lease=1)
ANNA = Subject(user=42)
LOG = "log"
WORK = 0.02
"""Seconds that each task takes."""


def run(port: int, log_port: int, tasks: int) -> None:
    """Run tasks, each in a slot."""
    asyncio.run(work(port, log_port, tasks))


async def work(port: int, log_port: int, tasks: int) -> None:
    async with aioredis.Redis(port=port) as client, aioredis.Redis(port=log_port) as log:
        limiter = Limiter(RedisStorage(client), on_error="deny")
        await asyncio.gather(*(task(limiter, log, number) for number in range(tasks)))
        await limiter.close()


async def task(limiter: Limiter, log: aioredis.Redis, number: int) -> None:
    """Work once; wait out an outage."""
    name = f"{os.getpid()} {number}"
    while True:
        async with limiter.slot(SLOTS, ANNA, timeout=60) as slot:
            if slot.allowed:
                await log.rpush(LOG, f"begin {name}")  # type: ignore[misc]  # redis-py's types
                await asyncio.sleep(WORK)
                await log.rpush(LOG, f"end {name}")  # type: ignore[misc]  # redis-py's types
                return
        await asyncio.sleep(WORK)
