"""The three algorithms, as pure functions of (state, now, limit, cost).

These functions are the specification: the memory storage runs them, and tests compare
`storage/decide.lua` with them. None of them reads a clock. Times are whole microseconds; only their
differences matter.

Each returns a `Step`: a state and a verdict. A hit is allowed if its wait is 0. The state is the
one to store if the hit is charged, or if it is refused. A hit that is neither, because another rule
refused it, is evaluated again with a cost of 0, which never waits and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias

from bot_ratelimit.algorithms.debt import (
    CurrentWindow,
    LogEntry,
    OverdrawnWindow,
    current_window,
    max_debt,
    pay_debt,
)
from bot_ratelimit.rules.limit import Algorithm, Limit
from bot_ratelimit.rules.penalty import Penalty


class Verdict(NamedTuple):
    """The answer of one rule to one hit, in microseconds."""

    wait: int
    """The time until the same hit would be allowed; 0 if it is allowed now."""
    remaining: int
    """What could still be charged at this moment."""
    reset: int
    """The time until nothing of the past counts any more."""


class Undecided(Verdict):
    """The verdict of a shadow rule whose state cannot be read; it refuses nothing."""

    reason: Exception

    @classmethod
    def because(cls, reason: Exception, limit: Limit) -> Undecided:
        """Make the verdict: as if nothing had been charged yet."""
        verdict = cls(0, limit.capacity, 0)
        verdict.reason = reason
        return verdict


Step: TypeAlias = tuple[Any, Verdict]
"""The state after a hit, and its verdict."""


class Window(NamedTuple):
    """State of the fixed window."""

    charged: int
    ends_ms: int


# The same as the constructors in three fifths of the time: they are called for every hit.
new_verdict: Final[Callable[[tuple[int, int, int]], Verdict]] = partial(tuple.__new__, Verdict)
_new_window: Final[Callable[[tuple[int, int]], Window]] = partial(tuple.__new__, Window)


class Log(NamedTuple):
    """State of the sliding window."""

    hits: tuple[LogEntry, ...]
    ends_ms: int
    """One millisecond after the last hit stops counting, under the limit that charged it."""
    owed: int = 0
    """The debt: what was charged above the limit and has no room in the log yet."""
    since: int = 0
    """When the debt began."""


class Arrival(NamedTuple):
    """State of the token bucket: the theoretical arrival time, `at + part / parts` microseconds."""

    at: int
    part: int
    parts: int
    owed: int = 0
    """By how many tokens the bucket was below empty when this was written."""


def fixed_window(state: Any, now: int, limit: Limit, cost: int) -> Step:
    """Count the hits of a window, which is opened by the first hit and lasts one period.

    ::

        5/10s    x x x x x -  -            x
                 |                   |     |
                 0 s, opened         10 s  a new window

    Times are in milliseconds, like a Redis TTL. A full window still counts attempts, so that
    operators can rank offenders; these attempts are not charged.
    """
    if type(state) is OverdrawnWindow:
        return _overdrawn_window(state, now, limit, cost)
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


def _overdrawn_window(state: OverdrawnWindow, now: int, limit: Limit, cost: int) -> Step:
    """`fixed_window` for a window with a debt."""
    now_ms = now // 1_000
    window = current_window(state, now_ms, limit)
    if window is None:
        return fixed_window(None, now, limit, cost)
    wait_ms = window.wait_ms(limit, cost) if cost else 0
    changed = window.attempts >= limit.amount or not wait_ms
    if changed:
        window = window._replace(attempts=window.attempts + cost)
    reset_ms = window.reset_ms(limit)
    verdict = Verdict(wait_ms * 1_000, max(0, limit.amount - window.attempts), reset_ms * 1_000)
    return window_state(window, now_ms, limit) if changed else state, verdict


def window_state(
    window: CurrentWindow, now_ms: int, limit: Limit
) -> Window | OverdrawnWindow | None:
    """The state to store for a fixed window; None if nothing was charged."""
    if not window.owed:
        return Window(window.attempts, now_ms + window.left_ms) if window.attempts else None
    ends_ms = now_ms + window.reset_ms(limit)
    terms = limit.amount, limit.period_ms
    return OverdrawnWindow(window.attempts, window.owed, ends_ms, *terms, window.opened_ms)


def sliding_window(state: Any, now: int, limit: Limit, cost: int) -> Step:
    """Record the time of each charged hit of the last period: exact, but it needs a log.

    ::

        3/10s    x    x    x  -       x    x
                 0 s  3 s  6 s 8 s    10 s 13 s, as each of the first three expires
    """
    period = limit.period_ms * 1_000
    log, owed, _ = current_log(state, now, limit)
    used = sum(hit.cost for hit in log)
    later = pay_debt(log, owed, limit, None)[0] if owed else log
    wait, excess = 0, (limit.amount if owed else used) + cost - limit.amount
    if cost and excess > 0:
        excess = sum(hit.cost for hit in later) + cost - limit.amount
        if excess <= 0:  # the last payment of the debt leaves enough room
            wait = later[-1].at - now
        for hit in later if excess > 0 else ():
            excess -= hit.cost
            if excess <= 0:
                wait = hit.at + period - now
                break
    elif cost:
        state = append_hit(log, now, limit, cost)
        log = later = state.hits
        used += cost
    reset = later[-1].at + period - now if later else 0
    return state, Verdict(wait, max(0, limit.amount - used), reset)


def current_log(state: Any, now: int, limit: Limit) -> tuple[tuple[LogEntry, ...], int, int]:
    """The entries of a sliding window that count now, the debt, and when it began."""
    if not isinstance(state, Log) or now // 1_000 >= state.ends_ms:
        return (), 0, 0
    period = limit.period_ms * 1_000
    log, owed = state.hits, 0
    if log and log[-1].at > now + period:  # the clock was set back: do not wait for it
        return (), 0, 0
    if state.owed:
        log, owed = pay_debt(log, min(state.owed, max_debt(limit)), limit, now)
    return tuple(hit for hit in log if hit.at > now - period), owed, state.since


def append_hit(log: tuple[LogEntry, ...], now: int, limit: Limit, cost: int) -> Log:
    """The log with one more entry, whose time is never before that of the last one."""
    at = max(now, log[-1].at) if log else now
    return Log((*log, LogEntry(at, cost)), log_expiry_ms(at, now, limit))


def log_expiry_ms(at: int, now: int, limit: Limit) -> int:
    """When a log whose last entry has this time may be dropped, in milliseconds."""
    return now // 1_000 + limit.period_ms - (now - at) // 1_000 + 1


def token_bucket(state: Any, now: int, limit: Limit, cost: int) -> Step:
    """Take `cost` tokens from a bucket of `burst` tokens, refilled evenly with `amount` per period.

    ::

        1/s burst 3    x x x -      x      x      x
                       0 s          1 s    2 s    3 s

    This is the Generic Cell Rate Algorithm as a virtual scheduling algorithm (ITU-T I.371, annex
    A). It stores one time, the theoretical arrival time, at which the bucket will be full again.
    One token takes period/amount, which is seldom a whole number of microseconds. So everything is
    counted in `1/amount` microseconds, which makes both numbers whole, and nothing is rounded.
    """
    parts, interval = limit.amount, limit.period_ms * 1_000
    capacity = limit.capacity * interval
    tat, lowest = backlog_of(state, now, limit)
    backlog = min(tat, lowest)
    excess = backlog + cost * interval - capacity
    wait = -(-excess // parts) if cost and excess > 0 else 0
    if not wait:
        backlog += cost * interval
    remaining = max(0, capacity - backlog) // interval
    verdict = Verdict(wait, remaining, -(-backlog // parts))
    if wait and tat <= lowest:
        return state, verdict
    return arrival_state(backlog, now, limit), verdict


def backlog_of(state: Any, now: int, limit: Limit) -> tuple[int, int]:
    """What is missing in a bucket according to its state, and the most that may be missing.

    Both in `1/amount` microseconds. The capacity and the debt may be missing; after a slower limit,
    or if the clock was set back, the state may say more.
    """
    capacity = limit.capacity * limit.period_ms * 1_000
    if not isinstance(state, Arrival):
        return 0, capacity
    part = state.part if state.parts == limit.amount else 0
    debt = min(state.owed, max_debt(limit)) * limit.period_ms * 1_000
    return max(0, (state.at - now) * limit.amount + part), capacity + debt


def arrival_state(backlog: int, now: int, limit: Limit) -> Arrival:
    """The state of a bucket in which this much is missing, in `1/amount` microseconds."""
    interval = limit.period_ms * 1_000
    owed = -(-max(0, backlog - limit.capacity * interval) // interval)
    at, part = divmod(backlog, limit.amount)
    return Arrival(now + at, part, limit.amount, owed)


def penalty(state: Any, now: int, limit: Limit, terms: Penalty, cost: int) -> Step:
    """Count refused hits; after `after` of them refuse everything for the length of the ban.

    ::

        2/min, ban 5 min    -    - |==================|
                            0 s  9 s                  5 min 9 s
                            refused, refused again    free

    A cost of 1 is one more refused hit. The wait is the one before that hit. An imposed ban begins
    at once, unless a longer one is in force.
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
