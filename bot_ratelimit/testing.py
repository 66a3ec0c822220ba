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
from collections.abc import Awaitable, Callable, Sequence
from inspect import iscoroutinefunction
from typing import Any, Final, cast

from bot_ratelimit.algorithms.verdict import Verdict
from bot_ratelimit.conformance import check_storage
from bot_ratelimit.errors import StorageError
from bot_ratelimit.storage.banlist import BanList
from bot_ratelimit.storage.base import Ask, Count, Storage
from bot_ratelimit.storage.documents import Documents
from bot_ratelimit.storage.leases import Leases
from bot_ratelimit.storage.memory import MemoryStorage
from bot_ratelimit.storage.tallies import Tallies

__all__ = ["Clock", "FlakyStorage", "check_storage"]

_TIMEOUT: Final = 2.0  # of calls that take none


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


class FlakyStorage(Storage):
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
        self.source = self.storage.source
        self.calls = 0
        """The number of calls, including failed ones."""
        self.closed = False
        self._error: Exception | None = None
        self._hangs = False

    @property
    def title(self) -> str:
        """What it stands in for, also in the log."""
        return "Redis"

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
        await self.misbehave(timeout)
        return await self.storage.ask(ask, timeout=timeout)

    def server(self, counts: Sequence[Count]) -> str:
        """See `Storage.server`."""
        return self.storage.server(counts)

    def leases(self) -> Leases:
        """The leases of the wrapped storage, which fail and hang with it."""
        return cast(Leases, self._flaky(self.storage.leases()))

    def bans(self, prefix: str) -> BanList:
        """The list of bans of the wrapped storage, which fails and hangs with it."""
        return cast(BanList, self._flaky(self.storage.bans(prefix)))

    def documents(self) -> Documents:
        """The documents of the wrapped storage, which fail and hang with it."""
        return cast(Documents, self._flaky(self.storage.documents()))

    def tallies(self, prefix: str) -> Tallies:
        """The statistics of the wrapped storage, which fail and hang with it."""
        return cast(Tallies, self._flaky(self.storage.tallies(prefix)))

    def open(self) -> None:
        """See `Storage.open`."""
        self.storage.open()

    async def close(self) -> None:
        """Record that it was closed, and close the wrapped storage."""
        self.closed = True
        await self.storage.close()

    async def misbehave(self, timeout: float, *, counts: bool = True) -> None:
        """Fail or hang if told to.

        Args:
            timeout: Seconds after which a hanging call fails.
            counts: Whether this is one of `calls`.
        """
        self.calls += counts
        if self._hangs:
            await asyncio.sleep(timeout)
            raise StorageError(f"no answer within {timeout:g} s")
        if self._error is not None:
            raise self._error

    def _flaky(self, part: object) -> object:
        return _FlakyPart(part, self.misbehave)


class _FlakyPart:
    """A part of a storage, such as its leases, whose calls fail and hang with the storage."""

    def __init__(self, part: object, misbehave: Callable[..., Awaitable[None]]) -> None:
        self._part = part
        self._misbehave = misbehave

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._part, name)
        if not iscoroutinefunction(found):
            return found

        async def call(*arguments: Any, **named: Any) -> Any:
            # Limiters check for bans in the background, which no test wants to count.
            await self._misbehave(named.get("timeout", _TIMEOUT), counts=name != "load")
            return await found(*arguments, **named)

        return call
