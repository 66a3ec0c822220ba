"""Permits: what the bot may send, over all instances; by this process alone without Redis."""

from __future__ import annotations

from typing import Final

from bot_ratelimit.limiter.counts import counts_to_adjust
from bot_ratelimit.limiter.decider import Decider
from bot_ratelimit.limiter.decision import Decision
from bot_ratelimit.limiter.limiter import Limiter
from bot_ratelimit.rules.penalty import Penalty, blocking
from bot_ratelimit.rules.rule import Rules, Subject
from bot_ratelimit.storage.base import Ask, Op

_ALONE: Final = (
    "this process paces requests by itself: n instances send up to n times the budget, "
    "and a 429 blocks its chat in one process only"
)


class Permits:
    """Asks the storage that all instances share. Bans of users do not apply to requests.

    When the storage does not answer, this process decides. It remembers what it was granted before:
    otherwise an outage, or a single late answer, would give every chat a second burst.
    """

    def __init__(self, limiter: Limiter) -> None:
        self.source = limiter.storage.source
        """The source of normal answers, `"redis"` or `"memory"`."""
        self.closed = False
        """Whether the storage is not asked: late requests must not open its connection again."""
        self._decider = Decider(
            limiter.storage,
            limiter.key_prefix,
            on_error="memory",
            timeout=limiter.timeout,
            part="requests",
            consequence=_ALONE,
            events=limiter.decider.guard.events,
            remembers=True,
        )

    async def take(self, rules: Rules, subject: Subject) -> Decision:
        """Take permits from each of the rules, or from none of them."""
        if self.closed:
            return self._decider.decide_alone(rules, subject)
        return await self._decider.hit(rules, subject)

    async def charge(self, rules: Rules, subject: Subject, cost: int) -> None:
        """Take permits that are not there: a bucket is then below empty, a window forgets them."""
        counts, _ = counts_to_adjust(self._decider.key_prefix, rules, subject, cost)
        ask = Ask(counts, Op.CHARGE)
        if counts and not self.closed:
            await self._decider.guard.run(counts, self._decider.storage.ask, ask)
        self._decider.standby.answer(ask)

    async def block(self, rule: Penalty, subject: Subject, seconds: float) -> None:
        """Let `rule` refuse everything for `seconds`, on all instances."""
        await self.take(Rules((blocking(rule, seconds),)), subject)
