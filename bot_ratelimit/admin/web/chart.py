"""Chart: decisions by hour as bars, for a drawing of 100 units in height."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bot_ratelimit.admin.views import HourTotal

OUTCOMES: Final = ("allowed", "refused", "banned")
WIDTH: Final = 10
"""Units that an hour is wide."""
_LEAST: Final = 1.5
"""Units in height that one decision has: a single refusal among a million must be seen."""


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
    """The hours, the earliest first, and what they come to."""

    bars: tuple[Bar, ...]
    top: int
    """What the upper edge stands for."""
    totals: dict[str, int]

    @property
    def width(self) -> int:
        """Units of the drawing."""
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
    """Its three parts, from the bottom up; also the empty ones, so that they can grow."""
    found, y = [], 100.0
    for outcome, count in zip(OUTCOMES, _counts(hour), strict=True):
        height = max(100 * count / top, _LEAST) if count else 0.0
        y = max(y - height, 0.0)
        found.append(Part(outcome, round(y, 2), round(height, 2)))
    return tuple(found)


def _round_up(number: int) -> int:
    """The next of 4, 6, 8, 10, 12, 16, 20, 24, 30, 40, 60, ...: half of it is a round number."""
    scale = 1
    while True:
        for step in (4, 6, 8, 10, 12, 16, 20, 24, 30):
            if step * scale >= number:
                return step * scale
        scale *= 10
