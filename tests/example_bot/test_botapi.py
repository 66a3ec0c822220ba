"""The stand-in for Telegram, as a real aiogram Bot sees it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiogram import Bot, Dispatcher, F
from aiogram.client.session.aiohttp import AiohttpSession
from aiogram.client.telegram import TelegramAPIServer
from aiogram.exceptions import (
    TelegramAPIError,
    TelegramBadRequest,
    TelegramConflictError,
    TelegramForbiddenError,
    TelegramNotFound,
    TelegramRetryAfter,
    TelegramUnauthorizedError,
)
from aiogram.methods import GetStickerSet, SendInvoice, SendMessage
from aiogram.types import CallbackQuery, LabeledPrice, Message, Update
from aiogram.webhook.aiohttp_server import SimpleRequestHandler
from aiohttp import web

from example_bot.demo.botapi import TOKEN, BotApi
from example_bot.demo.methods import ApiError
from example_bot.demo.updates import callback, message


@asynccontextmanager
async def bot_of(api: BotApi, token: str = TOKEN) -> AsyncIterator[Bot]:
    async with Bot(token, AiohttpSession(api=TelegramAPIServer.from_base(api.url))) as bot:
        yield bot


@pytest.fixture
async def bot(api: BotApi) -> AsyncIterator[Bot]:
    async with bot_of(api) as bot:
        yield bot


@asynccontextmanager
async def serving(bot: Bot, dispatcher: Dispatcher, secret: str = "") -> AsyncIterator[str]:
    """Serve a webhook of this dispatcher; return its URL."""
    app = web.Application()
    SimpleRequestHandler(
        dispatcher, bot, handle_in_background=False, secret_token=secret or None
    ).register(app, "/webhook")
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/webhook"
    await runner.cleanup()


async def test_calls_are_answered_and_recorded(api: BotApi, bot: Bot) -> None:
    """A bot gets results in Telegram's format, and every call can be inspected later."""
    me = await bot.get_me()
    sent = await bot.send_message(42, "hello")
    edited = await sent.edit_text("goodbye")
    prices = [LabeledPrice(label="One", amount=1), LabeledPrice(label="Two", amount=2)]
    asked = await bot.send_invoice(42, "Three", "Stars", "payload", "XTR", prices)
    await bot.answer_callback_query("1", "pong")
    await bot.answer_inline_query("2", [])
    await bot.answer_pre_checkout_query("3", ok=True)

    assert (me.is_bot, me.id) == (True, bot.id)
    assert (sent.chat.id, sent.text) == (42, "hello")
    assert asked.invoice
    assert (asked.invoice.title, asked.invoice.total_amount) == ("Three", 3)
    assert isinstance(edited, Message)
    assert (edited.message_id, edited.text) == (sent.message_id, "goodbye")
    assert [(call.method, call.chat_id, call.text) for call in api.calls] == [
        ("getMe", None, ""),
        ("sendMessage", 42, "hello"),
        ("editMessageText", 42, "goodbye"),
        ("sendInvoice", 42, ""),
        ("answerCallbackQuery", None, "pong"),
        ("answerInlineQuery", None, ""),
        ("answerPreCheckoutQuery", None, ""),
    ]


@pytest.mark.parametrize(
    ("token", "error"),
    [
        ("1234567890:too-short", TelegramNotFound),
        ("1234567890:some-other-bot-that-nobody-knows---", TelegramUnauthorizedError),
    ],
)
async def test_only_the_right_token_is_accepted(
    api: BotApi, token: str, error: type[TelegramAPIError]
) -> None:
    """A malformed token gets 404 and an unknown one 401, as from Telegram."""
    async with bot_of(api, token) as bot:
        with pytest.raises(error):
            await bot.get_me()
    assert api.calls == []


async def test_errors_have_telegrams_format(api: BotApi, bot: Bot) -> None:
    """aiogram raises the same exception for an error of the stand-in as for Telegram's."""
    with pytest.raises(TelegramNotFound, match="method not found"):
        await bot(GetStickerSet(name="none"))
    with pytest.raises(TelegramBadRequest, match="message text is empty"):
        await bot.send_message(42, " ")
    with pytest.raises(TelegramBadRequest, match="can't parse prices"):
        await bot(SendInvoice.model_construct(chat_id=42, title="A star"))
    api.errors["sendmessage"] = ApiError(403, "Forbidden: bot was blocked by the user")
    with pytest.raises(TelegramForbiddenError):
        await bot.send_message(42, "hello")
    api.errors["sendmessage"] = ApiError(429, "Too Many Requests: retry after 7", retry_after=7)
    with pytest.raises(TelegramRetryAfter) as caught:
        await bot.send_message(42, "hello")
    assert caught.value.retry_after == 7


