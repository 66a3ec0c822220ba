"""Shutdown: waiting requests end with an error, and late ones are not sent."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from aiogram import Bot, Dispatcher
from aiogram.client.session.aiohttp import AiohttpSession
from aiogram.client.telegram import TelegramAPIServer

from bot_ratelimit import (
    ConfigError,
    Limiter,
    MemoryStorage,
    NotSentError,
    OutgoingLimits,
    waiting_up_to,
)
from bot_ratelimit.testing import FlakyStorage
from example_bot.demo.botapi import TOKEN, BotApi
from tests.processes import Forked
from tests.servers import PATIENCE
from tests.tables import table

from .virtual import now, paced, virtual


@virtual
async def test_waiting_requests_end_at_the_shutdown(caplog: pytest.LogCaptureFixture) -> None:
    """100 waiting requests end at once with NotSentError; the log says how many, to which chats.

    Later a message that need not wait is sent; after a startup everything works as before.
    """
    telegram, bot, outgoing = paced(per_chat="1/s burst 1")
    tasks = [asyncio.create_task(bot.send_message(i % 2, str(i))) for i in range(102)]
    await asyncio.sleep(0.5)
    began = now()
    await outgoing.close()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert now() - began < 0.1
    assert all(isinstance(each, NotSentError) for each in outcomes[2:])
    assert len(telegram.left) == 2
    assert "100 requests were not sent: sendMessage to chat 0 (50), " in caplog.text
    await bot.send_message(7, "farewell")
    with pytest.raises(NotSentError, match="shutting down"):
        await bot.send_message(7, "late")
    await outgoing.open()
    await asyncio.gather(*(bot.send_message(7, "x") for _ in range(3)))


@virtual
async def test_a_request_that_waits_for_redis_is_not_sent_after_the_shutdown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What the log calls unsent does not leave later, when a hanging Redis has timed out."""
    storage = FlakyStorage()
    telegram, bot, outgoing = paced(limiter=Limiter(storage, timeout=1))
    storage.hang()
    task = asyncio.create_task(bot.send_message(7, "x"))
    await asyncio.sleep(0.1)
    await outgoing.close()
    with pytest.raises(NotSentError, match="the bot is shutting down"):
        await task
    assert not telegram.left
    assert "1 requests were not sent: sendMessage to chat 7 (1)" in caplog.text


@pytest.mark.parametrize("budget", ["25/s", None])
@virtual
async def test_a_broadcast_ends_with_the_bot(budget: str | None) -> None:
    """Once the bot shuts down nothing more of a broadcast leaves, not even what needs no wait."""
    telegram, bot, outgoing = paced(latency=0.3, broadcast=budget)
    outcomes = outgoing.broadcast(range(1, 999), lambda chat: bot.send_message(chat, "x"))
    for _ in range(60):
        await anext(outcomes)
    seen = len(telegram.left)
    await outgoing.close()
    with pytest.raises(NotSentError):
        async for _ in outcomes:
            pass
    assert len(telegram.left) == seen < 998


@virtual
async def test_requests_in_progress_are_awaited() -> None:
    """Closing waits for answers of requests in progress, but no longer than `timeout`."""
    telegram, bot, outgoing = paced(latency=2.0)
    task = asyncio.create_task(bot.send_message(7, "x"))
    await asyncio.sleep(0.1)
    await outgoing.close()
    assert (await task).text == "x"
    telegram.latency = lambda: 60.0
    task = asyncio.create_task(bot.send_message(8, "x"))
    await asyncio.sleep(0.1)
    began = now()
    await outgoing.close(timeout=3)
    assert now() - began == pytest.approx(3)
    await task


@virtual
async def test_the_shutdown_of_several_bots_waits_once(caplog: pytest.LogCaptureFixture) -> None:
    """However many bots are set up with one dispatcher, and whatever `dp["timeout"]` is."""
    telegram, bot, outgoing = paced(latency=60.0)
    dispatcher = Dispatcher(timeout="the user's own")
    for each in (bot, Bot("43:TEST", telegram), bot):
        outgoing.setup(each, dispatcher)
    task = asyncio.create_task(bot.send_message(7, "x"))
    await asyncio.sleep(0.1)
    began = now()
    await dispatcher.emit_shutdown(**dispatcher.workflow_data)
    assert now() - began == pytest.approx(5)
    assert caplog.messages.count("1 requests have no answer yet") == 1
    await task


