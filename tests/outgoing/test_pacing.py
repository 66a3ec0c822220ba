"""Pacing: how fast, in which order, what waits for what, and what observers are told."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from aiogram import Bot, Dispatcher, methods
from aiogram.exceptions import TelegramBadRequest, TelegramRetryAfter
from aiogram.methods import (
    AnswerCallbackQuery,
    CopyMessages,
    DeleteMessage,
    GetChat,
    SendMediaGroup,
    SendMessage,
)
from aiogram.types import InputMediaPhoto, Message, Update

from bot_ratelimit import (
    Limiter,
    MemoryStorage,
    Notices,
    NotSentError,
    OutgoingLimits,
    RateLimitMiddleware,
    SendQueueFullError,
    Subject,
    without_waiting,
)
from example_bot.demo.floods import FloodControl
from tests.incoming.support import chat as chat_of
from tests.incoming.support import message
from tests.incoming.support import user as user_of
from tests.recorder import Recorder

from .virtual import TOKEN, Telegram, now, paced, too_many, virtual, virtual_limiter

GROUP = -100


def near(times: list[float], expected: list[float]) -> bool:
    return times == pytest.approx(expected, abs=0.1)


@virtual
async def test_a_chat_gets_a_burst_and_then_one_a_second() -> None:
    """Five messages are sent at once, and each further one a second after the last.

    In a group the 21st is sent a minute after the first. With None for every budget nothing waits.
    """
    telegram, bot, _ = paced()
    await asyncio.gather(*(bot.send_message(7, str(i)) for i in range(8)))
    assert near(telegram.times(), [0, 0, 0, 0, 0, 1, 2, 3])
    assert telegram.texts() == [str(i) for i in range(8)]
    await asyncio.gather(*(bot.send_message(GROUP, str(i)) for i in range(22)))
    times = telegram.times(GROUP)
    assert times[19] == pytest.approx(15, abs=0.2)
    assert times[20:] == pytest.approx([60, 60], abs=0.2)
    _, bot, outgoing = paced(per_chat=None, per_group=None, broadcast=None)
    began = now()
    async with outgoing.broadcasting():
        await asyncio.gather(*(bot.send_message(GROUP, str(i)) for i in range(200)))
    assert now() - began < 5


@virtual
async def test_a_busy_chat_delays_no_other() -> None:
    """With 100 messages waiting for one chat, a hundred users get replies at once: there is no
    common limit on replies. Answers, getters and deletions in the busy chat do not wait either."""
    telegram, bot, _ = paced()
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
async def test_only_broadcasts_use_the_broadcast_budget() -> None:
    """Inside `broadcasting()` 25 are sent per second, while replies are sent at once.

    With `allow_paid_broadcast` a thousand users are reached within a second.
    """
    telegram, bot, outgoing = paced()

    async def broadcast(*users: int, paid: bool | None = None) -> None:
        async with outgoing.broadcasting():
            news = (bot.send_message(i, "news", allow_paid_broadcast=paid) for i in users)
            await asyncio.gather(*news)

    task = asyncio.create_task(broadcast(*range(1, 101)))
    await asyncio.sleep(1.5)
    began = now()
    await bot.send_message(90, "reply")
    assert now() - began < 0.05
    await task
    times = telegram.times()
    assert times[-1] == pytest.approx(3, abs=0.2)
    for start in times:
        assert sum(start <= at < start + 0.9 for at in times) <= 26
    telegram.log.clear()
    await broadcast(*range(1_001, 2_011), paid=True)
    assert near(telegram.times()[999:1_001], [0, 1])


@virtual
async def test_waiting_requests_are_bounded() -> None:
    """Above `max_waiting` for its chat, or behind others while ten times as many wait in all, a
    request fails at once; the error says how many wait. A cancelled one takes no permit, and the
    next is sent instead."""
    telegram, bot, _ = paced(max_waiting=10)
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
    telegram, bot, _ = paced(max_waiting=2, per_chat="1/s burst 1")
    many = [
        asyncio.create_task(bot.send_message(chat, str(i))) for i in range(3) for chat in range(10)
    ]
    await asyncio.sleep(0.5)
    with pytest.raises(SendQueueFullError, match="20 requests wait in this process"):
        await bot.send_message(5, "behind others")
    await bot.send_message(99, "where nobody waits")
    await asyncio.gather(*many)
    assert len(telegram.log) == 31


@virtual
async def test_without_waiting_is_one_try() -> None:
    """Inside `without_waiting()` a request is sent at once or raises NotSentError, which says what
    is true; a 429 is raised, and an earlier block without asking Telegram."""
    telegram, bot, _ = paced(per_chat="1/s burst 1")
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
    telegram, bot, outgoing = paced(per_chat="1/s burst 1", broadcast="1/10s")

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
    telegram, bot, _ = paced(Telegram(floods := FloodControl(clock=now)))
    photos = [InputMediaPhoto(media=str(i)) for i in range(10)]
    copies = CopyMessages(chat_id=8, from_chat_id=7, message_ids=[*range(20)])
    for album, seconds in ((SendMediaGroup(chat_id=7, media=photos), 6), (copies, 16)):
        await asyncio.gather(bot(album), bot.send_message(album.chat_id, "behind it"))
        assert near(telegram.times(album.chat_id), [0, seconds])
    assert floods.refused == 0


@virtual
async def test_what_an_album_owes_is_neither_forgotten_nor_kept_too_long() -> None:
    """Ten photos use up ten seconds, whatever else is sent meanwhile, and time pays for them."""
    telegram, bot, outgoing = paced()
    album = SendMediaGroup(chat_id=7, media=[InputMediaPhoto(media="1")] * 10)
    await bot(album)
    await asyncio.sleep(5.5)
    await bot.send_message(8, "another chat")
    await asyncio.gather(*(bot.send_message(7, "x") for _ in range(5)))
    assert near(telegram.times(7)[1:], [6, 7, 8, 9, 10])
    await asyncio.sleep(60)
    await bot(album)
    await asyncio.sleep(3600)
    began = now()
    await bot.send_message(7, "x")
    assert now() - began < 0.1
    telegram.log.clear()
    telegram.errors = [too_many(8)]
    with without_waiting(), pytest.raises(TelegramRetryAfter):
        await bot.send_message(9, "blocks the chat")

    async def broadcast() -> None:
        async with outgoing.broadcasting():
            await bot.send_message(9, "news")

    news = asyncio.create_task(broadcast())
    await asyncio.sleep(0.1)  # so that it waits for the block
    await bot(album.model_copy(update={"chat_id": 9}))
    await news
    await bot.send_message(9, "next")
    assert near(telegram.times(9), [0, 6, 7])


@virtual
async def test_a_slow_answer_is_overtaken() -> None:
    """During an upload of a minute, the chat's next message is sent after five seconds.

    With `in_order=False` no request waits for the answer to another.
    """
    telegram, bot, _ = paced()
    telegram.latency = lambda: 60.0 if not telegram.left[1:] else 0.02
    await asyncio.gather(bot.send_message(7, "a video"), bot.send_message(7, "a text"))
    assert telegram.texts() == ["a text", "a video"]
    assert telegram.log[0][0] - 1_000 == pytest.approx(5, abs=0.1)
    telegram, bot, _ = paced(latency=2.0, in_order=False)
    await asyncio.gather(*(bot.send_message(7, str(i)) for i in range(5)))
    assert telegram.times()[-1] < 0.1


@pytest.mark.parametrize("group", [False, True], ids=["private", "group"])
@virtual
async def test_a_backlog_is_sent_at_telegrams_limit_without_429(group: bool) -> None:
    """At Telegram's limits with varying latencies: no 429, and 95 % of the maximum."""
    random.seed(1)
    floods = FloodControl(clock=now, bulk=1_000_000)  # replies, all of them
    telegram, bot, _ = paced(
        Telegram(floods, latency=lambda: random.uniform(0.02, 0.3)), margin=0.02
    )
    chats, each = range(1, 11), 60
    sign = -1 if group else 1
    await asyncio.gather(
        *(bot.send_message(sign * chat, str(i)) for i in range(each) for chat in chats)
    )
    assert floods.refused == 0
    ideal = 135.0 if group else each - 5
    assert telegram.times()[-1] <= ideal / 0.95
    for chat in chats:
        assert telegram.texts(sign * chat) == [str(i) for i in range(each)]


