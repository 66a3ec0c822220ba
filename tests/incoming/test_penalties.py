"""Penalties: users who keep sending while refused are banned on all instances."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from aiogram.methods import SendMessage
from aiogram.types import TelegramObject

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
    bare,
    listen,
    payment,
    pre_checkout,
)

ANNA, BERT = Subject(user=42), Subject(user=43)
PENALTY = Penalty("3/m", "1h")


def bans(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if "Banned" in record.message]


class Refusals:
    """An `on_limited` that records the decisions."""

    def __init__(self) -> None:
        self.decisions: list[Decision] = []

    async def __call__(
        self, event: TelegramObject, decision: Decision, data: dict[str, Any]
    ) -> None:
        self.decisions.append(decision)


async def test_a_ban(limiter: Limiter, clock: Clock) -> None:
    """After enough refused attempts everything is refused for the length of the ban."""
    seen = Refusals()
    bot = Instance(RateLimitMiddleware("1/s", limiter=limiter, penalty=PENALTY, on_limited=seen))
    assert await bot.send(*"abcd") == [True, False, False, False]
    assert [d.banned for d in seen.decisions] == [False, False, True]
    assert [d.retry_after for d in seen.decisions] == [1.0, 1.0, 3_600.0]
    assert seen.decisions[2].rule == PENALTY
    clock.move(3_599)
    assert await bot.send("e") == [False]
    assert (seen.decisions[3].banned, seen.decisions[3].retry_after) == (True, 1.0)
    clock.move(1)
    assert await bot.send(*"fgh") == [True, False, False]
    assert [d.banned for d in seen.decisions[4:]] == [False, False]


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
async def test_what_an_operator_sees(fleet: Fleet) -> None:
    """The key counts the refused attempts, and its TTL is the rest of the ban."""
    assert fleet.client is not None
    bots = fleet.start("1/m", penalty=PENALTY, on_limited=None)
    for bot in bots:
        await bot.send(*"ab")
    index = {f"bot:ratelimit:{{bans}}:{part}" for part in ("ends", "details")}
    assert await fleet.keys() == {"bot:ratelimit:42", "bot:ratelimit:ban:42", *index}
    assert await fleet.client.get("bot:ratelimit:ban:42") == b"5"
    assert 3_590_000 < await fleet.client.pttl("bot:ratelimit:ban:42") <= 3_600_000


async def test_a_ban_is_logged_once(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    """A ban is one log line, however many attempts follow."""
    caplog.set_level(logging.WARNING, "bot_ratelimit")
    bots = fleet.start("1/m", penalty=PENALTY, on_limited=None)
    await asyncio.gather(*(bots[i % 3].send("a") for i in range(30)))
    assert bans(caplog) == [
        "Banned for 3600 s: bot:ratelimit:ban:42 (ban of 3600 s after 3/minute)"
    ]


async def test_a_ban_shorter_than_the_wait(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    """A ban is imposed even if the limit's own wait is longer."""
    caplog.set_level(logging.WARNING, "bot_ratelimit")
    seen = Refusals()
    bots = fleet.start("1/d", penalty=Penalty("3/m", "15m"), on_limited=seen)
    for bot in bots:
        await bot.send(*"ab")
    assert [d.banned for d in seen.decisions] == [False, False, True, True, True]
    assert {round(d.retry_after, -1) for d in seen.decisions} == {86_400}
    assert len(bans(caplog)) == 1


async def test_others_are_not_banned(fleet: Fleet) -> None:
    """A ban is for one user; the other members of a group are not affected."""
    bots = fleet.start("1/m", penalty=PENALTY, on_limited=None)
    for bot in bots:
        await bot.send(*"abc", chat=GROUP)
    assert [(await bot.send("a", chat=GROUP, **{"from": user(43)}))[0] for bot in bots] == [
        True,
        False,
        False,
    ]
    decision = await fleet.limiters()[0].peek(PENALTY, BERT)
    assert (decision.banned, decision.remaining) == (False, 1)


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


async def test_a_ban_that_does_not_grow(limiter: Limiter, clock: Clock) -> None:
    """By default a ban ends at its announced time, however much is sent in the meantime."""
    bot = Instance(RateLimitMiddleware("1/s", limiter=limiter, penalty=PENALTY, on_limited=None))
    await bot.send(*"abcd")
    for _ in range(60):
        clock.move(60)
        assert len(await bot.send(*"ab")) == 2
    assert (await limiter.peek(PENALTY, ANNA)).remaining == 2  # the last minute's one refusal


