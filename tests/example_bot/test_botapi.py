"""The stand-in for Telegram, as a real aiogram Bot sees it, and its limits."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiogram import Bot
from aiogram.client.session.aiohttp import AiohttpSession
from aiogram.client.telegram import TelegramAPIServer
from aiogram.exceptions import (
    TelegramBadRequest,
    TelegramConflictError,
    TelegramNotFound,
    TelegramRetryAfter,
)
from aiogram.methods import GetStickerSet, SendInvoice

from bot_ratelimit import RateLimitMiddleware
from bot_ratelimit.testing import Clock
from example_bot.bot import build_dispatcher
from example_bot.demo.botapi import TOKEN, BotApi
from example_bot.demo.floods import FloodControl
from example_bot.demo.instances import serve
from example_bot.demo.methods import ApiError
from example_bot.demo.updates import message


def bot_of(api: BotApi, token: str = TOKEN) -> Bot:
    return Bot(token, AiohttpSession(api=TelegramAPIServer.from_base(api.url)))


async def test_calls_are_answered_in_telegrams_format(api: BotApi) -> None:
    """A bot gets results and errors; with a webhook, getUpdates is a conflict.

    Without one it returns unconfirmed updates.
    """
    async with bot_of(api, "1234567890:too-short") as stranger:
        with pytest.raises(TelegramNotFound):
            await stranger.get_me()
    async with bot_of(api) as bot:
        sent = await bot.send_message(42, "hello")
        edited: Any = await sent.edit_text("goodbye")
        assert (sent.chat.id, edited.message_id, edited.text) == (42, sent.message_id, "goodbye")
        with pytest.raises(TelegramNotFound, match="method not found"):
            await bot(GetStickerSet(name="none"))
        with pytest.raises(TelegramBadRequest, match="message text is empty"):
            await bot.send_message(42, " ")
        with pytest.raises(TelegramBadRequest, match="can't parse prices"):
            await bot(SendInvoice.model_construct(chat_id=42, title="A star"))
        await bot.set_webhook("http://127.0.0.1:1/webhook")
        with pytest.raises(TelegramConflictError, match="webhook is active"):
            await bot.get_updates()
        await bot.set_webhook("")
        waiting = asyncio.create_task(bot.get_updates(timeout=10))
        first, second = message(42, "one"), message(42, "two")
        await api.enqueue(first)
        assert [update.update_id for update in await waiting] == [first["update_id"]]
        await api.enqueue(second)
        again = await bot.get_updates(offset=first["update_id"] + 1)
        assert [update.update_id for update in again] == [second["update_id"]]


async def test_a_delivery_may_fail(api: BotApi) -> None:
    """Without a webhook, with a wrong secret, and to an instance that has stopped."""
    with pytest.raises(LookupError, match="no webhook is set"):
        await api.deliver(message(42, "hello"))
    runner = await serve(api, build_dispatcher(RateLimitMiddleware("9/minute")))
    async with bot_of(api) as bot:
        await bot.set_webhook(api.webhooks[0].url, secret_token="not the one that it expects")
    refused = await api.deliver(message(42, "hello"))
    await runner.cleanup()
    stopped = await api.deliver(message(42, "hello"))
    assert [(each.status, each.ok) for each in (refused, stopped)] == [(401, False), (0, False)]


def send(floods: FloodControl, chat: int = 7, **params: Any) -> int:
    """Send a request; return the seconds to wait, 0 if it was accepted."""
    try:
        floods.check("sendMessage", {"chat_id": str(chat), **params})
    except ApiError as error:
        return error.retry_after or 0
    return 0


def test_what_a_chat_accepts() -> None:
    """A burst and then one a second; who does not wait waits twice as long, and so on.

    A group accepts twenty a minute, and an album counts its items.
    """
    clock = Clock()
    floods = FloodControl(clock=clock)
    # The last one may have been sent before the refusal was known.
    assert [send(floods) for _ in range(7)] == [0, 0, 0, 0, 0, 1, 1]
    clock.move(1)
    assert [send(floods), send(floods)] == [0, 1]
    for wait in (2, 8):
        clock.move(0.6)
        assert send(floods) == wait
    assert (floods.refused, floods.impatient) == (5, 2)
    for _ in range(20):
        assert send(floods, -100) == 0
        clock.move(2)
    assert send(floods, -100) == 20
    assert [send(floods, 8, media="[1,2,3,4,5,6,7,8,9,10]"), send(floods, 8)] == [0, 6]


async def test_broadcasts_are_limited_and_replies_are_not() -> None:
    """Replies within a minute are free; other chats get 30 messages a second in total.

    A real bot gets a TelegramRetryAfter, and the refused call is recorded separately.
    """
    clock = Clock()
    floods = FloodControl(clock=clock)
    for chat in range(100):
        floods.wrote(chat)
    assert sum(send(floods, chat) for chat in range(100)) == 0
    assert [send(floods, chat) for chat in range(100, 131)] == [0] * 30 + [1]
    async with BotApi(floods=floods) as api, bot_of(api) as bot:
        with pytest.raises(TelegramRetryAfter) as caught:  # the whole bot is blocked
            await bot.send_message(1, "hello")
    assert caught.value.retry_after == 1
    assert (len(api.calls), [call.text for call in api.refused]) == (0, ["hello"])
    clock.move(61)
    assert sum(send(floods, chat) > 0 for chat in range(31)) == 1
