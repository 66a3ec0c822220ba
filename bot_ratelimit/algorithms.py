"""The three algorithms, as pure functions of (state, now, limit, cost).

These functions are the specification: memory runs them, and `storage/decide.lua` is held
against them by the tests. None of them reads a clock. Times are whole microseconds; only their
differences matter.

Each returns a `Step`, a state and a verdict. A hit is allowed if it need not wait. The state is
what to keep if the hit is charged, or if it is refused; a hit that is neither, because another rule
refused it, is looked at again with a cost of 0, which never waits and never changes anything.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias

from bot_ratelimit.limit import Algorithm, Limit
from bot_ratelimit.penalty import Penalty


class Verdict(NamedTuple):
    """What one rule says to one hit, in microseconds."""

    wait: int
    """How long until the same hit would be allowed; 0 if it is allowed now."""
    remaining: int
    """What could still be charged at this instant."""
    reset: int
    """How long until nothing of the past counts."""


class Undecided(Verdict):
    """The verdict of a shadow rule whose state cannot be read: it refuses nothing, and says why."""

    reason: Exception

    @classmethod
    def because(cls, reason: Exception, limit: Limit) -> Undecided:
        """As if nothing had been charged yet."""
        verdict = cls(0, limit.capacity, 0)
        verdict.reason = reason
        return verdict


Step: TypeAlias = tuple[Any, Verdict]
"""The state after a hit, and the verdict on it."""


class Window(NamedTuple):
    """State of the fixed window."""

    charged: int
    ends_ms: int


# What the classes do themselves, for three fifths of the time: they are made for every hit.
new_verdict: Final[Callable[[tuple[int, int, int]], Verdict]] = partial(tuple.__new__, Verdict)
_new_window: Final[Callable[[tuple[int, int]], Window]] = partial(tuple.__new__, Window)


class Charged(NamedTuple):
    """One entry of the sliding window's log."""

    at: int
    cost: int


class Log(NamedTuple):
    """State of the sliding window."""

    hits: tuple[Charged, ...]
    ends_ms: int
    """A millisecond after the last hit counts, under the limit that charged it."""


class Arrival(NamedTuple):
    """State of the token bucket: the theoretical arrival time, `at + part / parts` microseconds."""

    at: int
    part: int
    parts: int


def fixed_window(state: Any, now: int, limit: Limit, cost: int) -> Step:
    """Count hits from the first one on; forget them all when the period is over.

    ::

        5/10s    x x x x x -  -            x
                 |                   |     |
                 0 s, opened         10 s  a new one

    Milliseconds, as a Redis TTL. A window that is full counts further attempts, so that an
    operator can see who insists; nobody pays for them.
    """
    amount, period_ms = limit.amount, limit.period_ms
    count, ends_ms = state if isinstance(state, Window) else (0, 0)
    now_ms = now // 1_000
    left_ms = ends_ms - now_ms
    if left_ms <= 0:
        count, left_ms = 0, period_ms
    elif left_ms > period_ms:
        left_ms = period_ms
    full = count >= amount
    wait = left_ms * 1_000 if cost and count + cost > amount else 0
    if full or not wait:
        count += cost
    remaining = amount - count if count < amount else 0
    reset = left_ms * 1_000 if count else 0
    return _new_window((count, now_ms + left_ms)), new_verdict((wait, remaining, reset))


