"""What operators, and bots that settle afterwards, do with counts, bans and statistics."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from bot_ratelimit.errors import ConfigError, StorageError, printable
from bot_ratelimit.limiter.arguments import (
    check_ban_length,
    check_bannable,
    check_number,
    check_target,
    check_text,
)
from bot_ratelimit.limiter.bans import Bans, penalty_counts
from bot_ratelimit.limiter.counts import counts_to_adjust, counts_to_reset
from bot_ratelimit.limiter.decider import Decider
from bot_ratelimit.limiter.decision import Decision, conclude
from bot_ratelimit.limiter.health import Health, checked, health_of
from bot_ratelimit.limiter.statistics import (
    REQUESTS,
    HourCount,
    MinuteCount,
    Refusals,
    Statistics,
)
from bot_ratelimit.rules.checks import check_whole
from bot_ratelimit.rules.limit import MAX_AMOUNT
from bot_ratelimit.rules.rule import RuleLike, Subject, rules_of
from bot_ratelimit.storage.banlist import Ban
from bot_ratelimit.storage.base import Ask, Count, Op, Storage

log = logging.getLogger("bot_ratelimit")


class OperatorMethods:
    """The methods of a `Limiter` that do not decide about hits.

    Unlike `hit` they raise StorageError if the storage does not answer, and ConfigError if an
    argument is invalid, or the storage refuses or does not keep what is asked for.
    """

    decider: Decider
    _bans: Bans
    _statistics: Statistics | None

    async def charge(
        self, rules: RuleLike | Iterable[RuleLike], subject: Subject, cost: int
    ) -> Decision:
        """Charge the subject even above the limit, for costs that are known only afterwards.

        ::

            await limiter.charge("2000/hour", Subject(user=42), 1830)

        Beyond the limit, a fixed window is full until it ends, a sliding window until enough has
        left it, and a token bucket is below empty until it has been refilled. A `Penalty` among the
        rules is ignored. `cost` is charged to each rule, 1 to 1,000,000. The decision is the one
        that a next hit of cost 1 would get.

        After a StorageError it is unknown whether the cost was charged, except after a
        `NotConnectedError` or a `QueueFullError`: then it was not.
        """
        check_whole("cost", cost, 1, MAX_AMOUNT)
        return await self._adjust(Op.CHARGE, rules, subject, cost)

    async def refund(
        self, rules: RuleLike | Iterable[RuleLike], subject: Subject, cost: int | None = None
    ) -> Decision:
        """Give back a charge as far as it still counts; never above full. Otherwise like `charge`.

        ::

            await limiter.refund("2000/hour", Subject(user=42), 1830)

        Without a cost, each rule gets back its own, which is what `hit` has charged to it. A
        storage does not record who was charged for what: the refund is taken from what is counted
        now.
        """
        if cost is not None:
            check_whole("cost", cost, 1, MAX_AMOUNT)
        return await self._adjust(Op.REFUND, rules, subject, cost)

    async def reset(self, rule: RuleLike | Iterable[RuleLike], subject: Subject) -> bool:
        """Delete the counts of a subject; return True if there were any.

        ::

            await limiter.reset("5/10s", Subject(user=42))

        Counts that the rule has made with another algorithm are deleted too, and so are the count
        of refusals and the bans of a `Penalty`. A verdict that hits share by a token (`once`) holds
        until its 60 seconds are over.

        What this process counted while Redis was unreachable (`on_error="memory"`) is deleted even
        if Redis still is. The log then says that Redis has its own counts. After a StorageError it
        is unknown whether the counts in Redis were deleted; repeat it.
        """
        counts = counts_to_reset(self.decider.key_prefix, rules_of(rule), subject)
        if not counts:
            return False
        found = await self._reset(self.decider.standby, counts)
        try:
            found += await self._reset(self.decider.storage, counts)
        except StorageError as error:
            if not found:
                raise
            log.warning(
                "A reset holds in this process only: %s. Repeat it when Redis answers again, to "
                "delete the counts in Redis (%s)",
                str(error).rstrip("."),
                ", ".join(printable(count.key) for count in counts),
            )
        self._bans.remove_penalty_bans(subject, counts)
        return found > 0

    async def ban(
        self, subject: Subject, length: float | str | None = None, reason: str = "", by: str = ""
    ) -> Ban:
        """Ban a user, a chat, or a user in a chat: all their hits are refused.

        ::

            await limiter.ban(Subject(user=42), "1h", reason="spam", by="Anna")

        This limiter applies the ban at once, other limiters with this storage and prefix within a
        second. A ban replaces an earlier one; it needs no `Penalty`. There are at most 100,000.

        Args:
            subject: Who is banned: by all bots that share the prefix, or by the bot that the
                subject names.
            length: Seconds, or a period such as `"1h"`, at most ten years; None (the default) bans
                permanently.
            reason: Why, for the list of bans.
            by: Who imposed the ban, for the list of bans.

        Returns:
            The ban, with its end.
        """
        check_bannable(subject)
        seconds = check_ban_length(length)
        return await self._bans.ban(
            subject, seconds, check_text("reason", reason), check_text("by", by)
        )

    def is_banned(self, subject: Subject) -> bool:
        """Whether this process knows that a subject is banned by hand; sends no request."""
        bans = self._bans
        return bool(bans.current) and not bans.is_stale and bans.left(subject) > 0

    async def unban(self, subject: Subject) -> bool:
        """Lift all bans of a subject, also those of a `Penalty`; return True if there were any.

        ::

            await limiter.unban(Subject(user=42))

        After a StorageError some of them may be lifted.
        """
        decider = self.decider
        dropped = await self._bans.unban(check_target(subject))
        counts = penalty_counts(decider.key_prefix, subject, dropped)
        found = 0
        for storage in (decider.storage, decider.standby) if counts else ():
            found += await self._reset(storage, counts)
        return bool(dropped) or found > 0

    async def bans(self, offset: int = 0, limit: int = 100) -> list[Ban]:
        """Return a page of 1 to 1000 current bans, also of a `Penalty`, earliest end first.

        ::

            for ban in await limiter.bans(offset=0, limit=50):
                print(ban.subject.user, ban.until, ban.reason)
        """
        check_whole("offset", offset, 0)
        return await self._bans.page(offset, check_whole("limit", limit, 1, 1_000))

    async def bans_of(self, subject: Subject) -> list[Ban]:
        """Return the bans that refuse a subject, latest end first.

        They are those of the user, of the chat and of the user in the chat, by hand and by a
        `Penalty`.
        """
        return await self._bans.of(check_target(subject))

    async def health(self) -> Health:
        """Return the state of the limiter as far as it is known, without a request."""
        return health_of(self.decider)

    async def check(self) -> Health:
        """Return the state of the limiter after test calls, which charge no user.

        ::

            health = await limiter.check()
            print(health.ok, health.problem)

        One call is a real hit on the key `<prefix>:ratelimit:check`, even if the circuit breaker is
        open. So it also detects a read-only server and full memory. Further calls ask what hits by
        the rules of this bot would get, for somebody who does not exist. What a server refuses,
        because of permissions or because keys are on several nodes, is a problem for a minute. It
        never raises.
        """
        return await checked(self.decider)

    async def statistics(self, hours: int = 24) -> tuple[HourCount, ...]:
        """Return the decisions by hour, rule and outcome over all instances.

        ::

            for each in await limiter.statistics(hours=24):
                print(each.hour, each.rule, each.outcome, each.count)

        Like all statistics it needs `statistics=True`. `hours` is 1 to 48, and includes the current
        one.
        """
        return await self._counted().read(hours)

    async def requests(self, hours: int = 24) -> tuple[HourCount, ...]:
        """Return what the bot sent by hour, method and outcome, over all instances.

        It needs `OutgoingLimits(..., statistics=True)`. The outcomes are those of `MinuteCount`.
        """
        return await self._counted().read(hours, REQUESTS)

    async def last_hour(self) -> tuple[MinuteCount, ...]:
        """Return the decisions and requests of the last 60 minutes, by minute."""
        return await self._counted().read_minutes()

    async def top_refused(self, n: int = 10, hours: int = 24) -> tuple[Refusals, ...]:
        """Return the 1 to 1000 users who were refused most often, the worst first.

        ::

            for worst in await limiter.top_refused(10):
                print(worst.user, worst.count)
        """
        return await self._counted().top_refused(n, hours)

    async def refused(self, user: int, hours: int = 24) -> int | None:
        """Return how often a user was refused.

        For each hour, only the 1000 users who were refused most often are known. None if the user
        is not among them, in an hour in which so many were refused.
        """
        return await self._counted().refused(check_number("user", user), hours)

    def _counted(self) -> Statistics:
        if self._statistics is None:
            raise ConfigError(
                "statistics are off: pass statistics=True to Limiter or RateLimitMiddleware"
            )
        return self._statistics

    async def _reset(self, storage: Storage, counts: Sequence[Count]) -> int:
        """Delete the counts; return how many of them existed."""
        verdicts = await storage.ask(Ask(counts, Op.RESET), timeout=self.decider.timeout)
        return sum(verdict.reset > 0 for verdict in verdicts)

    async def _adjust(
        self, op: Op, rules: RuleLike | Iterable[RuleLike], subject: Subject, cost: int | None
    ) -> Decision:
        decider = self.decider
        counts, applied = counts_to_adjust(decider.key_prefix, rules_of(rules), subject, cost)
        if not counts:
            return Decision(True, applied[0], MAX_AMOUNT, 0.0, 0.0, "none")
        verdicts = await decider.storage.ask(Ask(counts, op), timeout=decider.timeout)
        return conclude(applied, verdicts, decider.storage.source, [1] * len(counts))
