"""Permits: what is taken of which budgets, and when; what is owed for what was large or late."""

from __future__ import annotations

import asyncio
import math
import random

import pytest
from aiogram.exceptions import TelegramRetryAfter
from aiogram.methods import SendMediaGroup
from aiogram.types import InputMediaPhoto

from bot_ratelimit import (
    Limiter,
    MemoryStorage,
    NotSentError,
    Status,
    waiting_up_to,
    without_waiting,
)
from bot_ratelimit.testing import FlakyStorage
from example_bot.demo.floods import FloodControl
from tests.recorder import Recorder

from .virtual import Telegram, now, paced, too_many, virtual, virtual_limiter


def album_of(items: int, chat: int = 7) -> SendMediaGroup:
    return SendMediaGroup(chat_id=chat, media=[InputMediaPhoto(media="1")] * items)


@pytest.mark.parametrize("limit", ["5000/s", "1000000/s", "1000000/s burst 5"])
@virtual
async def test_a_limit_may_be_as_high_as_any(limit: str) -> None:
    """A budget of many thousands a second delays nothing, and fails no request."""
    telegram, bot, _ = paced(per_chat=limit)
    began = now()
    await asyncio.gather(*(bot.send_message(7, "x") for _ in range(5)))
    assert now() - began < 1
    assert len(telegram.log) == 5


@pytest.mark.parametrize("seconds", [3, 20])
@virtual
async def test_an_upload_counts_from_its_answer_on(seconds: int) -> None:
    """However long it took, and although other chats were busy meanwhile: it may be what Telegram
    has got last."""
    telegram, bot, _ = paced()
    telegram.latency = lambda: seconds if len(telegram.left) == 1 else 0.02
    upload = asyncio.create_task(bot.send_message(7, "a video"))
    while not upload.done():
        await asyncio.sleep(0.5)
        await bot.send_message(8 + int(now()), "another chat")
    began = now()
    await asyncio.gather(*(bot.send_message(7, "x") for _ in range(5)))
    assert now() - began > 0.4  # a second after the answer


@virtual
async def test_a_broadcast_that_waits_for_its_budget_learns_of_a_block() -> None:
    """Nobody sends to a chat after a 429, also if another instance gets it while a message of a
    broadcast waits for the budget of the whole bot."""
    limiter, one, two = virtual_limiter(), Telegram(), Telegram()
    (_, bot, _), (_, other, outgoing) = paced(one, limiter=limiter), paced(two, limiter=limiter)
    async with outgoing.broadcasting():
        chats = [*range(100, 160), 7]
        news = [asyncio.create_task(other.send_message(chat, "news")) for chat in chats]
        await asyncio.sleep(0.3)
    one.errors, began = [too_many(5)], now()
    with without_waiting(), pytest.raises(TelegramRetryAfter):
        await bot.send_message(7, "a reply")
    await asyncio.gather(*news)
    assert [at - began >= 5 for at, message in two.log if message.chat_id == 7] == [True]
    assert sum(at - began < 5 for at, _ in two.log) == 60


@pytest.mark.parametrize("each", [1, 3])
@virtual
async def test_replies_during_a_broadcast_are_no_flood(each: int) -> None:
    """A message of a broadcast takes the permit of its chat when it leaves, and not before it waits
    for the budget of the whole bot: albums between replies get no 429."""
    random.seed(1)
    floods = FloodControl(clock=now, bulk=30)
    telegram = Telegram(floods, latency=lambda: random.uniform(0.02, 0.1))
    _, bot, outgoing = paced(telegram, margin=0.02)
    chats = [chat if random.random() < 0.7 else -chat for chat in range(1, 101)]

    async def send(chat: int) -> None:
        for _ in range(each):
            await bot(album_of(random.randint(2, 7), chat))

    async def broadcast() -> None:
        async for sent in outgoing.broadcast(chats, send):
            assert sent.status is Status.SENT

    sending = [asyncio.create_task(broadcast())]
    for chat in random.choices(chats, k=150):
        floods.wrote(chat)
        sending.append(asyncio.create_task(bot.send_message(chat, "reply")))
        await asyncio.sleep(random.choice([0, 0.05, 0.2]))
    await asyncio.gather(*sending)
    assert floods.refused == 0


