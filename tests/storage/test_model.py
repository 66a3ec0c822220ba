"""One semantics: a plain model, memory and Redis give equal verdicts for equal histories."""

from __future__ import annotations

from datetime import UTC, datetime
from fractions import Fraction
from math import ceil, floor
from typing import NamedTuple

import time_machine
from fakeredis import FakeAsyncRedis, FakeServer
from hypothesis import event, given, settings
from hypothesis import strategies as st

from bot_ratelimit import Algorithm, Limit, MemoryStorage, Penalty, RedisStorage
from bot_ratelimit.algorithms import Verdict
from bot_ratelimit.storage.base import Charge
from bot_ratelimit.testing import Clock
from tests.benches import TIMEOUT

FIXED, SLIDING, BUCKET = Algorithm
START = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
DAY_MS = 86_400_000


class FixedWindow:
    """The costs since the first hit of the window."""

    def __init__(self, limit: Limit) -> None:
        self.amount, self.period = limit.amount, limit.period_ms * 1_000
        self.opened, self.costs = 0, list[int]()

    def wait(self, now: int, cost: int) -> int:
        if now >= self.opened + self.period:
            self.costs = []
        return self.reset(now) if sum(self.costs) + cost > self.amount else 0

    def charge(self, now: int, cost: int) -> None:
        if not self.costs:
            self.opened = now
        self.costs.append(cost)

    def remaining(self) -> int:
        return self.amount - sum(self.costs)

    def reset(self, now: int) -> int:
        return self.opened + self.period - now if self.costs else 0


class SlidingWindow:
    """Every hit there ever was; a hit may come as soon as the period before it has room."""

    def __init__(self, limit: Limit) -> None:
        self.amount, self.period = limit.amount, limit.period_ms * 1_000
        self.hits, self.used = list[tuple[int, int]](), 0

    def used_at(self, time: int) -> int:
        return sum(cost for at, cost in self.hits if at > time - self.period)

    def wait(self, now: int, cost: int) -> int:
        self.used = self.used_at(now)
        moments = [now, *sorted(at + self.period for at, _ in self.hits)]
        return next(
            moment - now
            for moment in moments
            if moment >= now and self.used_at(moment) + cost <= self.amount
        )

    def charge(self, now: int, cost: int) -> None:
        self.hits.append((now, cost))
        self.used += cost

    def remaining(self) -> int:
        return self.amount - self.used

    def reset(self, now: int) -> int:
        return max(0, self.hits[-1][0] + self.period - now) if self.hits else 0


class TokenBucket:
    """Tokens, as an exact fraction."""

    def __init__(self, limit: Limit) -> None:
        self.rate = Fraction(limit.amount, limit.period_ms * 1_000)
        self.burst = limit.capacity
        self.tokens, self.at = Fraction(self.burst), 0

    def wait(self, now: int, cost: int) -> int:
        self.tokens = min(Fraction(self.burst), self.tokens + (now - self.at) * self.rate)
        self.at = now
        return max(0, ceil((cost - self.tokens) / self.rate))

    def charge(self, now: int, cost: int) -> None:
        self.tokens -= cost

    def remaining(self) -> int:
        return floor(self.tokens)

    def reset(self, now: int) -> int:
        return ceil((self.burst - self.tokens) / self.rate)


