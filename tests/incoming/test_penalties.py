"""Penalties: users who keep sending while refused are banned on all instances."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from aiogram.methods import SendMessage

from bot_ratelimit import Decision, Limiter, Penalty, RateLimitMiddleware, Subject
from bot_ratelimit.testing import Clock

from .support import Instance, callback, message
from .updates import Fleet, limited

ANNA = Subject(user=42)
PENALTY = Penalty("3/m", "1h")


def telling(seen: list[Decision]) -> Any:
    """An `on_limited` that records the decisions."""
    return lambda event, decision, data: seen.append(decision)


async def test_a_ban(limiter: Limiter, clock: Clock) -> None:
    """After enough refused attempts everything is refused until the announced end of the ban."""
    seen: list[Decision] = []
    bot = limited("1/s", limiter=limiter, penalty=PENALTY, on_limited=telling(seen))
    assert await bot.send(*"abcd") == [True, False, False, False]
    assert [d.banned for d in seen] == [False, False, True]
    assert [d.retry_after for d in seen] == [1.0, 1.0, 3_600.0]
    assert seen[2].rule == PENALTY
    for _ in range(59):  # what is sent meanwhile does not prolong it
        clock.move(60)
        assert await bot.send("e") == [False]
    clock.move(59)
    assert await bot.send("e") == [False]
    assert (seen[-1].banned, seen[-1].retry_after) == (True, 1.0)
    clock.move(1)
    assert await bot.send(*"fgh") == [True, False, False]
    assert [d.banned for d in seen[-2:]] == [False, False]


async def test_a_ban_holds_on_every_instance(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    """Refusals counted by one instance ban on another, for messages and presses.

    The key counts the refused attempts, its TTL is the rest of the ban; it is logged once.
    """
    caplog.set_level(logging.WARNING, "bot_ratelimit")
    seen: list[Decision] = []
    bots = fleet.start(
        "1/m", observers=["message", "callback_query"], penalty=PENALTY, on_limited=telling(seen)
    )
    assert [(await bot.send("a"))[0] for bot in (*bots, bots[0])] == [True, False, False, False]
    assert [d.banned for d in seen] == [False, False, True]
    await fleet.limiters()[2].reset("1/m", ANNA)  # the limit itself has room again
    fed = [bot.feed(message=message()) for bot in bots]
    fed += [bot.feed(callback_query=callback()) for bot in bots]
    assert await asyncio.gather(*fed) == [None] * 6
    assert all(d.banned for d in seen[3:])
    assert {d.source for d in seen} == {"memory" if fleet.client is None else "redis"}
    assert [each for each in caplog.messages if "Banned" in each] == [
        "Banned for 3600 s: bot:ratelimit:ban:42 (ban of 3600 s after 3/minute)"
    ]
    if fleet.client is not None:
        index = {f"bot:ratelimit:{{bans}}:{part}" for part in ("ends", "details")}
        assert await fleet.keys() == {"bot:ratelimit:ban:42", *index}
        assert await fleet.client.get("bot:ratelimit:ban:42") == b"9"
        assert 3_590_000 < await fleet.client.pttl("bot:ratelimit:ban:42") <= 3_600_000


async def test_an_update_is_one_strike(limiter: Limiter) -> None:
    """One refused update is one strike, whether the guard or the inner middleware refused it."""
    strict = {"limit": "1/m", "key": "strict"}
    bot = limited("2/m", limiter=limiter, penalty=PENALTY, guard=True, flag=strict)
    assert await bot.send(*"abc") == [True, False, False]  # free, by the handler, by the guard
    assert (await limiter.peek(PENALTY, ANNA)).remaining == 1


async def test_banned_users_are_notified(limiter: Limiter, clock: Clock) -> None:
    """The next notice and every button press tell how long the ban lasts.

    Telegram's client keeps the answer for 30 s only, so that lifting the ban frees the buttons.
    """
    middleware = RateLimitMiddleware("1/s", limiter=limiter, penalty=PENALTY)
    bot = Instance(middleware, ["message", "callback_query"])
    await bot.send(*"abcd")
    clock.move(1)
    await bot.send(*"abcd")
    await bot.feed(callback_query=callback())
    waits = ["1 s", "1 h", "1 h"]
    assert [each.text.rpartition("in ")[2].rstrip(".") for each in bot.session.requests] == waits
    assert sum(isinstance(each, SendMessage) for each in bot.session.requests) == 2
    assert bot.session.requests[-1].cache_time == 30


async def test_users_who_are_banned_by_hand_are_told_nothing(limiter: Limiter) -> None:
    """Their buttons stop the spinner without a text, and messages get no notice."""
    bot = Instance(RateLimitMiddleware("9/s", limiter=limiter), ["message", "callback_query"])
    await limiter.ban(ANNA)
    assert await bot.send(*"ab") == [False, False]
    await bot.feed(callback_query=callback())
    (answer,) = bot.session.requests
    assert (answer.text, answer.cache_time) == (None, 30)
