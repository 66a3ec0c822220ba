"""What `send` of a broadcast does with the errors of its requests."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiogram.exceptions import TelegramForbiddenError

from .virtual import paced, virtual

NO_METHOD: Any = None


def blocked() -> TelegramForbiddenError:
    return TelegramForbiddenError(NO_METHOD, "bot was blocked by the user")


@pytest.mark.parametrize("in_flight", [1, 50])
@virtual
async def test_a_send_with_a_task_group_ends(in_flight: int) -> None:
    """A failed `TaskGroup` leaves its task in the state of being cancelled before Python 3.13; the
    broadcast ends all the same, after all chats."""
    _, bot, outgoing = paced(errors=[None, blocked()])

    async def send(chat: int) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(bot.send_message(chat, "x"))

    run = outgoing.broadcast(range(1, 6), send, in_flight=in_flight)
    assert sorted([sent.chat async for sent in run]) == [1, 2, 3, 4, 5]
