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


async def test_it_refuses_as_telegram_does() -> None:
    """A chat accepts a burst and then one a second; who does not wait waits twice as long.

    Replies within a minute are free; other chats get 30 messages a second in total. A real bot gets
    a TelegramRetryAfter, and the refused call is recorded separately.
    """
    clock = Clock()
    floods = FloodControl(clock=clock)

    async def send(bot: Bot, chat: int) -> int:
        try:
            await bot.send_message(chat, "hello")
        except TelegramRetryAfter as error:
            return error.retry_after
        return 0

    async with BotApi(floods=floods) as api, bot_of(api) as bot:
        floods.wrote(7)
        # The last one may have been sent before the refusal was known.
        assert [await send(bot, 7) for _ in range(7)] == [0, 0, 0, 0, 0, 1, 1]
        clock.move(0.6)
        assert await send(bot, 7) == 2
        assert (floods.refused, floods.impatient, len(api.refused)) == (3, 1, 3)
        assert [await send(bot, chat) for chat in range(100, 131)] == [0] * 30 + [1]
        assert await send(bot, 8) == 1  # the whole bot is blocked
        clock.move(61)
        assert await send(bot, 7) == 0
    assert [call.method for call in api.calls] == ["sendMessage"] * 36
