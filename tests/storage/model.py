"""A plain model of a storage's verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from math import ceil, floor
from typing import Any
from zoneinfo import ZoneInfo

from bot_ratelimit import Algorithm, Limit, Penalty
from bot_ratelimit.algorithms.verdict import Verdict
from bot_ratelimit.storage.base import Count

ONCE = 60_000_000
START = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
WEEK_MS, MONTH_MS = 7 * 86_400_000, 31 * 86_400_000


class FixedWindow:
    """What was counted since the window was opened, and when it ends."""

    def __init__(self, limit: Limit, now: int, old: Any) -> None:
        self.limit, self.now = limit, now // 1_000 * 1_000
        longest = self.now + limit.period_ms * 1_000
        if limit.zone:
            longest = next_midnight(limit, self.now)
        running = isinstance(old, FixedWindow) and old.ends > self.now
        self.count = old.count if running else 0
        self.ends = min(old.ends, longest) if running else longest

    def wait(self, cost: int) -> int:
        return self.ends - self.now if self.count + cost > self.limit.amount else 0

    def charge(self, cost: int) -> None:
        self.count += cost

    def refuse(self, cost: int) -> bool:
        if self.count >= self.limit.amount:
            self.count += cost
        return True

    def refund(self, cost: int) -> None:
        self.count = max(0, min(self.count, self.limit.amount) - cost)

    def remaining(self) -> int:
        return max(0, self.limit.amount - self.count)

    def reset(self) -> int:
        return self.ends - self.now if self.count else 0


def next_midnight(limit: Limit, now: int) -> int:
    """When the day, week or month of the zone ends, found by walking from day to day."""
    zone = ZoneInfo(limit.zone)
    day = datetime.fromtimestamp(START + now / 1e6, zone).date() + timedelta(days=1)
    while (limit.period_ms == WEEK_MS and day.weekday()) or (
        limit.period_ms == MONTH_MS and day.day > 1
    ):
        day += timedelta(days=1)
    return round((datetime(day.year, day.month, day.day, tzinfo=zone).timestamp() - START) * 1e6)


class SlidingWindow:
    """Each unit that was charged, with its time."""

    linger_ms = 1
    """How long the log is there after its last hit has left: a TTL counts no microseconds."""

    def __init__(self, limit: Limit, now: int, old: Any) -> None:
        self.now, self.limit = now, limit
        self.period = limit.period_ms * 1_000
        self.units: list[int] = []
        self.forgotten = 0
        if isinstance(old, SlidingWindow) and now < old.forgotten:
            self.units = [at for at in old.units if at > now - self.period]
            self.forgotten = old.forgotten

    def wait(self, cost: int) -> int:
        room = self.limit.amount - len(self.units)
        return 0 if cost <= room else self.units[cost - room - 1] + self.period - self.now

    def charge(self, cost: int) -> None:
        self.units += [max([self.now, *self.units[-1:]])] * cost
        until = self.now // 1_000 + self.limit.period_ms + self.linger_ms
        self.forgotten = (until + ceil((self.units[-1] - self.now) / 1_000)) * 1_000

    def refuse(self, cost: int) -> bool:
        return False

    def refund(self, cost: int) -> None:
        self.units = self.units[: max(0, len(self.units) - cost)]

    def remaining(self) -> int:
        return max(0, self.limit.amount - len(self.units))

    def reset(self) -> int:
        return self.units[-1] + self.period - self.now if self.units else 0


class TokenBucket:
    """What is missing in the bucket, in quarters of a microsecond."""

    def __init__(self, limit: Limit, now: int, old: Any) -> None:
        self.now, self.burst = now, limit.capacity
        self.token = limit.period_ms * 1_000 / limit.amount
        self.missing, self.below_empty, self.emptied = 0, False, False
        if isinstance(old, TokenBucket):
            self.missing = max(0, old.missing - 4 * (now - old.now))
            self.below_empty = old.below_empty
        if self.missing > self.of(self.burst) and not self.below_empty:
            self.missing, self.emptied = self.of(self.burst), True

    def of(self, tokens: int) -> int:
        return floor(tokens * self.token * 4)

    def wait(self, cost: int) -> int:
        return max(0, ceil((self.missing - ceil((self.burst - cost) * self.token * 4)) / 4))

    def charge(self, cost: int) -> None:
        self.missing = floor((self.missing / 4 + cost * self.token) * 4)
        self.below_empty = self.missing / 4 > self.burst * self.token

    def refuse(self, cost: int) -> bool:
        return self.emptied

    def refund(self, cost: int) -> None:
        self.missing = max(0, floor((self.missing / 4 - cost * self.token) * 4))
        self.below_empty = self.missing / 4 > self.burst * self.token

    def remaining(self) -> int:
        near = floor(self.burst - self.missing / 4 / self.token)
        tried = range(max(1, near - 2), min(self.burst, near + 2) + 1)
        return max((n for n in tried if not self.wait(n)), default=0)

    def reset(self) -> int:
        return ceil(self.missing / 4)


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
        self.told: dict[str, tuple[int, list[Verdict]]] = {}

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
            verdicts = self.told[once][1]
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
            self.told[once] = now, shared
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

    def adjust(self, now: int, charges: Sequence[Count], cost: int) -> list[Verdict]:
        """Charge beyond the limit, or refund a negative cost."""
        for each in charges:
            count = self.count(now, each)
            if cost > 0:
                count.charge(cost)
            elif count.reset():
                count.refund(-cost)
            self.counts[each.key] = count
            if not count.reset():
                del self.counts[each.key]
        return self.decide(now, [each._replace(cost=1) for each in charges], charge=False)

    def reset(self, now: int, charges: Sequence[Count]) -> list[bool]:
        """Forget the counts; return which of them there were."""
        found = [self.count(now, each).reset() > 0 for each in charges]
        for each in charges:
            self.counts.pop(each.key, None)
        return found
