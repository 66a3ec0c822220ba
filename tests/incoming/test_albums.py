"""Albums and redelivered updates are charged once, over all instances."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from aiogram import Bot
from aiogram.methods import SendMessage
from aiogram.types import Update

from bot_ratelimit import Limiter, Penalty, RateLimitMiddleware, Rule, Subject
from bot_ratelimit.testing import Clock

from .support import HANDLED, Instance, message
from .updates import BUSINESS, DATE, GROUP, Event, Fleet, album, limited, listen


async def spread(bots: list[Instance], events: list[Event]) -> list[bool]:
    """Send each event to the next instance; return which of them were handled."""
    results = [await bots[i % len(bots)].feed(message=event) for i, event in enumerate(events)]
    return [result == HANDLED for result in results]


async def at_once(bots: list[Instance], events: list[Event]) -> list[bool]:
    """Like `spread`, but all events arrive at the same time."""
    fed = [bots[i % len(bots)].feed(message=event) for i, event in enumerate(events)]
    return [result == HANDLED for result in await asyncio.gather(*fed)]


def notices(bots: list[Instance]) -> list[Any]:
    return [each for bot in bots for each in bot.session.requests if isinstance(each, SendMessage)]


@pytest.mark.parametrize("arrive", [spread, at_once])
async def test_an_album_is_one_event(fleet: Fleet, arrive: Any) -> None:
    """Over three instances an album of ten costs one under each rule.

    One that a rule refuses is charged to no other, and there is one notice.
    """
    bots = fleet.start([slow := Rule("9/h", name="slow"), "1/m"])
    assert await arrive(bots, album(10)) == [True] * 10
    assert await fleet.used("1/m") == 1
    assert {d and d.remaining for bot in bots for d in bot.decisions} == {0}
    for _ in range(2):
        assert await arrive(bots, album(10)) == [False] * 10
        assert len(notices(bots)) == 1
    assert await fleet.used(slow) == 1
    if fleet.client is not None:
        assert await fleet.client.get("bot:ratelimit:42") == b"3"


async def test_what_is_another_event(fleet: Fleet) -> None:
    """Albums of other chats, also with the same media_group_id, of a business chat, and edits."""
    observers = ["message", "business_message", "edited_message"]
    bots = fleet.start("4/m", observers=observers, on_limited=None)
    items = album(3, "1")
    assert await spread(bots, items) == [True] * 3
    assert await spread(bots, album(3, "1", chat=GROUP)) == [True] * 3
    edits = [items[0] | {"edit_date": DATE + i, "caption": "x"} for i in range(3)]
    results = [await bots[i].feed(edited_message=edit) for i, edit in enumerate(edits)]
    assert results == [HANDLED] * 2 + [None]
    for item in album(2, "2", **BUSINESS):
        assert await bots[0].feed(business_message=item) == HANDLED


async def test_an_album_outlives_its_window(limiter: Limiter, clock: Clock) -> None:
    """Items that arrive before and after the end of a window still share one verdict."""
    bot = limited("1/s", limiter=limiter)
    handled, refused = album(5), album(5)
    assert await spread([bot], [handled[0], refused[0]]) == [True, False]
    for i in range(1, 5):
        clock.move(0.5)
        assert await spread([bot], [refused[i], handled[i]]) == [False, True]
    assert await bot.send("a") == [True]  # the album was charged 2 s ago


async def test_an_album_before_guard_and_handler(fleet: Fleet) -> None:
    """The guard and the handler's own limit each charge an album once, not per item."""

    def put(bot: Instance, limiter: Limiter) -> None:
        RateLimitMiddleware("9/m", limiter=limiter).setup(bot.dispatcher, guard=True)
        listen(bot, "message", flags={"rate_limit": {"limit": "9/m", "key": "photos", "cost": 3}})

    bots = fleet.assemble(put)
    assert await at_once(bots, album(10)) == [True] * 10
    assert await fleet.used("9/m") == 1
    assert await fleet.used(Rule("9/m", name="photos")) == 3


async def test_an_album_is_one_strike(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    """For a penalty a refused album is one refused attempt, and its ban is logged once."""
    caplog.set_level(logging.WARNING, "bot_ratelimit")
    penalty = Penalty("2/m", "1h")
    bots = fleet.start("1/m", penalty=penalty, on_limited=None)
    assert await spread(bots, [message()]) == [True]
    assert await spread(bots, album(10)) == [False] * 10
    assert not (await fleet.limiters()[0].peek(penalty, Subject(user=42))).banned
    assert await spread(bots, album(10)) == [False] * 10
    assert [each for each in caplog.messages if "Banned" in each] == [
        "Banned for 3600 s: bot:ratelimit:ban:42 (ban of 3600 s after 2/minute)"
    ]


async def test_a_redelivered_update_is_charged_once(fleet: Fleet) -> None:
    """With `once_per_update` it gets the verdict of its first delivery, also if both overlap."""
    bots = fleet.start("2/m", once_per_update=True)
    first, second, third = ({"update_id": i, "message": message()} for i in (7, 8, 9))
    assert await asyncio.gather(*(bot.feed(**first) for bot in bots * 5)) == [HANDLED] * 15
    assert await fleet.used("2/m") == 1
    assert await bots[1].feed(**second) == HANDLED
    assert [await bot.feed(**third) for bot in bots] == [None] * 3
    assert [await bot.feed(**first) for bot in bots] == [HANDLED] * 3
    assert len(notices(bots)) == 1


@pytest.mark.parametrize("differs", ["the bot", "the minute", "the option"])
async def test_what_is_no_redelivery_is_charged(
    differs: str, limiter: Limiter, clock: Clock
) -> None:
    """Another bot's update, one after a minute, or without `once_per_update`, counts again."""
    bot = limited("1/h", limiter=limiter, once_per_update=differs != "the option")
    assert await bot.feed(update_id=7, message=message()) == HANDLED
    if differs == "the bot":
        bot.bot = Bot("2:TEST", session=bot.session)
    elif differs == "the minute":
        clock.move(59)
        assert await bot.feed(update_id=7, message=message()) == HANDLED
        clock.move(2)
    assert await bot.feed(update_id=7, message=message()) is None


async def test_one_object_fed_twice_is_two_events() -> None:
    """A decision is not stored in the update object, so feeding it again counts again."""
    bot = limited(guard=True)
    update = Update.model_validate({"update_id": 7, "message": message()}, context={"bot": bot.bot})
    assert await bot.dispatcher.feed_update(bot.bot, update) == HANDLED
    both = [bot.dispatcher.feed_update(bot.bot, update) for _ in range(2)]
    assert await asyncio.gather(*both) == [None, None]
