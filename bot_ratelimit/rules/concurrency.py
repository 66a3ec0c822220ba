"""Concurrency: how many may run at the same time."""

from __future__ import annotations

from dataclasses import dataclass

from bot_ratelimit.errors import ConfigError
from bot_ratelimit.rules.checks import check_whole, seconds_of
from bot_ratelimit.rules.limit import MAX_AMOUNT, Limit
from bot_ratelimit.rules.rule import CustomScope, Rule, Scope, Subject, set_fields

LEASE = 30.0
"""The default lease in seconds: after this time the slot of a killed process is free again."""


@dataclass(frozen=True, slots=True, init=False)
class Concurrency(Rule):
    """How many may run at a time, for `Limiter.slot` and the flag `concurrent`.

    ::

        Concurrency(1, name="report")                 # one report at a time for each user
        Concurrency(3, Scope.GLOBAL, "export")        # three exports for the whole bot

    The slots of a user are leases in a sorted set, `<prefix>:ratelimit:slot:report:<user>`.

    Args:
        amount: How many, from 1 to 1,000,000.
        scope: Who shares the slots; a callable as in `Rule`.
        name: Keeps slots apart that have nothing to do with each other.
        lease: Seconds, or a text such as `"1m"`, for which a slot stays taken when its process is
            killed; at least 1. While its process lives a lease is renewed every third of that.

    Raises:
        ConfigError: An argument is invalid.
    """

    amount: int
    lease: float

    def __init__(
        self,
        amount: int,
        scope: Scope | CustomScope = Scope.USER,
        name: str = "",
        *,
        lease: float | str = LEASE,
    ) -> None:
        check_whole("concurrency", amount, 1, MAX_AMOUNT)
        seconds = seconds_of(lease)
        if not 1 <= seconds <= 86_400:
            raise ConfigError(
                f"lease={lease!r}: expected seconds from 1 to 86400, or a text such as '1m'"
            )
        seconds = round(seconds, 3)
        Rule.__init__(self, Limit(amount, seconds), scope, name)
        set_fields(self, path=f"slot:{self.path}", amount=amount, lease=seconds)

    def key(self, prefix: str, subject: Subject, limit: Limit | None = None) -> str | None:
        """Raise ConfigError: a Concurrency does not count hits."""
        raise ConfigError(
            f"{str(self)!r} does not count hits: use it in limiter.slot(...), or as the flag "
            "@flags.rate_limit(concurrent=1)"
        )

    def __str__(self) -> str:
        """The concurrency in logs and errors, for example `1 at a time per user 'report'`."""
        scope = self.scope.value if isinstance(self.scope, Scope) else "custom"
        name = f" {self.name!r}" if self.name else ""
        return f"{self.amount} at a time per {scope}{name}"
