"""Charges and refunds as pure functions: a debt lasts as long as unit-by-unit payments would."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot_ratelimit import Algorithm, Limit
from bot_ratelimit.algorithms.adjustments import CHARGES, REFUNDS
from bot_ratelimit.algorithms.algorithms import ALGORITHMS, Verdict
from bot_ratelimit.algorithms.debt import max_debt
from tests.algorithms.test_algorithms import MOMENT, START, us

LIMITS = ("5/10s", "5/10s sliding", "30/minute burst 5")
DAY = 86_400


def look(state: Any, now: int, limit: Limit, cost: int = 1) -> Verdict:
    return ALGORITHMS[limit.algorithm](state, now, limit, cost)[1]


def pay(state: Any, now: int, limit: Limit, cost: int) -> Any:
    return CHARGES[limit.algorithm](state, now, limit, cost)


def honest(state: Any, now: int, limit: Limit, cost: int) -> tuple[Any, int]:
    """Pay unit by unit, each as soon as it is granted; return when the last one was."""
    for _ in range(cost):
        now += look(state, now, limit).wait
        state, verdict = ALGORITHMS[limit.algorithm](state, now, limit, 1)
        assert not verdict.wait
    return state, now


@st.composite
def limits(draw: st.DrawFn, algorithm: Algorithm) -> Limit:
    burst = draw(st.integers(1, 6)) if algorithm is Algorithm.TOKEN_BUCKET else None
    period = draw(st.sampled_from([0.001, 0.007, 1, 61, DAY]))
    # Tokens at whole microseconds: a caller that waits for each token cannot wait for a fraction.
    amounts = st.sampled_from([1, 2, 4, 5]) if burst else st.integers(1, 6)
    return Limit(draw(amounts), period, algorithm, burst)


@pytest.mark.parametrize("algorithm", Algorithm)
@given(data=st.data())
def test_a_debt_waits_as_long_as_unit_payments(algorithm: Algorithm, data: st.DataObject) -> None:
    """After a charge, a hit waits exactly as long as after paying unit by unit."""
    limit = data.draw(limits(algorithm))
    state, now = None, START
    for _ in range(data.draw(st.integers(0, 6))):  # some history, honest and refused
        pause = data.draw(st.integers(0, limit.period_ms))
        now += pause * 1_000
        state, _ = ALGORITHMS[algorithm](state, now, limit, 1)
    cost = data.draw(st.integers(1, 40))
    owing = pay(state, now, limit, cost)
    paid, then = honest(state, now, limit, cost)
    cost_of_next = data.draw(st.integers(1, limit.capacity))
    expected = then + look(paid, then, limit, cost_of_next).wait - now
    assert look(owing, now, limit, cost_of_next).wait == expected
    for moment in (expected - MOMENT[algorithm], expected):
        if moment >= 0:
            assert (look(owing, now + moment, limit, cost_of_next).wait == 0) is (
                moment == expected
            )


@pytest.mark.parametrize("text", LIMITS)
def test_a_debt_is_bounded(text: str) -> None:
    """Repeated charges of a million are paid within 366 days and a window."""
    limit = Limit.parse(text)
    slow = Limit(2, 30 * DAY, limit.algorithm, limit.burst)
    for each in (limit, slow):
        state = None
        for _ in range(5):
            state = pay(state, START, each, 1_000_000)
        wait = look(state, START, each).wait
        longest = (366 * DAY + 2 * each.period) * 1_000_000
        assert max_debt(each) * each.period_ms // each.amount <= 366 * DAY * 1_000
        assert 0 < wait <= longest
    assert wait > us(340 * DAY)


TABLE = {
    # A charge of 13 at 0 s, where 5 are granted at once: the docs draw these.
    "5/10s": [(0, 10, True), (10, 10, True), (19.999, 0.001, True), (20, 0, False)],
    "5/10s sliding": [(0, 20, True), (10, 10, True), (19.999999, 0.000001, True), (20, 0, False)],
    "30/minute burst 5": [(0, 18, True), (17.999999, 0.000001, True), (18, 0, False)],
}
TABLE["5/10s"] = [(0, 20, True), *TABLE["5/10s"][1:]]


@pytest.mark.parametrize("text", TABLE)
def test_the_worked_example_of_the_docs(text: str) -> None:
    """13 charged at once with a limit of 5 are refused exactly as long as the docs say."""
    limit = Limit.parse(text)
    state = pay(None, START, limit, 13)
    for seconds, wait, refused in TABLE[text]:
        verdict = look(state, START + us(seconds), limit)
        assert (verdict.wait, bool(verdict.wait)) == (us(wait), refused)


@pytest.mark.parametrize("text", LIMITS)
def test_a_refund_undoes_a_charge(text: str) -> None:
    """A charge that is refunded at once changes nothing."""
    limit = Limit.parse(text)
    before, _ = ALGORITHMS[limit.algorithm](None, START, limit, 2)
    for cost in (1, 3, 4, 50):
        state = pay(before, START, limit, cost)
        state = REFUNDS[limit.algorithm](state, START, limit, cost, 0)
        for price in (1, 3, 4):
            assert look(state, START, limit, price) == look(before, START, limit, price)


@pytest.mark.parametrize("text", LIMITS)
def test_a_refund_never_gives_more_than_full(text: str) -> None:
    """However much is refunded, a limit never grants more than its capacity."""
    limit = Limit.parse(text)
    state = pay(None, START, limit, 3)
    assert REFUNDS[limit.algorithm](state, START, limit, 1_000_000, 0) is None
    assert REFUNDS[limit.algorithm](None, START, limit, 7, 0) is None


@pytest.mark.parametrize("text", LIMITS)
def test_a_late_refund_leaves_later_charges_alone(text: str) -> None:
    """A charge of an ended window is not refunded from the current one."""
    limit = Limit.parse(text)
    state = pay(None, START, limit, 3)
    later = START + us(11)
    state = pay(state, later, limit, 2)
    late = REFUNDS[limit.algorithm](state, later, limit, 3, us(11))
    assert look(late, later, limit) == look(state, later, limit)
    of_this_one = REFUNDS[limit.algorithm](state, later, limit, 1, 0)
    assert look(of_this_one, later, limit, 0).remaining == 4
    assert look(state, later, limit, 0).remaining == 3


def test_attempts_in_a_full_window_are_not_charged() -> None:
    """A refund makes room in a window whose value also counts refused attempts."""
    limit = Limit.parse("2/10s")
    state = None
    for _ in range(6):
        state, _ = ALGORITHMS[limit.algorithm](state, START, limit, 1)
    assert look(state, START, limit, 0).remaining == 0
    state = REFUNDS[limit.algorithm](state, START, limit, 1, 0)
    assert look(state, START, limit, 0) == (0, 1, us(10))
