"""Bots in processes of their own: `python -m tests.outgoing.programs NAME URL ...`."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from typing import Any

import redis.asyncio as aioredis
from aiogram import Bot, Dispatcher
from aiogram.client.session.aiohttp import AiohttpSession
from aiogram.client.telegram import TelegramAPIServer

from bot_ratelimit import Journal, Limiter, MemoryStorage, OutgoingLimits
from example_bot.demo.botapi import TOKEN
from tests.processes import Forked


def bot_of(url: str) -> Bot:
    return Bot(TOKEN, AiohttpSession(api=TelegramAPIServer.from_base(url)))


async def broadcast(url: str, journal: str, chats: str) -> None:
    """Broadcast until it is killed."""
    async with bot_of(url) as bot:
        limits = OutgoingLimits(limiter=Limiter(MemoryStorage()), broadcast="400/s").setup(bot)

        async def send(chat: int) -> None:
            await bot.send_message(chat, "news")

        async for _ in limits.broadcast(range(1, int(chats) + 1), send, journal=Journal(journal)):
            pass


async def stop(url: str) -> None:
    """Poll with 310 waiting messages, until it is stopped by SIGTERM."""
    bot, dispatcher = bot_of(url), Dispatcher()
    OutgoingLimits(per_chat="1/minute").setup(bot, dispatcher)
    chats = [*range(7, 38)] * 11  # one message to each is sent at once
    tasks = [asyncio.create_task(bot.send_message(chat, "x")) for chat in chats]
    await dispatcher.start_polling(bot)
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    sys.stdout.write(f"{sum(isinstance(each, Exception) for each in outcomes)} raised\n")
    sys.stdout.flush()  # the end of the interpreter takes longer than that of the bot


async def backlog(url: str, redis: str, share: str, wanted: str) -> None:
    """Send this process's share of all messages of all chats at once."""
    (number, count), options = json.loads(share), json.loads(wanted)
    async with bot_of(url) as bot, aioredis.Redis.from_url(redis) as client:
        outgoing = OutgoingLimits(client, **options.get("limits", {})).setup(bot)
        sending = (
            bot.send_message(chat, f"{number} {i}")
            for i in range(number, options["each"], count)
            for chat in range(1, options["chats"] + 1)
        )
        outcomes = await asyncio.gather(*sending, return_exceptions=True)
        sys.stdout.write(json.dumps(sum(isinstance(each, BaseException) for each in outcomes)))
        await outgoing.close()


async def share_backlog(url: str, redis: str, count: int, options: dict[str, Any]) -> list[int]:
    """Send a backlog from `count` processes; return how many messages each of them lost."""
    wanted = json.dumps(options)
    processes = [
        await Forked.start(__name__, "backlog", url, redis, json.dumps([number, count]), wanted)
        for number in range(count)
    ]
    return [json.loads((await process.communicate())[0]) for process in processes]


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    asyncio.run(
        {each.__name__: each for each in (broadcast, stop, backlog)}[sys.argv[1]](*sys.argv[2:])
    )