async def test_updates_go_to_the_instances_in_turn(api: BotApi, bot: Bot) -> None:
    """With n instances, each webhook gets every n-th update, with its own secret."""
    seen: list[tuple[str, int]] = []

    def instance(name: str) -> Dispatcher:
        dispatcher = Dispatcher()

        @dispatcher.message()
        async def remember(message: Message, event_update: Update) -> None:
            seen.append((name, event_update.update_id))

        return dispatcher

    async with (
        serving(bot, instance("a"), "secret-a") as a,
        serving(bot, instance("b"), "secret-b") as b,
    ):
        await bot.set_webhook(a, secret_token="secret-a")
        await bot.set_webhook(b, secret_token="secret-b")
        updates = [message(42, "hello") for _ in range(4)]
        deliveries = [await api.deliver(update) for update in updates]
        await bot.set_webhook(b, secret_token="no longer the one that b expects")
        await api.deliver(message(42, "to a"))
        refused = await api.deliver(message(42, "to b"))

    assert [delivery.url for delivery in deliveries] == [a, b, a, b]
    assert all(delivery.ok and delivery.latency > 0 for delivery in deliveries)
    assert seen[:4] == [
        (name, update["update_id"]) for name, update in zip("abab", updates, strict=True)
    ]
    assert (refused.url, refused.status, refused.ok) == (b, 401, False)


async def test_a_method_in_a_webhook_answer_is_executed(api: BotApi, bot: Bot) -> None:
    """A method that a handler returns instead of calling it also reaches the user."""
    dispatcher = Dispatcher()

    @dispatcher.callback_query()
    async def reply(*_: object) -> SendMessage:
        return SendMessage(chat_id=42, text="in the answer")

    async with serving(bot, dispatcher) as url:
        await bot.set_webhook(url)
        assert (await api.deliver(callback(42, "press"))).ok
    assert (api.calls[-1].method, api.calls[-1].chat_id, api.calls[-1].text) == (
        "sendMessage",
        42,
        "in the answer",
    )


async def test_a_button_spins_until_its_press_is_answered(api: BotApi, bot: Bot) -> None:
    """A press without an answer can be distinguished from an answered one."""
    dispatcher = Dispatcher()

    @dispatcher.callback_query(F.data == "answered")
    async def answer(callback: CallbackQuery) -> None:
        await callback.answer()

    async with serving(bot, dispatcher) as url:
        await bot.set_webhook(url)
        answered, ignored = callback(42, "answered"), callback(43, "ignored")
        await api.deliver(answered)
        await api.deliver(ignored)
    assert api.spinning == {ignored["callback_query"]["id"]}
    assert (api.calls[-1].query_id, api.calls[-1].user_id) == (answered["callback_query"]["id"], 42)


async def test_delivery_to_a_stopped_instance_fails(api: BotApi, bot: Bot) -> None:
    """A failed delivery is reported, and without a webhook there is no delivery."""
    with pytest.raises(LookupError, match="no webhook is set"):
        await api.deliver(message(42, "hello"))
    async with serving(bot, Dispatcher()) as url:
        await bot.set_webhook(url)
    delivery = await api.deliver(message(42, "hello"))
    assert (delivery.status, delivery.ok) == (0, False)


async def test_polling_and_webhook_exclude_each_other(api: BotApi, bot: Bot) -> None:
    """With a webhook, getUpdates is a conflict; without one it returns unconfirmed updates."""
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


async def test_waiting_for_a_call(api: BotApi, bot: Bot) -> None:
    """A test can wait for a call of the bot instead of sleeping."""
    waiting = asyncio.create_task(api.called("sendMessage", times=2))
    await bot.send_message(1, "one")
    await bot.send_message(2, "two")
    assert [call.text for call in await waiting] == ["one", "two"]
    with pytest.raises(TimeoutError):
        await api.called("sendMessage", times=3, timeout=0)
