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
    """`/start` lists all commands, and each of them is answered and counted."""
    async with running(api, RateLimitMiddleware("9/minute")):
        ((method, text),) = await answers(api, message(42, "/start"))
        assert method == "sendMessage"
        assert all(each in text for each in ("/ping", "/report", "/donate", "button", "photos"))
        assert await answers(api, message(42, "/ping")) == [("sendMessage", f"{PONG}, 7 left")]
        pressed = await answers(api, callback(42, "ping"))
        assert pressed == [("answerCallbackQuery", f"{PONG}, 6 left")]
        assert await answers(api, *album(42, 3)) == [("setMessageReaction", "")] * 3
        assert await answers(api, message(42, "/donate")) == [("sendInvoice", "")]
        assert await answers(api, message(42, "/ping")) == [("sendMessage", f"{PONG}, 3 left")]


async def test_reports_have_their_own_limit(api: BotApi) -> None:
    """A user gets two reports a minute; reports and other messages count separately."""
    async with running(api, RateLimitMiddleware("1/minute")):
        reports = await answers(api, *(message(42, "/report") for _ in range(3)))
        pings = await answers(api, message(42, "/ping"))
    methods = [method for method, _ in reports]
    assert methods.count("editMessageText") == 2
    assert sum(text.startswith("Too many requests") for _, text in reports) == 1
    assert pings == [("sendMessage", f"{PONG}, 0 left")]


async def test_reports_are_made_one_at_a_time(api: BotApi) -> None:
    """Two users who ask for a report at the same time get it one after the other."""
    async with running(api, RateLimitMiddleware("9/minute")):
        said = await answers(api, message(42, "/report"), message(43, "/report"))
    assert [text for _, text in said] == [WORKING, REPORT] * 2


async def test_users_over_the_limit_can_pay(api: BotApi) -> None:
    """The pre-checkout query of a payment is answered, and the payment is confirmed."""
    async with running(api, RateLimitMiddleware("1/minute")):
        await answers(api, message(42, "/ping"), message(42, "/ping"))
        assert await answers(api, pre_checkout(42)) == [("answerPreCheckoutQuery", "")]
        assert api.calls[-1].params["ok"] == "true"
        assert await answers(api, payment(42)) == [("sendMessage", THANKS)]


async def test_exempt_users_are_answered(api: BotApi) -> None:
    """An exempt user gets an answer without a number of remaining messages."""
    async with running(api, RateLimitMiddleware("1/minute", exempt=[42])):
        for _ in range(2):
            assert await answers(api, message(42, "/ping")) == [("sendMessage", PONG)]
            assert await answers(api, callback(42, "ping")) == [("answerCallbackQuery", PONG)]


async def test_webhook_shutdown_waits_for_the_running_handler(api: BotApi) -> None:
    """The bot's other shutdown callbacks run after the update in progress is answered."""
    dispatcher = build_dispatcher(RateLimitMiddleware("5/minute"))
    done: list[str] = []
    dispatcher.shutdown.register(lambda: done.extend(call.method for call in api.calls))
    runner = await serve(api, dispatcher)
    report = asyncio.create_task(api.deliver(message(42, "/report")))
    await api.called("sendMessage")
    await runner.cleanup()
    assert (await report).ok
    assert done[-1] == "editMessageText"


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
    runner = await serve(api, build_dispatcher(RateLimitMiddleware("5/minute")))
    assert waits == [1]
    assert (await api.deliver(message(42, "/ping"))).ok
    await runner.cleanup()
