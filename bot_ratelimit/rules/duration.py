"""Durations as text, for users and operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

UNITS: Final = ("d", "h", "min", "s")
"""Days, hours, minutes and seconds: symbols that are read in most languages."""
RUSSIAN_UNITS: Final = ("дн", "ч", "мин", "с")

_LENGTHS: Final = (86_400, 3_600, 60, 1)


def duration(seconds: float, units: Sequence[str] = UNITS) -> str:
    """Seconds as text: `7 s`, `2 min 5 s`, `3 d 4 h`."""
    left = max(0, round(seconds))
    if 0 < seconds < 1:
        return f"{seconds:.1g} {units[-1]}"
    parts = []
    for length, unit in zip(_LENGTHS, units, strict=True):
        if left >= length:
            parts.append(f"{left // length} {unit}")
            left %= length
    return " ".join(parts[:2]) or f"0 {units[-1]}"


def wait_text(seconds: int, units: Sequence[str] = UNITS) -> str:
    """The wait of a user as text, never too short: `90 s`, `15 min`, `3 h 20 min`, `1 d 6 h`."""
    if seconds <= 120:
        return f"{seconds} {units[-1]}"
    step = 60 if seconds <= 86_400 else 3_600
    return duration(-(-seconds // step) * step, units)
