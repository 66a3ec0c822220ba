"""One process of a bot that runs in several: `python -m tests.outgoing.fleet SCENE URL REDIS ...`.

It prints a line of JSON when its scene is over. Run by test_strict.py and by benchmarks.outgoing.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import redis.asyncio as aioredis
from aiogram import Bot
from aiogram.client.session.aiohttp import AiohttpSession
from aiogram.client.telegram import TelegramAPIServer

from bot_ratelimit import OutgoingLimits
from tests.processes import Forked

from .strict import TOKEN


async def backlog(bot: Bot, number: int, count: int, options: dict[str, Any]) -> dict[str, Any]:
    """All messages of all chats at once: `chats`, and `each` for all processes together."""
    chats, each = options["chats"], options["each"]
    outcomes = await asyncio.gather(
        *(
            bot.send_message(chat, f"{number} {i}")
            for i in range(number, each, count)
            for chat in range(1, chats + 1)
        ),
        return_exceptions=True,
    )
    return {"lost": sum(isinstance(outcome, BaseException) for outcome in outcomes)}


async def raid(bot: Bot, number: int, count: int, options: dict[str, Any]) -> dict[str, Any]:
    """`calls` bans in one group at once."""
    users = range(number, options["calls"], count)
    outcomes = await asyncio.gather(
        *(bot.ban_chat_member(-1, 1_000 + user) for user in users), return_exceptions=True
    )
    return {"lost": sum(isinstance(outcome, BaseException) for outcome in outcomes)}


async def everything(bot: Bot, number: int, count: int, options: dict[str, Any]) -> dict[str, Any]:
    """Both at the same time."""
    told = await asyncio.gather(*(scene(bot, number, count, options) for scene in (backlog, raid)))
    return {"lost": sum(each["lost"] for each in told)}


SCENES: dict[str, Callable[[Bot, int, int, dict[str, Any]], Awaitable[dict[str, Any]]]] = {
    "backlog": backlog,
    "raid": raid,
    "everything": everything,
}


async def main(scene: str, url: str, redis: str, *numbers: str) -> None:
    logging.basicConfig(level=logging.WARNING)
    number, count, options = map(json.loads, numbers)
    async with (
        Bot(TOKEN, AiohttpSession(api=TelegramAPIServer.from_base(url))) as bot,
        aioredis.Redis.from_url(redis) as client,
    ):
        outgoing = OutgoingLimits(client, **options.get("limits", {})).setup(bot)
        await asyncio.sleep(max(0.0, options.get("begin", 0) - time.time()))
        began = time.monotonic()
        told = await SCENES[scene](bot, number, count, options)
        sys.stdout.write(json.dumps(told | {"seconds": time.monotonic() - began}) + "\n")
        await outgoing.close()


async def run(
    scene: str, url: str, redis: str, count: int, options: dict[str, Any]
) -> list[dict[str, Any]]:
    """Run a scene in `count` processes; return what each of them told."""
    processes = [
        await Forked.start(
            "tests.outgoing.fleet", scene, url, redis, number, count, json.dumps(options)
        )
        for number in range(count)
    ]
    outputs = [(await process.communicate())[0] for process in processes]
    return [json.loads(output) for output in outputs]


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
