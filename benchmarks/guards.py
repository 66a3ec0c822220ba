"""Guards: middlewares that stand before a bot's handler."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import Any, ClassVar, Final, Protocol

from aiogram import Dispatcher, Router
from aiogram.types import Message, TelegramObject

from benchmarks import handmade, ours
from benchmarks.contestant import AMOUNT, DAY, Setting, client
from bot_ratelimit import RateLimitMiddleware

Handler = Callable[[TelegramObject, dict[str, Any]], Awaitable[Any]]


class Guard(Protocol):
    """One way of guarding a bot."""

    name: ClassVar[str]
    limits: ClassVar[bool] = True

    async def stand(self, dispatcher: Dispatcher, setting: Setting) -> Router:
        """Take the place before the handlers of the router that is returned."""
        ...

    async def close(self) -> None: ...


class Nobody(Guard):
    name: ClassVar[str] = "no middleware"
    limits: ClassVar[bool] = False

    async def stand(self, dispatcher: Dispatcher, setting: Setting) -> Router:
        return dispatcher

    async def close(self) -> None: ...


class Idle(Nobody):
    name: ClassVar[str] = "a middleware that does nothing"

    async def stand(self, dispatcher: Dispatcher, setting: Setting) -> Router:
        async def let_through(handler: Handler, event: TelegramObject, data: dict[str, Any]) -> Any:
            return await handler(event, data)

        dispatcher.message.middleware(let_through)
        return dispatcher


class Waiting(Nobody):
    """The least that a middleware costs which asks anybody anything: one turn of the loop."""

    name: ClassVar[str] = "a middleware that only waits"

    async def stand(self, dispatcher: Dispatcher, setting: Setting) -> Router:
        loop = asyncio.get_running_loop()

        async def wait(handler: Handler, event: TelegramObject, data: dict[str, Any]) -> Any:
            turn: asyncio.Future[None] = loop.create_future()
            loop.call_soon(turn.set_result, None)
            await turn
            return await handler(event, data)

        dispatcher.message.middleware(wait)
        return dispatcher


class OursInMemory(Guard):
    name: ClassVar[str] = f"{ours.NAME}, memory"

    async def stand(self, dispatcher: Dispatcher, setting: Setting) -> Router:
        self._middleware = RateLimitMiddleware(f"{AMOUNT}/d", on_limited=None)
        dispatcher.message.middleware(self._middleware)
        return dispatcher

    async def close(self) -> None:
        await self._middleware.close()


class _OnRedis(Guard):
    async def stand(self, dispatcher: Dispatcher, setting: Setting) -> Router:
        self._redis = client(setting)
        return dispatcher

    async def close(self) -> None:
        await self._redis.aclose()


class OursOnRedis(_OnRedis):
    name: ClassVar[str] = f"{ours.NAME}, Redis"

    async def stand(self, dispatcher: Dispatcher, setting: Setting) -> Router:
        await super().stand(dispatcher, setting)
        middleware = RateLimitMiddleware(f"{AMOUNT}/d", self._redis, "bench", on_limited=None)
        dispatcher.message.middleware(middleware)
        return dispatcher


class ByHand(Guard):
    name: ClassVar[str] = handmade.Multi.name

    async def stand(self, dispatcher: Dispatcher, setting: Setting) -> Router:
        self._multi = handmade.Multi()
        await self._multi.setup(setting)

        async def throttle(handler: Handler, event: TelegramObject, data: dict[str, Any]) -> Any:
            if not isinstance(event, Message) or event.from_user is None:
                return await handler(event, data)
            if await self._multi.hit(event.from_user.id):
                return await handler(event, data)
            return None

        dispatcher.message.middleware(throttle)
        return dispatcher

    async def close(self) -> None:
        await self._multi.close()


class Sentinel(_OnRedis):
    """As its documentation sets it up: it drops repeated texts too, at a round trip of its own."""

    name: ClassVar[str] = "aiogram-sentinel"

    async def stand(self, dispatcher: Dispatcher, setting: Setting) -> Router:
        sentinel = import_module("aiogram_sentinel")
        storage = import_module("aiogram_sentinel.storage.redis")
        await super().stand(dispatcher, setting)
        infra = import_module("aiogram_sentinel.types").InfraBundle(
            rate_limiter=storage.RedisRateLimiter(self._redis, "bench"),
            debounce=storage.RedisDebounce(self._redis, "bench"),
        )
        router: Router
        router, _ = await sentinel.Sentinel.setup(dispatcher, _config(), infra=infra)
        return router


class SentinelThrottling(_OnRedis):
    """Only the part of it that limits."""

    name: ClassVar[str] = "aiogram-sentinel, throttling only"

    async def stand(self, dispatcher: Dispatcher, setting: Setting) -> Router:
        throttling = import_module("aiogram_sentinel.middlewares.throttling")
        storage = import_module("aiogram_sentinel.storage.redis")
        keys = import_module("aiogram_sentinel.scopes").KeyBuilder(app="bench")
        await super().stand(dispatcher, setting)
        backend = storage.RedisRateLimiter(self._redis, "bench")
        dispatcher.message.middleware(throttling.ThrottlingMiddleware(backend, _config(), keys))
        return dispatcher


def _config() -> Any:
    return import_module("aiogram_sentinel").SentinelConfig(
        backend="redis",
        redis_prefix="bench",
        throttling_default_max=AMOUNT,
        throttling_default_per_seconds=DAY,
    )


GUARDS: Final[dict[str, Callable[[], Guard]]] = {
    guard.name: guard
    for guard in (
        Nobody,
        Idle,
        Waiting,
        OursInMemory,
        OursOnRedis,
        ByHand,
        SentinelThrottling,
        Sentinel,
    )
}
