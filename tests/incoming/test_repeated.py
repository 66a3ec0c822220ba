"""What comes again or too late: `Debounce` and `max_age`."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import pytest
from aiogram.methods import AnswerCallbackQuery

from bot_ratelimit import ConfigError, Debounce, Limiter, RateLimitMiddleware, Subject
from bot_ratelimit.testing import Clock
from tests.tables import table

from .support import HANDLED, Instance, callback, message
from .updates import (
    CHANNEL_POST,
    Fleet,
    album,
    bare,
    content,
    limited,
    listen,
    payment,
    photo,
    pre_checkout,
)


async def test_the_same_again_is_refused_on_every_instance(fleet: Fleet) -> None:
    """An equal press, text or file of a user is refused; another one is not."""
    bots = fleet.start(["1000/s", Debounce("10m")], observers=("message", "callback_query"))
    file = content(document={"file_id": "a", "file_unique_id": "doc"})
    press = callback()
    for event in (message("hi"), photo(), file):
        assert [await bot.feed(message=event) for bot in bots] == [HANDLED, None, None]
    assert [await bot.feed(callback_query=press) for bot in bots] == [HANDLED, None, None]
    assert await bots[1].send("hi!", "Hi") == [True, True]
    assert await bots[1].feed(callback_query=press | {"data": "other"}) == HANDLED
    assert await bots[2].send("hi", **{"from": press["from"] | {"id": 43}}) == [True]
    assert await fleet.used("1000/s") == 7


async def test_a_second_press_is_answered_without_words(limiter: Limiter, clock: Clock) -> None:
    """The button loses its spinner; equal messages get no notice."""
    middleware = RateLimitMiddleware(Debounce("2s"), limiter=limiter)
    bot = Instance(middleware, ["message", "callback_query"])
    press = callback()
    assert [await bot.feed(callback_query=press) for _ in range(2)] == [HANDLED, None]
    assert await bot.send("a", "a") == [True, False]
    (answer,) = bot.session.requests
    assert isinstance(answer, AnswerCallbackQuery)
    assert (answer.text, answer.cache_time) == (None, 2)
    clock.move(2)
    assert await bot.feed(callback_query=press) == HANDLED


async def test_albums_edits_and_other_content_are_not_compared() -> None:
    """An album of equal photos arrives complete; dice and contacts may come twice."""
    bot = limited(Debounce("2s"), ["message", "edited_message"])
    dice = content(dice={"emoji": "🎲", "value": 6})
    for event in (*album(3), dice, dice):
        assert await bot.feed(message=event) == HANDLED
    edit = message("a", edit_date=1)
    assert [await bot.feed(edited_message=edit) for _ in range(2)] == [HANDLED] * 2


async def test_debounce_beside_a_limit() -> None:
    """In a flag or the middleware; a handler is told what is left of the limit, not 0."""
    for bot in (limited(["2/m", Debounce("5s")]), limited(None, flag=["2/m", Debounce("5s")])):
        await bot.dispatcher.emit_startup()
        assert await bot.send("a", "a", "b", "c") == [True, False, True, False]
        told = [(str(each.rule).split(" per")[0], each.remaining) for each in bot.decisions if each]
        assert told == [("2/minute", 1), ("2/minute", 0)]
    assert str(Debounce("5s")) == "equal events within 5 s"


@table("value", ["soon", 0, -1, True])
def test_an_invalid_period_is_an_error(value: Any) -> None:
    """The error names the argument and its value."""
    with pytest.raises(ConfigError, match=f"Debounce={value!r}"):
        Debounce(value)
    with pytest.raises(ConfigError, match=f"max_age={value!r}"):
        RateLimitMiddleware(max_age=value)


async def test_a_debounce_needs_an_event(limiter: Limiter) -> None:
    """A limiter that is called with ids only knows no content, so the rule does not apply."""
    decision = await limiter.hit(Debounce("2s"), Subject(user=42))
    assert (decision.allowed, decision.source) == (True, "none")


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
