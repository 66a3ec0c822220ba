"""What operators ask of a limiter: bans, health, statistics."""

from __future__ import annotations

from bot_ratelimit.errors import ConfigError
from bot_ratelimit.limiter.adjusting import AdjustingMethods
from bot_ratelimit.limiter.arguments import (
    check_ban_length,
    check_bannable,
    check_target,
    check_text,
)
from bot_ratelimit.limiter.bans import penalty_counts
from bot_ratelimit.limiter.health import Health, checked, health_of
from bot_ratelimit.limiter.statistics import (
    REQUESTS,
    HourCount,
    MinuteCount,
    Refusals,
    Statistics,
)
from bot_ratelimit.rules.checks import check_whole
from bot_ratelimit.rules.rule import Subject
from bot_ratelimit.storage.banlist import Ban


class OperatorMethods(AdjustingMethods):
    """The methods of a `Limiter` for operators.

    Those that ask the storage raise StorageError if it is unreachable, and ConfigError if an
    argument is invalid or the storage keeps no bans or statistics.
    """

    _statistics: Statistics | None

    async def ban(
        self, subject: Subject, length: float | str | None = None, reason: str = "", by: str = ""
    ) -> Ban:
        """Ban a user, a chat, or a user in a chat: all their hits are refused.

        ::

            await limiter.ban(Subject(user=42), "1h", reason="spam", by="Anna")

        This limiter applies the ban at once, other limiters with this storage and prefix within a
        second. A ban replaces an earlier one; it needs no `Penalty`.

        Args:
            subject: Who is banned: by all bots that share the prefix, or by the bot that the
                subject names.
            length: Seconds, or a period such as `"1h"`, at most ten years; None (the default) bans
                permanently.
            reason: Why, for the list of bans.
            by: Who imposed the ban, for the list of bans.

        Returns:
            The ban, with its end.

        Raises:
            ConfigError: An argument is invalid, there are already 100,000 bans, or the storage
                keeps no bans.
            StorageError: The storage is unreachable; it is unknown whether the ban is in force.
        """
        check_bannable(subject)
        seconds = check_ban_length(length)
        return await self._bans.ban(
            subject, seconds, check_text("reason", reason), check_text("by", by)
        )

    def is_banned(self, subject: Subject) -> bool:
        """Whether a subject is banned by hand, as far as this process knows; sends no request."""
        return bool(self._bans.current) and self._bans.left(subject) > 0

    async def unban(self, subject: Subject) -> bool:
        """Lift all bans of a subject, also those of a `Penalty`; return True if there were any.

        ::

            await limiter.unban(Subject(user=42))

        After a StorageError some of them may be lifted.
        """
        decider = self._decider
        dropped = await self._bans.unban(check_target(subject))
        counts = penalty_counts(decider.key_prefix, subject, dropped)
        found = await self._reset(decider.storage, counts) if counts else 0
        if counts:
            found += await self._reset(decider.standby, counts)
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
        return health_of(self._decider)

    async def check(self) -> Health:
        """Return the state of the limiter after a test call, which charges no user.

        ::

            health = await limiter.check()
            print(health.ok, health.problem)

        It is a real hit on the key `<prefix>:ratelimit:check`, even if the circuit breaker is open.
        So it also detects a read-only server and full memory. What the server refused to decide in
        the last minute, because of permissions or because keys are on several nodes, is a problem
        too.
        """
        return await checked(self._decider)

    async def statistics(self, hours: int = 24) -> tuple[HourCount, ...]:
        """Return the decisions by hour, rule and outcome over all instances.

        ::

            for each in await limiter.statistics(hours=24):
                print(each.hour, each.rule, each.outcome, each.count)

        It needs `statistics=True`. `hours` is 1 to 48, and includes the current one.
        """
        return await self._require_statistics().read(hours)

    async def requests(self, hours: int = 24) -> tuple[HourCount, ...]:
        """Return what the bot sent by hour, method and outcome, over all instances.

        It needs `OutgoingLimits(..., statistics=True)`. The outcomes are those of `MinuteCount`.

        Args:
            hours: See `statistics`.

        Raises:
            StorageError: Redis is unreachable.
            ConfigError: Statistics are off, or `hours` is invalid.
        """
        return await self._require_statistics().read(hours, REQUESTS)

    async def last_hour(self) -> tuple[MinuteCount, ...]:
        """Return the decisions and requests of the last 60 minutes, by minute.

        Raises:
            StorageError: Redis is unreachable.
            ConfigError: Statistics are off.
        """
        return await self._require_statistics().read_minutes()

    async def top_refused(self, n: int = 10, hours: int = 24) -> tuple[Refusals, ...]:
        """Return the 1 to 1000 users who were refused most often, the worst first.

        ::

            for worst in await limiter.top_refused(10):
                print(worst.user, worst.count)

        It needs `statistics=True`; for `hours` see `statistics`.
        """
        return await self._require_statistics().top_refused(n, hours)

    async def refused(self, user: int, hours: int = 24) -> int | None:
        """Return how often a user was refused; for `hours` see `statistics`.

        For each hour, only the 1000 users who were refused most often are known. None if the user
        is not among them, in an hour in which so many were refused.
        """
        return await self._require_statistics().refused(user, hours)

    def _require_statistics(self) -> Statistics:
        if self._statistics is None:
            raise ConfigError(
                "statistics are off: pass statistics=True to Limiter or RateLimitMiddleware"
            )
        return self._statistics
