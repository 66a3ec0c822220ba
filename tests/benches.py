"""A storage on the bench: each kind, with a way to move its time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import redis.asyncio as aioredis

from bot_ratelimit.storage.base import Storage


class Clock:
    """Seconds that pass when told to."""

    def __init__(self, now: float = 1_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def move(self, seconds: float) -> None:
        self.now += seconds


class Bench(NamedTuple):
    """A storage, the client behind it (None for memory), and its time."""

    storage: Storage
    client: aioredis.Redis | None
    advance: Callable[[float], Awaitable[Any]]
    exact: bool
    """Whether time stands still between two `advance`s, so that waits can be compared exactly."""


async def real_time(seconds: float) -> None:
    """Wait, for the servers whose clock nobody can move."""
    await asyncio.sleep(seconds)
