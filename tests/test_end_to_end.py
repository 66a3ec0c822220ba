"""End to end: three webhook instances, real HTTP on both sides, one real Redis."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import redis.asyncio as aioredis
from aiogram import Dispatcher
from aiogram.types import CallbackQuery, PreCheckoutQuery, TelegramObject
from aiohttp import web

from bot_ratelimit import RateLimitMiddleware
from example_bot.demo.botapi import BotApi
from example_bot.demo.instances import serve
from example_bot.demo.methods import Call
from example_bot.demo.updates import Json, callback, message, payment, pre_checkout
from example_bot.demo.webhooks import Delivery

from .benches import TIMEOUT
from .servers import Server


@asynccontextmanager
async def three_instances(
    api: BotApi, server: Server, rate_limit: str, timeout: float = TIMEOUT
) -> AsyncIterator[list[TelegramObject]]:
    """Run three instances; return what their handlers have handled."""
    handled: list[TelegramObject] = []
    runners: list[web.AppRunner] = []

    async def handle(event: TelegramObject) -> None:
        handled.append(event)
        if isinstance(event, CallbackQuery):
            await event.answer("done")
        elif isinstance(event, PreCheckoutQuery):
            await event.answer(ok=True)

    async with AsyncExitStack() as stack:
        for _ in range(3):
            client = await stack.enter_async_context(aioredis.Redis(port=server.port))
            dispatcher = Dispatcher()
            for name in ("message", "callback_query", "pre_checkout_query"):
                dispatcher.observers[name].register(handle)
            middleware = RateLimitMiddleware(rate_limit, client, "test", timeout=timeout)
            middleware.setup(dispatcher, guard=True)
            runners.append(await serve(api, dispatcher))
        try:
            yield handled
        finally:
            await asyncio.gather(*(runner.cleanup() for runner in runners))


async def deliver(api: BotApi, updates: Iterable[Json]) -> list[Delivery]:
    """Deliver updates all at once; all of them must be accepted."""
    deliveries = await asyncio.gather(*map(api.deliver, updates))
    assert all(each.ok for each in deliveries)
    return deliveries


def flood(count: int) -> list[Json]:
    """The same number of messages and button presses, alternating."""
    return [each for _ in range(count) for each in (message(42, "hello"), callback(42, "press"))]


def calls(api: BotApi, method: str) -> list[Call]:
    return [call for call in api.calls if call.method == method]


async def test_a_flood_gets_the_limit_one_notice_and_no_spinner(
    api: BotApi, client: aioredis.Redis, redis_server: Server
) -> None:
    """Of 300 messages and presses five are handled, and each press is answered once.

    Pre-checkout queries and payments reach their handlers and cost nothing.
    """
    updates = flood(150)
    async with three_instances(api, redis_server, "5/hour") as handled:
        deliveries = await deliver(api, updates)
        assert set(Counter(each.url for each in deliveries).values()) == {100}
        assert len(handled) == 5
        assert len(calls(api, "sendMessage")) == 1
        await deliver(api, [pre_checkout(42) for _ in range(3)])
        await deliver(api, [payment(42) for _ in range(3)])
        assert len(handled) == 5 + 6
    assert [call.params["ok"] for call in calls(api, "answerPreCheckoutQuery")] == ["true"] * 3
    presses = [update["callback_query"]["id"] for update in updates if "callback_query" in update]
    answers = calls(api, "answerCallbackQuery")
    assert sorted(call.query_id for call in answers) == sorted(presses)
    # A refused press is answered with how long the client need not ask again.
    refused = [call for call in answers if call.text != "done"]
    assert all(0 < int(call.params["cache_time"]) <= 30 for call in refused)
    assert await client.get("test:ratelimit:42") == b"300"


async def test_redis_is_killed_during_a_flood(
    api: BotApi, own_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """Every update is answered promptly, and the outage is logged once."""
    async with three_instances(api, own_server, "5/hour", timeout=1.0) as handled:
        calm = max(each.latency for each in await deliver(api, flood(100)))
        assert len(handled) == 5

        under_way = asyncio.create_task(deliver(api, flood(100)))
        pressed = len(calls(api, "answerCallbackQuery"))
        await api.called("answerCallbackQuery", times=pressed + 10)
        own_server.kill()
        deliveries = await under_way
        assert 5 < len(handled) < 5 + 200

        before = len(handled)
        for _ in range(3):  # failures in progress together count once; three open the circuit
            deliveries += await deliver(api, flood(20))
        assert len(handled) == before + 3 * 40
    assert api.spinning == set()
    # What as many take on this machine, now.
    assert max(each.latency for each in deliveries) < TIMEOUT + 5 * calm
    # The three instances are in one process here, and one server has one circuit in a process.
    ours = [each for each in caplog.records if each.name == "bot_ratelimit"]
    (error,) = (each.getMessage() for each in ours if each.levelname == "ERROR")
    assert error.startswith("Redis rate limit check failed: ")
