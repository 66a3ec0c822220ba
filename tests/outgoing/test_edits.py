"""Waiting edits: only the newest is sent."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from aiogram import methods
from aiogram.exceptions import TelegramBadRequest
from aiogram.methods import EditMessageReplyMarkup, EditMessageText, SendMessage

from bot_ratelimit import waiting_up_to

from .virtual import Telegram, now, paced, too_many, virtual


def edit(text: str, message: int = 1, chat: int = 7) -> EditMessageText:
    return EditMessageText(chat_id=chat, message_id=message, text=text)


@virtual
async def test_a_stream_of_edits_ends_with_its_last_text() -> None:
    """50 edits in 5 seconds: as many requests as the budget allows, and the last text is shown.

    With `merge_edits=False` every edit is sent.
    """
    telegram, bot, _ = paced(per_chat="1/s burst 1")
    tasks = []
    for i in range(50):
        tasks.append(asyncio.create_task(bot(edit(str(i)))))
        await asyncio.sleep(0.1)
    assert len(await asyncio.gather(*tasks)) == 50
    assert 6 <= len(telegram.log) <= 7
    assert telegram.texts()[-1] == "49"
    assert telegram.log[-1][0] - 1_000 < 6.2
    telegram, bot, _ = paced(merge_edits=False)
    await asyncio.gather(*(bot(edit(str(i))) for i in range(8)))
    assert telegram.texts() == [str(i) for i in range(8)]


@virtual
async def test_replaced_edits_get_the_result_of_the_sent_one() -> None:
    """Callers of replaced edits get the result of the edit that was sent."""
    telegram, bot, _ = paced(per_chat="1/s burst 1")
    await bot.send_message(7, "x")
    results = await asyncio.gather(*(bot(edit(str(i))) for i in range(5)))
    assert telegram.texts() == ["x", "4"]
    assert len({id(result) for result in results}) == 1
    telegram.errors = [TelegramBadRequest(edit("x"), "message is not modified")]
    outcomes = await asyncio.gather(*(bot(edit("x")) for _ in range(3)), return_exceptions=True)
    assert [type(each) for each in outcomes] == [TelegramBadRequest] * 3


@virtual
async def test_only_the_same_edit_of_the_same_message_is_replaced() -> None:
    """Edits of other messages, chats and kinds keep their places and their order.

    Ephemeral messages for three users with one id are three messages.
    """
    telegram, bot, _ = paced(per_chat="1/s burst 1")
    await bot.send_message(7, "x")
    markup = EditMessageReplyMarkup(chat_id=7, message_id=1)
    edits: list[Any] = [edit("a"), edit("b", 2), edit("c"), markup, edit("d"), edit("e")]
    await asyncio.gather(*map(bot, edits))
    assert telegram.texts() == ["x", "c", "b", "editMessageReplyMarkup", "e"]
    if hasattr(methods, "EditEphemeralMessageText"):  # of a new aiogram
        of = {"chat_id": 7, "ephemeral_message_id": 1}
        edits = [
            methods.EditEphemeralMessageText(**of, receiver_user_id=user, text=f"{user} {i}")
            for i in range(2)
            for user in (1, 2, 3)
        ]
        await asyncio.gather(*map(bot, edits))
        assert telegram.texts()[5:] == ["1 1", "2 1", "3 1"]


@virtual
async def test_after_a_429_the_newest_edit_is_sent() -> None:
    """It is sent in place of the refused one, has all its retries, and its own `waiting_up_to`."""
    telegram, bot, _ = paced(errors=[too_many(1), too_many(1), too_many(37)], retries=2)
    old = asyncio.create_task(bot(edit("old")))
    await asyncio.sleep(1.8)
    with waiting_up_to(60):
        new = asyncio.create_task(bot(edit("new")))
    assert await new is await old
    assert telegram.texts() == ["new"]
    assert 39 <= now() - 1_000 < 40.5


@virtual
async def test_an_edit_survives_the_cancellation_of_its_caller() -> None:
    """If the caller that runs an edit is cancelled, another continues with the newest text."""
    telegram, bot, _ = paced(per_chat="1/s burst 1")
    await bot.send_message(7, "x")
    tasks = [asyncio.create_task(bot(edit(str(i)))) for i in range(4)]
    await asyncio.sleep(0.2)
    tasks[0].cancel()  # the one that waits for the place
    await asyncio.sleep(0.2)
    tasks[3].cancel()  # the newest
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(each, asyncio.CancelledError) for each in outcomes] == [
        True,
        False,
        False,
        True,
    ]
    assert telegram.texts() == ["x", "2"]
    await bot.send_message(7, "y")
    assert telegram.times() == pytest.approx([0, 1, 2], abs=0.1)


@virtual
async def test_a_cancellation_at_the_moment_of_the_answer() -> None:
    """A caller that is cancelled just before it gets the result is cancelled."""

    class Impatient(Telegram):
        victim: asyncio.Task[Any] | None = None

        async def make_request(self, *args: Any, **options: Any) -> Any:
            result = await super().make_request(*args, **options)
            if self.victim is not None:
                asyncio.get_running_loop().call_soon(self.victim.cancel)
            return result

    telegram = Impatient()
    _, bot, _ = paced(telegram, per_chat="1/10s")
    await bot.send_message(7, "before")
    edits = [asyncio.create_task(bot(edit(f"{i}"))) for i in range(3)]
    await asyncio.sleep(1)
    telegram.victim = edits[1]
    first, second, third = await asyncio.gather(*edits, return_exceptions=True)
    assert isinstance(second, asyncio.CancelledError)
    assert first is third


@virtual
async def test_random_cancellations_leave_nothing_behind() -> None:
    """However callers come and go, no request is lost or sent twice, and no chat is stuck."""
    random.seed(7)
    telegram, bot, _ = paced(
        latency=lambda: random.choice([0.01, 0.2, 2.0]), per_chat="5/s burst 2", retries=99
    )
    tasks = []
    for i in range(150):
        method = edit(f"{i}", i % 2) if i % 3 else SendMessage(chat_id=7, text=f"{i}m")
        tasks.append(asyncio.create_task(bot(method)))
        if i % 2:
            asyncio.get_running_loop().call_later(random.uniform(0, 8), tasks[-1].cancel)
        if not i % 10:
            telegram.errors.append(too_many(1))
            await asyncio.sleep(random.uniform(0, 1))
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(each).__name__ for each in outcomes} == {"Message", "CancelledError"}
    numbers = [int(text[:-1]) for text in telegram.texts() if text[-1] == "m"]
    assert numbers == sorted(set(numbers))
    assert {i for i in range(0, 150, 3) if not isinstance(outcomes[i], BaseException)} <= {*numbers}
    await asyncio.sleep(20)
    telegram.latency = lambda: 0.01
    began = now()
    await bot.send_message(7, "x")
    assert now() - began < 0.1
