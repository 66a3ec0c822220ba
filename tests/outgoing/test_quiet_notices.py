"""Notices that are dropped while Redis is down."""

from __future__ import annotations

import asyncio

import pytest
from aiogram import Dispatcher
from aiogram.types import Message, Update

from bot_ratelimit import Limiter, RateLimitMiddleware
from bot_ratelimit.testing import FlakyStorage
from tests.incoming.support import message

from .virtual import paced, virtual


@virtual
async def test_a_dropped_notice_in_an_outage_is_sent_later_and_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What this process noted about it is forgotten, without a line for each refused message."""
    storage = FlakyStorage()
    storage.source = "redis"
    storage.fail()
    telegram, bot, _ = paced(per_chat="1/5s burst 1")
    dispatcher = Dispatcher()
    limiter = Limiter(storage, on_error="memory")
    dispatcher.message.middleware(RateLimitMiddleware("1/h", limiter=limiter))

    @dispatcher.message()
    async def answer(event: Message) -> None:
        await event.answer("answer")

    for seconds in (0, 0, 0, 6, 6):
        await asyncio.sleep(seconds)
        update = Update.model_validate({"update_id": 1, "message": message()}, context={"bot": bot})
        await dispatcher.feed_update(bot, update)
    first, told = telegram.texts()
    assert first == "answer"
    assert told.startswith("Too many requests")
    assert "A reset holds" not in caplog.text
