"""What an observer is told about outgoing requests."""

from __future__ import annotations

import asyncio

import pytest
from aiogram.exceptions import TelegramBadRequest, TelegramRetryAfter
from aiogram.methods import SendMessage

from bot_ratelimit import NotSentError, without_waiting
from tests.recorder import Recorder

from .virtual import Telegram, paced, too_many, virtual


@virtual
async def test_each_request_is_reported_with_outcome_and_wait() -> None:
    """Sent, failed, flooded and unsent requests are each reported once."""
    telegram, recorder = Telegram(), Recorder()
    bot, _ = paced(telegram, observer=recorder, per_chat="1/10s", retries=0)
    await bot.send_message(7, "sent")
    with without_waiting(), pytest.raises(NotSentError):
        await bot.send_message(7, "would have to wait")
    telegram.errors = [TelegramBadRequest(SendMessage(chat_id=8, text=""), "chat not found")]
    with pytest.raises(TelegramBadRequest):
        await bot.send_message(8, "failed")
    telegram.errors = [too_many(3)]
    with pytest.raises(TelegramRetryAfter):
        await bot.send_message(9, "flooded")
    await bot.get_me()
    told = recorder.named("request_done")
    assert [(method, outcome) for _, method, outcome, _ in told] == [
        ("SendMessage", "sent"),
        ("SendMessage", "unsent"),
        ("SendMessage", "failed"),
        ("SendMessage", "flooded"),
    ]
    assert recorder.named("flood_waited") == [("flood_waited", "chat", 3.0)]


@virtual
async def test_waits_and_waiting_requests_are_reported() -> None:
    """Observers get the delay of a request and the number of those that wait, without actions and
    what is in progress."""
    telegram, recorder = Telegram(), Recorder()
    bot, _ = paced(telegram, observer=recorder, per_chat="1/10s")
    await asyncio.gather(*(bot.send_message(7, f"{i}") for i in range(3)))
    waits = [waited for *_, waited in recorder.named("request_done")]
    assert waits == pytest.approx([0, 10, 20], abs=0.2)
    assert max(count for _, count in recorder.named("queued")) >= 2
    assert recorder.named("queued")[-1] == ("queued", 0)
    recorder.events.clear()
    telegram.latency = lambda: 9.0
    actions = [asyncio.create_task(bot.send_chat_action(8, "typing")) for _ in range(5)]
    await asyncio.sleep(1)
    upload = asyncio.create_task(bot.send_message(8, "a long upload"))
    await asyncio.sleep(1)
    assert recorder.named("queued") == [("queued", 1), ("queued", 0)]
    await asyncio.gather(upload, *actions)
    assert {count for _, count in recorder.named("queued")} == {0, 1}


@virtual
async def test_every_429_is_reported() -> None:
    """Also of a method that is not paced or must not wait, of a dropped chat action, and of a
    request whose caller gives up during the wait."""
    telegram, recorder = Telegram(), Recorder()
    bot, _ = paced(telegram, observer=recorder, retries=1)
    for seconds, call in (
        ((3, 4), bot.delete_message(7, 1)),
        ((5,), bot.get_me()),
        ((6, 7), bot.edit_message_text("in no chat")),
    ):
        telegram.errors = [too_many(each) for each in seconds]
        with pytest.raises(TelegramRetryAfter):
            await call
    assert recorder.named("flood_waited") == [
        ("flood_waited", "method", seconds) for seconds in (3.0, 4.0, 5.0, 6.0, 7.0)
    ]
    recorder.events.clear()
    telegram.errors = [too_many(3)]
    assert await bot.send_chat_action(7, "typing")
    telegram.errors = [too_many(8)]
    sending = asyncio.create_task(bot.send_message(8, "given up"))
    await asyncio.sleep(5)
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    told = recorder.named("request_done")
    assert [outcome for _, _, outcome, _ in told] == ["flooded", "flooded"]
