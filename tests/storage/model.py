"""A plain model of a storage's verdicts, and of the Decision that follows from them."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from fractions import Fraction
from math import ceil, floor
from typing import Any

from bot_ratelimit import Algorithm, Decision, Limit, Penalty, Rule
from bot_ratelimit.algorithms.algorithms import Verdict
from bot_ratelimit.storage.base import Count

ONCE = 60_000_000


def max_debt(limit: Limit) -> int:
    return min(1_000_000, limit.amount * (366 * 86_400_000 // limit.period_ms))


class FixedWindow:
    """The charges since the window was opened, and the debt of later windows."""

    def __init__(self, limit: Limit, now: int, old: Any) -> None:
        self.limit, self.now = limit, now // 1_000 * 1_000
        self.period = limit.period_ms * 1_000
        self.count, self.owed, self.ends, self.opened = 0, 0, self.now + self.period, self.now
        if not isinstance(old, FixedWindow):
            return
        count, owed, ends, opened = old.count, old.owed, old.ends, old.opened
        while owed and ends <= self.now:  # one window after the other pays
            count = min(owed, old.limit.amount)
            owed -= count
            ends += old.period
        if ends <= self.now:
            return
        self.ends = min(ends, self.now + self.period)
        paid = min(owed, max(0, limit.amount - count))
        self.count, self.owed = count + paid, min(owed - paid, max_debt(limit))
        self.opened = opened if old.owed else self.ends - self.period
        self.in_debt = bool(old.owed)

    in_debt = False

    def ahead(self) -> list[tuple[int, int]]:
        """When each window begins that is to come, and what will be charged in it."""
        found, owed, begins = [], self.owed, self.ends
        while True:
            count = min(owed, self.limit.amount)
            found.append((begins, count))
            if not count:
                return found
            owed, begins = owed - count, begins + self.period

    def wait(self, cost: int) -> int:
        if self.count + cost <= self.limit.amount:
            return 0
        return next(
            begins - self.now
            for i, (begins, count) in enumerate(self.ahead())
            if count + cost <= self.limit.amount and not sum(c for _, c in self.ahead()[i + 1 :])
        )

    def charge(self, cost: int) -> None:
        self.count += cost

    def refuse(self, cost: int) -> bool:
        full = self.count >= self.limit.amount
        if full:
            self.count += cost
        return full or not self.in_debt

    def pay(self, cost: int) -> None:
        for _ in range(cost):
            if self.count < self.limit.amount:
                self.count += 1
            elif self.owed < max_debt(self.limit):
                self.owed += 1

    def refund(self, cost: int, age: int) -> bool:
        if not self.count or (self.now - self.opened) // 1_000 < age // 1_000:
            return False
        while cost and self.owed:
            self.owed, cost = self.owed - 1, cost - 1
        if cost:
            self.count = max(0, min(self.count, self.limit.amount) - cost)
        return True

    def remaining(self) -> int:
        return max(0, self.limit.amount - self.count)

    def reset(self) -> int:
        return self.ahead()[-1][0] - self.now if self.count else 0


class SlidingWindow:
    """All hits ever; a unit is paid as soon as the period before it has room."""

    linger_ms = 1
    """How long the log is there after its last hit has left: a TTL counts no microseconds."""

    def __init__(self, limit: Limit, now: int, old: Any) -> None:
        self.now, self.limit, self.amount = now, limit, limit.amount
        self.period = limit.period_ms * 1_000
        self.hits: list[tuple[int, int]] = []
        self.owed = self.since = self.forgotten = 0
        if isinstance(old, SlidingWindow) and now < old.forgotten:
            self.hits, self.owed, self.since = list(old.hits), old.owed, old.since
            self.forgotten = old.forgotten
            self.owed = min(self.owed, max_debt(limit))
            while self.owed and self.next_payment() <= now:
                self.hits.append((self.next_payment(), 1))
                self.owed -= 1

    def used_at(self, time: int) -> int:
        return sum(cost for at, cost in self.hits if at > time - self.period)

    def next_payment(self) -> int:
        latest = self.hits[-1][0]
        moments = [latest, *sorted(at + self.period for at, _ in self.hits)]
        return next(m for m in moments if m >= latest and self.used_at(m) < self.amount)

    def ahead(self) -> SlidingWindow:
        """The log when all is paid."""
        later = copy(self)
        later.hits = list(self.hits)
        while later.owed:
            later.hits.append((later.next_payment(), 1))
            later.owed -= 1
        return later

    def wait(self, cost: int) -> int:
        if not self.owed and self.used_at(self.now) + cost <= self.amount:
            return 0
        later = self.ahead()
        moments = sorted(at + self.period for at, _ in later.hits)
        return next(
            moment - self.now
            for moment in moments
            if moment > self.now
            and moment >= (later.hits[-1][0] if self.owed else 0)
            and later.used_at(moment) + cost <= self.amount
        )

    def keep(self) -> None:
        self.hits = [hit for hit in self.hits if hit[0] > self.now - self.period]
        while self.owed and self.used_at(self.now) < self.amount:
            self.hits.append((max(self.now, self.hits[-1][0] if self.hits else 0), 1))
            self.owed -= 1
        self.owed = min(self.owed, max_debt(self.limit))
        late = self.ahead().hits[-1][0] - self.now if self.hits else 0
        until = self.now // 1_000 + self.limit.period_ms + self.linger_ms
        self.forgotten = (until + ceil(late / 1_000)) * 1_000

    def charge(self, cost: int) -> None:
        self.hits.append((max(self.now, self.hits[-1][0] if self.hits else 0), cost))
        self.keep()

    def refuse(self, cost: int) -> bool:
        return False

    def pay(self, cost: int) -> None:
        self.since = self.since if self.owed else self.now
        self.owed += cost
        self.keep()

    def refund(self, cost: int, age: int) -> bool:
        charged = self.now - age
        in_debt = self.owed and charged >= self.since
        units = [at for at, cost in self.hits for _ in range(cost) if at > self.now - self.period]
        back = min(cost, self.owed) if in_debt else 0
        self.owed -= back
        found = [at for at in reversed(units) if in_debt or at <= charged][: cost - back]
        for at in found:
            units.remove(at)
        self.hits = [(at, 1) for at in units]
        self.keep()
        return bool(back or found)

    def remaining(self) -> int:
        return max(0, self.amount - self.used_at(self.now))

    def reset(self) -> int:
        hits = self.ahead().hits
        return max(0, hits[-1][0] + self.period - self.now) if hits else 0


class TokenBucket:
    """The time at which the bucket is full, as an exact fraction while the amount is the same."""

    def __init__(self, limit: Limit, now: int, old: Any) -> None:
        self.now, self.amount, self.burst, self.limit = now, limit.amount, limit.capacity, limit
        self.token = Fraction(limit.period_ms * 1_000, limit.amount)
        full_at, owed = Fraction(now), 0
        if isinstance(old, TokenBucket):
            owed = max(0, ceil((old.full_at - old.now) / old.token - old.burst))
            full_at = Fraction(old.full_at)
            if old.amount != self.amount:
                full_at = Fraction(floor(full_at))
        self.most = (self.burst + min(owed, max_debt(limit))) * self.token
        self.emptied = full_at > now + self.most
        self.full_at = min(max(full_at, Fraction(now)), now + self.most)

    def wait(self, cost: int) -> int:
        return max(0, ceil(self.full_at + cost * self.token - self.now - self.burst * self.token))

    def charge(self, cost: int) -> None:
        self.full_at += cost * self.token

    def refuse(self, cost: int) -> bool:
        return self.emptied

    def pay(self, cost: int) -> None:
        most = self.now + (self.burst + max_debt(self.limit)) * self.token
        self.full_at = min(self.full_at + cost * self.token, most)

    def refund(self, cost: int, age: int) -> bool:
        if self.full_at == self.now or age >= self.most:
            return False
        self.full_at = max(Fraction(self.now), self.full_at - cost * self.token)
        return True

    def remaining(self) -> int:
        return max(0, floor(self.burst - (self.full_at - self.now) / self.token))

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
    """The verdicts of a storage, as simply as possible."""

    def __init__(self, linger_ms: int) -> None:
        self.linger_ms = linger_ms
        self.counts: dict[str, Any] = {}
        self.told: dict[str, tuple[int, list[Count], list[Verdict]]] = {}

    def count(self, now: int, charge: Count) -> Any:
        """The count under the key as this limit sees it; the state of another kind is none."""
        old = self.counts.get(charge.key)
        if charge.penalty:
            return Strikes(charge.limit, now, old, charge.penalty)
        count = KINDS[charge.limit.algorithm](charge.limit, now, old)
        if isinstance(count, SlidingWindow):
            count.linger_ms = self.linger_ms
        return count

    def hit(self, now: int, charges: Sequence[Count], once: str | None = None) -> list[Verdict]:
        passed = (now // 1_000 - self.told[once][0] // 1_000) * 1_000 if once in self.told else ONCE
        if passed < ONCE:
            verdicts = self.told[once][2]
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

    def decide(self, now: int, charges: Sequence[Count], *, charge: bool) -> list[Verdict]:
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

    def pay(self, now: int, charges: Sequence[Count], cost: int, age: int | None) -> list[Verdict]:
        """Charge (without an age), or refund what was charged that many microseconds ago."""
        for each in charges:
            count = self.count(now, each)
            if age is None:
                count.pay(cost)
            elif not count.refund(cost, age):
                continue
            self.counts[each.key] = count
            if not count.reset():
                del self.counts[each.key]
        return self.decide(now, [each._replace(cost=1) for each in charges], charge=False)

    def reset(self, now: int, charges: Sequence[Count]) -> bool:
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
    charges: Sequence[Count],
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
