"""How long requests wait after a 429: by kind, by method, and as the caller says."""

from __future__ import annotations

import asyncio
import math
from itertools import pairwise
from typing import Any

import pytest
from aiogram.exceptions import TelegramAPIError, TelegramRetryAfter
from aiogram.methods import BanChatMember, PinChatMessage, SendMessage, SetMyCommands
from aiogram.types import BotCommand

from bot_ratelimit import NotSentError, waiting_up_to, without_waiting
from tests.tables import table

from .strict import Budget
from .virtual import Telegram, now, paced, too_many, virtual, virtual_limiter

GROUP = -100


@virtual
async def test_a_request_says_how_long_it_may_wait() -> None:
    """A 429 of 37 s is waited for inside `waiting_up_to(60)`, or where `max_wait` allows it for
    this kind, and raised otherwise. Several 429s use up one patience; a later call has a new one.
    """
    telegram = Telegram()
    bot, _ = paced(telegram, max_wait={"message": 40})
    telegram.errors = [too_many(37)]
    began = now()
    with waiting_up_to(60):
        await bot.edit_message_text("the answer", chat_id=7, message_id=1)
    assert 37 <= now() - began < 38
    telegram.errors = [too_many(37)]
    with pytest.raises(TelegramRetryAfter):
        await bot.edit_message_text("x", chat_id=8, message_id=1)
    telegram.errors = [too_many(37)]
    await bot.send_message(9, "a message")
    telegram.errors = [too_many(20)] * 3
    began = now()
    with waiting_up_to(50):
        with pytest.raises(TelegramRetryAfter):
            await bot.send_message(10, "x")
        assert 40 <= now() - began < 41
        await bot.send_message(10, "y")
    assert telegram.texts(10) == ["y"]


@virtual
async def test_patience_covers_the_turn_and_the_budget() -> None:
    """A request that cannot be sent in time fails, at the latest when its time is over."""
    telegram = Telegram()
    bot, _ = paced(telegram, per_chat="1/10s")
    await bot.send_message(7, "0")
    began = now()
    with waiting_up_to(5), pytest.raises(NotSentError, match="would have to wait 10 s"):
        await bot.send_message(7, "for the budget")
    assert now() - began < 0.1
    first = asyncio.create_task(bot.send_message(7, "1"))
    await asyncio.sleep(0)
    with waiting_up_to(5), pytest.raises(NotSentError, match="other requests to this chat"):
        await bot.send_message(7, "for the turn")
    assert now() - began == pytest.approx(5, abs=0.2)
    with waiting_up_to(30):
        await bot.send_message(7, "2")
    await first
    assert telegram.texts() == ["0", "1", "2"]


@table(
    ("error", "wait"),
    [
        (TelegramAPIError(SendMessage(chat_id=7, text=""), "Too Many Requests: later"), 1),
        (too_many(0), 1),
        (too_many(-5), 1),
        (too_many(366 * 86_400 + 1), 86_400),
        (too_many(10**30), 86_400),
    ],
)
@virtual
async def test_what_telegram_says_is_bounded(error: TelegramAPIError, wait: float) -> None:
    """Without a usable time a 429 waits a second, and never longer than a day."""
    telegram = Telegram()
    telegram.errors = [error]
    bot, _ = paced(telegram)
    began = now()
    with waiting_up_to(100_000):
        await bot.send_message(7, "x")
    assert wait <= now() - began < wait + 0.5


class Raided(Telegram):
    """A Telegram that takes four bans and then one a second, from all instances together."""

    budget = Budget()
    refused = 0

    def _check(self, method: Any) -> None:
        if not isinstance(method, BanChatMember):
            return
        budget = Raided.budget
        blocked = budget.blocked_until - now()
        if blocked > 0 or (blocked := budget.wait(now(), 1)) > 0:
            Raided.refused += 1
            budget.blocked_until = now() + blocked
            raise too_many(math.ceil(blocked))


