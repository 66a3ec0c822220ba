"""The storages under test: each kind, with a way to move its time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from inspect import isawaitable
from time import monotonic
from typing import Any, NamedTuple

import pytest
import redis.asyncio as aioredis

from bot_ratelimit import Limit
from bot_ratelimit.algorithms.verdict import Verdict
from bot_ratelimit.storage.base import Ask, Count, Op, Storage

TIMEOUT = 5.0
"""Long enough that a busy machine is not taken for an outage."""

movable = pytest.mark.parametrize("bench", ["memory", "fakeredis"], indirect=True)
"""For tests that move time by more than one cares to wait: only where it can be moved."""


def charge(limit: str, name: str = "42", cost: int = 1, *, shadow: bool = False) -> Count:
    return Count(f"bot:ratelimit:{name}", Limit.parse(limit), cost, shadow)


async def reset(storage: Storage, *counts: Count) -> int:
    """Delete the counts; return how many of them existed."""
    verdicts = await storage.ask(Ask(counts, Op.RESET), timeout=TIMEOUT)
    return sum(verdict.reset > 0 for verdict in verdicts)


class Bench(NamedTuple):
    """A storage, its client (None for memory), and a way to move its time."""

    storage: Storage
    client: aioredis.Redis | None
    advance: Callable[[float], Awaitable[Any]]
    exact: bool
    """Whether time stands still between two `advance`s, so that waits can be compared exactly."""

    async def hit(self, *charges: Count, once: str | None = None) -> list[Verdict]:
        return list(await self.storage.ask(Ask(charges, once=once), timeout=TIMEOUT))

    async def peek(self, *charges: Count) -> list[Verdict]:
        return list(await self.storage.ask(Ask(charges, Op.PEEK), timeout=TIMEOUT))

    async def reset(self, *charges: Count) -> int:
        return await reset(self.storage, *charges)

    async def allowed(self, *charges: Count, once: str | None = None) -> bool:
        """Whether a hit is allowed; shadow rules among the charges do not refuse it."""
        verdicts = await self.hit(*charges, once=once)
        return not any(v.wait for v, c in zip(verdicts, charges, strict=True) if not c.shadow)

    def about(self, seconds: float) -> Any:
        """Equal to these seconds in microseconds, with a tolerance where time cannot be moved."""
        return pytest.approx(seconds * 1_000_000, rel=0, abs=1 if self.exact else 500_000)

    async def ttls(self) -> dict[str, int]:
        """The TTL of each key in milliseconds; empty for memory."""
        if self.client is None:
            return {}
        return {key.decode(): await self.client.pttl(key) async for key in self.client.scan_iter()}


class Pauses(threading.Thread):
    """Measures for how long the machine kept this process from running, while the block runs.

    Its thread sleeps again and again: it wakes late if the machine was busy, not the event loop.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.longest = self.total = 0.0  # in seconds
        self._ended = threading.Event()

    def __enter__(self) -> Pauses:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()

    def run(self) -> None:
        asked = monotonic()
        while not self._ended.wait(0.005):
            before, asked = asked, monotonic()
            self.longest = max(self.longest, asked - before - 0.005)
            self.total += asked - before - 0.005


async def eventually(holds: Callable[[], Any], within: float = 5.0) -> None:
    """Wait until a condition holds: a function, async or not, that is asked again and again."""
    async with asyncio.timeout(within):
        while True:
            found = holds()
            if await found if isawaitable(found) else found:
                return
            await asyncio.sleep(0.01)


def at_once(move: Callable[[float], object]) -> Callable[[float], Awaitable[None]]:
    """As a coroutine function, like the one that waits for servers whose time is not moved."""

    async def moved(seconds: float) -> None:
        move(seconds)

    return moved
