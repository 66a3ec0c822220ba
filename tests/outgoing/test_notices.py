"""Incoming notices on a bot whose requests are paced."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest
from aiogram import Bot, Dispatcher
from aiogram.types import Message, Update

from bot_ratelimit import Notices, RateLimitMiddleware
from tests.incoming.support import chat as chat_of
from tests.incoming.support import message
from tests.incoming.support import user as user_of

from .virtual import TOKEN, Telegram, now, paced, virtual, virtual_limiter


def started(bot: Bot, limit: str, answers: bool = True, **options: Any) -> Callable[..., Any]:
    """A bot with a handler, and how it is fed a message."""
    dispatcher = Dispatcher()
    dispatcher.message.middleware(RateLimitMiddleware(limit, limiter=virtual_limiter(), **options))

    @dispatcher.message()
    async def handle(event: Message) -> None:
        if answers:
            await event.answer("answer")

    async def feed(**fields: Any) -> None:
        content = {"update_id": 1, "message": message("hello", **fields)}
        update = Update.model_validate(content, context={"bot": bot})
        await dispatcher.feed_update(bot, update)

    return feed


@virtual
async def test_a_notice_that_would_wait_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    """Without a delay or a log line; the user is notified at a later refusal, once."""
    caplog.set_level(logging.INFO)
    telegram = Telegram()
    feed = started(paced(telegram, per_chat="1/5s burst 1")[0], "1/h")
    await feed()
    began = now()
    await feed()
    assert now() - began < 0.1
    assert telegram.texts() == ["answer"]
    for _ in range(2):
        await asyncio.sleep(6)
        await feed()
    first, told = telegram.texts()
    assert first == "answer"
    assert told.startswith("Too many requests")
    assert "Could not tell a user" not in caplog.text


@pytest.mark.parametrize("is_paced", [False, True])
@virtual
async def test_a_group_gets_few_notices(is_paced: bool) -> None:
    """If 20 members of a group send too much, the group gets three notices a minute."""
    telegram = Telegram()
    bot = paced(telegram)[0] if is_paced else Bot(TOKEN, telegram)
    feed = started(bot, "1/h", answers=False, on_limited=Notices(in_groups=True))
    for notices in (3, 6):
        for user in [*range(1, 21)] * 2:
            await feed(**{"from": user_of(user), "chat": chat_of(-100, "group")})
        assert len(telegram.texts()) == notices
        await asyncio.sleep(61)
