"""RateLimitMiddleware through a dispatcher: what is counted, handled and refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis.asyncio as aioredis
from aiogram.types import Message, Poll, TelegramObject
from fakeredis import FakeAsyncRedis, FakeServer

from bot_ratelimit import RateLimitMiddleware
from tests.servers import free_port

from .support import HANDLED, Instance, message
from .updates import UPDATES, bare, listen

KEY = "booking_bot:client1:ratelimit:42"


@pytest.fixture(params=["fakeredis", "redis-server"])
async def shared(request: pytest.FixtureRequest) -> AsyncIterator[aioredis.Redis]:
    """A client of an empty Redis, as a bot has it."""
    if request.param == "fakeredis":
        client: aioredis.Redis = FakeAsyncRedis(server=FakeServer())
    else:
        client = aioredis.Redis(port=request.getfixturevalue("redis_server").port)
    async with client:
        await client.flushall()
        yield client


async def test_the_contract(shared: aioredis.Redis) -> None:
    """With one event a second the first is handled, and GET and TTL of the key explain it."""
    bot = Instance(RateLimitMiddleware(1.0, shared, "booking_bot:client1"))
    values = []
    for _ in range(3):
        await bot.send("hello")
        values.append(await shared.get(KEY))
    assert values == [b"1", b"2", b"3"]
    assert len(bot.handled) == 1
    assert await shared.ttl(KEY) in (0, 1)
    assert 0 < await shared.pttl(KEY) <= 1_000
    assert await shared.keys("booking_bot:client1:ratelimit:[0-9]*") == [KEY.encode()]


async def test_handler_exceptions_pass_unchanged() -> None:
    bot = Instance(RateLimitMiddleware("1/m"))
    bot.error = ZeroDivisionError("in a handler")
    with pytest.raises(ZeroDivisionError) as error:
        await bot.feed(message=message())
    assert error.value is bot.error
    assert await bot.feed(message=message()) is None


async def test_works_without_a_dispatcher() -> None:
    """Called directly, as in a unit test, the middleware counts the event's own sender."""
    middleware = RateLimitMiddleware("1/m", on_limited=None)
    seen: list[dict[str, Any]] = []

    async def handler(event: Any, data: dict[str, Any]) -> str:
        seen.append(data)
        return HANDLED

    events = [Message.model_validate(message()), Message.model_validate(message())]
    results = [await middleware(handler, event, {}) for event in events]
    assert results == [HANDLED, None]
    assert seen[0]["rate_limit"].remaining == 0
    assert await middleware(handler, Poll.model_validate(UPDATES["poll"]), {}) == HANDLED
    assert seen[1] == {"rate_limit": None}


@pytest.mark.parametrize("on_error", ["allow", "deny", "memory"])
async def test_redis_unreachable(on_error: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A bot starts with Redis down; the policy answers, and no handler gets an exception."""
    async with aioredis.Redis.from_url(f"redis://127.0.0.1:{free_port()}") as client:
        bot = listen(bare(), "message")
        RateLimitMiddleware("2/m", client, on_error=on_error).setup(bot.dispatcher)
        await bot.dispatcher.emit_startup()
        handled = await bot.send(*"abc")
    expected = {"allow": [True] * 3, "deny": [False] * 3, "memory": [True, True, False]}
    assert handled == expected[on_error]
    assert {d and d.source for d in bot.decisions} <= {"policy", "memory"}
    assert "Redis rate limit check failed: " in caplog.text
    assert f"(on_error='{on_error}')" in caplog.text


async def test_middlewares_before_and_behind_see_the_decision() -> None:
    """Inner middlewares find `data["rate_limit"]` before the handler, all others after it."""
    seen: list[tuple[str, Any]] = []
    bot = listen(bare(), "message")

    async def before(handler: Any, event: TelegramObject, data: dict[str, Any]) -> Any:
        assert "rate_limit" not in data
        result = await handler(event, data)
        seen.append(("before", data["rate_limit"].allowed))
        return result

    async def behind(handler: Any, event: TelegramObject, data: dict[str, Any]) -> Any:
        seen.append(("behind", data["rate_limit"].allowed))
        return await handler(event, data)

    for middleware in (before, RateLimitMiddleware("1/10s", on_limited=None), behind):
        bot.dispatcher.message.middleware(middleware)
    assert await bot.send(*"ab") == [True, False]
    assert seen == [("behind", True), ("before", True), ("before", False)]
