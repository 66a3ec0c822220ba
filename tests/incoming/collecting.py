"""A webhook instance that collects messages; run by test_collect.py, which kills it."""

from __future__ import annotations

import asyncio
import sys
from typing import Any, cast

import redis.asyncio as aioredis
from aiogram import Dispatcher, flags
from aiogram.types import Message

from bot_ratelimit import Collect, Limiter, RateLimitMiddleware, RedisStorage
from example_bot.demo.instances import serve


class Api:
    """Where the stand-in for Telegram is, which runs in the test."""

    url = sys.argv[1]


async def main() -> None:
    dispatcher = Dispatcher()
    limiter = Limiter(RedisStorage(aioredis.Redis(port=int(sys.argv[2]))), timeout=5)
    RateLimitMiddleware("9/h", limiter=limiter).setup(dispatcher)

    @dispatcher.message()
    @flags.rate_limit(collect=Collect(wait=1, longest=2))
    async def answer(message: Message, messages: list[Message]) -> None:
        await message.answer("".join(each.text or "" for each in messages))

    runner = await serve(cast(Any, Api), dispatcher)
    sys.stdout.write(f"{runner.addresses[0][1]}\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
