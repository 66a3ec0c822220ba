"""Chart: decisions by hour or minute as bars, in a drawing that is 100 units high."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from bot_ratelimit.admin.views import HourTotal, MinuteTotal

OUTCOMES: Final = ("allowed", "refused", "banned")
_LEAST: Final = 1.5
"""The least height of a part, in units: one refusal among a million must be visible."""


@dataclass(frozen=True, slots=True)
class Part:
    """The decisions of a bar with one outcome; `y` is its upper edge."""

    outcome: str
    y: float
    height: float


@dataclass(frozen=True, slots=True)
class Bar:
    """An hour or a minute."""

    at: datetime
    counts: Mapping[str, int]
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """The bars, the earliest first, and their totals."""

    bars: tuple[Bar, ...]
    top: int
    """The number of decisions at the upper edge."""
    totals: Mapping[str, int]


def chart_of(bars: Sequence[HourTotal | MinuteTotal]) -> Chart:
    """Bars for these hours or minutes."""
    counts = [{name: getattr(each, name) for name in OUTCOMES} for each in bars]
    top = _round_up(max((sum(each.values()) for each in counts), default=0))
    return Chart(
        tuple(
            Bar(each.hour if isinstance(each, HourTotal) else each.minute, of, _parts(of, top))
            for each, of in zip(bars, counts, strict=True)
        ),
        top,
        {name: sum(each[name] for each in counts) for name in OUTCOMES},
    )


def _parts(counts: Mapping[str, int], top: int) -> tuple[Part, ...]:
    """The three parts of a bar, from the bottom up; empty ones too, so that they can grow."""
    found, y = [], 100.0
    for outcome, count in counts.items():
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
