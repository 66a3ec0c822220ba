"""A bot with 310 waiting messages, to be stopped by SIGTERM; run by test_closing.py."""

from __future__ import annotations

import asyncio
import logging
import sys

from aiogram import Bot, Dispatcher
from aiogram.client.session.aiohttp import AiohttpSession
from aiogram.client.telegram import TelegramAPIServer

from bot_ratelimit import OutgoingLimits
from example_bot.demo.botapi import TOKEN


async def main(url: str) -> None:
    logging.basicConfig(level=logging.WARNING)
    bot = Bot(TOKEN, AiohttpSession(api=TelegramAPIServer.from_base(url)))
    dispatcher = Dispatcher()
    OutgoingLimits(per_chat="1/minute").setup(bot, dispatcher)
    chats = [*range(7, 38)] * 11  # one message to each is sent at once
    tasks = [asyncio.create_task(bot.send_message(chat, "x")) for chat in chats]
    await dispatcher.start_polling(bot)
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    sys.stdout.write(f"{sum(isinstance(each, Exception) for each in outcomes)} raised\n")
    sys.stdout.flush()  # the end of the interpreter takes longer than that of the bot


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
