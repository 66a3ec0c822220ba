"""Pacing: how fast, in which order, and what waits for what."""

from __future__ import annotations

import asyncio
import random

import pytest
from aiogram.exceptions import TelegramRetryAfter
from aiogram.methods import (
    AnswerCallbackQuery,
    CopyMessages,
    DeleteMessage,
    GetChat,
    SendMediaGroup,
)
from aiogram.types import InputMediaPhoto

from bot_ratelimit import (
    Limiter,
    MemoryStorage,
    NotSentError,
    SendQueueFullError,
    Subject,
    without_waiting,
)
from example_bot.demo.floods import FloodControl
from tests.recorder import Recorder

from .virtual import Telegram, now, paced, too_many, virtual

GROUP = -100


def near(times: list[float], expected: list[float]) -> bool:
    return times == pytest.approx(expected, abs=0.1)


@virtual
async def test_a_chat_gets_a_burst_and_then_one_a_second() -> None:
    """Five messages are sent at once, and each further one a second after the last.

    In a group the 21st is sent a minute after the first. With None for every budget nothing waits.
    """
    telegram = Telegram()
    bot, _ = paced(telegram)
    await asyncio.gather(*(bot.send_message(7, str(i)) for i in range(8)))
    assert near(telegram.times(), [0, 0, 0, 0, 0, 1, 2, 3])
    assert telegram.texts() == [str(i) for i in range(8)]
    await asyncio.gather(*(bot.send_message(GROUP, str(i)) for i in range(22)))
    times = telegram.times(GROUP)
    assert times[19] == pytest.approx(15, abs=0.2)
    assert times[20:] == pytest.approx([60, 60], abs=0.2)
    bot, outgoing = paced(Telegram(), per_chat=None, per_group=None, broadcast=None)
    began = now()
    async with outgoing.broadcasting():
        await asyncio.gather(*(bot.send_message(GROUP, str(i)) for i in range(200)))
    assert now() - began < 5


@virtual
async def test_a_busy_chat_delays_no_other() -> None:
    """With 100 messages waiting for one chat, a hundred users get replies at once: there is no
    common limit on replies. Answers, getters and deletions in the busy chat do not wait either."""
    telegram = Telegram()
    bot, _ = paced(telegram)
    backlog = [asyncio.create_task(bot.send_message(7, str(i))) for i in range(100)]
    await asyncio.sleep(3)
    began = now()
    await asyncio.gather(*(bot.send_message(i, "hello") for i in range(8, 108)))
    await bot(AnswerCallbackQuery(callback_query_id="1"))
    await bot(GetChat(chat_id=7))
    await bot(DeleteMessage(chat_id=7, message_id=1))
    assert now() - began < 0.1
    await asyncio.gather(*backlog)
    texts = [text for text in telegram.texts(7) if text.isdigit()]
    assert texts == [str(i) for i in range(100)]


@virtual
async def test_a_channel_has_a_budget_under_its_name() -> None:
    """`@Channel` and `@channel` are the same chat, and another channel is another chat."""
    telegram = Telegram()
    bot, _ = paced(telegram, per_chat="1/s burst 1")
    await asyncio.gather(*(bot.send_message(c, "x") for c in ("@News", "@news", "@other", "7", 7)))
    assert near(telegram.times("@other"), [0])
    assert near(sorted(telegram.times("@News") + telegram.times("@news")), [0, 0])
    assert sorted(round(at - telegram.log[0][0], 1) for at, _ in telegram.log) == [0, 0, 0, 1, 1]


@virtual
async def test_only_broadcasts_use_the_broadcast_budget() -> None:
    """Inside `broadcasting()` 25 are sent per second, while replies are sent at once."""
    telegram = Telegram()
    bot, outgoing = paced(telegram)

    async def broadcast() -> None:
        async with outgoing.broadcasting():
            await asyncio.gather(*(bot.send_message(i, "news") for i in range(1, 101)))

    task = asyncio.create_task(broadcast())
    await asyncio.sleep(1.5)
    began = now()
    await bot.send_message(90, "reply")
    assert now() - began < 0.05
    await task
    times = telegram.times()
    assert times[-1] == pytest.approx(3, abs=0.2)
    for start in times:
        assert sum(start <= at < start + 0.9 for at in times) <= 26


