"""Fixed window: a counter that is forgotten as a whole when its time is over."""

from __future__ import annotations

from typing import TypeAlias

from bot_ratelimit.algorithms.verdict import Step, new_verdict
from bot_ratelimit.rules.limit import Limit

Window: TypeAlias = tuple[int, int]
"""State of a fixed window, or of a penalty: the attempts, and when it ends in milliseconds."""


def hit(state: Window | None, now: int, limit: Limit, cost: int) -> Step:
    """Count the hits of a window, which is opened by the first hit and lasts one period.

    ::

        5/10s    x x x x x -  -            x
                 |                   |     |
                 0 s, opened         10 s  a new window

    Times are in milliseconds, like a Redis TTL. A full window still counts attempts, so that
    operators can rank offenders; these attempts are not charged.
    """
    amount, left_ms, count, now_ms = limit.amount, limit.period_ms, 0, now // 1_000
    if state is not None:
        rest_ms = state[1] - now_ms
        if rest_ms > 0:
            count = state[0]
            if rest_ms < left_ms:
                left_ms = rest_ms
    wait = left_ms * 1_000 if cost and count + cost > amount else 0
    if not wait or count >= amount:
        count += cost
    verdict = (wait, amount - count if count < amount else 0, left_ms * 1_000 if count else 0)
    return (count, now_ms + left_ms), new_verdict(verdict)


def charge(state: Window | None, now: int, limit: Limit, cost: int) -> Window:
    """Add the cost, also beyond the amount: the window is then full until it ends."""
    count, ends_ms = _current(state, now, limit)
    return count + cost, ends_ms


def refund(state: Window | None, now: int, limit: Limit, cost: int) -> Window | None:
    """Take the cost from the count, but not from attempts above the amount: they cost nothing."""
    count, ends_ms = _current(state, now, limit)
    left = min(count, limit.amount) - cost
    return (left, ends_ms) if left > 0 else None


def _current(state: Window | None, now: int, limit: Limit) -> Window:
    now_ms = now // 1_000
    if state is None or state[1] <= now_ms:
        return 0, now_ms + limit.period_ms
    return state[0], min(state[1], now_ms + limit.period_ms)
