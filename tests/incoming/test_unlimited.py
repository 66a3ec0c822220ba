"""Users to whom no limit applies."""

from __future__ import annotations

from typing import Any

import pytest

from bot_ratelimit import Rule, Scope

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
