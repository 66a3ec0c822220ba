"""Reads limits and periods as text, and says where a text stops making sense."""

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
_SHORT: Final = "ms, s, m, h, d, w"


class Reader:
    """Reads a text from left to right and reports where it stopped."""

    def __init__(self, text: str, example: str) -> None:
        self.text = text
        self.example = example
        self.at = 0

    def take(self, pattern: str) -> str | None:
        """Read what matches, in any case; None if something else comes next."""
        match = re.compile(rf"\s*({pattern})", re.IGNORECASE).match(self.text, self.at)
        if match is None:
            return None
        self.at = match.end()
        return match[1]

    def need(self, pattern: str, expected: str) -> str:
        """Read what matches, or raise ConfigError."""
        found = self.take(pattern)
        if found is None:
            raise self.error(f"expected {expected}")
        return found

    def end(self) -> None:
        """Raise ConfigError unless everything has been read."""
        if self.text[self.at :].strip():
            raise self.error("expected nothing more")

    def error(self, what: str, at: int | None = None) -> ConfigError:
        """The error for what stands here, or at another place."""
        place = self.at if at is None else at
        place += len(self.text[place:]) - len(self.text[place:].lstrip())
        rest = self.text[place:]
        where = f"at {rest!r}" if rest else "at the end"
        where += f" (position {place + 1}){_foreign_letter(rest)}"
        return ConfigError(f"{self.text!r}: {what} {where}; {self.example}")


def _foreign_letter(text: str) -> str:
    """Name a letter that looks like a Latin one but is not."""
    letter = text[:1]
    if not letter.isalpha() or letter.isascii():
        return ""
    return f", where {letter!r} is {unicodedata.name(letter, 'not a Latin letter')}"


def parse_period(text: str) -> float:
    """Parse a period, for example `15m`, `1.5 hours` or `day`, and return its seconds.

    Raises:
        ConfigError: The text is not a period; the message has the text, the place and an example.
    """
    reader = Reader(text, "a period is [N]UNIT, for example '15m'")
    seconds = period_seconds(reader)
    reader.end()
    return seconds


def period_seconds(reader: Reader) -> float:
    """Read a period: `[N]UNIT`."""
    count = reader.take(r"[0-9]{1,15}(?:\.[0-9]{1,15})?") or "1"
    unit_at = reader.at
    unit = reader.need(r"[a-z]+", f"a unit ({_SHORT})").lower()
    if unit.startswith("mon"):
        raise reader.error(
            "a month has 28 to 31 days; write a time zone ('1000/month in UTC') or days "
            "('1000/30 days')",
            unit_at,
        )
    if unit not in _UNITS_MS:
        raise reader.error(f"expected a unit ({_SHORT})", unit_at)
    return float(count) * _UNITS_MS[unit] / 1_000