@virtual
async def test_paid_broadcasts_have_a_budget_of_a_thousand() -> None:
    """With `allow_paid_broadcast` a thousand users are reached within a second."""
    telegram = Telegram()
    bot, outgoing = paced(telegram)
    async with outgoing.broadcasting():
        paid = (bot.send_message(i, "x", allow_paid_broadcast=True) for i in range(1, 1_011))
        await asyncio.gather(*paid)
    assert near(telegram.times()[999:1_001], [0, 1])


@virtual
async def test_waiting_requests_are_bounded() -> None:
    """Above `max_waiting` for its chat, or ten times as many in all, a request fails at once; the
    error says how many wait. A cancelled one takes no permit, and the next is sent instead."""
    telegram = Telegram()
    bot, _ = paced(telegram, max_waiting=10)
    others = [asyncio.create_task(bot.send_message(8, str(i))) for i in range(8)]
    tasks = [asyncio.create_task(bot.send_message(7, str(i))) for i in range(30)]
    await asyncio.sleep(0.5)
    for task in tasks[5:10]:
        task.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(each, asyncio.CancelledError) for each in outcomes[5:10]] == [True] * 5
    full = [each for each in outcomes if isinstance(each, SendQueueFullError)]
    assert len(full) == 19
    assert str(full[0]) == (
        "sendMessage to chat 7 was not sent: 10 requests wait for this chat; send less or raise "
        "per_chat (max_waiting=10)"
    )
    await asyncio.gather(*others)
    assert near(telegram.times(7), [0, 0, 0, 0, 0, 1])
    assert telegram.texts(7) == ["0", "1", "2", "3", "4", "10"]
    bot, _ = paced(Telegram(), max_waiting=2, per_chat="1/minute")
    many = (bot.send_message(i // 3, "x") for i in range(30, 120))
    outcomes = await asyncio.gather(*many, return_exceptions=True)
    assert sum(isinstance(each, SendQueueFullError) for each in outcomes) > 10


@virtual
async def test_without_waiting_is_one_try() -> None:
    """Inside `without_waiting()` a request is sent at once or raises NotSentError, which says what
    is true; a 429 is raised, and an earlier block without asking Telegram."""
    telegram = Telegram()
    bot, _ = paced(telegram, per_chat="1/s burst 1")
    with without_waiting():
        await bot.send_message(7, "goes")
        with pytest.raises(NotSentError, match="sendMessage to chat 7 was not sent"):
            await bot.send_message(7, "dropped")
    task = asyncio.create_task(bot.send_message(7, "waits"))
    await asyncio.sleep(0.1)
    with without_waiting(), pytest.raises(NotSentError):
        await bot.send_message(7, "dropped")
    await task
    assert telegram.texts() == ["goes", "waits"]
    calls = (
        lambda: bot.send_message(8, "x"),
        lambda: bot.edit_message_text("x", chat_id=9, message_id=1),
        lambda: bot.ban_chat_member(GROUP, 1),
    )
    for call in calls:
        telegram.left.clear()
        telegram.errors = [too_many(30)]
        with without_waiting():
            with pytest.raises(TelegramRetryAfter):
                await call()
            with pytest.raises(NotSentError, match="it would have to wait"):
                await call()
        assert len(telegram.left) == 1


@virtual
async def test_a_reply_passes_a_broadcast_to_the_same_chat() -> None:
    """A broadcast that waits lets a reply to the same chat go first."""
    telegram = Telegram()
    bot, outgoing = paced(telegram, per_chat="1/s burst 1", broadcast="1/10s")

    async def broadcast(chat: int) -> None:
        async with outgoing.broadcasting():
            await bot.send_message(chat, "news")

    tasks = [asyncio.create_task(broadcast(chat)) for chat in (1, 2)]
    await asyncio.sleep(2)  # chat 2 has its place, and waits for the budget
    began = now()
    await bot.send_message(2, "reply")
    assert now() - began < 0.05
    tasks.append(asyncio.create_task(broadcast(2)))
    await bot.send_message(2, "another")
    await asyncio.gather(*tasks)
    assert telegram.texts(2) == ["reply", "another", "news", "news"]


@virtual
async def test_an_album_costs_its_items() -> None:
    """Ten photos are sent at once, and the chat then waits for all ten permits."""
    telegram = Telegram(FloodControl(clock=now))
    bot, _ = paced(telegram)
    photos = [InputMediaPhoto(media=str(i)) for i in range(10)]
    await asyncio.gather(
        bot(SendMediaGroup(chat_id=7, media=photos)), bot.send_message(7, "behind it")
    )
    assert telegram.times() == pytest.approx([0, 6], abs=0.2)
    await asyncio.gather(
        bot(CopyMessages(chat_id=8, from_chat_id=7, message_ids=[*range(20)])),
        bot.send_message(8, "behind it"),
    )
    assert telegram.times(8) == pytest.approx([0, 16], abs=0.2)
    assert not telegram.refusals


@virtual
async def test_a_slow_answer_is_overtaken() -> None:
    """During an upload of a minute, the chat's next message is sent after five seconds.

    With `in_order=False` no request waits for the answer to another.
    """
    telegram = Telegram()
    bot, _ = paced(telegram)
    telegram.latency = lambda: 60.0 if not telegram.left[1:] else 0.02
    await asyncio.gather(bot.send_message(7, "a video"), bot.send_message(7, "a text"))
    assert telegram.texts() == ["a text", "a video"]
    assert telegram.log[0][0] - 1_000 == pytest.approx(5, abs=0.1)
    telegram = Telegram(latency=2.0)
    bot, _ = paced(telegram, in_order=False)
    await asyncio.gather(*(bot.send_message(7, str(i)) for i in range(5)))
    assert telegram.times()[-1] < 0.1


@pytest.mark.parametrize("group", [False, True], ids=["private", "group"])
@virtual
async def test_a_backlog_is_sent_at_telegrams_limit_without_429(group: bool) -> None:
    """At Telegram's limits with varying latencies: no 429, and 95 % of the maximum."""
    random.seed(1)
    floods = FloodControl(clock=now, bulk=1_000_000)  # replies, all of them
    telegram = Telegram(floods, latency=lambda: random.uniform(0.02, 0.3))
    bot, _ = paced(telegram, margin=0.02)
    chats, each = range(1, 11), 60
    sign = -1 if group else 1
    await asyncio.gather(
        *(bot.send_message(sign * chat, str(i)) for i in range(each) for chat in chats)
    )
    assert sum(telegram.refusals.values()) == 0
    ideal = 135.0 if group else each - 5
    assert telegram.times()[-1] <= ideal / 0.95
    assert all(texts == [str(i) for i in range(each)] for texts in telegram.by_chat().values())


@virtual
async def test_bans_do_not_apply_to_outgoing_requests() -> None:
    """The bot can write to a banned chat, and this is not reported as a decision."""
    recorder, clock = Recorder(), asyncio.get_running_loop().time
    limiter = Limiter(MemoryStorage(clock=clock), clock=clock, observer=recorder)
    await limiter.ban(Subject(chat=7), "1h")
    telegram = Telegram()
    bot, _ = paced(telegram, limiter=limiter)
    async with asyncio.timeout(5):
        await bot.send_message(7, "You are not heard here for an hour.")
    assert len(telegram.texts()) == 1
    assert recorder.named("decided") == []
    assert not await limiter.hit("9/m", Subject(user=1, chat=7))