async def test_a_late_request_does_not_open_the_session_again() -> None:
    """After the session is closed a late request fails, and the session stays closed."""
    async with BotApi() as api:
        session = AiohttpSession(api=TelegramAPIServer.from_base(api.url))
        bot, dispatcher = Bot(TOKEN, session), Dispatcher()
        outgoing = OutgoingLimits().setup(bot, dispatcher)
        await bot.send_message(7, "x")
        await dispatcher.emit_shutdown()
        await session.close()
        with pytest.raises(NotSentError, match="the session of the bot is closed"):
            await bot.send_message(7, "late")
        assert session._session is not None
        assert session._session.closed
        await dispatcher.emit_startup()
        await bot.send_message(7, "again")
        await session.close()
        await outgoing.close()
    assert [call.text for call in api.calls] == ["x", "again"]


@pytest.mark.slow
async def test_sigterm_ends_a_bot_with_310_waiting() -> None:
    """A polling bot ends within two seconds of SIGTERM, and logs which chats got nothing."""
    async with BotApi() as api:
        process = await Forked.start("tests.outgoing.programs", "stop", api.url)
        await api.called("sendMessage", 31, timeout=PATIENCE)
        await api.called("getMe", timeout=PATIENCE)  # polling has begun: it listens to signals
        began = time.monotonic()
        process.terminate()
        out = await process.stdout.readline()
        took = time.monotonic() - began
        _, log = await process.communicate()
    assert (process.returncode, out) == (0, b"310 raised\n"), log
    assert b"310 requests were not sent: sendMessage to chat 7 (10), " in log
    assert b"sendMessage to chat 16 (10) and 21 more chats" in log
    assert b"Traceback" not in log
    assert took < 2
    assert sum(call.method == "sendMessage" for call in api.calls) == 31


@table(
    ("options", "told"),
    [
        ({"limiter": MemoryStorage()}, "limiter is a MemoryStorage: expected Limiter"),
        ({"limiter": Limiter(MemoryStorage()), "key_prefix": "mine"}, "key_prefix and limiter"),
        ({"drafts": "fast"}, "drafts: 'fast'"),
        ({"per_chat": 0}, "per_chat: .*; to switch limiting off, give None"),
        ({"per_chat": "fast"}, "per_chat"),
        *(({"max_wait": value}, "max_wait") for value in (-1, "long", True)),
        *(({"max_wait": value}, "max_wait") for value in ({"messages": 60}, {"edit": -1})),
        ({"retries": 1.5}, "retries"),
        ({"max_waiting": 0}, "max_waiting"),
        ({"margin": 2}, "margin"),
        ({"in_order": "no"}, "in_order='no': expected True or False"),
        ({"repeat_albums": "no"}, "repeat_albums='no': expected True or False"),
        ({"merge_edits": 0}, "merge_edits=0: expected True or False"),
    ],
)
def test_wrong_arguments_are_named(options: Any, told: str) -> None:
    """A mistake is one ConfigError that names the argument."""
    with pytest.raises(ConfigError, match=told):
        OutgoingLimits(**options)
    for value in (-1, "long", True, None):
        with pytest.raises(ConfigError, match="waiting_up_to"), waiting_up_to(value):
            pass


def test_wrong_arguments_of_setup_are_named() -> None:
    """`setup(dp)` says what it needs, and what it got; a second one would count twice."""
    bot, outgoing = Bot(TOKEN), OutgoingLimits()
    outgoing.setup(bot)
    outgoing.setup(bot, Dispatcher())  # the same one is fine
    wrong: list[tuple[OutgoingLimits, tuple[Any, ...], str]] = [
        (outgoing, (Dispatcher(),), "setup needs the Bot, not a Dispatcher"),
        (outgoing, (Bot,), "setup needs the Bot, not the class Bot"),
        (outgoing, (bot, "dp"), "setup needs the Dispatcher, not a str"),
        (OutgoingLimits(), (bot,), "bot 1234567890 already has OutgoingLimits"),
    ]
    for limits, arguments, told in wrong:
        with pytest.raises(ConfigError, match=told):
            limits.setup(*arguments)
