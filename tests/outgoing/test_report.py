"""What operators are told about what the bot sends."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from typing import Any

import pytest
from aiogram.exceptions import TelegramRetryAfter

from bot_ratelimit import Limiter, MemoryStorage, OutgoingLimits
from bot_ratelimit.outgoing.progress import Progress
from bot_ratelimit.outgoing.report import EVERY

from .virtual import Telegram, paced, too_many, virtual, virtual_limiter

KEY = "bot:ratelimit:instances:sending"


async def reported(limiter: Limiter) -> list[dict[str, Any]]:
    """The reports of all instances, after the next one is due."""
    await asyncio.sleep(EVERY + 0.1)
    documents = limiter.storage.documents()
    assert documents is not None
    return [json.loads(each) for each in (await documents.reports(KEY)).values()]


@virtual
async def test_what_waits_and_what_is_blocked_is_reported() -> None:
    """While requests wait or a 429 holds, each instance says so; afterwards it says nothing."""
    telegram, limiter = Telegram(), virtual_limiter()
    bot, outgoing = paced(telegram, limiter=limiter, max_wait=60, statistics=True)
    telegram.errors = [too_many(30)]
    several = [asyncio.create_task(bot.send_message(7, f"{i}")) for i in range(3)]
    (told,) = await reported(limiter)
    assert (told["waiting"], told["broadcasts"]) == (3, [])
    ((whose, scope, chat, until),) = told["blocks"]
    assert (whose, scope, chat) == (42, "chat", "7")
    assert 20 < until - time.time() <= 30
    for each in several:
        each.cancel()
    await asyncio.sleep(40)
    assert await reported(limiter) == []
    telegram.errors = [too_many(30)]
    waiting = asyncio.create_task(bot.send_message(7, "again"))
    assert len(await reported(limiter)) == 1
    await outgoing.close()
    assert await reported(limiter) == []
    await asyncio.gather(waiting, return_exceptions=True)


@virtual
async def test_the_progress_of_a_broadcast_is_reported() -> None:
    """How far it is, the outcomes and the rate, while it runs."""
    limiter = virtual_limiter()
    bot, outgoing = paced(Telegram(), limiter=limiter, broadcast="10/s", statistics=True)
    progress = Progress(100)
    looks = []
    async for sent in outgoing.broadcast(
        range(1, 101), lambda chat: bot.send_message(chat, "news"), progress=progress
    ):
        assert sent
        if progress.counts.total() == 50:
            looks = await reported(limiter)
    (shown,) = looks[0]["broadcasts"]
    assert (shown["total"], shown["skipped"], set(shown["counts"])) == (100, 0, {"sent"})
    assert 50 <= shown["done"] <= 100
    assert shown["per_second"] > 0
    assert await reported(limiter) == []
    await outgoing.close()


@virtual
async def test_requests_and_429s_are_counted() -> None:
    """By method and outcome, each 429 by what it was about; without statistics nothing is kept."""
    telegram = Telegram()
    limiter = Limiter(MemoryStorage(), statistics=True)
    bot, outgoing = paced(telegram, limiter=limiter, retries=0)
    await bot.send_message(7, "sent")
    telegram.errors = [too_many(3)]
    with pytest.raises(TelegramRetryAfter):
        await bot.send_message(8, "flooded")
    await outgoing.close()
    found = Counter({(each.rule, each.outcome): each.count for each in await limiter.requests()})
    assert found == {("SendMessage", "sent"): 1, ("SendMessage", "flooded"): 1, ("chat", "429"): 1}
    silent = OutgoingLimits(limiter=limiter, statistics=False)
    assert not silent._observer.each
