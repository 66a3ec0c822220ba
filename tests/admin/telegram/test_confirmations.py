"""A question is answered once, in time, by the admin who was asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis.asyncio as aioredis
from aiogram.exceptions import TelegramBadRequest
from aiogram.methods import AnswerCallbackQuery

from bot_ratelimit import MemoryStorage, RedisStorage, Subject
from bot_ratelimit.admin.telegram.commands import SECONDS, Confirmations
from bot_ratelimit.admin.telegram.messages import ButtonPress, Buttons, ids_of
from bot_ratelimit.admin.words import Words
from bot_ratelimit.config.ids import LARGEST_ID
from bot_ratelimit.storage.base import Storage
from tests.admin.telegram.operators import ANNA, BORIS, STRANGER, OperatedBot, operated_bot_on
from tests.servers import Server

GONE = "answered already, or is older than two minutes"


@pytest.fixture
async def bot(storage: Storage) -> AsyncIterator[OperatedBot]:
    async with operated_bot_on(storage) as bot:
        yield bot


async def test_it_is_done_once(bot: OperatedBot) -> None:
    """Two presses at the same time, and one later, ban once and tell the others.

    Telegram forgets a press that waited for a bot that was down; what it says is done.
    """
    await bot.says("/ban 42 1h")
    yes = bot.buttons["Ban"]
    await asyncio.gather(bot.presses(yes), bot.presses(yes))
    assert GONE in await bot.presses(yes)
    answers = [r.text for r in bot.session.requests if isinstance(r, AnswerCallbackQuery)]
    assert sorted(map(bool, answers)) == [False, True, True]
    assert len(await bot.middleware.limiter.bans()) == 1
    await bot.says("/ban 43 1h")
    old = "Bad Request: query is too old and response timeout expired"
    press = AnswerCallbackQuery(callback_query_id="1")
    bot.session.errors["AnswerCallbackQuery"] = TelegramBadRequest(press, old)
    assert "is banned" in await bot.presses("Ban")


async def test_the_answer_may_reach_another_instance(
    redis_server: Server, shared: RedisStorage
) -> None:
    """Behind a webhook the press arrives anywhere: the question is kept beside the counts."""
    async with aioredis.Redis(port=redis_server.port) as client:
        elsewhere = RedisStorage(client)
        async with operated_bot_on(shared) as first, operated_bot_on(elsewhere) as second:
            await first.says("/ban 42 1h")
            assert "is banned" in await second.presses(first.buttons["Ban"])
            assert GONE in await first.presses("Ban")
        await elsewhere.close()


async def test_only_who_was_asked_can_answer(bot: OperatedBot) -> None:
    """Another admin's press does nothing, and leaves the question open; so does a stranger's.

    After Cancel a yes does nothing.
    """
    await bot.says("/ban 42 1h")
    yes, no = bot.buttons["Ban"], bot.buttons["Cancel"]
    for button in (yes, no):
        assert GONE in await bot.presses(button, by=BORIS)
        assert await bot.presses(button, by=STRANGER) == ""
    assert await bot.presses(no) == "Cancelled: nothing was changed."
    assert GONE in await bot.presses(yes)
    assert await bot.middleware.limiter.bans() == []
    # What cannot be done is told at once, not after a yes.
    assert "reason=" in await bot.says("/ban 42 1h " + "x" * 501)
    assert "no rule is called" in await bot.says("/forgive 42 messages nothing")
    assert list(bot.buttons.values()) == [yes, no]


async def test_it_is_too_late_after_two_minutes(storage: Storage, bot: OperatedBot) -> None:
    """A question ends by itself, with its key; a late press does nothing."""
    await bot.says("/ban 42 1h")
    if isinstance(storage, MemoryStorage):
        documents: Any = storage.documents()
        clock = documents._clock
        documents._clock = lambda: clock() + SECONDS
    else:
        token = ButtonPress.unpack(bot.buttons["Ban"]).extra
        key = f"bot:ratelimit:audit:asked:{ANNA}:{token}"
        redis: Any = storage
        assert 110 < await redis.execute((b"TTL", key.encode()), key=key, timeout=5) <= SECONDS
        await redis.execute((b"PEXPIRE", key.encode(), b"1"), key=key, timeout=5)
        await asyncio.sleep(0.02)
    assert GONE in await bot.presses("Ban")
    assert await bot.middleware.limiter.bans() == []


async def test_forged_tokens_find_nothing(bot: OperatedBot) -> None:
    """A token that was never given is answered like an old one, whatever stands in it.

    So is a question that this version does not know, while instances are updated.
    """
    newer = await Confirmations(bot.middleware.limiter).ask(ANNA, {"do": "something newer"})
    for token in ("", "x" * 12, "*" * 12, "live", "../../live", newer):
        forged = ButtonPress(namespace="", what="yes", first=ANNA, extra=token).pack()
        assert GONE in await bot.presses(forged)
    assert not bot.handled


@pytest.mark.parametrize("sign", [1, -1])
def test_callback_data_fits(sign: int) -> None:
    """With the longest prefix, ids, topic and token, no button has more than 64 bytes of data."""
    buttons = Buttons(Words("en"), namespace="abcdef")
    subject = Subject(sign * LARGEST_ID, -LARGEST_ID, 2**31 - 1)
    rows = [
        *buttons.actions(subject, banned=False, page=99),
        *buttons.actions(subject, banned=True, page=99),
        *buttons.paging("who", page=98, more=True, **ids_of(subject)),
        *buttons.paging("history", page=98, more=True),
        *buttons.subjects([subject]),
        *buttons.confirmation("Forgive", "x" * 12),
    ]
    data = [button.callback_data for row in rows for button in row]
    assert len(data) == 14
    assert all(each and len(each) <= 64 for each in data)
    assert all(ButtonPress.unpack(each) for each in data if each)
