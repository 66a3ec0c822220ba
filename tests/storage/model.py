"""A plain model of what a storage is to say, and of the Decision that follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import ceil, floor
from typing import Any

from bot_ratelimit import Algorithm, Decision, Limit, Penalty, Rule
from bot_ratelimit.algorithms import Verdict
from bot_ratelimit.storage.base import Charge

ONCE = 60_000_000


class FixedWindow:
    """The costs since the first hit of the window."""

    def __init__(self, limit: Limit, now: int, old: Any) -> None:
        self.now, self.amount, period = now, limit.amount, limit.period_ms * 1_000
        running = isinstance(old, FixedWindow) and now < old.ends
        self.costs: list[int] = list(old.costs) if running else []
        self.ends = min(old.ends, now + period) if running else now + period

    def wait(self, cost: int) -> int:
        return self.ends - self.now if sum(self.costs) + cost > self.amount else 0

    def charge(self, cost: int) -> None:
        self.costs.append(cost)

    def refuse(self, cost: int) -> bool:
        if sum(self.costs) >= self.amount:
            self.costs.append(cost)
        return True

    def remaining(self) -> int:
        return max(0, self.amount - sum(self.costs))

    def reset(self) -> int:
        return self.ends - self.now if self.costs else 0


class SlidingWindow:
    """Every hit there ever was; a hit may come as soon as the period before it has room."""

    linger_ms = 1
    """How long the log is there after its last hit has left: a TTL counts no microseconds."""

    def __init__(self, limit: Limit, now: int, old: Any) -> None:
        self.now, self.amount, self.period_ms = now, limit.amount, limit.period_ms
        self.period = limit.period_ms * 1_000
        known = isinstance(old, SlidingWindow) and now < old.forgotten
        self.hits: list[tuple[int, int]] = list(old.hits) if known else []
        self.forgotten = 0

    def used_at(self, time: int) -> int:
        return sum(cost for at, cost in self.hits if at > time - self.period)

    def wait(self, cost: int) -> int:
        moments = [self.now, *sorted(at + self.period for at, _ in self.hits)]
        return next(
            moment - self.now
            for moment in moments
            if moment >= self.now and self.used_at(moment) + cost <= self.amount
        )

    def charge(self, cost: int) -> None:
        self.hits = [hit for hit in self.hits if hit[0] > self.now - self.period]
        self.hits.append((self.now, cost))
        self.forgotten = (self.now // 1_000 + self.period_ms + self.linger_ms) * 1_000

    def refuse(self, cost: int) -> bool:
        return False

    def remaining(self) -> int:
        return max(0, self.amount - self.used_at(self.now))

    def reset(self) -> int:
        return max(0, self.hits[-1][0] + self.period - self.now) if self.hits else 0


class TokenBucket:
    """When the bucket will be full, as an exact fraction while the amount stays the same."""

    def __init__(self, limit: Limit, now: int, old: Any) -> None:
        self.now, self.amount, self.burst = now, limit.amount, limit.capacity
        self.token = Fraction(limit.period_ms * 1_000, limit.amount)
        full_at = Fraction(old.full_at) if isinstance(old, TokenBucket) else Fraction(now)
        if isinstance(old, TokenBucket) and old.amount != self.amount:
            full_at = Fraction(floor(full_at))
        latest = now + self.burst * self.token
        self.emptied = full_at > latest
        self.full_at = min(max(full_at, Fraction(now)), latest)

    def wait(self, cost: int) -> int:
        return max(0, ceil(self.full_at + cost * self.token - self.now - self.burst * self.token))

    def charge(self, cost: int) -> None:
        self.full_at += cost * self.token

    def refuse(self, cost: int) -> bool:
        return self.emptied

    def remaining(self) -> int:
        return floor(self.burst - (self.full_at - self.now) / self.token)

    def reset(self) -> int:
        return ceil(self.full_at - self.now)


class Strikes:
    """Refused hits, and when they are forgotten."""

    def __init__(self, limit: Limit, now: int, old: Any, terms: Penalty) -> None:
        self.now, self.limit, self.terms = now, limit, terms
        running = isinstance(old, Strikes) and now < old.ends
        longest = max(limit.period_ms, terms.ban_ms, terms.longest_ms) * 1_000
        self.strikes = old.strikes if running else 0
        self.ends = min(old.ends, now + longest) if running else now + limit.period_ms * 1_000

    def wait(self, cost: int) -> int:
        return self.ends - self.now if self.strikes >= self.limit.amount else 0

    def strike(self) -> None:
        self.strikes += 1
        ban = longest = 0
        if self.strikes == self.limit.amount:
            ban = longest = self.terms.ban_ms
        elif self.strikes % self.limit.amount == 0 and self.terms.longest_ms:
            longest = self.terms.longest_ms
            ban = self.terms.ban_ms * 2 ** (self.strikes // self.limit.amount - 1)
        if ban:
            self.ends = self.now + min(ban, longest) * 1_000

    def remaining(self) -> int:
        return max(0, self.limit.amount - self.strikes)

    def reset(self) -> int:
        return self.ends - self.now if self.strikes else 0


KINDS = {
    Algorithm.FIXED_WINDOW: FixedWindow,
    Algorithm.SLIDING_WINDOW: SlidingWindow,
    Algorithm.TOKEN_BUCKET: TokenBucket,
}


class Model:
    """What a storage is to say, as plainly as it can be put."""

    def __init__(self, linger_ms: int) -> None:
        self.linger_ms = linger_ms
        self.counts: dict[str, Any] = {}
        self.told: dict[str, tuple[int, list[Charge], list[Verdict]]] = {}

    def count(self, now: int, charge: Charge) -> Any:
        """The count under the key as this limit sees it; the state of another kind is none."""
        old = self.counts.get(charge.key)
        if charge.penalty:
            return Strikes(charge.limit, now, old, charge.penalty)
        count = KINDS[charge.limit.algorithm](charge.limit, now, old)
        if isinstance(count, SlidingWindow):
            count.linger_ms = self.linger_ms
        return count

    def hit(self, now: int, charges: Sequence[Charge], once: str | None = None) -> list[Verdict]:
        if once in self.told and now - self.told[once][0] < ONCE:
            decided, _, verdicts = self.told[once]
            passed = now - decided
            return [
                Verdict(max(1, wait - passed) if wait else 0, remaining, max(0, reset - passed))
                for wait, remaining, reset in verdicts
            ]
        verdicts = self.decide(now, charges, charge=True)
        if once:
            # Those who share the verdict find a ban that the hit brought on.
            shared = [
                v._replace(wait=v.reset) if c.penalty and not v.remaining else v
                for c, v in zip(charges, verdicts, strict=True)
            ]
            self.told[once] = now, list(charges), shared
        return verdicts

    def decide(self, now: int, charges: Sequence[Charge], *, charge: bool) -> list[Verdict]:
        counts = [self.count(now, each) for each in charges]
        waits = [count.wait(c.cost) for count, c in zip(counts, charges, strict=True)]
        refused = any(wait and not c.shadow for wait, c in zip(waits, charges, strict=True))
        for count, wait, each in zip(counts, waits, charges, strict=True):
            if each.penalty:
                if refused:
                    count.strike()
                keep = refused
            elif not charge:
                continue
            elif wait:
                keep = count.refuse(each.cost)
            else:
                keep = not refused
                if keep:
                    count.charge(each.cost)
            if charge and keep:
                self.counts[each.key] = count
        return [
            Verdict(wait, count.remaining(), count.reset())
            for count, wait in zip(counts, waits, strict=True)
        ]

    def reset(self, now: int, charges: Sequence[Charge]) -> bool:
        found = any(self.count(now, each).reset() > 0 for each in charges)
        keys = {each.key for each in charges}
        for key in keys:
            self.counts.pop(key, None)
        for token, (_, shared, _) in list(self.told.items()):
            if keys & {each.key for each in shared}:
                del self.told[token]
        return found


def concluded(
    rules: Sequence[Rule],
    charges: Sequence[Charge],
    verdicts: Sequence[Verdict],
    *,
    look: bool,
    rule: Rule | None = None,
) -> Decision:
    """The Decision that the verdicts amount to: of who refuses longest, or else of the tightest.

    Given a rule, its own, for a server on which time passes between hits: of two equal waits one
    is then longer.
    """
    waits = [
        (0 if v.remaining else v.reset or v.wait) if c.penalty else v.wait
        for c, v in zip(charges, verdicts, strict=True)
    ]
    left = [
        v.remaining - (c.cost if look and not c.penalty else 0)
        for c, v in zip(charges, verdicts, strict=True)
    ]
    every = range(len(rules))
    real = [i for i in every if not rules[i].shadow]
    refusing = [i for i in real if waits[i]]
    by_wait = {i for i in real or every if waits[i] == max(waits[i] for i in real or every)}
    ordinary = {i for i in by_wait if not charges[i].penalty} or by_wait
    chosen = min(sorted(ordinary), key=lambda i: left[i])
    if rule is not None and waits[chosen]:
        chosen = next(i for i in every if rules[i] is rule)
    return Decision(
        allowed=not refusing,
        rule=rules[chosen],
        remaining=verdicts[chosen].remaining,
        retry_after=waits[chosen] / 1e6 if refusing else 0.0,
        reset_after=verdicts[chosen].reset / 1e6,
        source="memory",
        shadow=tuple(rules[i] for i in every if waits[i] and rules[i].shadow),
        banned=any(charges[i].penalty for i in refusing),
    )
