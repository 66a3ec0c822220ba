"""The limits of the stand-in: which requests are refused, and for how long."""

from __future__ import annotations

import pytest
from aiogram.exceptions import TelegramRetryAfter

from bot_ratelimit.testing import Clock
from example_bot.demo.botapi import BotApi
from example_bot.demo.floods import FloodControl
from example_bot.demo.methods import ApiError
from example_bot.demo.updates import message

from .test_botapi import bot_of


def send(floods: FloodControl, chat: int | str = 7, **params: str) -> int:
    """Send a request; return the seconds to wait, 0 if it was accepted."""
    try:
        floods.check("sendMessage", {"chat_id": str(chat), **params})
    except ApiError as error:
        return error.retry_after or 0
    return 0


def test_a_chat_accepts_a_burst_and_then_one_a_second() -> None:
    """The sixth message at once is refused, and accepted after its wait."""
    clock = Clock()
    floods = FloodControl(clock=clock)
    assert [send(floods) for _ in range(6)] == [0, 0, 0, 0, 0, 1]
    clock.move(1)
    assert send(floods) == 0
    assert (floods.refused, floods.impatient) == (1, 0)


def test_impatient_requests_double_the_wait() -> None:
    """A request before the end of a wait doubles it; one sent before the refusal does not."""
    clock = Clock()
    floods = FloodControl(clock=clock)
    waits = [send(floods) for _ in range(7)]
    assert waits[-2:] == [1, 1]
    clock.move(0.6)
    assert send(floods) == 2
    clock.move(0.6)
    assert send(floods) == 8
    assert floods.impatient == 2


def test_a_group_accepts_twenty_a_minute() -> None:
    """The 21st message of a minute is refused, however slowly the messages come."""
    clock = Clock()
    floods = FloodControl(clock=clock)
    for _ in range(20):
        assert send(floods, -100) == 0
        clock.move(2)
    assert send(floods, -100) == 20


def test_broadcasts_are_limited_and_replies_are_not() -> None:
    """Replies within a minute are free; other chats get 30 messages a second in total."""
    clock = Clock()
    floods = FloodControl(clock=clock)
    for chat in range(100):
        floods.wrote(chat)
    assert sum(send(floods, chat) for chat in range(100)) == 0
    assert [send(floods, chat) for chat in range(100, 131)] == [0] * 30 + [1]
    assert send(floods, 1) == 1, "the whole bot is blocked"
    clock.move(61)
    assert sum(send(floods, chat) > 0 for chat in range(31)) == 1


def test_an_album_counts_its_items() -> None:
    """Ten photos count as ten messages, which a quiet chat accepts at once."""
    clock = Clock()
    floods = FloodControl(clock=clock)
    assert send(floods, media="[1,2,3,4,5,6,7,8,9,10]") == 0
    assert send(floods) == 6
    assert FloodControl(clock=clock).check("answerCallbackQuery", {}) is None


async def test_a_real_bot_gets_these_429s() -> None:
    """A real bot gets a TelegramRetryAfter, and the refused call is recorded separately."""
    async with BotApi(floods=FloodControl(burst=1)) as api, bot_of(api) as bot:
        await api_wrote(api)
        await bot.send_message(7, "one")
        with pytest.raises(TelegramRetryAfter) as caught:
            await bot.send_message(7, "two")
    assert caught.value.retry_after == 1
    assert [call.text for call in api.calls] == ["one"]
    assert [call.text for call in api.refused] == ["two"]


async def api_wrote(api: BotApi) -> None:
    """A message of a user makes the next message to them a reply."""
    with pytest.raises(LookupError):
        await api.deliver(message(7, "hello"))
