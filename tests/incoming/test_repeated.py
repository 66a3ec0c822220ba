"""What comes again or too late: redelivered updates, albums, `Debounce` and `max_age`."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import pytest
from aiogram import Bot
from aiogram.methods import AnswerCallbackQuery
from aiogram.types import Message

from bot_ratelimit import (
    Collect,
    ConfigError,
    Debounce,
    Limiter,
    Penalty,
    RateLimitMiddleware,
    Rule,
    Subject,
)
from bot_ratelimit.testing import Clock
from tests.tables import table

from .support import HANDLED, Instance, callback, message
from .updates import (
    BUSINESS,
    CHANNEL_POST,
    DATE,
    GROUP,
    Event,
    Fleet,
    album,
    bare,
    content,
    limited,
    listen,
    payment,
    photo,
    pre_checkout,
    used,
)


async def test_the_same_again_is_refused_on_every_instance(fleet: Fleet) -> None:
    """An equal press, text or file of a user is refused; another one is not.

    The button loses its spinner without words; equal messages get no notice.
    """
    bots = fleet.start(["1000/s", Debounce("10m")], observers=("message", "callback_query"))
    file = content(document={"file_id": "a", "file_unique_id": "doc"})
    press = callback()
    for event in (message("hi"), photo(), file):
        assert [await bot.feed(message=event) for bot in bots] == [HANDLED, None, None]
    assert [await bot.feed(callback_query=press) for bot in bots] == [HANDLED, None, None]
    for bot in bots[1:]:
        (answer,) = bot.session.requests
        assert isinstance(answer, AnswerCallbackQuery)
        assert (answer.text, answer.cache_time) == (None, 30)
    assert await bots[1].send("hi!", "Hi") == [True, True]
    assert await bots[1].feed(callback_query=press | {"data": "other"}) == HANDLED
    assert await bots[2].send("hi", **{"from": press["from"] | {"id": 43}}) == [True]
    assert await fleet.used("1000/s") == 7


async def test_albums_edits_and_other_content_are_not_compared(
    limiter: Limiter, clock: Clock
) -> None:
    """An album of equal photos arrives complete; dice, and what is later, may come twice."""
    bot = limited(Debounce("2s"), ["message", "edited_message"], limiter=limiter)
    dice = content(dice={"emoji": "🎲", "value": 6})
    for event in (*album(3), dice, dice):
        assert await bot.feed(message=event) == HANDLED
    assert await bot.send("a", "a") == [True, False]
    clock.move(2)
    assert await bot.send("a") == [True]
    edit = message("a", edit_date=1)
    assert [await bot.feed(edited_message=edit) for _ in range(2)] == [HANDLED] * 2


async def test_debounce_beside_a_limit(limiter: Limiter) -> None:
    """In a flag, the middleware, or both with other windows; what is left is that of the limit."""
    flag = ["2/m", Debounce("5s")]
    for bot in (limited(flag), limited(None, flag=flag), limited(Debounce("2s"), flag=flag)):
        await bot.dispatcher.emit_startup()
        assert await bot.send("a", "a", "b", "c") == [True, False, True, False]
        told = [(str(each.rule).split(" per")[0], each.remaining) for each in bot.decisions if each]
        assert told == [("2/minute", 1), ("2/minute", 0)]
    assert str(Debounce("5s")) == "equal events within 5 s"
    decision = await limiter.hit(Debounce("2s"), Subject(user=42))
    assert (decision.allowed, decision.source) == (True, "none")  # without an event


@table("value", ["soon", 0, -1, True])
def test_an_invalid_period_is_an_error(value: Any) -> None:
    """The error names the argument and its value."""
    with pytest.raises(ConfigError, match=f"Debounce={value!r}"):
        Debounce(value)
    with pytest.raises(ConfigError, match=f"max_age={value!r}"):
        RateLimitMiddleware(max_age=value)
    with pytest.raises(ConfigError, match=f"wait={value!r}"):
        Collect(value)
    with pytest.raises(ConfigError, match="longest=1: "):
        Collect(longest=1)


def old(seconds: float = 200, **fields: Any) -> dict[str, Any]:
    return message(date=int(time.time() - seconds), **fields)


@pytest.mark.parametrize("guard", [False, True])
async def test_old_messages_are_dropped(
    guard: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are not charged and get no notice; one line says how many there were."""
    monkeypatch.setattr("bot_ratelimit.incoming.backlog._LOGGED_AFTER", 0.0)
    caplog.set_level(logging.WARNING)
    bot = bare()
    middleware = RateLimitMiddleware("3/h", max_age="2m").setup(bot.dispatcher, guard=guard)
    names = ("message", "edited_message", "pre_checkout_query", "channel_post", "callback_query")
    listen(bot, *names)
    assert [await bot.feed(message=old()) for _ in range(5)] == [None] * 5
    for event in (
        {"message": old(110)},
        {"message": payment(date=1)},
        {"pre_checkout_query": pre_checkout()},
        {"channel_post": CHANNEL_POST},
        {"edited_message": old(edit_date=int(time.time()))},
        {"callback_query": callback()},  # of an old message, pressed now
    ):
        assert await bot.feed(**event) == HANDLED
    await asyncio.sleep(0.01)
    assert bot.session.requests == []
    assert middleware.backlog is not None
    assert middleware.backlog.dropped == 5
    assert [each for each in caplog.messages if "max_age" in each] == [
        "5 updates were dropped, because their messages were older than 120 s (max_age)"
    ]