@pytest.mark.parametrize("per_chat", ["1/s burst 5", "1/s"])
@virtual
async def test_albums_of_several_instances_are_no_flood(per_chat: str) -> None:
    """What an album owes is charged to the budget that all instances share; time pays for it."""
    for seed in range(4):
        random.seed(seed)
        floods = FloodControl(clock=now, bulk=1_000_000)
        limiter, options = virtual_limiter(), {"per_chat": per_chat, "margin": 0.02}
        telegrams = [Telegram(floods, latency=0.04) for _ in range(2)]
        bots = [paced(each, limiter=limiter, **options)[1] for each in telegrams]
        sending = []
        for _ in range(60):
            chat, items = random.choice([7, 8, -9]), random.choice([1, 1, 1, 4, 10])
            sending.append(asyncio.create_task(random.choice(bots)(album_of(items, chat))))
            await asyncio.sleep(random.choice([0, 0.3, 4, 8]))
        await asyncio.gather(*sending)
        assert floods.refused == 0


@pytest.mark.parametrize("is_down", [False, True])
@virtual
async def test_without_the_storage_an_album_is_owed_as_well(is_down: bool) -> None:
    """This process remembers it, whether the storage failed before the album or after it."""
    storage = FlakyStorage()
    _, bot, _ = paced(limiter=Limiter(storage, on_error="memory", clock=now))
    began = now()
    if is_down:
        storage.fail()
    await bot(album_of(10))
    storage.fail()
    with waiting_up_to(5.7), pytest.raises(NotSentError, match="would have to wait 6 s"):
        await bot.send_message(7, "x")
    assert now() - began < 0.1


@virtual
async def test_without_the_storage_every_permit_is_known() -> None:
    """Also one for which it was a moment too early by the clock of this process."""
    storage = FlakyStorage(MemoryStorage(clock=now))
    _, bot, _ = paced(limiter=Limiter(storage, on_error="memory", clock=now))
    for _ in range(8):
        await bot.send_message(7, "x")
        await asyncio.sleep(1)
    storage.fail()
    with waiting_up_to(1), pytest.raises(NotSentError, match="would have to wait 4 s"):
        await bot.send_message(7, "x")


@virtual
async def test_429s_of_a_broadcast_in_quiet_chats_block_the_bot() -> None:
    """A broadcast that is too fast as a whole is recognised also while its budget is used up."""
    recorder = Recorder()
    telegram, bot, outgoing = paced(observer=recorder, broadcast="5/s")
    async with outgoing.broadcasting():
        telegram.errors = [None, None, too_many(4), too_many(4), too_many(4)]
        await asyncio.gather(*(bot.send_message(chat, "news") for chat in range(1, 11)))
    scopes = [scope for _, scope, _ in recorder.named("flood_waited")]
    assert scopes == ["chat", "chat", "bot"]
    assert telegram.times()[-1] > 4


@virtual
async def test_a_broadcast_counts_all_of_a_large_request() -> None:
    """Also what exceeds the limit of broadcasts at once, and by whatever business connection."""
    telegram, bot, outgoing = paced(broadcast="25/s", per_chat=None)
    async with outgoing.broadcasting():
        numbers = list(range(1, 101))
        await asyncio.gather(*(bot.copy_messages(chat, 1, numbers) for chat in range(1, 6)))
        assert telegram.times()[-1] == pytest.approx(16, abs=0.5)  # after the first one
        await asyncio.sleep(5)
        began, left = now(), len(telegram.log)
        connections = ("a", "b", "c", "d")
        sends = (
            bot.send_message(chat, "x", business_connection_id=connection)
            for connection in connections
            for chat in range(1, 26)
        )
        await asyncio.gather(*sends)
    assert len(telegram.log) - left == 100
    assert now() - began == pytest.approx(3, abs=0.3)


@virtual
async def test_a_block_of_the_whole_bot_is_waited_for_once() -> None:
    """However many chats of a broadcast meet it, or wait for the common limit meanwhile."""
    telegram, bot, outgoing = paced()
    began, check = now(), telegram._check

    def blocked(method: object) -> None:
        if 2 <= (at := now() - began) < 32:
            raise too_many(math.ceil(32 - at))
        check(method)  # type: ignore[arg-type]

    telegram._check = blocked  # type: ignore[method-assign]
    run = outgoing.broadcast(range(1, 201), lambda chat: bot.send_message(chat, "x"))
    assert [sent.status async for sent in run] == [Status.SENT] * 200
    assert now() - began < 45
