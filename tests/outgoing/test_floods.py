"""429: what waits, for how long, what does not, and what is sent again."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest
from aiogram import Bot
from aiogram.exceptions import (
    TelegramAPIError,
    TelegramNetworkError,
    TelegramRetryAfter,
    TelegramServerError,
)
from aiogram.methods import (
    BanChatMember,
    PinChatMessage,
    SendMediaGroup,
    SendMessage,
    SetMyCommands,
)
from aiogram.types import BotCommand, InputMediaPhoto

from bot_ratelimit import Limiter, NotSentError, waiting_up_to, without_waiting
from bot_ratelimit.testing import FlakyStorage
from example_bot.demo.floods import FloodControl
from example_bot.demo.methods import ApiError
from tests.recorder import Recorder
from tests.tables import table

from .virtual import Telegram, now, paced, too_many, virtual, virtual_limiter

GROUP = -100


@virtual
async def test_a_request_is_sent_again_after_its_wait() -> None:
    """After a 429 the message is sent again exactly after its wait, before all others of its chat,
    and delays no other chat. `retries` is how often it is sent again."""
    telegram, bot, _ = paced(errors=[too_many(3)], retries=2)
    began = now()
    refused = [asyncio.create_task(bot.send_message(7, text)) for text in ("first", "second")]
    await asyncio.sleep(0.1)
    await bot.send_message(8, "x")
    assert now() - began < 0.15
    await asyncio.gather(*refused)
    assert telegram.texts(7) == ["first", "second"]
    assert 3.0 <= telegram.log[1][0] - began < 3.5
    telegram.left.clear()
    telegram.errors = [too_many(1)] * 9
    with pytest.raises(TelegramRetryAfter):
        await bot.send_message(9, "x")
    assert len(telegram.left) == 3


@virtual
async def test_all_instances_know_of_a_block() -> None:
    """After a 429 on one instance the others also wait, without asking Telegram: a message in that
    chat, another method in every chat. A later but shorter wait does not shorten a longer one."""
    limiter = virtual_limiter()
    one, two = Telegram(latency=0.02), Telegram(latency=0.04)
    (_, bot, _), (_, other, _) = paced(one, limiter=limiter), paced(two, limiter=limiter)
    for first, second in (
        (bot.send_message(7, "one"), other.send_message(7, "two")),
        (bot.ban_chat_member(GROUP, 1), other.ban_chat_member(GROUP - 1, 2)),
    ):
        one.errors, began = [too_many(5)], now()
        task = asyncio.create_task(first)
        await asyncio.sleep(1)
        await second
        await task
        assert 5 <= two.log[-1][0] - began < 8
    assert (len(one.left), len(two.left)) == (4, 2)
    one.errors, two.errors, began = [too_many(9)], [too_many(2)], now()
    await asyncio.gather(bot.send_message(8, "one"), other.send_message(8, "two"))
    assert min(one.log[-1][0], two.log[-1][0]) - began >= 9


@virtual
async def test_what_may_have_been_delivered_is_not_repeated() -> None:
    """After another error than a 429, and a part of an album may have been delivered as well: by
    default its 429 is raised."""
    errors: Any = (TelegramNetworkError, TelegramServerError, TelegramAPIError)
    for kind in errors:
        telegram, bot, _ = paced(errors=[kind(None, "Something else")])
        with pytest.raises(kind):
            await bot.send_message(7, "x")
        assert len(telegram.left) == 1
        await bot.send_message(7, "goes on")
    album = SendMediaGroup(chat_id=7, media=[InputMediaPhoto(media="1")] * 2)
    telegram, bot, _ = paced(errors=[too_many(1)])
    with pytest.raises(TelegramRetryAfter):
        await bot(album)
    assert len(telegram.left) == 1
    telegram, bot, _ = paced(errors=[too_many(1)], repeat_albums=True)
    await bot(album)
    assert len(telegram.left) == 2


@virtual
async def test_429s_in_many_quiet_chats_block_the_bot(caplog: pytest.LogCaptureFixture) -> None:
    """If quiet chats are refused together, the whole bot is too fast, and the log says so.

    429s in busy chats are about these chats.
    """
    telegram, bot, _ = paced()

    async def refused() -> float:
        """Seconds for which another chat waits, after 429s in three."""
        telegram.errors = [too_many(4)] * 3
        tasks = [asyncio.create_task(bot.send_message(i, "x")) for i in (1, 2, 3)]
        await asyncio.sleep(1)
        began = now()
        await bot.send_message(99, "another chat")
        took = now() - began
        await asyncio.gather(*tasks)
        return took

    await asyncio.gather(*(bot.send_message(i, "x") for i in (1, 2, 3) for _ in range(4)))
    assert await refused() < 0.05
    await asyncio.sleep(120)
    caplog.clear()
    assert 2.5 < await refused() < 4
    # The lines about the single chats, just before, do not hide it.
    assert "(429): this bot sends no messages for 4 s" in caplog.text
    assert "instances" not in caplog.text.partition("Telegram refused")[2]  # without Redis


@virtual
async def test_each_bot_is_blocked_as_often_as_it_is_too_fast() -> None:
    """Also if the same chats are refused as the last time, and if two bots are at once."""
    recorder = Recorder()
    telegram, bot, _ = paced(observer=recorder)
    for _ in range(2):
        telegram.errors = [too_many(2)] * 6
        bots = (bot, Bot("43:TEST", telegram))
        await asyncio.gather(*(each.send_message(i, "x") for i in (1, 2, 3) for each in bots))
        await asyncio.sleep(300)
    scopes = [scope for _, scope, _ in recorder.named("flood_waited")]
    assert scopes == ["chat", "chat", "chat", "chat", "bot", "bot"] * 2


@virtual
async def test_without_the_storage_a_429_blocks_this_process() -> None:
    """In an outage of Redis, pacing and blocks continue in memory."""
    storage = FlakyStorage()
    limiter = Limiter(storage, on_error="memory", clock=now)
    telegram, bot, _ = paced(limiter=limiter, per_chat="5/s burst 5")
    storage.fail()
    telegram.errors = [too_many(1)]
    began = now()
    await asyncio.gather(*(bot.send_message(7, "x") for _ in range(7)))
    assert telegram.log[0][0] - began >= 1
    assert len(telegram.log) == 7
    assert telegram.times()[-1] > 0.4


@virtual
async def test_budgets_that_are_twice_too_high() -> None:
    """Every message arrives once and in order, waits are kept, and others are not delayed."""
    limits = {"per_chat": "2/s burst 10", "per_group": "40/minute sliding"}
    random.seed(3)
    floods = FloodControl(clock=now, bulk=1_000_000)
    limiter = virtual_limiter()
    telegrams = [Telegram(floods, latency=lambda: random.uniform(0.02, 0.2)) for _ in range(3)]
    bots = [paced(t, limiter=limiter, max_wait=120, **limits)[1] for t in telegrams]
    tasks = [
        asyncio.create_task(bots[i % 3].send_message(chat, f"{i % 3} {i}"))
        for i in range(90)
        for chat in (1, 2, -3)
    ]
    delays = []
    for i in range(100):
        await asyncio.sleep(0.5)
        began = now()
        await bots[i % 3].send_message(1_000 + i, "a reply elsewhere")
        delays.append(now() - began)
    await asyncio.gather(*tasks)
    assert max(delays) < 0.25
    assert floods.impatient == 0
    assert floods.refused < 60
    for number, telegram in enumerate(telegrams):
        for chat in (1, 2, -3):
            expected = [f"{number} {i}" for i in range(90) if i % 3 == number]
            assert telegram.texts(chat) == expected


@virtual
async def test_one_429_does_not_slow_a_chat_down() -> None:
    """After its wait a chat has its normal pace; a second 429 within a minute halves it, also one
    right after that wait. The calls of a method without a chat are then further apart, too."""
    telegram, bot, _ = paced(errors=[too_many(1)])
    await asyncio.gather(*(bot.send_message(7, str(i)) for i in range(10)))
    assert telegram.times()[-1] == pytest.approx(5, abs=0.5)
    telegram.errors = [too_many(1)]
    began = now()
    await asyncio.gather(*(bot.send_message(7, str(i)) for i in range(5)))
    assert 1 + 2 * 4 <= now() - began < 11
    telegram.latency = lambda: 0.001
    for chat in range(100, 110):
        telegram.errors, began = [too_many(1), too_many(1)], now()
        await asyncio.gather(*(bot.send_message(chat, str(i)) for i in range(5)))
        assert 2 + 2 * 4 <= now() - began < 12
    telegram.errors = [too_many(1), too_many(1)]
    await bot.set_my_name("x")
    began = now()
    for _ in range(3):
        await bot.set_my_name("x")
    assert now() - began >= 2


@virtual
async def test_a_late_first_request_does_not_make_the_next_ones_early() -> None:
    """A burst whose first request takes half a second gets no 429 at Telegram's exact limits."""
    for private in (7, -7):
        floods = FloodControl(clock=now, bulk=1_000_000)
        telegram = Telegram(floods, latency=lambda: 1.0 if len(telegram.left) == 1 else 0.02)  # noqa: B023 - called in this turn of the loop
        _, bot, _ = paced(telegram)
        await asyncio.gather(*(bot.send_message(private, str(i)) for i in range(12)))
        assert floods.refused == 0
        assert telegram.times()[-1] == pytest.approx(7, abs=0.7)


