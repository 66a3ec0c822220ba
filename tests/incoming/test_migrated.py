"""What operators find, and read in the log, after a group became a supergroup."""

from __future__ import annotations

from bot_ratelimit import Penalty, Rule, Scope, Subject

from .support import message, user
from .test_migration import GROUP, NEW, SUPERGROUP, migrate, put
from .updates import Fleet

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
    assert ban.until is not None and 3_590 < (ban.until - ban.since).total_seconds() <= 3_600
    hit = [Rule("99/h"), PENALTY]
    assert (await limiter.peek(hit, member)).banned
    assert await limiter.unban(ban.subject)
    assert not (await limiter.peek(hit, member)).banned
    assert await limiter.bans() == []
