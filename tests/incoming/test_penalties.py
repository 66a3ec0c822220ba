"""Penalties: users who keep sending while refused are banned on all instances."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from aiogram.methods import SendMessage

from bot_ratelimit import (
    ConfigError,
    Decision,
    Limiter,
    Penalty,
    RateLimitMiddleware,
    Rule,
    Scope,
    Subject,
)
from bot_ratelimit.testing import Clock, FlakyStorage

from .support import HANDLED, Instance, callback, user
from .updates import (
    CHANNEL_POST,
    GROUP,
    STORAGES,
    Fleet,
    limited,
    listen,
    payment,
    pre_checkout,
)

ANNA, BERT = Subject(user=42), Subject(user=43)
PENALTY = Penalty("3/m", "1h")


class Refusals:
    """An `on_limited` that records the decisions."""

    def __init__(self) -> None:
        self.decisions: list[Decision] = []

    async def __call__(self, event: Any, decision: Decision, data: dict[str, Any]) -> None:
        self.decisions.append(decision)


async def test_a_ban(limiter: Limiter, clock: Clock) -> None:
    """After enough refused attempts everything is refused until the announced end of the ban."""
    seen = Refusals()
    bot = limited("1/s", limiter=limiter, penalty=PENALTY, on_limited=seen)
    assert await bot.send(*"abcd") == [True, False, False, False]
    assert [d.banned for d in seen.decisions] == [False, False, True]
    assert [d.retry_after for d in seen.decisions] == [1.0, 1.0, 3_600.0]
    assert seen.decisions[2].rule == PENALTY
    for _ in range(59):  # what is sent meanwhile does not prolong it
        clock.move(60)
        assert await bot.send("e") == [False]
    clock.move(59)
    assert await bot.send("e") == [False]
    assert (seen.decisions[-1].banned, seen.decisions[-1].retry_after) == (True, 1.0)
    clock.move(1)
    assert await bot.send(*"fgh") == [True, False, False]
    assert [d.banned for d in seen.decisions[-2:]] == [False, False]


async def test_a_ban_holds_on_every_instance(fleet: Fleet) -> None:
    """Refusals counted by one instance ban on another, for messages and presses."""
    seen = Refusals()
    bots = fleet.start(
        "1/m", observers=["message", "callback_query"], penalty=PENALTY, on_limited=seen
    )
    assert [(await bot.send("a"))[0] for bot in (*bots, bots[0])] == [True, False, False, False]
    assert [d.banned for d in seen.decisions] == [False, False, True]
    await fleet.limiters()[2].reset("1/m", ANNA)  # the limit itself has room again
    for bot in bots:
        assert await bot.send("a") == [False]
        assert await bot.feed(callback_query=callback()) is None
    assert all(d.banned for d in seen.decisions[3:])
    assert {d.source for d in seen.decisions} == {"memory" if fleet.client is None else "redis"}


@pytest.mark.parametrize("fleet", STORAGES[1:], indirect=True)
async def test_what_an_operator_sees(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    """The key counts the refused attempts, its TTL is the rest of the ban; it is logged once."""
    caplog.set_level(logging.WARNING, "bot_ratelimit")
    assert fleet.client is not None
    bots = fleet.start("1/m", penalty=PENALTY, on_limited=None)
    await asyncio.gather(*(bots[i % 3].send("a") for i in range(6)))
    index = {f"bot:ratelimit:{{bans}}:{part}" for part in ("ends", "details")}
    assert await fleet.keys() == {"bot:ratelimit:42", "bot:ratelimit:ban:42", *index}
    assert await fleet.client.get("bot:ratelimit:ban:42") == b"5"
    assert 3_590_000 < await fleet.client.pttl("bot:ratelimit:ban:42") <= 3_600_000
    assert [each for each in caplog.messages if "Banned" in each] == [
        "Banned for 3600 s: bot:ratelimit:ban:42 (ban of 3600 s after 3/minute)"
    ]


async def test_a_ban_shorter_than_the_wait(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    """A ban is imposed even if the limit's own wait is longer."""
    seen = Refusals()
    bots = fleet.start("1/d", penalty=Penalty("3/m", "15m"), on_limited=seen)
    for bot in bots:
        await bot.send(*"ab")
    assert [d.banned for d in seen.decisions] == [False, False, True, True, True]
    assert {round(d.retry_after, -1) for d in seen.decisions} == {86_400}
    assert sum("Banned" in each for each in caplog.messages) == 1


@pytest.mark.parametrize("scope", [Scope.USER, Scope.CHAT])
async def test_a_penalty_bans_its_scope(scope: Scope, limiter: Limiter) -> None:
    """A ban is for one user, or for a chat, where the refusals of its members add up."""
    bot = limited("1/m", limiter=limiter, penalty=Penalty("3/m", "1h", scope=scope))
    for id_ in (42, 43, 44):
        assert await bot.send(*"ab", chat=GROUP, **{"from": user(id_)}) == [True, False]
    newcomer = {"from": user(45)}
    assert await bot.send("a", chat=GROUP, **newcomer) == [scope is Scope.USER]
    assert await bot.send("a", chat=GROUP | {"id": -101}, **newcomer) == [scope is Scope.CHAT]


