"""Turns the rules of a call into the counts that a storage decides about."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Final

from bot_ratelimit.errors import ConfigError
from bot_ratelimit.limiter.arguments import check_subject
from bot_ratelimit.rules.checks import check_cost
from bot_ratelimit.rules.limit import MAX_AMOUNT, MAX_PERIOD_MS, Algorithm, Limit
from bot_ratelimit.rules.penalty import Penalty
from bot_ratelimit.rules.rule import Rule, Rules, Subject
from bot_ratelimit.storage.base import Ask, Count, Op, new_count

# For counts by whatever limit a rule had.
_ANY_LIMITS: Final = [Limit(MAX_AMOUNT, MAX_PERIOD_MS / 1_000, each) for each in Algorithm]
_ANY_LIMIT: Final = _ANY_LIMITS[0]


def counts_of_hit(
    prefix: str, rules: Sequence[Rule], subject: Subject, cost: int | None
) -> tuple[list[Count], Sequence[Rule]]:
    """The counts of a hit and their rules: those that apply to the subject."""
    check_subject(subject)
    counts: list[Count] = []
    applied: list[Rule] = []
    for rule in rules:
        limit = rule.limit if isinstance(rule.limit, Limit) else rule.limit_for(subject)
        if limit is None:
            continue
        key = rule.key(prefix, subject, limit)
        if key is None:
            continue
        if isinstance(rule, Penalty):
            counts.append(Count(key, limit, penalty=rule))
        else:
            if cost is not None or limit is not rule.limit:
                check_cost(rule.cost if cost is None else cost, limit, rule)
            counts.append(new_count((key, limit, cost or rule.cost, rule.shadow, None)))
        applied.append(rule)
    return counts, applied


def counts_to_adjust(
    prefix: str, rules: Rules, subject: Subject, cost: int | None
) -> tuple[list[Count], Sequence[Rule]]:
    """The counts of `charge` or `refund` and their rules; all rules if none applies.

    Without a cost, each count has that of its rule.
    """
    counted = [rule for rule in rules if not isinstance(rule, Penalty)]
    counts, applied = counts_of_hit(prefix, counted, subject, None)
    if cost is not None:
        counts = [count._replace(cost=cost) for count in counts]
    return counts, applied or rules


def counts_to_reset(prefix: str, rules: Rules, subject: Subject) -> list[Count]:
    """The counts to reset: whatever rules with these names may have counted, by any algorithm."""
    check_subject(subject)
    counts = []
    for rule in rules:
        penalty = rule if isinstance(rule, Penalty) else None
        own = rule.limit if isinstance(rule.limit, Limit) else _ANY_LIMIT
        others = [] if penalty else [each for each in _ANY_LIMITS if each.key_part != own.key_part]
        for limit in (own, *others):
            key = rule.key(prefix, subject, limit)
            if key is not None:
                counts.append(Count(key, limit, shadow=rule.shadow, penalty=penalty))
    return counts


def trial_of(prefix: str, rules: Rules) -> Ask:
    """Ask what a hit by these rules would get, of somebody who does not exist.

    The keys are `<prefix>:ratelimit:check:…`, so nobody's counts are read. A storage that cannot
    decide by these rules refuses this too: no permission for scripts, or keys in several slots.
    """
    nobody = Subject(user=1, chat=1, topic=1)
    counts = []
    for rule in rules:
        limit = rule.limit if isinstance(rule.limit, Limit) else _ANY_LIMIT
        try:
            key = rule.key(f"{prefix}:ratelimit:check", nobody, limit)
        except Exception:  # a custom scope need not know nobody
            key = None
        penalty = rule if isinstance(rule, Penalty) else None
        key = key or f"{prefix}:ratelimit:check:{rule.path}"
        counts.append(Count(key, limit, shadow=rule.shadow, penalty=penalty))
    return Ask(counts, Op.PEEK)


def once_key(prefix: str, token: str, counts: Sequence[Count]) -> str:
    """The key of a shared verdict: `bot:ratelimit:once:{<first key>}:<hash of token and keys>`.

    Tokens and keys are strings of any length and content, so each is hashed with its length. The
    braces put it into the slot of the first key, unless that key has braces itself.
    """
    if not isinstance(token, str):
        raise ConfigError(f"once={token!r}: expected a str, for example once=str(update_id)")
    parts = [part.encode("utf-8", "surrogatepass") for part in (token, *(c.key for c in counts))]
    text = b"".join(b"%d:%b" % (len(part), part) for part in parts)
    slot = "" if "{" in (key := counts[0].key) else f"{{{key}}}:"
    return f"{prefix}:ratelimit:once:{slot}{blake2b(text, digest_size=16).hexdigest()}"
