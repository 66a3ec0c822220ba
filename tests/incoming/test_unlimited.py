"""Users without a limit, and handlers that get one from operators."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from bot_ratelimit import (
    Debounce,
    Limiter,
    MemoryStorage,
    Penalty,
    RateLimitMiddleware,
    Rule,
    Scope,
)
from bot_ratelimit.admin.control import Control
from bot_ratelimit.testing import FlakyStorage

from .support import user
from .updates import limited


@pytest.mark.parametrize("in_flag", [True, False])
async def test_users_without_a_limit_have_no_decision(in_flag: bool) -> None:
    """A handler that says how much is left says nothing to them; others have their decision."""

    def by_plan(event: Any, data: dict[str, Any]) -> str | None:
        return None if data["event_from_user"].id == 43 else "5/day"

    bot = limited("9/m", flag={"limit": by_plan}) if in_flag else limited(by_plan)
    assert await bot.send("a") == await bot.send("a", **{"from": user(43)}) == [True]
    limit, none = bot.decisions
    assert limit is not None
    assert limit.remaining == 4
    assert none is None


async def test_a_rule_that_does_not_apply_makes_no_decision() -> None:
    """A limit of topics says nothing about a private chat."""
    bot = limited(Rule("1/day", Scope.TOPIC))
    assert await bot.send("a") == await bot.send("b") == [True]
    assert bot.decisions == [None, None]


@pytest.mark.parametrize("on_error", ["allow", "memory"])
async def test_what_only_refuses_makes_no_decision(on_error: Any) -> None:
    """A penalty or a `Debounce` that lets an event pass tells a handler nothing, as in an outage.

    A limit beside it does, also one on trial.
    """
    broken, penalty = FlakyStorage(), Penalty("9/m", "1h")
    broken.source = "redis"
    broken.fail()

    def nothing(event: Any, data: dict[str, Any]) -> None:
        return None

    for storage in (MemoryStorage(), broken):
        limiter = Limiter(storage, on_error=on_error)
        for rules in (None, nothing, [nothing, Debounce("2s")]):
            bot = limited(rules, limiter=limiter, penalty=penalty)
            assert await bot.send("a") == [True]
            assert bot.decisions == [None]
        trial = Rule("7/m", name="trial", shadow=True)
        for rules, rule in ((trial, trial), ([Debounce("2s"), "7/m"], Rule("7/m"))):
            bot = limited(rules, limiter=limiter, penalty=penalty)
            assert await bot.send("b") == [True]
            (decision,) = bot.decisions
            assert decision is not None
            assert decision.rule == rule


@pytest.mark.parametrize("flag", [None, True, {"concurrent": 1}, {"collect": 0.01, "key": "a"}])
async def test_operators_limit_a_handler_without_a_limit_of_its_own(flag: Any) -> None:
    """What they give it counts instead of the common limit; each change applies.

    Its flag may ask for slots or collect. A handler with `rate_limit=False` stays without a limit.
    """
    bot = limited("9/m", limiter=Limiter(MemoryStorage()), live=True, flag=flag)
    for other in (False, {"concurrent": 1, "limit": "5/m"}):
        bot.dispatcher.message.register(partial(bot._handle), flags={"rate_limit": other})
    (middleware,) = bot.dispatcher.message.middleware
    assert isinstance(middleware, RateLimitMiddleware)
    assert middleware.live is not None
    control = Control(middleware.limiter, "anna", patience=0)
    await bot.send("a")
    await middleware.live.refresh()
    (name,) = (await control.instances())[0].handlers
    for limit, sent, handled in (("2/h", 3, 2), ("9/h", 7, 6)):  # the refused one counts, too
        await control.set_rule(name, limit)
        await middleware.live.refresh()
        assert sum(await bot.send(*["a"] * sent)) == handled
    await middleware.close()