@virtual
async def test_albums_between_messages_are_no_flood() -> None:
    """What an album still owes, and how late it arrived, is paid before the next request.

    In a group Telegram counts its items at once, also those for which the burst is too small.
    """
    for seed in range(5):
        random.seed(seed)
        floods = FloodControl(clock=now, bulk=1_000_000)
        _, bot, _ = paced(Telegram(floods, latency=lambda: random.uniform(0.02, 0.4)), max_wait=600)
        requests = []
        for _ in range(40):
            items = random.randint(2, 10) if random.random() < 0.2 else 1
            album = SendMediaGroup(chat_id=7, media=[InputMediaPhoto(media="1")] * items)
            requests.append(bot(album) if items > 1 else bot.send_message(7, "x"))
        await asyncio.gather(*requests)
        assert floods.refused == 0
    for _ in range(15):
        await bot.send_message(-7, "x")
    await bot(SendMediaGroup(chat_id=-7, media=[InputMediaPhoto(media="1")] * 10))
    await bot.send_message(-7, "x")
    assert floods.refused == 0


@virtual
async def test_a_pace_may_be_halved_while_an_album_waits() -> None:
    """Two 429s of another instance change what the album takes at once; it is sent all the same."""
    random.seed(1)  # the other instance is the first one after the block
    limiter = virtual_limiter()
    one, two = Telegram(), Telegram(latency=0.2)
    (_, bot, _), (_, other, _) = paced(one, limiter=limiter), paced(two, limiter=limiter)
    two.errors = [too_many(6), too_many(5)]
    refused = asyncio.create_task(other.send_message(7, "refused twice"))
    await asyncio.sleep(0.01)
    await asyncio.gather(*(bot.send_message(7, str(i)) for i in range(4)))
    await asyncio.sleep(0.3)
    await bot(SendMediaGroup(chat_id=7, media=[InputMediaPhoto(media="1")] * 5))
    await refused
    assert (len(one.log), len(two.log)) == (5, 1)