@virtual
async def test_bans_do_not_apply_to_outgoing_requests() -> None:
    """The bot can write to a banned chat, and this is not reported as a decision."""
    recorder, clock = Recorder(), asyncio.get_running_loop().time
    limiter = Limiter(MemoryStorage(clock=clock), clock=clock, observer=recorder)
    await limiter.ban(Subject(chat=7), "1h")
    telegram, bot, _ = paced(limiter=limiter)
    async with asyncio.timeout(5):
        await bot.send_message(7, "You are not heard here for an hour.")
    assert len(telegram.texts()) == 1
    assert recorder.named("decided") == []
    assert not await limiter.hit("9/m", Subject(user=1, chat=7))


def started(bot: Bot, limit: str, answers: bool = True, **options: Any) -> Callable[..., Any]:
    """A bot with a handler, and how it is fed a message."""
    dispatcher = Dispatcher()
    dispatcher.message.middleware(RateLimitMiddleware(limit, limiter=virtual_limiter(), **options))

    @dispatcher.message()
    async def handle(event: Message) -> None:
        if answers:
            await event.answer("answer")

    async def feed(**fields: Any) -> None:
        content = {"update_id": 1, "message": message("hello", **fields)}
        update = Update.model_validate(content, context={"bot": bot})
        await dispatcher.feed_update(bot, update)

    return feed


