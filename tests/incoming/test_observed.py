"""What observers are told about a bot, and what other middlewares see."""

from __future__ import annotations

from typing import Any

import pytest
from aiogram.exceptions import TelegramBadRequest
from aiogram.methods import SendMessage
from aiogram.types import TelegramObject

from bot_ratelimit import (
    ConfigError,
    Decision,
    Limiter,
    MemoryStorage,
    Notices,
    RateLimitMiddleware,
    Settings,
    Subject,
)
from tests.recorder import Recorder

from .support import Instance, callback, chat, inline_query, message


async def test_notices_are_reported_with_kind_and_result() -> None:
    """A message is notified once and then silent; buttons and inline queries each time."""
    recorder = Recorder()
    bot = Instance(
        RateLimitMiddleware("1/10s", observer=recorder),
        ("message", "callback_query", "inline_query"),
    )
    await bot.send("a", "b", "c")
    await bot.feed(callback_query=callback())
    await bot.feed(inline_query=inline_query())
    await bot.send("d", chat=chat(-100, "supergroup"))
    assert [event[1:] for event in recorder.named("noticed")] == [
        ("message", "sent"),
        ("message", "silent"),
        ("callback", "sent"),
        ("inline", "sent"),
        ("message", "silent"),
    ]


async def test_a_rejected_notice_is_reported() -> None:
    """A user who blocked the bot is a failed notice."""
    recorder = Recorder()
    bot = Instance(RateLimitMiddleware("1/10s", observer=recorder))
    bot.session.error = TelegramBadRequest(SendMessage(chat_id=1, text="a"), "blocked")
    await bot.send("a", "b")
    assert recorder.named("noticed") == [("noticed", "message", "failed")]


async def test_decisions_about_notices_are_not_reported() -> None:
    """Two updates are two decisions, although the notice used the limiter too."""
    recorder = Recorder()
    bot = Instance(RateLimitMiddleware("1/10s", observer=recorder))
    await bot.send("a", "b")
    assert len(recorder.named("decided")) == 2
    assert len(bot.session.requests) == 1


async def test_a_custom_on_limited_can_call_the_notices() -> None:
    """It decides whether to notify; the built-in notices decide how and how often."""
    seen: list[Decision] = []
    notices = Notices("Wait {seconds} s, please.")

    async def on_limited(event: TelegramObject, decision: Decision, data: dict[str, Any]) -> None:
        seen.append(decision)
        await notices(event, decision, data)

    bot = Instance(RateLimitMiddleware("1/10s", on_limited=on_limited))
    await bot.send("a", "b", "c")
    assert len(seen) == 2
    [request] = bot.session.requests
    assert isinstance(request, SendMessage)
    assert request.text == "Wait 10 s, please."


async def test_notices_outside_of_on_limited_are_an_error() -> None:
    """Without a refusal there is nothing to notify about."""
    decision = await Limiter(MemoryStorage()).hit("1/s", Subject(user=42))
    with pytest.raises(ConfigError, match="call it in on_limited"):
        await Notices()(TelegramObject(), decision, {})


async def test_middlewares_before_and_behind_see_the_decision() -> None:
    """Inner middlewares find `data["rate_limit"]` before the handler, all others after it."""
    seen: list[tuple[str, Any]] = []
    bot = Instance(RateLimitMiddleware("1/10s", on_limited=None), ())

    async def before(handler: Any, event: TelegramObject, data: dict[str, Any]) -> Any:
        assert "rate_limit" not in data
        result = await handler(event, data)
        seen.append(("before", data["rate_limit"].allowed))
        return result

    async def behind(handler: Any, event: TelegramObject, data: dict[str, Any]) -> Any:
        seen.append(("behind", data["rate_limit"].allowed))
        return await handler(event, data)

    observer = bot.dispatcher.message
    for middleware in (before, RateLimitMiddleware("1/10s", on_limited=None), behind):
        observer.middleware(middleware)
    observer.register(bot._handle)
    await bot.feed(message=message())
    await bot.feed(message=message())
    assert seen == [("behind", True), ("before", True), ("before", False)]


async def test_an_observer_reaches_the_limiter_of_the_settings(
    environment: pytest.MonkeyPatch,
) -> None:
    """`from_settings(observer=..., statistics=True)` passes both to its limiter."""
    recorder = Recorder()
    middleware = RateLimitMiddleware.from_settings(
        Settings(rate_limit="1/10s"), observer=recorder, statistics=True
    )
    await Instance(middleware).send("a", "b")
    assert len(recorder.named("decided")) == 2
    assert [each.count for each in await middleware.limiter.statistics()] == [1, 1]