@virtual
async def test_a_request_says_how_long_it_may_wait() -> None:
    """A 429 of 37 s is waited for inside `waiting_up_to(60)`, or where `max_wait` allows it for
    this kind, and raised otherwise, at once; later calls get the rest of the wait."""
    telegram, bot, _ = paced(max_wait={"message": 40}, errors=[too_many(37)])
    began = now()
    with waiting_up_to(60):
        await bot.edit_message_text("the answer", chat_id=7, message_id=1)
    assert 37 <= now() - began < 38
    telegram.errors, began = [too_many(37)], now()
    await bot.send_message(9, "a message")
    assert 37 <= now() - began < 38
    telegram.left.clear()
    telegram.errors, began = [too_many(60)], now()
    for slept, left in ((0, 60), (20, 40)):
        await asyncio.sleep(slept)
        with pytest.raises(TelegramRetryAfter) as caught:
            await bot.edit_message_text("x", chat_id=8, message_id=1)
        assert caught.value.retry_after == left
    assert len(telegram.left) == 1
    await asyncio.sleep(31)
    await bot.edit_message_text("x", chat_id=8, message_id=1)
    assert 60 <= telegram.log[-1][0] - began < 61


@virtual
async def test_a_request_behind_a_more_patient_one_has_its_own_patience() -> None:
    """It raises the rest of a block that is too long for it at once, also an edit with `max_wait`
    of its own. An edit that was merged ends with its patience, if the answer was a 429."""
    telegram, bot, _ = paced(max_wait={"message": 60, "edit": 3}, errors=[too_many(12)])
    patient = asyncio.create_task(bot.send_message(7, "patient"))
    await asyncio.sleep(2)
    with pytest.raises(TelegramRetryAfter):
        await bot.edit_message_text("x", chat_id=7, message_id=1)
    with waiting_up_to(5), pytest.raises(TelegramRetryAfter):
        await bot.send_message(7, "x")
    assert now() - 1_000 < 2.1
    await patient
    telegram, bot, _ = paced(max_wait={"message": 60, "edit": 5}, latency=0.3, errors=[too_many(8)])
    calls = [asyncio.create_task(bot.send_message(7, "patient"))]
    for text in ("half", "done"):  # the newest joins one that waits, and prolongs nothing
        await asyncio.sleep(0.1)
        calls.append(asyncio.create_task(bot.edit_message_text(text, chat_id=7, message_id=1)))
        await asyncio.sleep(1)
    await asyncio.gather(*calls)
    assert telegram.texts() == ["patient", "done"]
    telegram, bot, _ = paced(per_chat="1/s burst 1", latency=3, errors=[None, too_many(8)])
    await bot.send_message(7, "x")
    began = now()
    patient = asyncio.create_task(bot.edit_message_text("x", chat_id=7, message_id=1))
    with waiting_up_to(2), pytest.raises(NotSentError):
        await bot.edit_message_text("y", chat_id=7, message_id=1)
    assert now() - began == pytest.approx(3, abs=0.2)  # which it was on its way
    await patient
    assert telegram.texts() == ["x", "x"]


