"""Three processes with one Redis, against a Telegram over HTTP that counts strictly."""

from __future__ import annotations

import asyncio
import time

import pytest
from aiogram import Bot, methods
from aiogram.client.session.aiohttp import AiohttpSession
from aiogram.client.telegram import TelegramAPIServer
from aiogram.exceptions import TelegramRetryAfter

from bot_ratelimit import OutgoingLimits, waiting_up_to
from tests.benches import Pauses
from tests.servers import Server

from .fleet import run
from .strict import TOKEN, Strict

PROCESSES = 3
CHATS, EACH = 10, 8


@pytest.mark.slow
async def test_three_processes(own_server: Server) -> None:
    """A backlog arrives once and in order; a raid meets one 429; the waits of 429s are kept."""
    async with Strict() as api:
        options = {"chats": CHATS, "each": EACH, "calls": 20}
        told = await run("everything", api.url, own_server.url, PROCESSES, options)
    assert [process["lost"] for process in told] == [0] * PROCESSES
    for chat in range(1, CHATS + 1):
        texts = [seen.text.split() for seen in api.accepted("sendMessage", chat)]
        assert len(texts) == EACH
        for number in range(PROCESSES):
            found = [int(i) for who, i in texts if who == str(number)]
            assert found == [*range(number, EACH, PROCESSES)]
    users = sorted(int(seen.params["user_id"]) for seen in api.accepted("banChatMember"))
    assert users == [*range(1_000, 1_020)]
    assert api.refusals("banChatMember") <= PROCESSES  # which began at the same moment
    assert api.refusals("sendMessage") <= 5
    assert api.impatient == 0


async def stream(bot: Bot, chat: int) -> float:
    """What an AI bot sends: 40 texts in 2 s and the answer; return how long that took to leave."""
    for i in range(40):
        assert await bot(methods.SendMessageDraft(chat_id=chat, draft_id=1, text=f"frame {i}"))
        await asyncio.sleep(0.05)
    began = time.monotonic()
    await bot.send_message(chat, "the answer")
    return time.monotonic() - began


async def wait(bot: Bot) -> None:
    """A wait beyond `max_wait` is an error, unless the caller allows more."""
    with pytest.raises(TelegramRetryAfter):
        await bot.send_dice(8)
    with waiting_up_to(60):
        await bot.send_dice(9)


@pytest.mark.skipif(not hasattr(methods, "SendMessageDraft"), reason="it needs aiogram 3.24")
async def test_drafts_and_waits_over_http() -> None:
    """A draft's 429 delays no answer, and patience is kept."""
    script = {"sendMessageDraft": [None, {"retry_after": 1}], "sendDice": [{"retry_after": 2}] * 2}
    async with Strict(script) as api:
        session = AiohttpSession(api=TelegramAPIServer.from_base(api.url))
        async with Bot(TOKEN, session) as bot:
            OutgoingLimits(max_wait=1).setup(bot)
            with Pauses() as pauses:
                answered, _ = await asyncio.gather(stream(bot, 7), wait(bot))
            await asyncio.sleep(0.3)
    assert answered < 0.1 + 2 * pauses.longest
    shown = [each.text for each in api.accepted("sendMessageDraft")]
    assert len(shown) >= 1 + 2.5  # a second was blocked
    assert api.seen[-1].method != "sendMessageDraft"  # nothing obsolete comes later
    assert api.refusals() == 3  # those of the script
    assert api.impatient == 0
