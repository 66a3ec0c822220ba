"""The stand-in for Telegram, as a real aiogram Bot sees it, and its limits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from aiogram import Bot, Dispatcher
from aiogram.client.session.aiohttp import AiohttpSession
from aiogram.client.telegram import TelegramAPIServer
from aiogram.exceptions import (
    TelegramBadRequest,
    TelegramConflictError,
    TelegramForbiddenError,
    TelegramNotFound,
    TelegramRetryAfter,
    TelegramUnauthorizedError,
)
from aiogram.methods import GetStickerSet, SendInvoice, SendMessage
from aiogram.types import LabeledPrice, Message, Update

from bot_ratelimit.testing import Clock
from example_bot.demo.botapi import TOKEN, BotApi
from example_bot.demo.floods import FloodControl
from example_bot.demo.instances import serve
from example_bot.demo.methods import ApiError
from example_bot.demo.updates import callback, message


@asynccontextmanager
async def bot_of(api: BotApi, token: str = TOKEN) -> AsyncIterator[Bot]:
    async with Bot(token, AiohttpSession(api=TelegramAPIServer.from_base(api.url))) as bot:
        yield bot


async def test_calls_are_answered_and_recorded(api: BotApi) -> None:
    """A bot gets results and errors in Telegram's format; every call can be inspected later."""
    for token, refusal in (
        ("1234567890:too-short", TelegramNotFound),
        ("1234567890:some-other-bot-that-nobody-knows---", TelegramUnauthorizedError),
    ):
        async with bot_of(api, token) as stranger:
            with pytest.raises(refusal):
                await stranger.get_me()
    async with bot_of(api) as bot:
        assert (await bot.get_me()).id == bot.id
        sent = await bot.send_message(42, "hello")
        edited = await sent.edit_text("goodbye")
        prices = [LabeledPrice(label="One", amount=1), LabeledPrice(label="Two", amount=2)]
        asked = await bot.send_invoice(42, "Three", "Stars", "payload", "XTR", prices)
        await bot.answer_callback_query("1", "pong")
        with pytest.raises(TelegramNotFound, match="method not found"):
            await bot(GetStickerSet(name="none"))
        with pytest.raises(TelegramBadRequest, match="message text is empty"):
            await bot.send_message(42, " ")
        with pytest.raises(TelegramBadRequest, match="can't parse prices"):
            await bot(SendInvoice.model_construct(chat_id=42, title="A star"))
        api.errors["sendmessage"] = ApiError(403, "Forbidden: bot was blocked by the user")
        with pytest.raises(TelegramForbiddenError):
            await bot.send_message(42, "hello")
    assert (sent.chat.id, sent.text) == (42, "hello")
    assert isinstance(edited, Message)
    assert (edited.message_id, edited.text) == (sent.message_id, "goodbye")
    assert asked.invoice
    assert asked.invoice.total_amount == 3
    assert [(call.method, call.chat_id, call.text) for call in api.calls[:5]] == [
        ("getMe", None, ""),
        ("sendMessage", 42, "hello"),
        ("editMessageText", 42, "goodbye"),
        ("sendInvoice", 42, ""),
        ("answerCallbackQuery", None, "pong"),
    ]


async def test_updates_go_to_the_instances_in_turn(api: BotApi) -> None:
    """Each of two webhooks gets every second update, and answers, perhaps with a method.

    A wrong secret, or an instance that has stopped, is a delivery that failed.
    """
    with pytest.raises(LookupError, match="no webhook is set"):
        await api.deliver(message(42, "hello"))
    seen: list[tuple[int, int]] = []

    def instance(number: int) -> Dispatcher:
        dispatcher = Dispatcher()

        @dispatcher.message()
        async def remember(_: Message, event_update: Update) -> SendMessage:
            seen.append((number, event_update.update_id))
            return SendMessage(chat_id=42, text="in the answer")

        return dispatcher

    async with AsyncExitStack() as stack:
        for number in range(2):
            runner = await serve(api, instance(number))
            stack.push_async_callback(runner.cleanup)
        updates = [message(42, "hello") for _ in range(4)]
        assert all([(await api.deliver(update)).ok for update in updates])
        assert seen == [(n % 2, update["update_id"]) for n, update in enumerate(updates)]
        assert [call.text for call in api.calls[-4:]] == ["in the answer"] * 4
        pressed = callback(43, "ignored")
        await api.deliver(pressed)
        assert api.spinning == {pressed["callback_query"]["id"]}
        async with bot_of(api) as bot:
            await bot.set_webhook(api.webhooks[1].url, secret_token="not the one that it expects")
        refused = await api.deliver(message(42, "hello"))
        assert (refused.status, refused.ok) == (401, False)
    stopped = await api.deliver(message(42, "hello"))
    assert (stopped.status, stopped.ok) == (0, False)


async def test_polling_and_webhook_exclude_each_other(api: BotApi) -> None:
    """With a webhook, getUpdates is a conflict; without one it returns unconfirmed updates."""
    async with bot_of(api) as bot:
        await bot.set_webhook("http://127.0.0.1:1/webhook")
        with pytest.raises(TelegramConflictError, match="webhook is active"):
            await bot.get_updates()
        await bot.delete_webhook()
        waiting = asyncio.create_task(bot.get_updates(timeout=10))
        first, second = message(42, "one"), message(42, "two")
        await api.enqueue(first)
        assert [update.update_id for update in await waiting] == [first["update_id"]]
        await api.enqueue(second)
        again = await bot.get_updates(offset=first["update_id"] + 1)
        assert [update.update_id for update in again] == [second["update_id"]]
        assert await bot.get_updates(offset=second["update_id"] + 1) == []


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
    assert send(floods) == 0
    assert (floods.refused, floods.impatient) == (2, 0)
    assert send(floods) == 1
    for wait in (2, 8):
        clock.move(0.6)
        assert send(floods) == wait
    assert floods.impatient == 2
    for _ in range(20):
        assert send(floods, -100) == 0
        clock.move(2)
    assert send(floods, -100) == 20
    assert send(floods, 8, media="[1,2,3,4,5,6,7,8,9,10]") == 0
    assert send(floods, 8) == 6
    floods.check("answerCallbackQuery", {})


def test_broadcasts_are_limited_and_replies_are_not() -> None:
    """Replies within a minute are free; other chats get 30 messages a second in total."""
    clock = Clock()
    floods = FloodControl(clock=clock)
    for chat in range(100):
        floods.wrote(chat)
    assert sum(send(floods, chat) for chat in range(100)) == 0
    assert [send(floods, chat) for chat in range(100, 131)] == [0] * 30 + [1]
    assert send(floods, 1) == 1, "the whole bot is blocked"
    clock.move(61)
    assert sum(send(floods, chat) > 0 for chat in range(31)) == 1


async def test_a_real_bot_gets_these_429s() -> None:
    """A real bot gets a TelegramRetryAfter, and the refused call is recorded separately."""
    async with BotApi(floods=FloodControl(burst=1)) as api, bot_of(api) as bot:
        with pytest.raises(LookupError):  # but what somebody wrote makes the next one a reply
            await api.deliver(message(7, "hello"))
        await bot.send_message(7, "one")
        with pytest.raises(TelegramRetryAfter) as caught:
            await bot.send_message(7, "two")
    assert caught.value.retry_after == 1
    assert [call.text for call in api.calls] == ["one"]
    assert [call.text for call in api.refused] == ["two"]
