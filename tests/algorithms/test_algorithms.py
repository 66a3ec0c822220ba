"""The algorithms as tables of steps, and their promises as a property."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from hypothesis import given
from hypothesis import strategies as st

from bot_ratelimit import Algorithm, Limit
from bot_ratelimit.algorithms.table import FUNCTIONS
from bot_ratelimit.algorithms.verdict import Verdict
from tests.tables import table

START = 1_767_225_600_000_000
"""2026 in microseconds: where a clock stands must not matter."""

FIXED, SLIDING, BUCKET = Algorithm
MOMENT = {FIXED: 1_000, SLIDING: 1, BUCKET: 1}
"""The microseconds that each algorithm tells apart."""


def us(seconds: float) -> int:
    return round(seconds * 1_000_000)


TABLES = {
    "fixed window: forgets everything at once, a period after its first hit": (
        "3/10s",
        [(0, 1, 0), (4, 1, 0), (9, 1, 0), (9.5, 1, 0.5), (9.999, 1, 0.001), (10, 3, 0)],
    ),
    "fixed window: opens with the first hit, not on the hour": (
        "1/10s",
        [(7, 1, 0), (16.999, 1, 0.001), (17, 1, 0), (26.999, 1, 0.001), (27, 1, 0)],
    ),
    "fixed window: twice the amount passes around a boundary": (
        "5/10s",
        [(0, 1, 0), (9.999, 4, 0), (9.999, 1, 0.001), (10, 5, 0), (10, 1, 10)],
    ),
    "fixed window: ends at a whole millisecond, like its Redis key": (
        "1/10s",
        [(0.0009, 1, 0), (9.9995, 1, 0.001), (10, 1, 0)],
    ),
    "fixed window: a cost that overfills it is not charged": (
        "5/10s",
        [(0, 3, 0), (1, 3, 9), (2, 2, 0), (3, 1, 7)],
    ),
    "sliding window: room returns hit by hit": (
        "3/10s sliding",
        [(0, 1, 0), (3, 1, 0), (6, 1, 0), (8, 1, 2), (10, 1, 0), (10, 1, 3), (13, 1, 0)],
    ),
    "sliding window: no burst around a boundary": (
        "5/10s sliding",
        [(0, 1, 0), (9.999, 4, 0), (10, 5, 9.999), (10, 1, 0), (10, 1, 9.999)],
    ),
    "sliding window: refused hits cost nothing": (
        "1/10s sliding",
        [(0, 1, 0), (5, 1, 5), (9.999999, 1, 0.000001), (10, 1, 0), (19, 1, 1)],
    ),
    "token bucket: a burst, then evenly": (
        "1/s burst 3",
        [(0, 1, 0), (0, 1, 0), (0, 1, 0), (0, 1, 1), (1, 1, 0), (1.5, 1, 0.5), (2, 1, 0)],
    ),
    "token bucket: never holds more than its burst, however long it stood": (
        "1/s burst 3",
        [(0, 1, 0), (3_600, 3, 0), (3_600, 1, 1)],
    ),
    "token bucket: a refused cost takes nothing": (
        "1/s burst 3",
        [(0, 2, 0), (0.5, 2, 0.5), (0.5, 1, 0), (0.5, 1, 0.5), (1, 1, 0)],
    ),
}


@table("table", TABLES)
def test_tables(table: str) -> None:
    """Each table of (time, cost, expected wait in seconds) behaves as its heading says."""
    text, steps = TABLES[table]
    limit, state, waits = Limit.parse(text), None, []
    for seconds, cost, _ in steps:
        now = START + us(seconds)
        state, verdict = FUNCTIONS[limit.algorithm].hit(state, now, limit, cost)
        waits.append(verdict.wait)
    assert waits == [us(wait) for _, _, wait in steps]


@table(
    ("limit", "pause"), [("3/2s burst 3", 333_333), ("3/ms bucket", 333), ("30/s burst 60", 33_333)]
)  # a little less than a token takes, so that what is missing is rounded up
def test_what_remains_of_a_bucket_is_granted_and_no_more(limit: str, pause: int) -> None:
    """The tokens that it is said to hold can be taken at once, and one more cannot."""
    parsed = Limit.parse(limit)
    hit, state, now = FUNCTIONS[BUCKET].hit, None, START
    for _ in range(400):
        state, verdict = hit(state, now, parsed, 1)
        assert hit(state, now, parsed, verdict.remaining)[1].wait == 0
        if verdict.remaining < parsed.capacity:
            assert hit(state, now, parsed, verdict.remaining + 1)[1].wait > 0
        now += pause


@st.composite
def limits(draw: st.DrawFn) -> Limit:
    amount = draw(st.integers(1, 9) | st.sampled_from([300_000, 1_000_000]))
    period = draw(st.sampled_from([1, 7, 1_000, 60_000, 366 * 86_400_000]) | st.integers(1, 5_000))
    algorithm = draw(st.sampled_from(Algorithm))
    burst = draw(st.integers(1, 9)) if algorithm is BUCKET else None
    if algorithm is BUCKET:
        amount = min(amount, period)  # at most one token in a millisecond: see the resolution
    return Limit(amount, period / 1_000, algorithm, burst)


@st.composite
def histories(draw: st.DrawFn) -> tuple[Limit, list[tuple[int, int]]]:
    """A limit, and hits on it as (time, cost)."""
    limit = draw(limits())
    pauses = st.just(0) | st.integers(0, 3 * limit.period_ms * 1_000 // limit.amount)
    costs = st.integers(1, min(limit.capacity, 9)) | st.just(limit.capacity)
    hits = draw(st.lists(st.tuples(pauses, costs), min_size=1, max_size=15))
    times = accumulate((pause for pause, _ in hits), initial=START)
    return limit, [(time, cost) for time, (_, cost) in zip(times, hits, strict=False)]


def most_within(charged: Sequence[tuple[int, int]], span: int) -> int:
    """The most that was charged in any span of this length."""
    return max(
        sum(cost for time, cost in charged if start <= time < start + span) for start, _ in charged
    )


@given(histories())
def test_no_more_than_the_limit(history: tuple[Limit, list[tuple[int, int]]]) -> None:
    """At once at most the capacity; per period the amount and what the algorithm adds. A refused
    hit is allowed after its wait, and the count clean after `reset`, and not a moment earlier."""
    limit, hits = history
    decide, moment = FUNCTIONS[limit.algorithm].hit, MOMENT[limit.algorithm]
    period, state, charged, now = limit.period_ms * 1_000, None, [], START
    for now, cost in hits:
        state, verdict = decide(state, now, limit, cost)
        if verdict.wait:
            then = now + verdict.wait
            assert decide(state, then, limit, cost)[1].wait == 0
            assert decide(state, then - moment, limit, cost)[1].wait > 0
        else:
            charged.append((now, cost))
    at_a_boundary = {FIXED: limit.amount, SLIDING: 0, BUCKET: limit.capacity}
    assert most_within(charged, 1) <= limit.capacity
    assert most_within(charged, period) <= limit.amount + at_a_boundary[limit.algorithm]
    new, later = Verdict(0, limit.capacity, 0), now + verdict.reset
    assert decide(state, later, limit, 0)[1] == new
    assert decide(state, later, limit, limit.capacity)[1].wait == 0
    assert decide(state, later - moment, limit, 0)[1] != new
