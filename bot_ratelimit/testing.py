"""Helpers for the tests of bots: a clock that is moved by hand, and a storage that fails on demand.

::

    async def test_second_message_is_refused():
        clock = Clock()
        limiter = Limiter(MemoryStorage(clock=clock))
        dp.message.middleware(RateLimitMiddleware("1/10s", limiter=limiter))
        ...                                  # the first is handled, the second is not
        clock.move(10)
        ...                                  # and now one is handled again

    async def test_bot_answers_without_redis():
        storage = FlakyStorage()
        dp.message.middleware(RateLimitMiddleware("1/10s", limiter=Limiter(storage)))
        storage.fail()
        ...                                  # everything is handled
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Literal, TypeAlias

from bot_ratelimit.algorithms.algorithms import Verdict
from bot_ratelimit.errors import StorageError
from bot_ratelimit.rules.rule import Subject
from bot_ratelimit.storage.banlist import Ban, BanList, BanTarget, ban_list_of
from bot_ratelimit.storage.base import Ask, Count, Storage
from bot_ratelimit.storage.leases import Action, Claim, Grant, Leases, leases_of
from bot_ratelimit.storage.memory import MemoryStorage

Misbehave: TypeAlias = Callable[..., Awaitable[None]]


class Clock:
    """A clock that stands still until it is moved; for `MemoryStorage` and `Limiter`.

    ::

        clock = Clock()
        limiter = Limiter(MemoryStorage(clock=clock))
        clock.move(10)                                # ten seconds later

    Args:
        now: Where it starts, in seconds.
    """

    def __init__(self, now: float = 1_000.0) -> None:
        self.now = round(now, 6)

    def __call__(self) -> float:
        """Return seconds from some starting point, in whole microseconds as storages count them."""
        return round(self.now, 6)

    def move(self, seconds: float) -> None:
        """Move the clock forward by `seconds`."""
        self.now += seconds


class FlakyStorage:
    """A storage that works until told to fail or to hang, and again when told to heal.

    ::

        storage = FlakyStorage()
        limiter = Limiter(storage)
        storage.fail()                                # Redis is down

    Args:
        storage: What answers while it works; a `MemoryStorage` unless given.
    """

    def __init__(self, storage: Storage | None = None) -> None:
        self.storage = storage or MemoryStorage()
        self.calls = 0
        """The number of calls, including failed ones."""
        self.closed = False
        self._error: Exception | None = None
        self._hangs = False

    @property
    def source(self) -> Literal["redis", "memory"]:
        """The source of the wrapped storage."""
        return self.storage.source

    def fail(self, error: Exception | None = None) -> None:
        """Raise on every call: by default a StorageError, as if the server were unreachable."""
        self.heal()
        self._error = error or StorageError("out of reach")

    def hang(self) -> None:
        """Never answer: every call raises a StorageError after its time-out."""
        self.heal()
        self._hangs = True

    def heal(self) -> None:
        """Work normally again."""
        self._error = None
        self._hangs = False

    async def ask(self, ask: Ask, *, timeout: float) -> Sequence[Verdict]:
        """See `Storage.ask`."""
        await self._misbehave(timeout)
        return await self.storage.ask(ask, timeout=timeout)

    def leases(self) -> Leases:
        """The leases of the wrapped storage, which fail and hang with it."""
        return FlakyLeases(leases_of(self.storage), self._misbehave)

    def ban_list(self, prefix: str) -> BanList:
        """The list of bans of the wrapped storage, which fails and hangs with it."""
        return FlakyBanList(ban_list_of(self.storage, prefix), self._misbehave)

    def server(self, counts: Sequence[Count]) -> str:
        """See `Storage.server`."""
        return self.storage.server(counts)

    def open(self) -> None:
        """See `Storage.open`."""
        self.storage.open()

    async def close(self) -> None:
        """Record that it was closed, and close the wrapped storage."""
        self.closed = True
        await self.storage.close()

    async def _misbehave(self, timeout: float, *, counts: bool = True) -> None:
        self.calls += counts
        if self._hangs:
            await asyncio.sleep(timeout)
            raise StorageError(f"no answer within {timeout:g} s")
        if self._error is not None:
            raise self._error


class FlakyLeases:
    """Leases that fail and hang with their storage."""

    def __init__(self, leases: Leases, misbehave: Misbehave) -> None:
        self._leases = leases
        self._misbehave = misbehave

    async def claim(
        self, action: Action, claim: Claim, *, known: bool = False, timeout: float
    ) -> Grant:
        """See `Leases.claim`."""
        await self._misbehave(timeout)
        return await self._leases.claim(action, claim, known=known, timeout=timeout)


class FlakyBanList:
    """A list of bans that fails and hangs with its storage."""

    def __init__(self, bans: BanList, misbehave: Misbehave) -> None:
        self._bans = bans
        self._misbehave = misbehave
        self.current = bans.current
        self.clock = bans.clock

    async def put(self, ban: Ban, seconds: float, *, timeout: float) -> bool:
        """See `BanList.put`."""
        await self._misbehave(timeout)
        return await self._bans.put(ban, seconds, timeout=timeout)

    async def drop(self, subject: Subject, *, by_hand: bool = True, timeout: float) -> list[Ban]:
        """See `BanList.drop`."""
        await self._misbehave(timeout)
        return await self._bans.drop(subject, by_hand=by_hand, timeout=timeout)

    async def load(
        self, version: str, *, timeout: float
    ) -> tuple[str, dict[BanTarget, float]] | None:
        """See `BanList.load`."""
        await self._misbehave(timeout, counts=False)
        return await self._bans.load(version, timeout=timeout)

    async def page(self, offset: int, limit: int, *, timeout: float) -> list[Ban]:
        """See `BanList.page`."""
        await self._misbehave(timeout)
        return await self._bans.page(offset, limit, timeout=timeout)

    async def find(self, subjects: Iterable[Subject], *, timeout: float) -> list[Ban]:
        """See `BanList.find`."""
        await self._misbehave(timeout)
        return await self._bans.find(subjects, timeout=timeout)
