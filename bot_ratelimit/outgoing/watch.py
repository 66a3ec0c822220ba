"""Reports what happens to the requests of a bot to its observers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from aiogram import Bot
from aiogram.exceptions import TelegramAPIError

from bot_ratelimit.limiter.observer import Observer, RequestOutcome
from bot_ratelimit.outgoing.chat_queue import Send
from bot_ratelimit.outgoing.floods import flood_wait
from bot_ratelimit.outgoing.methods import Method


async def watched(
    observer: Observer,
    paced: Callable[[Send, Bot, Method], Awaitable[Any]],
    make_request: Send,
    bot: Bot,
    method: Method,
) -> Any:
    """Send a request, and report its outcome and how long it waited."""
    clock = asyncio.get_running_loop().time
    began, left = clock(), 0.0
    outcome: RequestOutcome = "unsent"

    async def send(to: Bot, what: Method) -> Any:
        nonlocal left, outcome
        left, outcome = clock(), "failed"
        try:
            result = await make_request(to, what)
        except TelegramAPIError as error:
            if flood_wait(error) is not None:
                outcome = "flooded"  # unless it is sent again; an action never is
            raise
        outcome = "sent"
        return result

    try:
        return await paced(send, bot, method)
    except TelegramAPIError as error:
        if flood_wait(error) is not None:
            outcome = "flooded"
        raise
    finally:
        observer.request_done(type(method).__name__, outcome, (left or clock()) - began)
