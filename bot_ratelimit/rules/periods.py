"""Periods as text, and what stands in an error about a text."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

from bot_ratelimit.errors import ConfigError

_UNITS_MS: Final = {
    "ms": 1,
    **dict.fromkeys(("s", "sec", "second", "seconds"), 1_000),
    **dict.fromkeys(("m", "min", "minute", "minutes"), 60_000),
    **dict.fromkeys(("h", "hour", "hours"), 3_600_000),
    **dict.fromkeys(("d", "day", "days"), 86_400_000),
    **dict.fromkeys(("w", "week", "weeks"), 604_800_000),
}
PERIOD: Final = r"(?P<count>[0-9]{1,15}(?:\.[0-9]{1,15})?)?\s*(?P<unit>[a-z]+)"
"""A pattern of `[N]UNIT`."""
_PERIOD: Final = re.compile(rf"\s*{PERIOD}\s*", re.IGNORECASE)


def parse_period(text: str) -> float:
    """Parse a period, for example `15m`, `1.5 hours` or `day`, and return its seconds.

    Raises:
        ConfigError: The text is not a period; the message has the text and an example.
    """
    match = _PERIOD.fullmatch(text)
    seconds = None if match is None else period_seconds(match)
    if seconds is None:
        raise unreadable(text, "a period [N]UNIT, for example '15m'")
    return seconds


def period_seconds(match: re.Match[str]) -> float | None:
    """The seconds of a match of `PERIOD`; None if there is no such unit."""
    unit_ms = _UNITS_MS.get(match["unit"].lower())
    return None if unit_ms is None else float(match["count"] or 1) * unit_ms / 1_000


def unreadable(text: str, expected: str) -> ConfigError:
    """The error for a text; it names a letter that only looks like a Latin one."""
    foreign = next((c for c in text if c.isalpha() and not c.isascii()), "")
    hint = f"; {foreign!r} is {unicodedata.name(foreign, 'not a Latin letter')}" if foreign else ""
    return ConfigError(f"{shown(text)}: expected {expected}; units: ms s m h d w{hint}")


def shown(value: object) -> str:
    """A value as errors show it: not a URL in the wrong place, which may hold a password."""
    text = repr(value)
    return "a URL" if "://" in text else text
