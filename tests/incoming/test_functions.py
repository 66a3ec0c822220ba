"""Limits that a function of the bot chooses for each event."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import pytest
from aiogram import flags
from aiogram.types import Message, TelegramObject
from fakeredis import FakeAsyncRedis

from bot_ratelimit import (
    ConfigError,
    Debounce,
    Limiter,
    Penalty,
    RateLimitMiddleware,
    Rule,
    Subject,
)

from .support import HANDLED, Instance, callback, user
from .updates import keys_of, limited, listen

Data = dict[str, Any]

PREMIUM = user(7) | {"is_premium": True}


def by_premium(event: TelegramObject, data: Data) -> str:
    return "3/m" if data["event_from_user"].is_premium else "1/m"


async def by_plan(event: TelegramObject, data: Data) -> Any:
    """Asks a data base, as a bot does."""
    plans: dict[int, Any] = {42: "2/m", 43: Rule("3/m", "chat", "group"), 45: None}
    plans |= {44: ["9/m", Rule("1/h", name="h")], 47: ("9/m; 3/h", "2/d"), 48: []}
    return plans[data["event_from_user"].id]


def by_default(event: TelegramObject, data: Data, limit: str = "2/m") -> str:
    return limit


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
        (ByPremium("3/m"), PREMIUM, 3),
        (Rule(by_premium, name="ai", cost=3), PREMIUM, 1),
        (["4/m", Rule(by_premium, name="ai")], user(), 1),
        (by_plan, user(42), 2),
        (by_plan, user(43), 3),
        (by_plan, user(44), 1),
        (by_plan, user(45), 5),
        (by_plan, user(47), 2),
        (by_plan, user(48), 5),
        (Rule(by_plan, "chat", "ai"), user(47), 2),
        (by_default, user(), 2),
        (lambda _, any_name: "2/m", user(), 2),
        (by_subject, user(42), 2),
        (by_subject, user(43), 5),
    ],
)
@pytest.mark.parametrize("place", ["middleware", "flag"])
async def test_a_function_of_the_event_chooses_the_limit(
    rate_limit: Any, sender: Data, handled: int, place: str
) -> None:
    """A function of (event, data), async or not, or of a Subject, is a limit everywhere."""
    bot = limited(rate_limit) if place == "middleware" else limited(None, ())
    if place == "flag":
        with_name = rate_limit is by_subject  # any function could be the handler itself
        flag = flags.rate_limit(limit=rate_limit) if with_name else flags.rate_limit(rate_limit)
        bot.dispatcher.message.register(flag(lambda event, **data: HANDLED))
    sent = await bot.send(*"abcde", **{"from": sender})
    assert sent == [True] * handled + [False] * (5 - handled)


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


async def test_a_user_who_becomes_premium_keeps_the_count(fake_client: FakeAsyncRedis) -> None:
    """Another limit under the same key continues the count; its rule names the function.

    Of several limits, all but the first have their limit as their name, as in the middleware.
    """
    bot = Instance(RateLimitMiddleware(Rule(by_premium, name="ai"), fake_client, timeout=5))
    premium = {"from": user(42) | {"is_premium": True}}
    assert await bot.send(*"ab") == [True, False]
    assert await bot.send(*"abc", **premium) == [True, False, False]  # a refused one counts too
    assert str(bot.decisions[1].rule) == "3/minute per user 'ai', chosen by by_premium"
    several = RateLimitMiddleware(Rule(by_plan, name="ai"), fake_client, timeout=5)
    await Instance(several).send("a", **{"from": user(47)})
    assert await keys_of(fake_client) >= {"ai:42", "ai:47", "ai.3/hour:47", "ai.2/day:47"}
    assert several.inventory()["rules"][0]["function"] == "by_plan"


async def test_no_limit_still_means_banned(limiter: Limiter) -> None:
    """Without a limit, of a function or of the middleware, a ban still refuses everything.

    `RateLimitMiddleware(None)` limits only handlers with a flag.
    """
    chosen = limited(by_plan, penalty=Penalty("1/m", "1h"), limiter=limiter)
    only_flags = limited(None, limiter=limiter)
    for bot in (chosen, only_flags):
        assert await bot.send(*"abc", **{"from": user(45)}) == [True] * 3
    listen(only_flags, "callback_query", flags={"rate_limit": "1/h"})
    pressed = [await only_flags.feed(callback_query=callback()) for _ in range(2)]
    assert pressed == [HANDLED, None]
    (middleware,) = only_flags.dispatcher.message.middleware
    assert isinstance(middleware, RateLimitMiddleware)
    assert middleware.inventory()["rules"][-1]["where"].endswith("_handle")
    await limiter.ban(Subject(user=45), "1h")
    for bot in (chosen, only_flags):
        assert await bot.send("d", **{"from": user(45)}) == [False]


@pytest.mark.parametrize("on_error", ["allow", "deny", "memory"])
async def test_a_function_that_fails_is_answered_by_the_policy(
    on_error: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The update is handled by `on_error`, and the log has the traceback once, not every time.

    So are functions that say who is counted, and limits below the cost.
    """

    async def broken(event: TelegramObject, data: Data) -> Any:
        raise KeyError("plan")

    def saying(answer: Any) -> Any:
        return lambda event, data: answer

    firm = Rule("1/m", lambda subject: {42: "acme"}[subject.user], "firm")
    wrong = ("often", 0, False, (5, 10), Penalty("1/m", "1h"), Debounce("2s"))
    cases = [(broken, "KeyError('plan')"), (firm, "KeyError(43)")]
    cases += [([firm, saying("9/m")], "KeyError(43)"), (Rule(saying("1/m"), cost=3), "cost=3")]
    for rules, error in cases + [(saying(answer), "<lambda> returned") for answer in wrong]:
        caplog.clear()
        bot = limited(rules, limiter=None, on_error=on_error)
        assert await bot.send(*"abc", **{"from": user(43)}) == [on_error != "deny"] * 3
        assert set(bot.decisions) <= {None}  # as where nothing limits
        (line,) = [each for each in caplog.records if each.levelno == logging.ERROR]
        assert line.exc_info is not None
        assert error in line.getMessage()


async def subject_only(subject: Subject) -> str:
    return "1/s"


async def test_a_function_of_something_else_is_an_error() -> None:
    """It is found when the middleware is made, or when the bot starts."""
    for function, wrong in (subject_only, "not async"), (lambda a, b, c: "1/s", "takes"):
        with pytest.raises(ConfigError, match=wrong):
            RateLimitMiddleware(function)
        bot = limited(None, flag=function)
        with pytest.raises(ConfigError, match=f"flag of .*_handle.*{wrong}"):
            await bot.dispatcher.emit_startup()
