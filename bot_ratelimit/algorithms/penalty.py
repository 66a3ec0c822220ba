"""Penalty: a counter of refused hits, whose window becomes the ban when it is full."""

from __future__ import annotations

from bot_ratelimit.algorithms.fixed_window import Window
from bot_ratelimit.algorithms.verdict import Step, Verdict
from bot_ratelimit.rules.limit import Limit
from bot_ratelimit.rules.penalty import Penalty


def strike(state: Window | None, now: int, limit: Limit, terms: Penalty, cost: int) -> Step:
    """Count refused hits; after `after` of them refuse everything for the length of the ban.

    ::

        2/min, ban 5 min    -    - |==================|
                            0 s  9 s                  5 min 9 s
                            refused, refused again    free

    A cost of 1 is one more refused hit. The wait is the one before that hit. An imposed ban begins
    at once, unless a longer one is in force.
    """
    strikes, ends_ms = state or (0, 0)
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
        (strikes, now_ms + left_ms),
        Verdict(wait, max(0, limit.amount - strikes), left_ms * 1_000 if strikes else 0),
    )
