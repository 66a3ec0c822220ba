"""Charges: which counts of a subject a call is about, and under which keys."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Final

from bot_ratelimit.errors import ConfigError
from bot_ratelimit.rules.checks import check_cost
from bot_ratelimit.rules.limit import MAX_AMOUNT, MAX_PERIOD_MS, Limit
from bot_ratelimit.rules.penalty import Penalty
from bot_ratelimit.rules.rule import Rule, RuleLike, Rules, Subject, rules_of
from bot_ratelimit.storage.base import Count, new_count

# The limit for counts of a rule that no longer applies to a subject.
_ANY_LIMIT: Final = Limit(MAX_AMOUNT, MAX_PERIOD_MS / 1_000)


def hit_charges(
    prefix: str, rules: Rules, subject: Subject, cost: int | None
) -> tuple[list[Count], list[Rule]]:
    """The charges of a hit and their rules: those that apply to the subject."""
    check_subject(subject)
    charges: list[Count] = []
    applied: list[Rule] = []
    for rule in rules:
        limit = rule.limit if isinstance(rule.limit, Limit) else rule.limit_for(subject)
        if limit is None:
            continue
        key = rule.key(prefix, subject, limit)
        if key is None:
            continue
        if isinstance(rule, Penalty):
            charges.append(Count(key, limit, penalty=rule))
        else:
            if cost is not None or limit is not rule.limit:
                check_cost(rule.cost if cost is None else cost, limit, rule)
            charges.append(new_count((key, limit, cost or rule.cost, rule.shadow, None)))
        applied.append(rule)
    return charges, applied


def adjustment_charges(
    prefix: str, rules: RuleLike | Iterable[RuleLike], subject: Subject, cost: int
) -> tuple[list[Count], Sequence[Rule]]:
    """The charges of `charge` or `refund` and their rules; all rules if none applies."""
    given = rules_of(rules)
    check_subject(subject)
    charges, applied = [], []
    for rule in given:
        limit = rule.limit_for(subject)
        key = rule.key(prefix, subject, limit)
        if key is not None and limit is not None and not isinstance(rule, Penalty):
            charges.append(Count(key, limit, cost, rule.shadow))
            applied.append(rule)
    return charges, applied or given


def reset_charges(prefix: str, rules: Rules, subject: Subject) -> list[Count]:
    """The charges to reset: everything that may be counted, also by rules that do not apply now."""
    check_subject(subject)
    charges = []
    for rule in rules:
        limit = rule.limit_for(subject) or _ANY_LIMIT
        key = rule.key(prefix, subject, limit)
        if key is not None:
            penalty = rule if isinstance(rule, Penalty) else None
            charges.append(Count(key, limit, shadow=rule.shadow, penalty=penalty))
    return charges


def once_key(prefix: str, token: str, charges: Sequence[Count]) -> str:
    """The key of a shared verdict: `bot:ratelimit:once:<hash of the token and of each key>`.

    Tokens and keys are strings of any length and content, so each is hashed with its length.
    """
    if not isinstance(token, str):
        raise ConfigError(f"once={token!r}: expected a str, for example once=str(update_id)")
    parts = [part.encode("utf-8", "surrogatepass") for part in (token, *(c.key for c in charges))]
    text = b"".join(b"%d:%b" % (len(part), part) for part in parts)
    return f"{prefix}:ratelimit:once:{blake2b(text, digest_size=16).hexdigest()}"


def check_subject(subject: object) -> None:
    """Raise ConfigError unless this is a Subject."""
    if not isinstance(subject, Subject):
        raise ConfigError(f"subject={subject!r}: expected a Subject, for example Subject(user=42)")