class Strikes:
    """Refused hits, and when they are forgotten."""

    def __init__(self, penalty: Penalty, limit: Limit) -> None:
        self.penalty, self.limit = penalty, limit
        self.strikes, self.ends = 0, 0

    def wait(self, now: int, cost: int) -> int:
        if now >= self.ends:
            self.strikes = 0
        return self.ends - now if self.strikes >= self.limit.amount else 0

    def strike(self, now: int) -> None:
        self.strikes += 1
        ban = longest = 0
        if self.strikes == 1:
            self.ends = now + self.limit.period_ms * 1_000
        if self.strikes == self.limit.amount:
            ban = longest = self.penalty.ban_ms
        elif self.strikes % self.limit.amount == 0 and self.penalty.longest_ms:
            longest = self.penalty.longest_ms
            ban = self.penalty.ban_ms * 2 ** (self.strikes // self.limit.amount - 1)
        if ban:
            self.ends = now + min(ban, longest) * 1_000

    def remaining(self) -> int:
        return max(0, self.limit.amount - self.strikes)

    def reset(self, now: int) -> int:
        return self.ends - now if self.strikes else 0


class Model:
    """What a storage is to say, as plainly as it can be put."""

    def __init__(self) -> None:
        self.counts: dict[str, FixedWindow | SlidingWindow | TokenBucket | Strikes] = {}
        self.told: dict[str, tuple[int, list[Verdict]]] = {}

    def count(self, charge: Charge) -> FixedWindow | SlidingWindow | TokenBucket | Strikes:
        if charge.key not in self.counts:
            kinds = {FIXED: FixedWindow, SLIDING: SlidingWindow, BUCKET: TokenBucket}
            self.counts[charge.key] = (
                Strikes(charge.penalty, charge.limit)
                if charge.penalty
                else kinds[charge.limit.algorithm](charge.limit)
            )
        return self.counts[charge.key]

    def hit(self, now: int, charges: list[Charge], once: str | None = None) -> list[Verdict]:
        decided, verdicts = self.told.get(once or "", (0, []))
        if verdicts and now - decided < 60_000_000:
            passed = now - decided
            return [
                Verdict(max(1, wait - passed) if wait else 0, remaining, max(0, reset - passed))
                for wait, remaining, reset in verdicts
            ]
        verdicts = self.decide(now, charges, charge=True)
        if once:
            # Those who share the verdict find a ban that the hit brought on.
            self.told[once] = (
                now,
                [
                    v._replace(wait=v.reset) if c.penalty and not v.remaining else v
                    for c, v in zip(charges, verdicts, strict=True)
                ],
            )
        return verdicts

    def decide(self, now: int, charges: list[Charge], *, charge: bool) -> list[Verdict]:
        counts = [self.count(each) for each in charges]
        waits = [count.wait(now, c.cost) for count, c in zip(counts, charges, strict=True)]
        refused = any(wait and not c.shadow for wait, c in zip(waits, charges, strict=True))
        for count, wait, each in zip(counts, waits, charges, strict=True):
            if charge and isinstance(count, Strikes) and refused:
                count.strike(now)
            elif charge and not isinstance(count, Strikes) and not refused and not wait:
                count.charge(now, each.cost)
        return [
            Verdict(wait, count.remaining(), count.reset(now))
            for count, wait in zip(counts, waits, strict=True)
        ]

    def reset(self, now: int, charges: list[Charge]) -> int:
        self.decide(now, charges, charge=False)
        found = sum(self.count(each).reset(now) > 0 for each in charges)
        for each in charges:
            del self.counts[each.key]
        return found


class Step(NamedTuple):
    pause: int | str
    """Ticks; or "told": as long as the last refusal said, or "early": one tick less."""
    action: str
    charges: list[Charge]
    once: str | None


class History(NamedTuple):
    tick: int
    """Microseconds. A key's TTL is whole milliseconds, so only logs and buckets tell more apart."""
    steps: list[Step]


@st.composite
def histories(draw: st.DrawFn) -> History:
    fine = draw(st.booleans())
    rules = draw(st.lists(rules_of(fine), min_size=1, max_size=4))
    longest = max(limit.period_ms for limit, _, _ in rules) * (1_000 if fine else 1)
    pauses = (
        st.sampled_from(["told", "told", "early", 0, 0, 59_977, 61_000])  # around a token's minute
        | st.integers(0, 20)
        | st.integers(0, 2 * longest)
    )
    actions = st.sampled_from(["hit"] * 6 + ["peek", "reset"])
    tokens = st.none() if fine else st.sampled_from([None, None, "a", "a", "b"])
    steps = []
    for _ in range(draw(st.integers(3, 14))):
        chosen = draw(
            st.just(set(range(len(rules)))) | st.sets(st.integers(0, len(rules) - 1), min_size=1)
        )
        user, once = draw(st.sampled_from([1, 1, 2])), draw(tokens)
        charges = []
        for i in sorted(chosen):
            limit, shadow, penalty = rules[i]
            cost = 1 if penalty else draw(st.integers(1, min(3, limit.capacity)))
            charges.append(Charge(f"bot:ratelimit:{i}:{user}", limit, cost, shadow, penalty))
        # A token belongs to a subject and its rules, as the limiter sees to.
        once = once and f"once:{once}:{user}:{sorted(chosen)}"
        steps.append(Step(draw(pauses), draw(actions), charges, once))
    return History(1 if fine else 1_000, steps)


@st.composite
def rules_of(draw: st.DrawFn, fine: bool) -> tuple[Limit, bool, Penalty | None]:
    amount = draw(st.integers(1, 5) | st.just(1_000_000))
    period_ms = draw(st.sampled_from([1, 7, 100, 1_000, 61_000, 366 * DAY_MS]))
    kind = draw(st.sampled_from([SLIDING, BUCKET] if fine else [*Algorithm, None]))
    if kind is None:
        after = Limit(draw(st.integers(1, 3)), period_ms / 1_000)
        ban = draw(st.sampled_from([0.005, 1, 90]))
        return after, False, Penalty(after, ban, grows=draw(st.booleans()), longest=100)
    burst = draw(st.none() | st.integers(1, 5)) if kind is BUCKET else None
    return Limit(amount, period_ms / 1_000, kind, burst), draw(st.booleans()), None


@settings(max_examples=300, deadline=None)
@given(histories())
async def test_model_memory_and_redis_agree(history: History) -> None:
    """Whatever happens, in whatever order, all three tell the same."""
    model, now, told, clock = Model(), 0, 0, Clock()
    memory = MemoryStorage(clock=clock)
    async with FakeAsyncRedis(server=FakeServer()) as client:
        redis = RedisStorage(client)
        with time_machine.travel(START, tick=False) as traveller:
            for pause, action, charges, once in history.steps:
                if isinstance(pause, str):
                    pause = max(0, -(-told // history.tick) - (pause == "early"))
                now += pause * history.tick
                clock.now = 1_000 + now / 1_000_000
                traveller.move_to(START + now / 1_000_000)
                if action == "hit":
                    expected = model.hit(now, charges, once)
                    found = [
                        await storage.hit(charges, once=once, timeout=TIMEOUT)
                        for storage in (memory, redis)
                    ]
                    told = max(verdict.wait for verdict in expected)
                    event("refused" if told else "allowed")
                elif action == "peek":
                    expected = model.decide(now, charges, charge=False)
                    found = [await s.peek(charges, timeout=TIMEOUT) for s in (memory, redis)]
                else:
                    resets = model.reset(now, charges)
                    assert await memory.reset(charges, timeout=TIMEOUT) == resets
                    # A key outlives what counts under it by a millisecond.
                    assert await redis.reset(charges, timeout=TIMEOUT) >= resets
                    continue
                assert found == [expected, expected]
