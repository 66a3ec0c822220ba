"""Helpers for what happens once in a while, in the background, or once for each event loop."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from contextvars import Context
from typing import Any, Final, Generic, TypeVar
from weakref import WeakMethod

from cachetools import TTLCache

LOG_EVERY: Final = 60.0
"""The same line is logged once in this many seconds, not for every update."""

T = TypeVar("T")


class Seldom:
    """Says whether something may be logged now: the same thing once in `every` seconds."""

    def __init__(
        self, every: float = LOG_EVERY, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._logged: TTLCache[str, bool] = TTLCache(64, every, timer=clock)
        self._unlogged = 0

    def __call__(self, what: str = "") -> bool:
        """Return True once in a while for each of these texts."""
        if what in self._logged:
            return False
        self._logged[what] = True
        return True

    def due(self) -> int:
        """Count one more; return how many there were since the last line, 0 if it is too early."""
        self._unlogged += 1
        if not self():
            return 0
        count, self._unlogged = self._unlogged, 0
        return count

    def forget(self) -> None:
        """Start again: everything may be logged at once."""
        self._logged.clear()


class PerLoop(Generic[T]):
    """A value that belongs to an event loop: another `asyncio.run()` gets another one."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._loop: asyncio.AbstractEventLoop | None = None

    def get(self) -> T:
        """Return the value of the running loop."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop, self._value = loop, self._make()
        return self._value


class Tasks(set[asyncio.Task[Any]]):
    """Tasks in the background. Each is in this set until it ends."""

    def begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run it as a task."""
        task = asyncio.create_task(work, context=Context())
        self.add(task)
        task.add_done_callback(self.discard)
        return task

    async def settle(self, timeout: float | None = None) -> set[asyncio.Task[Any]]:
        """Wait for the tasks of this event loop; return those that take longer."""
        loop = asyncio.get_running_loop()
        tasks = [task for task in self if task.get_loop() is loop]
        return (await asyncio.wait(tasks, timeout=timeout))[1] if tasks else set()

    async def finish(self, timeout: float | None = None) -> None:
        """Wait for the tasks of this event loop, and cancel those that take longer."""
        for task in await self.settle(timeout):
            task.cancel()


class Ticker:
    """Calls a method in the background, again and again, until it returns False.

    It ends with its event loop, and when the owner of the method is gone. `start` begins again.

    Args:
        work: A bound async method. It returns whether to go on.
        every: Seconds between two calls, and before the first.
        jitter: By which share of it each pause may be longer or shorter, so that instances which
            were started together do not ask together.
        ended: A bound method that is called when the ticking ends in any way.
    """

    def __init__(
        self,
        work: Callable[[], Awaitable[bool]],
        every: float,
        *,
        jitter: float = 0.0,
        ended: Callable[[], None] | None = None,
    ) -> None:
        self._work = WeakMethod(work)
        self._ended = None if ended is None else WeakMethod(ended)
        self._every, self._jitter = every, jitter
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._first = asyncio.Event()

    def start(self, *, at_once: bool = False) -> None:
        """Begin in the running loop, unless it ticks there already; perhaps with a call now."""
        loop = asyncio.get_running_loop()
        if self._task is None or self._task.done() or self._loop is not loop:
            self._loop, self._first = loop, asyncio.Event()
            work = _run(self._work, self._pause, self._first, at_once)
            self._task = loop.create_task(work, context=Context())
            # A callback, because a task that is cancelled before it has begun runs no code.
            self._task.add_done_callback(self._done, context=Context())

    async def first(self, seconds: float) -> bool:
        """Wait until the first call since `start` has ended; return whether it did in time."""
        first = self._first
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await first.wait()
        return first.is_set()

    async def stop(self) -> bool:
        """End, and wait until a call in progress has ended; return whether it was ticking."""
        task, self._task = self._task, None
        if task is None or self._loop is not asyncio.get_running_loop():
            return False
        task.cancel()
        await asyncio.wait([task])
        return True

    def _pause(self) -> float:
        return self._every * random.uniform(1 - self._jitter, 1 + self._jitter)  # noqa: S311 - no secret

    def _done(self, task: asyncio.Task[None]) -> None:
        if task is self._task or self._task is None:
            self._task = None
            ended = None if self._ended is None else self._ended()
            if ended is not None:
                ended()


async def _run(
    work: WeakMethod[Callable[[], Awaitable[bool]]],
    pause: Callable[[], float],
    first: asyncio.Event,
    at_once: bool,
) -> None:
    if not at_once:
        await asyncio.sleep(pause())
    while (call := work()) is not None:
        goes_on = await call()
        del call  # so that the owner may go while this sleeps
        first.set()
        if not goes_on:
            return
        await asyncio.sleep(pause())
