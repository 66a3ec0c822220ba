"""Token bucket: one time, at which the bucket is full again.

The time is a double of microseconds, computed here and in `token_bucket.lua` by the same operations
in the same order, so that both agree to the bit. What is missing in a bucket is a multiple of a
quarter of a microsecond, which a double of today's date holds exactly. Rounding favors the user: a
charge is rounded down, and the room for the next one is rounded up. So a bucket grants its burst at
one moment, and nobody waits for a fraction of a token that he did not use.
"""

from __future__ import annotations

from math import ceil, floor
from typing import Final, NamedTuple

from bot_ratelimit.algorithms.verdict import Step, Verdict
from bot_ratelimit.rules.limit import Limit

_MOST: Final = 2.0**52
"""The most that may be missing, in microseconds: 142 years, so that Redis can count them."""


class Bucket(NamedTuple):
    """State of a token bucket. Redis stores the time as a negative number below empty."""

    full_at: float
    """When the bucket is full again, in microseconds."""
    below_empty: bool


def hit(state: Bucket | None, now: int, limit: Limit, cost: int) -> Step:
    """Take `cost` tokens from a bucket of `burst` tokens, refilled evenly with `amount` per period.

    ::

        1/s burst 3    x x x -      x      x      x
                       0 s          1 s    2 s    3 s

    This is the Generic Cell Rate Algorithm as a virtual scheduling algorithm (ITU-T I.371, annex
    A). It stores one time, the theoretical arrival time, at which the bucket will be full again.
    """
    token = limit.period_ms * 1_000 / limit.amount
    missing, shortened = _missing(state, now, limit, token)
    wait = max(0, ceil(missing - _room(limit, token, cost))) if cost else 0
    if cost and not wait:
        missing = _floored(missing + cost * token)
    left = max(0, floor(limit.capacity - missing / token))
    if left < limit.capacity and missing <= _room(limit, token, left + 1):
        left += 1
    if shortened or (cost and not wait):
        state = _bucket(missing, now, limit, token)
    return state, Verdict(wait, left, ceil(missing))


def charge(state: Bucket | None, now: int, limit: Limit, cost: int) -> Bucket | None:
    """Take the tokens, even if the bucket is then below empty."""
    token = limit.period_ms * 1_000 / limit.amount
    missing, _ = _missing(state, now, limit, token)
    return _bucket(min(_floored(missing + cost * token), _MOST), now, limit, token)


def refund(state: Bucket | None, now: int, limit: Limit, cost: int) -> Bucket | None:
    """Put the tokens back; the bucket is never more than full."""
    token = limit.period_ms * 1_000 / limit.amount
    missing, _ = _missing(state, now, limit, token)
    return _bucket(max(0.0, _floored(missing - cost * token)), now, limit, token)


def _missing(state: Bucket | None, now: int, limit: Limit, token: float) -> tuple[float, bool]:
    """The time until the bucket is full, and whether it had to be shortened.

    A bucket below empty was charged beyond its burst, and stays there. Otherwise no more than the
    burst can be missing: a slower limit wrote the state, or the clock was set back.
    """
    if state is None:
        return 0.0, False
    missing = max(0.0, state.full_at - now)
    most = _floored(limit.capacity * token)
    return (most, True) if missing > most and not state.below_empty else (missing, False)


def _bucket(missing: float, now: int, limit: Limit, token: float) -> Bucket | None:
    """The state; None for a full bucket."""
    return Bucket(now + missing, missing > limit.capacity * token) if missing else None


def _room(limit: Limit, token: float, cost: int) -> float:
    """The most that may be missing before a hit of this cost."""
    return ceil((limit.capacity - cost) * token * 4) / 4


def _floored(us: float) -> float:
    return floor(us * 4) / 4
