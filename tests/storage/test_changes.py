"""Limits and clocks may change while counts of the old ones exist, on every storage."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import permutations

import pytest
import time_machine
from fakeredis import FakeAsyncRedis, FakeServer
from hypothesis import given, settings
from hypothesis import strategies as st

from bot_ratelimit import Algorithm, Limit, MemoryStorage, RedisStorage
from bot_ratelimit.storage.base import Ask, Count
from bot_ratelimit.testing import Clock
from tests.benches import TIMEOUT, Bench, charge, movable

ALGORITHMS = ("", " sliding", " bucket")

per_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)


@pytest.mark.parametrize(("old", "new"), list(permutations(ALGORITHMS, 2)))
async def test_a_changed_algorithm_starts_from_zero(bench: Bench, old: str, new: str) -> None:
    """The state of another algorithm under the key is ignored and does no harm."""
    before, after = charge(f"1/h{old}"), charge(f"2/minute{new}")
    for _ in range(2):
        await bench.hit(before)
    assert (await bench.peek(after))[0] == (0, 2, 0)
    assert [await bench.allowed(after) for _ in range(3)] == [True, True, False]
    assert all(0 < ttl <= 60_002 for ttl in (await bench.ttls()).values())


@per_algorithm
async def test_a_shortened_period_applies_to_the_next_hit(bench: Bench, algorithm: str) -> None:
    """After a change from hours to minutes, a user waits at most the new period."""
    old, new = charge(f"1/h{algorithm}"), charge(f"1/50ms{algorithm}")
    await bench.hit(old)
    (verdict,) = await bench.hit(new)
    assert 0 < verdict.wait <= 50_000
    await bench.advance(verdict.wait / 1_000_000 + (0 if bench.exact else 0.002))
    assert await bench.allowed(new)


@pytest.mark.parametrize(
    ("old", "new", "allowed"),
    [
        ("1/h", "2/h", True),
        ("3/h", "2/h", False),
        ("1/h sliding", "2/h sliding", True),
        ("3/h sliding", "2/h sliding", False),
        ("3/h bucket", "2/h bucket", False),
    ],
)
async def test_a_changed_amount_applies_at_once(
    bench: Bench, old: str, new: str, allowed: bool
) -> None:
    """A raised amount gives room at once, a lowered one takes it, and counts are kept."""
    for _ in range(int(old[0])):
        await bench.hit(charge(old))
    assert await bench.allowed(charge(new)) is allowed


@movable
@per_algorithm
async def test_a_clock_set_back_locks_nobody_out(bench: Bench, algorithm: str) -> None:
    """After the storage's clock went back an hour, the announced wait is still enough."""
    one = charge(f"1/10s{algorithm}")
    await bench.hit(one)
    await bench.advance(-3_600)
    (verdict,) = await bench.hit(one)
    assert verdict.wait <= 10_000_000
    await bench.advance(verdict.wait / 1_000_000)
    assert verdict.wait == 0 or await bench.allowed(one)


@per_algorithm
async def test_a_peek_with_a_shorter_period_changes_nothing(bench: Bench, algorithm: str) -> None:
    """While old and new limits run side by side, a peek changes nothing."""
    old, new = charge(f"2/minute{algorithm}"), charge(f"2/10ms{algorithm}")
    await bench.hit(old)
    await bench.advance(0.02)
    await bench.peek(new)
    assert (await bench.peek(old))[0].remaining == 1


@pytest.mark.parametrize("algorithm", ["", " sliding"])
async def test_a_hit_refused_by_another_rule_changes_nothing(bench: Bench, algorithm: str) -> None:
    """Not even the end of a window changes, although the limit is shorter now."""
    old, new = charge(f"2/minute{algorithm}", "a"), charge(f"2/s{algorithm}", "a")
    full = charge("1/minute", "b")
    await bench.hit(old, full)
    await bench.hit(new, full)
    (verdict,) = await bench.peek(old)
    assert (verdict.remaining, verdict.reset) == (1, bench.about(60))


limits = st.builds(
    lambda amount, period_ms, algorithm: Limit(amount, period_ms / 1_000, algorithm),
    st.integers(1, 4),
    st.sampled_from([7, 100, 1_000]),
    st.sampled_from(Algorithm),
)
steps = st.tuples(
    st.integers(0, 1_200) | st.sampled_from([0, 7, 100]),  # milliseconds since the last
    st.sampled_from(["hit", "hit", "hit", "peek", "refused"]),
    st.integers(1, 2),
)


@settings(max_examples=100)
@given(limits, limits, st.lists(steps, max_size=5), st.lists(steps, max_size=7))
async def test_memory_and_redis_agree_on_a_limit_that_changed(
    old: Limit, new: Limit, before: list[tuple[int, str, int]], after: list[tuple[int, str, int]]
) -> None:
    """Hits and peeks under one limit and then another give the same verdicts."""
    clock, full = Clock(), charge("1/h", "full")
    start, now_ms = datetime(2026, 1, 1, tzinfo=UTC).timestamp(), 0
    async with FakeAsyncRedis(server=FakeServer()) as client:
        storages = MemoryStorage(clock=clock), RedisStorage(client)
        with time_machine.travel(start, tick=False) as traveller:
            for storage in storages:
                await storage.ask(Ask([full]), timeout=TIMEOUT)
            for limit, (pause_ms, what, cost) in [
                *((old, step) for step in before),
                *((new, step) for step in after),
            ]:
                now_ms += pause_ms
                clock.now = 1_000 + now_ms / 1_000
                traveller.move_to(start + now_ms / 1_000)
                one = Count("bot:ratelimit:42", limit, min(cost, limit.amount))
                charges = [one, full] if what == "refused" else [one]
                memory, redis = [
                    await (s.peek if what == "peek" else s.hit)(charges, timeout=TIMEOUT)
                    for s in storages
                ]
                assert memory == redis
