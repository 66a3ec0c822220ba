"""What observers are told about the notices of a bot."""

from __future__ import annotations

import pytest
from aiogram.exceptions import TelegramBadRequest
from aiogram.methods import SendMessage

from bot_ratelimit import (
    RateLimitMiddleware,
    Settings,
)
from tests.recorder import Recorder

from .support import Instance, callback, chat, inline_query


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
