"""Limits and clocks may change while counts of the old ones exist, on every storage."""

from __future__ import annotations

import pytest

from tests.benches import Bench, charge, movable

ALGORITHMS = ("", " sliding", " bucket")

per_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)


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
