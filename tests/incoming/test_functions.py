"""Limits that a function of the bot chooses for each event."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from aiogram import flags
from aiogram.types import Message, TelegramObject
from fakeredis import FakeAsyncRedis

from bot_ratelimit import (
    BoundDecision,
    ConfigError,
    Limiter,
    MemoryStorage,
    Penalty,
    RateLimitMiddleware,
    Rule,
    Scope,
    Subject,
)
from bot_ratelimit.testing import Clock
from tests.incoming.updates import bare

from .support import HANDLED, Instance, callback, user
from .updates import limited, listen

Data = dict[str, Any]

PREMIUM = user(7) | {"is_premium": True}


def by_premium(event: TelegramObject, data: Data) -> str:
    return "3/m" if data["event_from_user"].is_premium else "1/m"


async def by_plan(event: TelegramObject, data: Data) -> Any:
    """Asks a data base, as a bot does."""
    plans: dict[int, Any] = {42: "2/m", 43: Rule("3/m", Scope.CHAT, "group")}
    plans |= {
        44: ["9/m", Rule("1/h", name="h")],
        46: ["9/m", "2/h"],
        47: ("9/m; 3/h", "2/d"),
        48: [],
    }
    return plans.get(data["event_from_user"].id)


def by_subject(subject: Subject, limit: str = "2/m") -> str | None:
    return limit if subject.user == 42 else None


@dataclass
class ByPremium:
    """Has settings, and so no hash."""

    limit: str

    def __call__(self, event: TelegramObject, data: Data) -> str:
        return self.limit if data["event_from_user"].is_premium else "1/m"


@pytest.mark.parametrize(
    ("rate_limit", "sender", "handled"),
    [
        (by_premium, user(), 1),
        (by_premium, PREMIUM, 3),
        (ByPremium("3/m"), PREMIUM, 3),
        (Rule(by_premium), PREMIUM, 3),
        (Rule(by_premium, name="ai", cost=3), PREMIUM, 1),
        (["4/m", Rule(by_premium, name="ai")], user(), 1),
        (by_plan, user(42), 2),
        (by_plan, user(43), 3),
        (by_plan, user(44), 1),
        (by_plan, user(45), 5),
        (by_plan, user(46), 2),
        (by_plan, user(47), 2),
        (by_plan, user(48), 5),
        (Rule(by_plan, "chat", "ai"), user(46), 2),
        (by_subject, user(42), 2),
        (by_subject, user(43), 5),
    ],
)
@pytest.mark.parametrize("place", ["middleware", "flag"])
async def test_a_function_of_the_event_chooses_the_limit(
    rate_limit: Any, sender: Data, handled: int, place: str
) -> None:
    """A function of (event, data), async or not, or of a Subject, is a limit everywhere."""
    bot = limited(rate_limit) if place == "middleware" else limited(None, (), flag=rate_limit)
    if place == "flag":
        handler: Callable[..., Any] = lambda event, **data: HANDLED  # noqa: E731 - it has no name
        if rate_limit in (by_premium, by_plan):
            handler = flags.rate_limit(rate_limit)(handler)
            bot.dispatcher.message.register(handler)
        else:
            bot.dispatcher.message.register(handler, flags={"rate_limit": rate_limit})
    assert await bot.send(*"abcde", **{"from": sender}) == [True] * handled + [False] * (
        5 - handled
    )


async def test_the_function_sees_the_inner_event_and_the_data_of_other_middlewares() -> None:
    """It gets the message, also under a guard, and what the bot's own middlewares found."""
    seen = []

    def limit(event: TelegramObject, data: Data) -> str:
        seen.append((type(event), data.get("user")))
        return "9/m"

    async def load(handler: Any, event: TelegramObject, data: Data) -> Any:
        return await handler(event, data | {"user": "Anna"})

    for guard in (True, False):
        bot = limited(limit, guard=guard)
        bot.dispatcher.message.outer_middleware(load)
        await bot.send("a")
    assert seen == [(Message, None), (Message, "Anna")]  # the guard decides once for both


async def test_a_user_who_becomes_premium_keeps_the_count() -> None:
    """Another limit under the same key continues the count; its rule names the function."""
    bot = limited(Rule(by_premium, name="ai"))
    premium = {"from": user(42) | {"is_premium": True}}
    assert await bot.send(*"ab") == [True, False]
    assert await bot.send(*"abc", **premium) == [True, False, False]  # a refused one counts too
    _, decision = bot.decisions
    assert decision is not None
    assert str(decision.rule) == "3/minute per user 'ai', chosen by by_premium"
    assert decision.rule.key("bot", Subject(user=42)) == "bot:ratelimit:ai:42"
    assert decision.remaining == 0
    middleware = RateLimitMiddleware(by_premium)
    assert middleware.inventory()["rules"][0]["function"] == "by_premium"


