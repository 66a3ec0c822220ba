"""A process that broadcasts until it is killed; run by test_broadcast.py."""

from __future__ import annotations

import asyncio
import sys

from aiogram import Bot
from aiogram.client.session.aiohttp import AiohttpSession
from aiogram.client.telegram import TelegramAPIServer

from bot_ratelimit import Journal, Limiter, MemoryStorage, OutgoingLimits
from example_bot.demo.botapi import TOKEN


async def main(url: str, journal: str, chats: int) -> None:
    async with Bot(TOKEN, AiohttpSession(api=TelegramAPIServer.from_base(url))) as bot:
        limits = OutgoingLimits(limiter=Limiter(MemoryStorage()), broadcast="400/s").setup(bot)

        async def send(chat: int) -> None:
            await bot.send_message(chat, "news")

        async for _ in limits.broadcast(range(1, chats + 1), send, journal=Journal(journal)):
            pass


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