@pytest.mark.parametrize("guard", [False, True])
async def test_a_banned_user_can_pay(guard: bool, fleet: Fleet) -> None:
    """Payments, and events without a sender, pass during a ban and do not count."""

    def put(bot: Instance, limiter: Limiter) -> None:
        RateLimitMiddleware("1/m", limiter=limiter, penalty=PENALTY, on_limited=None).setup(
            bot.dispatcher, guard=guard
        )
        listen(bot, "message", "pre_checkout_query", "channel_post")

    bots = fleet.assemble(put)
    await bots[0].send(*"abcdef")
    before = await fleet.client.get("bot:ratelimit:ban:42") if fleet.client else None
    for bot in bots:
        assert await bot.feed(pre_checkout_query=pre_checkout()) == HANDLED
        assert await bot.feed(message=payment()) == HANDLED
        assert await bot.feed(channel_post=CHANNEL_POST) == HANDLED
        assert await bot.send("a", **{"from": user(43)}) == [bot is bots[0]]
    if fleet.client is not None:
        assert await fleet.client.get("bot:ratelimit:ban:42") == before == b"5"


async def test_an_update_is_one_strike(limiter: Limiter) -> None:
    """One refused update is one strike, whether the guard or the inner middleware refused it."""
    bot = bare()
    RateLimitMiddleware("2/m", limiter=limiter, penalty=PENALTY, on_limited=None).setup(
        bot.dispatcher, guard=True
    )
    bot.dispatcher.message.register(
        bot._handle, flags={"rate_limit": {"limit": "1/m", "key": "strict"}}
    )
    assert await bot.send(*"abc") == [True, False, False]  # free, by the handler, by the guard
    assert (await limiter.peek(PENALTY, ANNA)).remaining == 1


async def test_banned_users_are_notified(limiter: Limiter, clock: Clock) -> None:
    """The next notice and every button press tell how long the ban lasts."""
    bot = Instance(
        RateLimitMiddleware("1/s", limiter=limiter, penalty=PENALTY), ["message", "callback_query"]
    )
    await bot.send(*"abcd")
    clock.move(1)
    await bot.send(*"abcd")
    await bot.feed(callback_query=callback())
    waits = ["1 s", "1 h", "1 h"]
    assert [each.text.rpartition("in ")[2].rstrip(".") for each in bot.session.requests] == waits
    assert sum(isinstance(each, SendMessage) for each in bot.session.requests) == 2
    assert bot.session.requests[-1].cache_time == 3599


async def test_a_penalty_bans_its_scope(limiter: Limiter) -> None:
    """A penalty of a chat bans the chat: the refusals of its members add up."""
    penalty = Penalty("3/m", "1h", scope=Scope.CHAT)
    bot = Instance(RateLimitMiddleware("1/m", limiter=limiter, penalty=penalty, on_limited=None))
    for id_ in (42, 43, 44):
        assert await bot.send(*"ab", chat=GROUP, **{"from": user(id_)}) == [True, False]
    assert await bot.send("a", chat=GROUP, **{"from": user(45)}) == [False]
    assert await bot.send("a", chat=GROUP | {"id": -101}, **{"from": user(45)}) == [True]


async def test_a_shadow_rule_bans_nobody(limiter: Limiter) -> None:
    """A shadow rule refuses nothing, so it causes no ban."""
    rule = Rule("1/m", shadow=True)
    bot = Instance(RateLimitMiddleware(rule, limiter=limiter, penalty=PENALTY, on_limited=None))
    assert await bot.send(*"abcdef") == [True] * 6
    assert not (await limiter.peek(PENALTY, ANNA)).banned


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


async def test_a_peek_is_not_a_strike(fleet: Fleet) -> None:
    """`peek` at an exhausted limit counts no attempt."""
    limiter = fleet.limiters()[0]
    rules = [Rule("1/h"), PENALTY]
    await limiter.hit(rules, ANNA)
    for _ in range(5):
        assert not (await limiter.peek(rules, ANNA)).allowed
    assert (await limiter.peek(PENALTY, ANNA)).remaining == 3


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        ({"after": "often", "ban": 5}, "often"),
        ({"after": "3/m sliding", "ban": 5}, "sliding"),
        ({"after": "3/m", "ban": "long"}, "long"),
        ({"after": "3/m", "ban": 0}, "ban=0"),
        ({"after": "3/m", "ban": -1}, "ban=-1"),
        ({"after": "3/m", "ban": None}, "ban=None"),
        ({"after": "3/m", "ban": "2d", "grows": True}, "longest='1d'"),
        ({"after": "3/m", "ban": "2d", "grows": "no"}, "grows='no'"),
        ({"after": "3/m", "ban": 5, "grows": True, "longest": "x"}, "longest='x'"),
        ({"after": "3/m", "ban": 5, "scope": "user"}, "scope='user'"),
    ],
    ids=str,
)
def test_an_invalid_penalty_is_an_error(arguments: dict[str, Any], wrong: str) -> None:
    """The error shows the invalid value."""
    with pytest.raises(ConfigError) as error:
        Penalty(**arguments)
    assert wrong in str(error.value)


@pytest.mark.parametrize("penalty", ["10/m", 5, Rule("1/m", name="x"), [PENALTY]], ids=str)
def test_penalty_of_a_wrong_type(penalty: Any) -> None:
    """`penalty=` accepts only a Penalty, and the error says so."""
    with pytest.raises(ConfigError, match=r"[Pp]enalty"):
        RateLimitMiddleware("1/s", penalty=penalty)
