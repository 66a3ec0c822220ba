"""Debts: what Telegram counts of requests that are larger, later or more than the budget knew."""

from __future__ import annotations

import asyncio

import pytest

from .virtual import now, paced, virtual


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
