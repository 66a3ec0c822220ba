"""What the example bot answers, and what each answer costs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest

from bot_ratelimit import RateLimitMiddleware
from example_bot.bot import PONG, REPORT, THANKS, WORKING, build_dispatcher
from example_bot.demo.botapi import BotApi
from example_bot.demo.instances import serve
from example_bot.demo.methods import ApiError
from example_bot.demo.updates import Json, album, callback, message, payment, pre_checkout


@asynccontextmanager
async def running(api: BotApi, middleware: RateLimitMiddleware) -> AsyncIterator[None]:
    runner = await serve(api, build_dispatcher(middleware))
    try:
        yield
    finally:
        await runner.cleanup()


async def answers(api: BotApi, *updates: Json) -> list[tuple[str, str]]:
    """Return what the bot does about updates that arrive at the same time."""
    before = len(api.calls)
    for delivery in await asyncio.gather(*map(api.deliver, updates)):
        assert delivery.ok
    return [(call.method, call.text) for call in api.calls[before:]]


async def test_every_command_in_start_works(api: BotApi) -> None:
    """`/start` lists all commands; each of them, a payment too, is answered and counted.

    An exempt user is told no number of remaining messages.
    """
    async with running(api, RateLimitMiddleware("6/minute", exempt=[7])):
        ((method, text),) = await answers(api, message(42, "/start"))
        assert method == "sendMessage"
        assert all(each in text for each in ("/ping", "/report", "/donate", "button", "photos"))
        assert await answers(api, message(42, "/ping")) == [("sendMessage", f"{PONG}, 4 left")]
        pressed = await answers(api, callback(42, "ping"))
        assert pressed == [("answerCallbackQuery", f"{PONG}, 3 left")]
        assert await answers(api, *album(42, 3)) == [("setMessageReaction", "")] * 3
        assert await answers(api, message(42, "/donate")) == [("sendInvoice", "")]
        assert await answers(api, message(42, "/ping")) == [("sendMessage", f"{PONG}, 0 left")]
        assert not (await answers(api, message(42, "/ping")))[0][1].startswith(PONG)
        assert await answers(api, pre_checkout(42)) == [("answerPreCheckoutQuery", "")]
        assert api.calls[-1].params["ok"] == "true"
        assert await answers(api, payment(42)) == [("sendMessage", THANKS)]
        assert await answers(api, message(7, "/ping")) == [("sendMessage", PONG)]
        assert await answers(api, callback(7, "ping")) == [("answerCallbackQuery", PONG)]


async def test_reports_have_their_own_limit(api: BotApi) -> None:
    """A user gets two reports a minute, one at a time; other messages count separately."""
    async with running(api, RateLimitMiddleware("1/minute")):
        reports = await answers(api, *(message(42, "/report") for _ in range(3)))
        pings = await answers(api, message(42, "/ping"))
    assert [text for _, text in reports if text in {WORKING, REPORT}] == [WORKING, REPORT] * 2
    assert sum(text.startswith("Too many requests") for _, text in reports) == 1
    assert pings == [("sendMessage", f"{PONG}, 0 left")]


async def test_an_instance_waits_its_turn_to_set_the_webhook(
    api: BotApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Telegram refuses the webhook with 429, as when several instances start: it is set later."""
    api.errors["setwebhook"] = ApiError(429, "Too Many Requests: retry after 1", retry_after=1)
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        api.errors.clear()

    monkeypatch.setattr("example_bot.serve.asyncio", SimpleNamespace(sleep=sleep))
    async with running(api, RateLimitMiddleware("5/minute")):
        assert waits == [1]
        assert (await api.deliver(message(42, "/ping"))).ok