@virtual
async def test_a_notice_that_would_wait_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    """Without a delay or a log line; the user is notified at a later refusal, once."""
    caplog.set_level(logging.INFO)
    telegram = Telegram()
    feed = started(paced(telegram, per_chat="1/5s burst 1")[1], "1/h")
    await feed()
    began = now()
    await feed()
    assert now() - began < 0.1
    assert telegram.texts() == ["answer"]
    for _ in range(2):
        await asyncio.sleep(6)
        await feed()
    first, told = telegram.texts()
    assert first == "answer"
    assert told.startswith("Too many requests")
    assert "Could not tell a user" not in caplog.text


@pytest.mark.parametrize("is_paced", [False, True])
@virtual
async def test_a_group_gets_few_notices(is_paced: bool) -> None:
    """If 20 members of a group send too much, the group gets three notices a minute."""
    telegram = Telegram()
    bot = paced(telegram)[1] if is_paced else Bot(TOKEN, telegram)
    feed = started(bot, "1/h", answers=False, on_limited=Notices(in_groups=True))
    for notices in (3, 6):
        for user in [*range(1, 21)] * 2:
            await feed(**{"from": user_of(user), "chat": chat_of(-100, "group")})
        assert len(telegram.texts()) == notices
        await asyncio.sleep(61)


@virtual
async def test_waits_and_waiting_requests_are_reported() -> None:
    """Observers get the delay of a request and the number of those that wait, without actions and
    what is in progress."""
    telegram, recorder = Telegram(), Recorder()
    _, bot, _ = paced(telegram, observer=recorder, per_chat="1/10s")
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
    _, bot, _ = paced(telegram, observer=recorder, retries=1)
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


@virtual
async def test_a_replaced_edit_or_draft_is_not_counted_as_unsent() -> None:
    """Its users see the newer one. A draft that a long block drops is not shown, so it is."""
    recorder = Recorder()
    telegram, bot, _ = paced(per_chat="1/s burst 1", observer=recorder)
    await bot.send_message(7, "x")
    edits = (bot.edit_message_text(str(i), chat_id=7, message_id=1) for i in range(3))
    await asyncio.gather(*edits)
    if not hasattr(methods, "SendMessageDraft"):
        pytest.skip("SendMessageDraft needs aiogram 3.24")
    drafts = [methods.SendMessageDraft(chat_id=7, draft_id=1, text=str(i)) for i in range(5)]
    for each in drafts[:3]:
        await bot(each)
    await asyncio.sleep(5)
    telegram.errors = [too_many(30)]
    for each in drafts[3:]:
        await bot(each)
    told = [(method, outcome) for _, method, outcome, _ in recorder.named("request_done")]
    assert Counter(told) == {
        ("SendMessage", "sent"): 1,
        ("EditMessageText", "sent"): 3,
        ("SendMessageDraft", "sent"): 3,
        ("SendMessageDraft", "flooded"): 1,
        ("SendMessageDraft", "unsent"): 1,
    }


@virtual
async def test_each_request_is_reported_and_counted() -> None:
    """Sent, failed, flooded and unsent requests once each, and each 429 by what it was about; with
    `statistics=False` nothing is counted."""
    telegram, recorder = Telegram(), Recorder()
    limiter = Limiter(MemoryStorage(), statistics=True)
    options = {"limiter": limiter, "observer": recorder}
    _, bot, outgoing = paced(telegram, **options, per_chat="1/10s", retries=0)
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
    told = [("SendMessage", outcome) for outcome in ("sent", "unsent", "failed", "flooded")]
    assert [(each[1], each[2]) for each in recorder.named("request_done")] == told
    assert recorder.named("flood_waited") == [("flood_waited", "chat", 3.0)]
    await outgoing.close()
    found = Counter({(each.rule, each.outcome): each.count for each in await limiter.requests()})
    assert found == Counter([*told, ("chat", "429")])
    assert not OutgoingLimits(limiter=limiter, statistics=False)._observer.each
