"""The three algorithms by name, as pure functions of (state, now, limit, cost).

They are the specification: the memory storage runs them, and tests compare them with the script.
None of them reads a clock. Times are whole microseconds; only their differences matter. A state of
None is an empty count.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from bot_ratelimit.algorithms import fixed_window, sliding_window, token_bucket
from bot_ratelimit.algorithms.verdict import Step
from bot_ratelimit.rules.limit import Algorithm, Limit


class Functions(NamedTuple):
    """What can be done with the state of one algorithm."""

    hit: Callable[[Any, int, Limit, int], Step]
    """Decides. A hit is allowed if its wait is 0. Store the state if the hit is charged, or if this
    rule refuses it. If another rule refused it, ask again with a cost of 0, which never waits and
    changes nothing."""
    charge: Callable[[Any, int, Limit, int], Any]
    """Charges even above the limit, and returns the state."""
    refund: Callable[[Any, int, Limit, int], Any]
    """Gives back as far as the cost still counts, and returns the state."""


FUNCTIONS: Final = {
    Algorithm.FIXED_WINDOW: Functions(fixed_window.hit, fixed_window.charge, fixed_window.refund),
    Algorithm.SLIDING_WINDOW: Functions(
        sliding_window.hit, sliding_window.charge, sliding_window.refund
    ),
    Algorithm.TOKEN_BUCKET: Functions(token_bucket.hit, token_bucket.charge, token_bucket.refund),
}
