"""What operators find, and read in the log, after a group became a supergroup."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from bot_ratelimit import Limiter, Penalty, RateLimitMiddleware, Rule, Scope, Subject
from bot_ratelimit.admin.control import Control
from bot_ratelimit.testing import FlakyStorage

from .support import HANDLED
from .test_migration import GROUP, NEW, NOTES, OLD, migrate, put
from .updates import Fleet, bare

PENALTY = Penalty("1/m", "1h", scope=Scope.MEMBER)


async def test_the_list_of_bans_follows_a_penalty_to_the_supergroup(fleet: Fleet) -> None:
    """The list names the new id, and lifting the ban that it shows lifts what refuses."""
    bots = fleet.assemble(lambda bot, limiter: put(bot, limiter, penalty=PENALTY))
    assert await bots[0].send(*"abcdefghijkl", chat=GROUP) == [True] * 9 + [False] * 3
    await migrate(bots)
    limiter, member = fleet.limiters()[0], Subject(user=42, chat=NEW)
    (ban,) = await limiter.bans()
    assert (ban.subject, ban.by) == (member, "penalty")
    assert ban.key == "bot:ratelimit:ban:member:-1005:42"
    assert ban.until is not None
    assert 3_590 < (ban.until - ban.since).total_seconds() <= 3_600
    hit = [Rule("99/h"), PENALTY]
    assert (await limiter.peek(hit, member)).banned
    assert await limiter.unban(ban.subject)
    assert not (await limiter.peek(hit, member)).banned
    assert await limiter.bans() == []


async def test_operators_can_undo_an_exemption_that_went_over(fleet: Fleet) -> None:
    """It then ends on every instance, also on the one that has moved the group."""
    made: list[RateLimitMiddleware] = []
    bots = fleet.assemble(lambda bot, limiter: made.append(put(bot, limiter, live=True)))
    changes = Control.of(made[0], "anna").changes
    for change, exempt in (
        (partial(changes.set_exempt, OLD, True), True),
        (partial(migrate, bots), True),
        (partial(changes.rollback, 0), False),
    ):
        await change()
        for each in made:
            assert each.live is not None
            await each.live.refresh()
            assert bool(each.inventory()["exempt"]) == exempt
    for each in made:
        await each.close()


@pytest.mark.parametrize("policy", ["allow", "deny", "memory"])
async def test_the_log_says_that_a_group_did_not_go_over_in_an_outage(
    policy: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever `on_error` answers, the line names both ids, and what an operator has to repeat."""
    storage, bot = FlakyStorage(), bare()
    put(bot, Limiter(storage, on_error=policy), exempt=[OLD])
    storage.fail()
    assert await bot.feed(**NOTES[0]) == HANDLED
    lost, exempt = (each for each in caplog.messages if each.startswith("Group -5"))
    assert lost.startswith("Group -5 became -1005, and not everything went over: ")
    assert lost.endswith("repeat its bans, and exemptions by operators, with the new id")
    assert "-1005: change its id in exempt" in exempt