@virtual
async def test_patience_covers_everything_from_the_call_on() -> None:
    """Several 429s, the turn and the budget use up one patience; a later call has a new one."""
    telegram, bot, _ = paced(per_chat="1/10s", errors=[too_many(20)] * 3)
    began = now()
    with waiting_up_to(50):
        with pytest.raises(TelegramRetryAfter):
            await bot.send_message(10, "x")
        assert 40 <= now() - began < 41
        await bot.send_message(10, "y")
    assert telegram.texts() == ["y"]
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
    assert telegram.texts(7) == ["0", "1", "2"]


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
    _, bot, _ = paced(errors=[error])
    began = now()
    with waiting_up_to(100_000):
        await bot.send_message(7, "x")
    assert wait <= now() - began < wait + 0.5


@pytest.mark.parametrize("instances", [1, 3])
@virtual
async def test_a_raid_meets_one_429(instances: int) -> None:
    """Of 20 bans at once one is refused; all are carried out, and messages do not wait."""

    class Raided(FloodControl):  # four bans and then one a second, of all instances
        full_at = blocked_until = 0.0

        def check(self, method: str, params: Mapping[str, str]) -> None:
            if method != "banChatMember":
                return
            if (wait := max(self.blocked_until - now(), self.full_at - now() - 3)) > 0:
                self.refused += 1
                self.blocked_until = now() + wait
                raise ApiError(429, "Too Many Requests", retry_after=math.ceil(wait))
            self.full_at = max(self.full_at, now()) + 1

    limiter, floods = virtual_limiter(), Raided()
    telegrams = [Telegram(floods, latency=0.03) for _ in range(instances)]
    bots = [paced(each, limiter=limiter)[1] for each in telegrams]
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
    assert floods.refused == 1
    assert now() - 1_000 < 30
    users = [m.user_id for each in telegrams for _, m in each.log if isinstance(m, BanChatMember)]
    assert sorted(users) == [*range(20)]


@virtual
async def test_methods_without_a_budget_run_side_by_side_until_a_429() -> None:
    """Twenty calls leave at once, also those that may not wait; after their 429s they leave one
    after the other."""
    telegram, bot, _ = paced()
    await asyncio.gather(*(bot.delete_message(GROUP, i) for i in range(20)))
    assert now() - 1_000 < 1
    with without_waiting():
        assert await bot.delete_message(GROUP, 20)
    telegram.latency = lambda: 1.0
    call = SetMyCommands(commands=[BotCommand(command="x", description="x")])
    began = now()
    await asyncio.gather(*(bot(call) for _ in range(20)))
    assert now() - began < 1.5
    telegram.left.clear()
    telegram.errors = [too_many(3)] * 4
    began = now()
    await asyncio.gather(*(bot(call) for _ in range(4)))
    times = [at for at, _ in telegram.log[-4:]]
    assert times[0] - began >= 3
    assert len(telegram.left) == 4 + 4
    assert all(b - a >= 1 for a, b in pairwise(times))


@virtual
async def test_a_method_of_a_broadcast_that_waited_for_a_block_holds_back_no_other() -> None:
    """After it, calls of the method are sent at once, also if another instance met the 429."""
    limiter = virtual_limiter()
    (_, bot, _), (_, other, outgoing) = (
        paced(limiter=limiter, errors=[too_many(2)]),
        paced(limiter=limiter),
    )
    refused = asyncio.create_task(bot.set_my_name("x"))
    await asyncio.sleep(0.1)
    async with outgoing.broadcasting():
        await asyncio.gather(*(other.set_my_name("x") for _ in range(3)))
    await refused
    async with asyncio.timeout(5):
        await other.set_my_name("x")


@virtual
async def test_service_messages_count_in_a_group() -> None:
    """Twenty pins and new topics fill a group's minute, but take nothing of the burst, however late
    they are; a private chat has no such limit."""
    telegram, bot, _ = paced(latency=lambda: 0.02 if telegram.log else 1.0)
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