@pytest.mark.parametrize("guard", [False, True])
async def test_a_banned_user_can_pay(guard: bool, fleet: Fleet) -> None:
    """Payments, and events without a sender, pass during a ban and do not count."""

    def put(bot: Instance, limiter: Limiter) -> None:
        middleware = RateLimitMiddleware("1/m", limiter=limiter, penalty=PENALTY, on_limited=None)
        middleware.setup(bot.dispatcher, guard=guard)
        listen(bot, "message", "pre_checkout_query", "channel_post")

    bots = fleet.assemble(put)
    await bots[0].send(*"abcdef")
    for bot in bots:
        assert await bot.feed(pre_checkout_query=pre_checkout()) == HANDLED
        assert await bot.feed(message=payment()) == HANDLED
        assert await bot.feed(channel_post=CHANNEL_POST) == HANDLED
    if fleet.client is not None:
        assert await fleet.client.get("bot:ratelimit:ban:42") == b"5"


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


async def test_what_is_no_strike(fleet: Fleet) -> None:
    """Shadow rules, refusals by the policy in an outage, and `peek` cause no ban."""
    limiter = fleet.limiters()[0]
    shadow = limited(Rule("1/h", shadow=True), limiter=limiter, penalty=PENALTY)
    assert await shadow.send(*"abcdef") == [True] * 6
    storage = FlakyStorage(fleet.storages[0])
    storage.fail()
    denying = Limiter(storage, on_error="deny", timeout=5)
    assert await limited(limiter=denying, penalty=PENALTY).send(*"abcdef") == [False] * 6
    for _ in range(5):
        assert not (await limiter.peek([Rule("1/h"), PENALTY], ANNA)).allowed
    assert (await limiter.peek(PENALTY, ANNA)).remaining == 3


@pytest.mark.parametrize("penalty", ["10/m", 5, Rule("1/m", name="x"), [PENALTY]])
def test_penalty_of_a_wrong_type(penalty: Any) -> None:
    with pytest.raises(ConfigError, match=r"expected Penalty\("):
        RateLimitMiddleware("1/s", penalty=penalty)


async def test_reset_lifts_a_ban(fleet: Fleet) -> None:
    """`Limiter.reset` with the penalty lifts the ban on all instances."""
    bots = fleet.start("1/m", penalty=PENALTY, on_limited=None)
    await bots[0].send(*"abcdef")
    limiter = fleet.limiters()[1]
    assert (await limiter.peek(PENALTY, ANNA)).banned
    assert await limiter.reset([Rule("1/m"), PENALTY], ANNA)
    assert not (await limiter.peek(PENALTY, ANNA)).banned
    assert [(await bot.send("a"))[0] for bot in bots] == [True, False, False]
    assert not (await limiter.peek(PENALTY, ANNA)).banned  # two new strikes
    assert not await limiter.reset(PENALTY, BERT)


async def test_a_ban_that_grows(limiter: Limiter, clock: Clock) -> None:
    """Each `after` more attempts during a ban double it, up to `longest`; the next is short."""
    seen = Refusals()
    penalty = Penalty("2/m", "10m", grows=True, longest="35m")
    bot = Instance(RateLimitMiddleware("1/s", limiter=limiter, penalty=penalty, on_limited=seen))
    await bot.send("a")
    waits = []
    for _ in range(8):
        await bot.send("b")
        waits.append(seen.decisions[-1].retry_after)
    assert waits == [1, 600, 600, 1_200, 1_200, 2_100, 2_100, 2_100]
    clock.move(2_100)
    assert await bot.send(*"cde") == [True, False, False]
    assert seen.decisions[-1].retry_after == 600


async def test_an_outage_bans_nobody(fleet: Fleet) -> None:
    """Refusals by the policy are not strikes."""
    storage = FlakyStorage(fleet.storages[0])
    limiter = Limiter(storage, on_error="deny", timeout=5)
    bot = Instance(RateLimitMiddleware("1/m", limiter=limiter, penalty=PENALTY, on_limited=None))
    storage.fail()
    assert await bot.send(*"abcdef") == [False] * 6
    assert (await fleet.limiters()[0].peek(PENALTY, ANNA)).remaining == 3


async def test_penalties_without_telegram(fleet: Fleet) -> None:
    """The limiter also bans other subjects, for example a job that retries too often."""
    first, second, third = fleet.limiters()
    rules = [Rule("1/m", name="export"), PENALTY]
    decisions = [await each.hit(rules, ANNA) for each in (first, second, third, first, second)]
    assert [d.allowed for d in decisions] == [True] + [False] * 4
    assert [d.banned for d in decisions] == [False, False, False, True, True]
    assert decisions[1].rule == rules[0]
    assert decisions[3].rule == PENALTY
    assert not (await third.hit(rules, BERT)).banned
