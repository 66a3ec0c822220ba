"""Limits and clocks may change while counts of the old one are about, on every storage."""

from __future__ import annotations

from itertools import permutations

import pytest

from tests.benches import Bench, charge, movable

ALGORITHMS = ("", " sliding", " bucket")

per_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)


@pytest.mark.parametrize(("old", "new"), list(permutations(ALGORITHMS, 2)))
async def test_a_changed_algorithm_starts_afresh(bench: Bench, old: str, new: str) -> None:
    """What another algorithm stored under the key is as good as nothing, and harms nobody."""
    before, after = charge(f"1/h{old}"), charge(f"2/minute{new}")
    for _ in range(2):
        await bench.hit(before)
    assert (await bench.peek(after))[0] == (0, 2, 0)
    assert [await bench.allowed(after) for _ in range(3)] == [True, True, False]
    assert all(0 < ttl <= 60_002 for ttl in (await bench.ttls()).values())


@per_algorithm
async def test_a_shortened_period_holds_from_the_next_hit(bench: Bench, algorithm: str) -> None:
    """Who paid into a limit of hours waits at most the minutes of the new one, as he is told."""
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
async def test_a_changed_amount_holds_at_once(
    bench: Bench, old: str, new: str, allowed: bool
) -> None:
    """A raised amount gives room at once, a lowered one takes it, and what was paid stays paid."""
    for _ in range(int(old[0])):
        await bench.hit(charge(old))
    assert await bench.allowed(charge(new)) is allowed


@movable
@per_algorithm
async def test_a_clock_set_back_locks_nobody_out(bench: Bench, algorithm: str) -> None:
    """When the storage's clock went back an hour, waiting as told is still enough."""
    one = charge(f"1/10s{algorithm}")
    await bench.hit(one)
    await bench.advance(-3_600)
    (verdict,) = await bench.hit(one)
    assert verdict.wait <= 10_000_000
    await bench.advance(verdict.wait / 1_000_000)
    assert verdict.wait == 0 or await bench.allowed(one)


@per_algorithm
async def test_looking_with_a_shorter_period_forgets_nothing(bench: Bench, algorithm: str) -> None:
    """While instances with an old and a new limit run side by side, a look changes nothing."""
    old, new = charge(f"2/minute{algorithm}"), charge(f"2/10ms{algorithm}")
    await bench.hit(old)
    await bench.advance(0.02)
    await bench.peek(new)
    assert (await bench.peek(old))[0].remaining == 1


@pytest.mark.parametrize("algorithm", ["", " sliding"])
async def test_what_another_rule_refused_leaves_no_trace(bench: Bench, algorithm: str) -> None:
    """Not even the end of a window moves, though the limit has become shorter meanwhile."""
    old, new = charge(f"2/minute{algorithm}", "a"), charge(f"2/s{algorithm}", "a")
    full = charge("1/minute", "b")
    await bench.hit(old, full)
    await bench.hit(new, full)
    (verdict,) = await bench.peek(old)
    assert (verdict.remaining, verdict.reset) == (1, bench.about(60))
