"""Durations as text."""

from __future__ import annotations

from bot_ratelimit.rules.duration import RUSSIAN_UNITS, duration, wait_text
from tests.tables import table


@table(
    ("seconds", "text"),
    [(0, "0 s"), (0.25, "0.2 s"), (7.4, "7 s"), (3_600, "1 h"), (273_599, "3 d 3 h")],
)
def test_a_duration_has_its_two_largest_units(seconds: float, text: str) -> None:
    """It is cut off below them."""
    assert duration(seconds) == text


@table(
    ("seconds", "text"),
    [
        *((1, "1 s"), (120, "120 s"), (121, "3 min"), (900, "15 min"), (3_601, "1 h 1 min")),
        *((11_999, "3 h 20 min"), (86_341, "1 d"), (86_400, "1 d"), (86_401, "1 d 1 h")),
    ],
)
def test_a_wait_is_rounded_up(seconds: int, text: str) -> None:
    """A user who waits as long as told is not refused again."""
    assert wait_text(seconds) == text
    assert wait_text(12_000, RUSSIAN_UNITS) == "3 ч 20 мин"