@pytest.mark.parametrize("instances", [1, 3])
@virtual
async def test_a_raid_meets_one_429(instances: int) -> None:
    """Of 20 bans at once one is refused; all are carried out, and messages do not wait."""
    Raided.budget, Raided.refused, limiter = Budget(1.0, 4), 0, virtual_limiter()
    telegrams = [Raided(latency=0.03) for _ in range(instances)]
    bots = [paced(each, limiter=limiter)[0] for each in telegrams]
    bans = [
        asyncio.create_task(bots[user % instances].ban_chat_member(GROUP, user))
        for user in range(20)
    ]
    await asyncio.sleep(1)
    began = now()
    await bots[0].send_message(GROUP, "calm down")
    await bots[0].unban_chat_member(GROUP, 99)
    assert now() - began < 0.1
    assert await asyncio.gather(*bans) == [True] * 20
    assert Raided.refused == 1
    assert now() - 1_000 < 30
    users = [m.user_id for each in telegrams for _, m in each.log if isinstance(m, BanChatMember)]
    assert sorted(users) == [*range(20)]


@virtual
async def test_a_method_is_held_back_on_all_instances_and_in_all_chats() -> None:
    """After the 429 of one instance, another one does not call the method in another chat.

    Before a 429 calls wait for no budget, not even those that may not wait.
    """
    limiter = virtual_limiter()
    one, two = Telegram(), Telegram()
    (bot, _), (other, _) = paced(one, limiter=limiter), paced(two, limiter=limiter)
    began = now()
    await asyncio.gather(*(bot.delete_message(GROUP, i) for i in range(20)))
    with without_waiting():
        for i in range(9):
            assert await bot.delete_message(GROUP, i)
    assert now() - began < 1.3
    one.left.clear()
    one.errors = [too_many(5)]
    began = now()
    ban = asyncio.create_task(bot.ban_chat_member(GROUP, 1))
    await asyncio.sleep(1)
    await other.ban_chat_member(GROUP - 1, 2)
    assert now() - began >= 5
    await ban
    assert (len(one.left), len(two.left)) == (2, 1)


@virtual
async def test_methods_without_a_chat_run_side_by_side_until_a_429() -> None:
    """Twenty calls leave at once; after their 429s they leave one after the other."""
    telegram = Telegram(latency=1.0)
    bot, _ = paced(telegram)
    call = SetMyCommands(commands=[BotCommand(command="x", description="x")])
    await asyncio.gather(*(bot(call) for _ in range(20)))
    assert now() - 1_000 < 1.5
    telegram.errors = [too_many(3)] * 4
    began = now()
    await asyncio.gather(*(bot(call) for _ in range(4)))
    assert telegram.log[20][0] - began >= 3
    assert len(telegram.left) == 20 + 4 + 4
    times = [at for at, _ in telegram.log[20:]]
    assert all(b - a >= 1 for a, b in pairwise(times))


@virtual
async def test_service_messages_count_in_a_group() -> None:
    """Twenty pins and new topics fill a group's minute, but take nothing of the burst, however late
    they are; a private chat has no such limit."""
    telegram = Telegram(latency=lambda: 0.02 if telegram.log else 1.0)
    bot, _ = paced(telegram)
    await bot(PinChatMessage(chat_id=GROUP, message_id=1))
    began = now()
    await asyncio.gather(*(bot.send_message(GROUP, str(i)) for i in range(5)))
    assert now() - began < 0.5
    pins = [PinChatMessage(chat_id=GROUP, message_id=i) for i in range(13)]
    await asyncio.gather(*(bot(pin) for pin in pins), bot.create_forum_topic(GROUP, "x"))
    assert now() - began < 1
    await bot.send_message(GROUP, "the 21st")
    assert telegram.times()[-1] == pytest.approx(60, abs=1)
    began = now()
    await asyncio.gather(*(bot(PinChatMessage(chat_id=7, message_id=i)) for i in range(15)))
    assert now() - began < 1
