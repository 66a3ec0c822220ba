"""Adjustments: charges above the limit and refunds, as pure functions like those in `algorithms`.

Each returns the new state: None when nothing is charged any more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

from bot_ratelimit.algorithms.algorithms import (
    Log,
    Window,
    append_hit,
    arrival_state,
    backlog_of,
    current_log,
    log_expiry_ms,
    window_state,
)
from bot_ratelimit.algorithms.debt import (
    CurrentWindow,
    LogEntry,
    OverdrawnWindow,
    current_window,
    max_debt,
    pay_debt,
)
from bot_ratelimit.rules.limit import Algorithm, Limit


def charge_window(state: Any, now: int, limit: Limit, cost: int) -> Any:
    """Fill the current window; what does not fit is paid by the following windows."""
    window = _window(state, now // 1_000, limit)
    paid = 0 if window.owed else min(cost, max(0, limit.amount - window.attempts))
    owed = min(window.owed + cost - paid, max_debt(limit))
    window = window._replace(attempts=window.attempts + paid, owed=owed)
    return window_state(window, now // 1_000, limit)


def refund_window(state: Any, now: int, limit: Limit, cost: int, age: int) -> Any:
    """Reduce the debt, then the count; nothing if the window is newer than the charge."""
    window = _window(state, now // 1_000, limit)
    if not window.attempts or now // 1_000 - window.opened_ms < age // 1_000:
        return state
    back = min(cost, window.owed)
    count = window.attempts
    if cost > back:  # attempts above the amount were never charged
        count = max(0, min(count, limit.amount) - (cost - back))
    return window_state(
        window._replace(attempts=count, owed=window.owed - back), now // 1_000, limit
    )


def _window(state: Any, now_ms: int, limit: Limit) -> CurrentWindow:
    if type(state) is OverdrawnWindow:
        window = current_window(state, now_ms, limit)
        if window is not None:
            return window
    elif isinstance(state, Window) and state.ends_ms > now_ms:
        left_ms = min(state.ends_ms - now_ms, limit.period_ms)
        return CurrentWindow(state.charged, 0, left_ms, now_ms + left_ms - limit.period_ms)
    return CurrentWindow(0, 0, limit.period_ms, now_ms)


def charge_log(state: Any, now: int, limit: Limit, cost: int) -> Any:
    """Fill the log; what does not fit is added as soon as other entries expire."""
    log, owed, since = current_log(state, now, limit)
    return _log(log, owed + cost, since if owed else now, now, limit)


def refund_log(state: Any, now: int, limit: Limit, cost: int, age: int) -> Any:
    """Reduce the debt, then the newest entries, but none that is newer than the charge."""
    log, owed, since = current_log(state, now, limit)
    in_debt = owed > 0 and now - age >= since
    back = min(cost, owed) if in_debt else 0
    left, kept = cost - back, []
    for at, charged in reversed(log):
        # Everything that was added since the debt began was a payment of it.
        less = min(left, charged) if in_debt or at <= now - age else 0
        left -= less
        if charged > less:
            kept.append(LogEntry(at, charged - less))
    if left == cost:
        return state
    return _log(tuple(reversed(kept)), owed - back, since, now, limit)


def _log(log: tuple[LogEntry, ...], owed: int, since: int, now: int, limit: Limit) -> Log | None:
    room = limit.amount - sum(hit.cost for hit in log)
    paid = min(owed, max(0, room))
    if paid:
        log = append_hit(log, now, limit, paid).hits
    owed = min(owed - paid, max_debt(limit))
    if not log:
        return None
    last = pay_debt(log, owed, limit, None)[0][-1].at
    return Log(log, log_expiry_ms(last, now, limit), owed, since if owed else 0)


def charge_bucket(state: Any, now: int, limit: Limit, cost: int) -> Any:
    """Take the tokens, even if the bucket then holds less than nothing."""
    backlog = min(backlog_of(state, now, limit)) + cost * limit.period_ms * 1_000
    most = (limit.capacity + max_debt(limit)) * limit.period_ms * 1_000
    return arrival_state(min(backlog, most), now, limit)


def refund_bucket(state: Any, now: int, limit: Limit, cost: int, age: int) -> Any:
    """Put the tokens back; none if those taken by the charge have been refilled already."""
    lacking, most = backlog_of(state, now, limit)
    backlog = min(lacking, most)
    if not backlog or age * limit.amount >= most:
        return state
    backlog -= cost * limit.period_ms * 1_000
    return arrival_state(backlog, now, limit) if backlog > 0 else None


ChargeFunction: TypeAlias = Callable[[Any, int, Limit, int], Any]
RefundFunction: TypeAlias = Callable[[Any, int, Limit, int, int], Any]
CHARGES: Final[dict[Algorithm, ChargeFunction]] = {
    Algorithm.FIXED_WINDOW: charge_window,
    Algorithm.SLIDING_WINDOW: charge_log,
    Algorithm.TOKEN_BUCKET: charge_bucket,
}
REFUNDS: Final[dict[Algorithm, RefundFunction]] = {
    Algorithm.FIXED_WINDOW: refund_window,
    Algorithm.SLIDING_WINDOW: refund_log,
    Algorithm.TOKEN_BUCKET: refund_bucket,
}
