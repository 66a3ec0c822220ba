"""Sliding window: the time of each charged hit, for exactly one period."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from bot_ratelimit.algorithms.verdict import Step, Verdict
from bot_ratelimit.rules.limit import Limit

Hits: TypeAlias = tuple[tuple[int, int], ...]
"""The time and the cost of each charged hit, the oldest first."""


class Log(NamedTuple):
    """State of a sliding window."""

    hits: Hits
    ends_ms: int
    """One millisecond after the last hit stops counting, under the limit that charged it."""


def hit(state: Log | None, now: int, limit: Limit, cost: int) -> Step:
    """Record the time of each charged hit of the last period: exact, but it needs a log.

    ::

        3/10s    x    x    x  -       x    x
                 0 s  3 s  6 s 8 s    10 s 13 s, as each of the first three expires
    """
    hits = _current(state, now, limit)
    used = sum(charged for _, charged in hits)
    excess = used + cost - limit.amount
    wait = 0
    if cost and excess > 0:
        for at, charged in hits:
            excess -= charged
            if excess <= 0:
                wait = at + limit.period_ms * 1_000 - now
                break
    elif cost:
        state = _appended(hits, now, limit, cost)
        hits = state.hits
        used += cost
    reset = hits[-1][0] + limit.period_ms * 1_000 - now if hits else 0
    return state, Verdict(wait, max(0, limit.amount - used), reset)


def charge(state: Log | None, now: int, limit: Limit, cost: int) -> Log:
    """Record the cost, also beyond the amount: hits are refused until enough of it has left."""
    return _appended(_current(state, now, limit), now, limit, cost)


def refund(state: Log | None, now: int, limit: Limit, cost: int) -> Log | None:
    """Take the cost from the newest hits."""
    hits = _current(state, now, limit)
    while hits and cost:
        at, charged = hits[-1]
        hits = hits[:-1] if charged <= cost else (*hits[:-1], (at, charged - cost))
        cost = max(0, cost - charged)
    return Log(hits, state.ends_ms) if state and hits else None


def _current(state: Log | None, now: int, limit: Limit) -> Hits:
    """The hits that count now."""
    if state is None or now // 1_000 >= state.ends_ms:
        return ()
    period = limit.period_ms * 1_000
    if state.hits[-1][0] > now + period:  # the clock was set back: do not wait for it
        return ()
    return tuple(hit for hit in state.hits if hit[0] > now - period)


def _appended(hits: Hits, now: int, limit: Limit, cost: int) -> Log:
    at = max(now, hits[-1][0]) if hits else now  # never before the last one
    ends_ms = now // 1_000 + limit.period_ms - (now - at) // 1_000 + 1
    return Log((*hits, (at, cost)), ends_ms)
