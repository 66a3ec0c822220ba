"""Debt: what was charged above a limit, and how it is paid as time passes.

A debt is paid as soon as the limit allows: each unit as soon as the limit would grant it. Hits are
refused until the debt is paid.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from bot_ratelimit.rules.limit import MAX_AMOUNT, MAX_PERIOD_MS, Limit


def max_debt(limit: Limit) -> int:
    """The largest debt under this limit: what it grants in 366 days, and at most 1,000,000.

    A charge beyond that is cut off, so that a mistake does not lock a user out forever.
    """
    return min(MAX_AMOUNT, limit.amount * (MAX_PERIOD_MS // limit.period_ms))


class OverdrawnWindow(NamedTuple):
    """State of a fixed window with a debt, and of the windows that pay it."""

    attempts: int
    """Attempts of the current window when this was written."""
    owed: int
    """The debt, of which each following window pays `amount`."""
    ends_ms: int
    """When the last of these windows ends."""
    amount: int
    period_ms: int
    opened_ms: int
    """When the first window was opened."""


class CurrentWindow(NamedTuple):
    """A fixed window at one moment, as one limit sees it."""

    attempts: int
    owed: int
    left_ms: int
    """The rest of the current window."""
    opened_ms: int

    def wait_ms(self, limit: Limit, cost: int) -> int:
        """Milliseconds until a hit of this cost is allowed.

        ::

            5/10s, 13 charged    |5    |5    |3  x  |
                                 0 s   10 s  20 s   30 s, the end of the last window
        """
        if self.attempts + cost <= limit.amount:
            return 0
        if not self.owed:
            return self.left_ms
        later, last = divmod(self.owed - 1, limit.amount)
        return self.left_ms + (later + (last + 1 + cost > limit.amount)) * limit.period_ms

    def reset_ms(self, limit: Limit) -> int:
        """Milliseconds until the last paying window has ended."""
        return self.left_ms - (-self.owed // limit.amount) * limit.period_ms


def current_window(state: OverdrawnWindow, now_ms: int, limit: Limit) -> CurrentWindow | None:
    """The current window; None if the last one has ended.

    Past windows are those of the limit that wrote the state. From now on, they are those of the
    limit that reads it.
    """
    total = state.ends_ms - now_ms
    if total <= 0:
        return None
    count, owed, _, amount, period_ms, opened_ms = state
    later = -(-owed // amount)
    left = total - later * period_ms
    if left <= 0:
        windows = -(-total // period_ms)  # the current window and those after it
        owed -= (later - windows) * amount
        count = min(amount, owed)
        owed -= count
        left = total - (windows - 1) * period_ms
    left = min(left, limit.period_ms)
    paid = min(owed, max(0, limit.amount - count))  # a higher amount has room for a part of it
    return CurrentWindow(count + paid, min(owed - paid, max_debt(limit)), left, opened_ms)


class LogEntry(NamedTuple):
    """One entry of the sliding window's log."""

    at: int
    cost: int


def pay_debt(
    log: Iterable[LogEntry], owed: int, limit: Limit, until: int | None
) -> tuple[tuple[LogEntry, ...], int]:
    """Pay a debt up to a moment; return the log after it, and the rest of the debt.

    Each unit is paid as soon as there is room: when an entry expires, and after the last payment.

    Args:
        log: The entries, oldest first.
        owed: The debt, for which the log has no room yet.
        limit: The current limit.
        until: The moment in microseconds; None continues until the debt is paid.
    """
    period, amount = limit.period_ms * 1_000, limit.amount
    hits = deque(log)
    used = sum(hit.cost for hit in hits)
    latest = hits[-1].at if hits else 0
    while owed:
        paid = min(owed, amount - used)
        if paid > 0:
            hits.append(LogEntry(latest, paid))
            used += paid
            owed -= paid
            continue
        if used == amount:  # the same entries expire and are added again, in every period
            rounds = owed // amount
            if until is not None:
                rounds = min(rounds, (until - hits[-1].at) // period)
            if rounds > 0:
                hits = deque(LogEntry(at + rounds * period, cost) for at, cost in hits)
                latest += rounds * period
                owed -= rounds * amount
                continue
        leaves = hits[0].at + period
        if until is not None and leaves > until:
            break
        used -= hits.popleft().cost
        latest = max(latest, leaves)
    return tuple(hits), owed