def test_a_bot_that_stops_says_how_many_were_too_old(caplog: pytest.LogCaptureFixture) -> None:
    """Also if it stops before the line is due."""

    async def run() -> None:
        bot = limited("3/h", max_age="2m")
        await bot.send("a", "b", date=1)

    asyncio.run(run())
    assert [each for each in caplog.messages if each.startswith("2 updates were dropped")]


@pytest.mark.parametrize("flag", [{"collect": Collect(0.2)}, {"concurrent": 1}])
async def test_old_messages_in_a_handler_that_collects_or_has_slots(
    flag: dict[str, Any], fleet: Fleet
) -> None:
    """They take no slot, so nobody is told to wait; a new message keeps those collected with it."""
    bot = limited("9/m", limiter=fleet.limiters()[0], flag=flag, max_age="2m", on_limited="Wait.")
    assert await send([bot], [old() for _ in range(3)], at_once=True) == [False] * 3
    assert bot.handled == bot.session.requests == []
    handled = await send([bot], [old(text="a"), old(0, text="b")], at_once=True)
    assert handled == [False, True]
    (event,) = bot.handled
    assert isinstance(event, Message)
    assert event.text == ("a" if "collect" in flag else "b")


async def send(bots: list[Instance], events: list[Event], *, at_once: bool = False) -> list[bool]:
    """Send each event to the next instance; return which of them were handled."""
    fed = [bots[i % len(bots)].feed(message=event) for i, event in enumerate(events)]
    results = await asyncio.gather(*fed) if at_once else [await each for each in fed]
    return [result == HANDLED for result in results]


@pytest.mark.parametrize("at_once", [False, True])
async def test_an_album_is_one_event(fleet: Fleet, at_once: bool) -> None:
    """Over three instances an album of ten costs one under each rule.

    One that a rule refuses is charged to no other, and is one strike with one notice.
    """
    slow, penalty = Rule("9/h", name="slow"), Penalty("3/m", "1h")
    bots = fleet.start([slow, "1/m"], penalty=penalty)
    assert await send(bots, album(10), at_once=at_once) == [True] * 10
    assert await fleet.used("1/m") == 1
    assert {d and d.remaining for bot in bots for d in bot.decisions} == {0}
    for _ in range(2):
        assert await send(bots, album(10), at_once=at_once) == [False] * 10
        assert sum(len(bot.session.requests) for bot in bots) == 1
    assert [await fleet.used(each) for each in (slow, penalty)] == [1, 2]
    if fleet.client is not None:
        assert await fleet.client.get("bot:ratelimit:42") == b"3"


async def test_what_is_another_event(fleet: Fleet) -> None:
    """Albums of other chats, also with the same media_group_id, of a business chat, and edits."""
    observers = ["message", "business_message", "edited_message"]
    bots = fleet.start("4/m", observers=observers, on_limited=None)
    items = album(3, "1")
    assert await send(bots, items) == [True] * 3
    assert await send(bots, album(3, "1", chat=GROUP)) == [True] * 3
    edits = [items[0] | {"edit_date": DATE + i, "caption": "x"} for i in range(3)]
    results = [await bots[i].feed(edited_message=edit) for i, edit in enumerate(edits)]
    assert results == [HANDLED] * 2 + [None]
    for item in album(2, "2", **BUSINESS):
        assert await bots[0].feed(business_message=item) == HANDLED


async def test_a_redelivered_update_is_charged_once(fleet: Fleet) -> None:
    """With `once_per_update` it gets the verdict of its first delivery, also if both overlap."""
    bots = fleet.start("2/m", once_per_update=True)
    first, second, third = ({"update_id": i, "message": message()} for i in (7, 8, 9))
    assert await asyncio.gather(*(bot.feed(**first) for bot in bots * 5)) == [HANDLED] * 15
    assert await fleet.used("2/m") == 1
    assert await bots[1].feed(**second) == HANDLED
    assert [await bot.feed(**third) for bot in bots] == [None] * 3
    assert [await bot.feed(**first) for bot in bots] == [HANDLED] * 3
    assert sum(len(bot.session.requests) for bot in bots) == 1


async def test_what_is_no_redelivery_is_charged(limiter: Limiter, clock: Clock) -> None:
    """Another bot's update, one after a minute, or without `once_per_update`, counts again."""
    bot = limited("2/h", limiter=limiter, once_per_update=True)
    assert await bot.feed(update_id=7, message=message()) == HANDLED
    clock.move(59)
    assert await bot.feed(update_id=7, message=message()) == HANDLED
    assert await used(limiter, "2/h") == 1
    clock.move(2)
    assert await bot.feed(update_id=7, message=message()) == HANDLED
    bot.bot = Bot("2:TEST", session=bot.session)
    assert await bot.feed(update_id=7, message=message()) is None
    bot = limited("1/h", once_per_update=False)
    fed = [await bot.feed(update_id=7, message=message()) for _ in range(2)]
    assert fed == [HANDLED, None]