def sliding_window(state: Any, now: int, limit: Limit, cost: int) -> Step:
    """Remember when each hit of the last period was charged: exact, at the price of a log.

    ::

        3/10s    x    x    x  -       x    x
                 0 s  3 s  6 s 8 s    10 s 13 s, as each of the first three leaves
    """
    period = limit.period_ms * 1_000
    log = state.hits if isinstance(state, Log) and now // 1_000 < state.ends_ms else ()
    if log and log[-1].at > now + period:  # the clock was set back: do not wait for it to catch up
        log = ()
    log = tuple(hit for hit in log if hit.at > now - period)
    used = sum(hit.cost for hit in log)
    wait, excess = 0, used + cost - limit.amount
    if cost and excess > 0:
        for hit in log:
            excess -= hit.cost
            if excess <= 0:
                wait = hit.at + period - now
                break
    elif cost:
        at = max(now, log[-1].at) if log else now
        log = (*log, Charged(at, cost))
        used += cost
        state = Log(log, now // 1_000 + limit.period_ms - (now - at) // 1_000 + 1)
    reset = log[-1].at + period - now if log else 0
    return state, Verdict(wait, max(0, limit.amount - used), reset)


def token_bucket(state: Any, now: int, limit: Limit, cost: int) -> Step:
    """A bucket of `burst` tokens, filled evenly at `amount` a period; a hit takes `cost` of them.

    ::

        1/s burst 3    x x x -      x      x      x
                       0 s          1 s    2 s    3 s

    The Generic Cell Rate Algorithm, as a virtual scheduling algorithm (ITU-T I.371, annex A): it
    keeps one time, the theoretical arrival time at which the bucket will be full again. One token
    takes period/amount, seldom a whole number of microseconds; so everything is counted in
    `1/amount` microseconds, in which both are whole and nothing is rounded.
    """
    parts, interval = limit.amount, limit.period_ms * 1_000
    capacity = limit.capacity * interval
    tat = 0
    if isinstance(state, Arrival):
        tat = (state.at - now) * parts + (state.part if state.parts == parts else 0)
    # Never below empty, which a slower limit or a clock that was set back may have left.
    backlog = min(max(tat, 0), capacity)
    excess = backlog + cost * interval - capacity
    wait = -(-excess // parts) if cost and excess > 0 else 0
    if not wait:
        backlog += cost * interval
    verdict = Verdict(wait, (capacity - backlog) // interval, -(-backlog // parts))
    if wait and tat <= capacity:
        return state, verdict
    at, part = divmod(backlog, parts)
    return Arrival(now + at, part, parts), verdict


def penalty(state: Any, now: int, limit: Limit, terms: Penalty, cost: int) -> Step:
    """Count refused hits; when there are `after`, refuse everything for the length of the ban.

    ::

        2/min, ban 5 min    -    - |==================|
                            0 s  9 s                  5 min 9 s
                            refused, refused again    free

    A cost of 1 is one refused hit more. The wait is what it was before that hit. A ban that is
    imposed begins at once, unless a longer one is in force.
    """
    strikes, ends_ms = state if isinstance(state, Window) else (0, 0)
    now_ms = now // 1_000
    left_ms = min(ends_ms - now_ms, max(limit.period_ms, terms.ban_ms, terms.longest_ms))
    if left_ms <= 0:
        strikes, left_ms = 0, limit.period_ms
    wait = left_ms * 1_000 if strikes >= limit.amount else 0
    if cost and terms.imposed:
        if strikes < limit.amount or left_ms < terms.ban_ms:
            strikes, left_ms = limit.amount, terms.ban_ms
    elif cost:
        strikes += 1
        times, rest = divmod(strikes, limit.amount)
        if not rest and times == 1:
            left_ms = terms.ban_ms
        elif not rest and terms.longest_ms:
            left_ms = min(terms.ban_ms << min(times - 1, 40), terms.longest_ms)
    return (
        Window(strikes, now_ms + left_ms),
        Verdict(wait, max(0, limit.amount - strikes), left_ms * 1_000 if strikes else 0),
    )


StepFunction: TypeAlias = Callable[[Any, int, Limit, int], Step]
ALGORITHMS: Final[dict[Algorithm, StepFunction]] = {
    Algorithm.FIXED_WINDOW: fixed_window,
    Algorithm.SLIDING_WINDOW: sliding_window,
    Algorithm.TOKEN_BUCKET: token_bucket,
}
