"""Subject state: what a user or chat has left of a rule, and which ban refuses them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from bot_ratelimit.admin.views import CountView, RuleView
from bot_ratelimit.errors import StorageError
from bot_ratelimit.limiter.arguments import FOREVER
from bot_ratelimit.limiter.decision import Decision
from bot_ratelimit.limiter.limiter import Limiter
from bot_ratelimit.rules.limit import Limit
from bot_ratelimit.rules.rule import Subject, rules_of
from bot_ratelimit.storage.banlist import Ban


async def count_of(limiter: Limiter, view: RuleView, subject: Subject) -> CountView | None:
    """What a user or chat has left of a rule, without charging; None if the rule does not apply.

    Raises:
        StorageError: Redis cannot be reached.
    """
    rule = replace(view, shadow=False).rule()  # the answer that it would give without shadow mode
    key = None if rule is None else rule.key(limiter.key_prefix, subject)
    if rule is None or key is None:
        return None
    # Reads the count itself; a ban by hand would hide it.
    found = answered(await limiter.decider.hit(rules_of(rule), subject, peek=True))
    known = view.limit is not None
    return CountView(
        view.name,
        key,
        view.limit,
        found.allowed,
        found.remaining if known else None,
        rule.limit.capacity if known and isinstance(rule.limit, Limit) else None,
        found.retry_after,
        found.reset_after,
    )


async def ban_of(
    limiter: Limiter,
    subject: Subject,
    rules: Iterable[RuleView],
    counts: Iterable[CountView],
    now: float,
) -> Ban | None:
    """The ban of a user or chat that ends last; None if there is no ban.

    Args:
        limiter: The limiter that keeps the bans.
        subject: The user or chat.
        rules: The rules in force.
        counts: The subject's counts.
        now: Unix seconds by the storage's clock.
    """
    if subject.user is None and subject.chat is None:
        return None
    refusing = {each.key: each for each in counts if not each.allowed}
    for ban in await limiter.bans_of(subject):
        if not ban.key or ban.key in refusing:  # else the penalty is off
            return ban
    # A ban by a penalty that is not on the list yet, or for which the list has no room.
    lengths = {view.name: view.ban_ms / 1e3 for view in rules if view.ban_ms}
    for each in refusing.values():
        if each.rule in lengths:
            until = datetime.fromtimestamp(now + each.retry_after, UTC)
            began = until - timedelta(seconds=lengths[each.rule])
            since = min(began, datetime.fromtimestamp(now, UTC))  # a ban that grows is longer
            return Ban(subject, since, until, f"more than {each.limit}", "penalty", each.key)
    return None


def answered(decision: Decision) -> Decision:
    """The decision, if the storage has made it.

    Raises:
        StorageError: Only the policy has answered, because Redis cannot be reached.
    """
    if decision.source == "policy":
        raise StorageError("Redis cannot be reached; for details: `bot-ratelimit health`")
    return decision


def seconds_left(ban: Ban, now: float) -> float:
    """How long a ban still lasts."""
    return FOREVER if ban.until is None else max(0.0, ban.until.timestamp() - now)