async def test_several_limits_of_a_function_count_apart(fake_client: FakeAsyncRedis) -> None:
    """All but the first have their limit as their name, as in the middleware."""
    middleware = RateLimitMiddleware(Rule(by_plan, name="ai"), fake_client, timeout=5)
    await Instance(middleware).send("a", **{"from": user(46)})
    keys = {key.decode() for key in await fake_client.keys()}
    assert keys == {"bot:ratelimit:ai:46", "bot:ratelimit:ai.2/hour:46"}


async def test_no_limit_still_means_banned(limiter: Limiter) -> None:
    """Without a limit, of a function or of the middleware, a ban still refuses everything."""
    chosen = limited(by_plan, penalty=Penalty("1/m", "1h"), limiter=limiter)
    only_flags = limited(None, limiter=limiter)
    for bot in (chosen, only_flags):
        assert await bot.send(*"abc", **{"from": user(45)}) == [True] * 3
    listen(only_flags, "callback_query", flags={"rate_limit": "1/h"})
    pressed = [await only_flags.feed(callback_query=callback()) for _ in range(2)]
    assert pressed == [HANDLED, None]
    await limiter.ban(Subject(user=45), "1h")
    for bot in (chosen, only_flags):
        assert await bot.send("d", **{"from": user(45)}) == [False]


@pytest.mark.parametrize(
    ("answer", "on_error"),
    [
        *(("often", "allow"), (0, "deny"), (False, "memory"), (Penalty("1/m", "1h"), "allow")),
        ((5, 10), "allow"),
        *((KeyError("plan"), policy) for policy in ("allow", "deny", "memory")),
    ],
)
async def test_a_function_that_fails_is_answered_by_the_policy(
    on_error: Any, answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The update is handled by `on_error`, and the log has the traceback once, not every time."""

    async def broken(event: TelegramObject, data: Data) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    bot = limited(broken, limiter=Limiter(MemoryStorage(), on_error=on_error))
    assert await bot.send(*"abc") == [on_error != "deny"] * 3
    for decision in bot.decisions:
        assert isinstance(decision, BoundDecision)
        assert (await decision.charge(5)).allowed  # nothing is charged, and no handler fails
    (line,) = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert line.exc_info is not None
    assert "'plan'" in line.getMessage() or "broken returned" in line.getMessage()


@pytest.mark.parametrize("beside", [[], [lambda event, data: "9/m"]], ids=["alone", "with others"])
@pytest.mark.parametrize("on_error", ["allow", "deny"])
async def test_a_scope_that_fails_is_answered_by_the_policy(
    on_error: Any, beside: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    """A function that says who is counted loses no update either."""
    firms = {42: "acme"}
    firm = Rule("1/m", lambda subject: firms[subject.user], "firm")
    bot = limited([firm, *beside], limiter=Limiter(MemoryStorage(), on_error=on_error))
    assert await bot.send("a", "b", **{"from": user(43)}) == [on_error == "allow"] * 2
    assert await bot.send("a", "b") == [True, False]
    (line,) = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert "KeyError(43)" in line.getMessage()


async def test_a_chosen_limit_below_the_cost_is_an_error(caplog: pytest.LogCaptureFixture) -> None:
    """A limit that could never allow the rule's cost is answered by the policy, and logged."""
    limiter = Limiter(MemoryStorage(), on_error="deny")
    bot = limited(Rule(lambda event, data: "1/m", name="ai", cost=3), limiter=limiter)
    assert await bot.send("a") == [False]
    assert any("cost=3" in each for each in caplog.messages)


async def subject_only(subject: Subject) -> str:
    return "1/s"


def three(a: Any, b: Any, c: Any) -> str:
    return "1/s"


@pytest.mark.parametrize(("function", "wrong"), [(subject_only, "not async"), (three, "takes")])
async def test_a_function_of_something_else_is_an_error(function: Any, wrong: str) -> None:
    """It is found when the middleware is made, or when the bot starts."""
    with pytest.raises(ConfigError, match=wrong):
        RateLimitMiddleware(function)
    bot = limited(None, flag=function)
    with pytest.raises(ConfigError, match=f"flag of .*_handle.*{wrong}"):
        await bot.dispatcher.emit_startup()


async def test_only_handlers_with_a_flag_are_limited() -> None:
    """`RateLimitMiddleware(None)` leaves every other handler alone, except for banned users."""
    limiter = Limiter(MemoryStorage(clock=Clock()))
    bot = bare()
    middleware = RateLimitMiddleware(None, limiter=limiter, on_limited=None).setup(bot.dispatcher)
    listen(bot, "message")
    bot.dispatcher.callback_query.register(bot._handle, flags={"rate_limit": "1/h"})
    assert await bot.send(*"abc") == [True] * 3
    assert [await bot.feed(callback_query=callback()) for _ in range(2)] == [HANDLED, None]
    assert middleware.inventory()["rules"][-1]["where"].endswith("_handle")
    await limiter.ban(Subject(user=42), "1h")
    assert await bot.send("d") == [False]
