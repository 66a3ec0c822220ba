"""Chart: decisions by hour as bars, in a drawing that is 100 units high."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bot_ratelimit.admin.views import HourTotal

OUTCOMES: Final = ("allowed", "refused", "banned")
WIDTH: Final = 10
"""The width of an hour, in units of the drawing."""
_LEAST: Final = 1.5
"""The least height of a part, in units: one refusal among a million must be visible."""


@dataclass(frozen=True, slots=True)
class Part:
    """The decisions of an hour with one outcome; `y` is its upper edge."""

    outcome: str
    y: float
    height: float


@dataclass(frozen=True, slots=True)
class Bar:
    """An hour."""

    total: HourTotal
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """The hours, the earliest first, and their totals."""

    bars: tuple[Bar, ...]
    top: int
    """The number of decisions at the upper edge."""
    totals: dict[str, int]

    @property
    def width(self) -> int:
        """The width of the drawing, in units."""
        return WIDTH * len(self.bars)


def chart_of(hours: Sequence[HourTotal]) -> Chart:
    """Bars for these hours."""
    highest = max((sum(_counts(hour)) for hour in hours), default=0)
    top = _round_up(highest)
    totals = dict(zip(OUTCOMES, map(sum, zip(*map(_counts, hours), strict=True)), strict=False))
    bars = tuple(Bar(hour, _parts(hour, top)) for hour in hours)
    return Chart(bars, top, {**dict.fromkeys(OUTCOMES, 0), **totals})


def _counts(hour: HourTotal) -> tuple[int, int, int]:
    return hour.allowed, hour.refused, hour.banned


def _parts(hour: HourTotal, top: int) -> tuple[Part, ...]:
    """The three parts of a bar, from the bottom up; empty ones too, so that they can grow."""
    found, y = [], 100.0
    for outcome, count in zip(OUTCOMES, _counts(hour), strict=True):
        height = max(100 * count / top, _LEAST) if count else 0.0
        y = max(y - height, 0.0)
        found.append(Part(outcome, round(y, 2), round(height, 2)))
    return tuple(found)


def _round_up(number: int) -> int:
    """The next of 4, 6, 8, 10, 12, 16, 20, 24, 30, 40, 60, ...: half of each is a round number."""
    scale = 1
    while True:
        for step in (4, 6, 8, 10, 12, 16, 20, 24, 30):
            if step * scale >= number:
                return step * scale
        scale *= 10
