"""The other packages, used as in their documentation. Each is imported when it is set up."""

from __future__ import annotations

from importlib import import_module
from typing import Any, ClassVar

from benchmarks.candidate import DAY, LIMITS, Candidate, Setting, UnableError, client, pool


class _Limits(Candidate):
    """`limits`: one awaited hit for each rule."""

    name: ClassVar[str] = "limits"

    def _start(self, setting: Setting, storage: Any) -> None:
        from limits import RateLimitItemPerDay
        from limits.aio import strategies

        by_algorithm = {
            "fixed window": strategies.FixedWindowRateLimiter,
            "sliding window": strategies.MovingWindowRateLimiter,
        }
        if setting.algorithm not in by_algorithm:
            raise UnableError(f"it has no {setting.algorithm}")
        self._strategy = by_algorithm[setting.algorithm](storage)
        self._items = [RateLimitItemPerDay(*limit) for limit in LIMITS[: setting.rules]]

    async def hit(self, user: int) -> bool:
        for item in self._items:
            if not await self._strategy.hit(item, str(user)):
                return False
        return True

    async def close(self) -> None: ...


class LimitsOnRedis(_Limits):
    async def setup(self, setting: Setting) -> None:
        from limits.aio.storage import RedisStorage

        self._pool = pool(setting)
        connection: dict[str, Any] = {"connection_pool": self._pool}
        storage = RedisStorage(f"async+{setting.url}", implementation="redispy", **connection)
        self._start(setting, storage)

    async def close(self) -> None:
        await self._pool.aclose()


class LimitsInMemory(_Limits):
    async def setup(self, setting: Setting) -> None:
        from limits.aio.storage import MemoryStorage

        self._start(setting, MemoryStorage())


class _Sentinel(Candidate):
    """The backends of `aiogram-sentinel`; its middleware is measured in the benchmark of bots.

    The package has no types, so it is imported in a way that mypy does not check.
    """

    name: ClassVar[str] = "aiogram-sentinel"
    _backend: Any

    async def hit(self, user: int) -> bool:
        return bool(await self._backend.allow(f"user:{user}", LIMITS[0][0], DAY))

    async def close(self) -> None: ...


class SentinelOnRedis(_Sentinel):
    async def setup(self, setting: Setting) -> None:
        if setting.rules > 1 or setting.algorithm != "fixed window":
            raise UnableError("on Redis it supports one fixed window only")
        self._redis = client(setting)
        storage = import_module("aiogram_sentinel.storage.redis")
        self._backend = storage.RedisRateLimiter(self._redis, "bench")

    async def close(self) -> None:
        await self._redis.aclose()


class SentinelInMemory(_Sentinel):
    async def setup(self, setting: Setting) -> None:
        if setting.rules > 1 or setting.algorithm == "token bucket":
            raise UnableError("in memory it supports one sliding window only")
        self._backend = import_module("aiogram_sentinel.storage.memory").MemoryRateLimiter()
