"""Penalty: a ban for users who keep sending while they are refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bot_ratelimit.errors import ConfigError
from bot_ratelimit.rules.checks import check_flag, seconds_of
from bot_ratelimit.rules.limit import MAX_AMOUNT, MAX_PERIOD_MS, Algorithm, Limit
from bot_ratelimit.rules.rule import Ids, LimitLike, Rule, Scope, changed, set_fields


@dataclass(frozen=True, slots=True, init=False)
class Penalty(Rule):
    """A ban for users who keep sending while they are refused.

    ::

        RateLimitMiddleware("5/10s", redis, penalty=Penalty(after="10/minute", ban="15m"))

    Refused hits are counted in a window of their own, `<prefix>:ratelimit:ban:<user>`. When
    `after` is reached, everything is refused for the length of the ban, on every instance;
    `Limiter.reset` lifts it. The key's value is the number of refused attempts, its TTL the rest
    of the ban.

    Args:
        after: How many refused hits in how much time: `"10/minute"`.
        ban: How long: seconds, or a text such as `"15m"`.
        grows: Whether each `after` further refused attempts during the ban double it. A later ban
            has the first length again.
        longest: What a ban grows to at most, with `grows`; a day by default.
        scope: Who is banned: all who share this scope, also as text (`"chat"`).

    Raises:
        ConfigError: An argument is invalid.
    """

    tells_left: ClassVar[bool] = False

    ban_ms: int
    longest_ms: int
    """0 if the ban does not grow."""
    imposed: bool
    """Whether a hit causes the ban by itself, without any refusals before."""
    listed: bool
    """Whether its bans are of users or chats, and so are in the list of bans."""

    def __init__(
        self,
        after: LimitLike,
        ban: float | str,
        *,
        grows: bool = False,
        longest: float | str | None = None,
        scope: Scope | str = Scope.USER,
    ) -> None:
        limit = Limit.of(after)
        if limit.algorithm is not Algorithm.FIXED_WINDOW or limit.zone:
            raise ConfigError(
                f"after={str(limit)!r}: expected a fixed window without a time zone, such as "
                "'10/minute'"
            )
        if not isinstance(scope, (Scope, str)):
            raise ConfigError(f"scope={scope!r}: expected a Scope, for example Scope.USER")
        check_flag("grows", grows)
        if longest is not None and not grows:
            raise ConfigError(f"longest={longest!r}: set grows to true, or leave longest out")
        longest = "1d" if longest is None else longest
        Rule.__init__(self, limit, scope)
        set_fields(
            self,
            path=f"ban:{self.path}",
            ban_ms=_duration_ms("ban", ban),
            longest_ms=_duration_ms("longest", longest) if grows else 0,
            imposed=False,
            listed=self.scope is not Scope.GLOBAL,
        )
        if grows and self.longest_ms < self.ban_ms:
            raise ConfigError(f"longest={longest!r}: expected at least as long as ban={ban!r}")

    def __str__(self) -> str:
        """The penalty in logs and errors, for example `ban of 900 s after 10/minute`."""
        return f"ban of {self.ban_ms / 1_000:g} s after {self.limit}"


def block_at(path: str, ids: Ids) -> Penalty:
    """Make a rule that refuses everything while a block is in force, but never starts one.

    Its limit is more refusals than fit into a millisecond, so only `blocking` can fill it. Its key
    is `<prefix>:ratelimit:<path><ids>`, whose TTL is the rest of the block.
    """
    rule = Penalty(Limit(MAX_AMOUNT, 0.001), MAX_PERIOD_MS / 1_000)
    return changed(rule, path=path, ids=ids, listed=False)


def blocking(rule: Penalty, seconds: float) -> Penalty:
    """Make the rule to hit so that `rule` refuses everything for `seconds`.

    If there are several blocks, the one that ends last wins.
    """
    length = _duration_ms("seconds", seconds)
    return changed(rule, ban_ms=length, longest_ms=MAX_PERIOD_MS, imposed=True)


def _duration_ms(name: str, value: float | str) -> int:
    ms = seconds_of(value) * 1_000
    if not 1 <= ms <= MAX_PERIOD_MS:
        raise ConfigError(
            f"{name}={value!r}: expected seconds, or a text such as '15m'; at most 366 days"
        )
    return round(ms)
