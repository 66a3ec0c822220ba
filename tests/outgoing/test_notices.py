"""Incoming notices on a bot whose requests are paced."""

from __future__ import annotations

import asyncio
import logging

import pytest
from aiogram import Bot, Dispatcher
from aiogram.types import Message, Update

from bot_ratelimit import Notices, RateLimitMiddleware, Subject
from tests.incoming.support import chat as chat_of
from tests.incoming.support import message
from tests.incoming.support import user as user_of

from .virtual import TOKEN, Telegram, now, paced, virtual, virtual_limiter


@virtual
async def test_a_dropped_notice_is_sent_at_a_later_refusal() -> None:
    """A user who was not notified at the first refusal is notified at a later one, once."""
    telegram = Telegram()
    bot, _ = paced(telegram, per_chat="1/5s burst 1")
    dispatcher = Dispatcher()
    dispatcher.message.middleware(RateLimitMiddleware("1/h", limiter=virtual_limiter()))

    @dispatcher.message()
    async def answer(event: Message) -> None:
        await event.answer("answer")

    for seconds in (0, 0, 6, 6):
        await asyncio.sleep(seconds)
        update = Update.model_validate(
            {"update_id": 1, "message": message("hello")}, context={"bot": bot}
        )
        await dispatcher.feed_update(bot, update)
    first, told = telegram.texts()
    assert first == "answer"
    assert told.startswith("Too many requests")


@virtual
async def test_a_notice_that_would_wait_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    """A notice is sent at once or dropped, without a delay or a log line."""
    caplog.set_level(logging.INFO)
    telegram = Telegram()
    bot, _ = paced(telegram, per_chat="1/5s burst 1")
    dispatcher = Dispatcher()
    limiter = virtual_limiter()
    dispatcher.message.middleware(RateLimitMiddleware("1/2s", limiter=limiter))

    @dispatcher.message()
    async def answer(event: Message) -> None:
        await event.answer("answer")

    async def feed() -> None:
        update = Update.model_validate(
            {"update_id": 1, "message": message("hello")}, context={"bot": bot}
        )
        await dispatcher.feed_update(bot, update)

    await feed()
    began = now()
    await feed()
    assert now() - began < 0.1
    assert telegram.texts() == ["answer"]
    await asyncio.sleep(6)
    await limiter.hit("1/2s", Subject(user=42))
    await feed()  # refused, and there is room to say so
    assert len(telegram.texts()) == 2
    assert telegram.texts()[1].startswith("Too many requests")
    assert "Could not tell a user" not in caplog.text


@pytest.mark.parametrize("is_paced", [False, True])
@virtual
async def test_a_group_gets_few_notices(is_paced: bool) -> None:
    """If 20 members of a group send too much, the group gets three notices a minute."""
    telegram = Telegram()
    bot = paced(telegram)[0] if is_paced else Bot(TOKEN, telegram)
    dispatcher = Dispatcher()
    dispatcher.message.middleware(
        RateLimitMiddleware("1/h", limiter=virtual_limiter(), on_limited=Notices(in_groups=True))
    )

    @dispatcher.message()
    async def silent(_: Message) -> None:
        pass

    async def everybody_writes_twice() -> None:
        for user in [*range(1, 21)] * 2:
            event = message("hello", **{"from": user_of(user), "chat": chat_of(-100, "group")})
            update = Update.model_validate({"update_id": 1, "message": event}, context={"bot": bot})
            await dispatcher.feed_update(bot, update)

    await everybody_writes_twice()
    assert len(telegram.texts()) == 3
    await asyncio.sleep(61)
    await everybody_writes_twice()
    assert len(telegram.texts()) == 6
