"""Chart: decisions by hour or minute as bars, in a drawing that is 100 units high."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Final, NamedTuple

from bot_ratelimit.admin.views import Total

OUTCOMES: Final = ("allowed", "refused", "banned")
_LEAST: Final = 1.5
"""The least height of a part, in units: one refusal among a million must be visible."""


class Bar(NamedTuple):
    """An hour or a minute."""

    at: datetime
    counts: Mapping[str, int]
    parts: Sequence[tuple[str, float, float]]
    """Each outcome with its upper edge and its height, from the bottom up."""


class Chart(NamedTuple):
    """The bars, the earliest first, and their totals."""

    bars: Sequence[Bar]
    top: int
    """The number of decisions at the upper edge."""
    totals: Mapping[str, int]


def chart_of(totals: Iterable[Total]) -> Chart:
    """Bars for these hours or minutes."""
    counted = [(each.at, {name: getattr(each, name) for name in OUTCOMES}) for each in totals]
    top = _round_up(max((sum(each.values()) for _, each in counted), default=0))
    return Chart(
        [Bar(at, counts, _parts(counts, top)) for at, counts in counted],
        top,
        {name: sum(counts[name] for _, counts in counted) for name in OUTCOMES},
    )


def _parts(counts: Mapping[str, int], top: int) -> list[tuple[str, float, float]]:
    """Also the empty ones, so that they can grow."""
    found, y = [], 100.0
    for outcome, count in counts.items():
        height = max(100 * count / top, _LEAST) if count else 0.0
        y = max(y - height, 0.0)
        found.append((outcome, round(y, 2), round(height, 2)))
    return found


def _round_up(number: int) -> int:
    """The next of 4, 6, 8, 10, 12, 16, 20, 24, 30, 40, 60, ...: half of each is a round number."""
    scale = 1
    while True:
        for step in (4, 6, 8, 10, 12, 16, 20, 24, 30):
            if step * scale >= number:
                return step * scale
        scale *= 10
