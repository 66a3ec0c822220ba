"""Limit: how many events in how much time, as a value and as text."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from typing import Final

from bot_ratelimit.errors import ConfigError

MAX_AMOUNT: Final = 1_000_000
MAX_PERIOD_MS: Final = 366 * 86_400_000
MAX_FILLING_US: Final = 100 * MAX_PERIOD_MS * 1_000
"""The longest time in which a bucket may fill, 100 years in microseconds. Twice this value is exact
in a double, so that the script, which has no other numbers, rounds nothing."""

_UNITS_MS: Final = {
    "ms": 1,
    **dict.fromkeys(("s", "sec", "second", "seconds"), 1_000),
    **dict.fromkeys(("m", "min", "minute", "minutes"), 60_000),
    **dict.fromkeys(("h", "hour", "hours"), 3_600_000),
    **dict.fromkeys(("d", "day", "days"), 86_400_000),
    **dict.fromkeys(("w", "week", "weeks"), 604_800_000),
}
# How a period is written: in the largest unit that divides it, with the full word for one unit.
_WRITTEN: Final = (
    (604_800_000, "w", "week"),
    (86_400_000, "d", "day"),
    (3_600_000, "h", "hour"),
    (60_000, "m", "minute"),
    (1_000, "s", "s"),
    (1, "ms", "ms"),
)


class Algorithm(Enum):
    """How hits are counted against a limit; docs/algorithms.md draws all three.

    ==================  ====================  ==============================================
    `FIXED_WINDOW`      `5/10s`               the default: a window that the first hit opens
    `SLIDING_WINDOW`    `5/10s sliding`       at most 5 in any 10 seconds
    `TOKEN_BUCKET`      `30/minute burst 5`   5 at once, then one every 2 seconds
    ==================  ====================  ==============================================
    """

    FIXED_WINDOW = "fixed window"
    SLIDING_WINDOW = "sliding window"
    TOKEN_BUCKET = "token bucket"  # noqa: S105 - a name, not a password

    __hash__ = object.__hash__  # by identity; Enum's own hash is much slower


@dataclass(frozen=True, slots=True)
class Limit:
    """`amount` events in every `period`.

    ::

        Limit(5, 10.0) == Limit.parse("5/10s")
        str(Limit(20, 60.0, Algorithm.SLIDING_WINDOW)) == "20/minute sliding"

    Args:
        amount: Events, 1 to 1,000,000.
        period: Seconds, from 0.001 to 366 days; kept to the millisecond, the resolution of a
            Redis TTL.
        algorithm: How hits are counted.
        burst: Token bucket only: how many tokens the full bucket holds; `amount` unless given.

    Raises:
        ConfigError: A value is outside its range.
    """

    amount: int
    period: float
    algorithm: Algorithm = Algorithm.FIXED_WINDOW
    burst: int | None = None
    period_ms: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_count("amount", self.amount)
        if isinstance(self.period, bool) or not isinstance(self.period, (int, float)):
            raise ConfigError(f"period={self.period!r}: expected seconds, for example 1.5")
        in_range = 0 < self.period <= MAX_PERIOD_MS / 1_000  # also False for NaN
        period_ms = round(self.period * 1_000) if in_range else 0
        if not 1 <= period_ms <= MAX_PERIOD_MS:
            raise ConfigError(
                f"period={self.period!r}: expected 0.001 to {MAX_PERIOD_MS // 1_000} seconds "
                f"(1 ms to 366 days){_NO_LIMIT if self.period == 0 else ''}"
            )
        if not isinstance(self.algorithm, Algorithm):
            raise ConfigError(
                f"algorithm={self.algorithm!r}: expected one of {', '.join(map(str, Algorithm))}"
            )
        if self.algorithm is Algorithm.TOKEN_BUCKET:
            burst = self.amount if self.burst is None else self.burst
            _check_count("burst", burst)
            object.__setattr__(self, "burst", burst)
            if burst * period_ms * 1_000 > MAX_FILLING_US * self.amount:
                raise ConfigError(
                    f"burst={burst!r}: at {self.amount} in {period_ms / 1_000:g} s the bucket "
                    "takes over 100 years to fill; choose a smaller burst or a shorter period"
                )
        elif self.burst is not None:
            raise ConfigError(
                f"burst={self.burst!r}: only a token bucket has a burst; "
                "add algorithm=Algorithm.TOKEN_BUCKET or leave it out"
            )
        object.__setattr__(self, "period", period_ms / 1_000)
        object.__setattr__(self, "period_ms", period_ms)

    @property
    def capacity(self) -> int:
        """The most that can be granted at one moment, and so the highest cost of one hit."""
        return self.amount if self.burst is None else self.burst

    @classmethod
    def parse(cls, text: str) -> Limit:
        """Parse a limit: `5/10s`, `20/minute`, `1 per 2 hours`, `5/10s sliding`, `30/s burst 60`.

        The format is `AMOUNT / PERIOD` or `AMOUNT per PERIOD`. A period is `[N]UNIT`, with the
        units ms, s, sec, second(s), m, min, minute(s), h, hour(s), d, day(s), w, week(s). Spaces
        are optional. `sliding` selects the sliding window; `bucket` or `burst N` selects the token
        bucket.

        Raises:
            ConfigError: The text is not a limit; the message has the text, the place and an
                example.
        """
        if not isinstance(text, str):
            raise ConfigError(f"{text!r}: expected text such as '5/10s'")
        return _parse(text)

    @classmethod
    def of(cls, value: Limit | str | float) -> Limit:
        """Return a limit for a Limit, its text, or a number of seconds per event.

        Raises:
            ConfigError: The value is none of these, or out of range.
        """
        if isinstance(value, Limit):
            return value
        if isinstance(value, str):
            return _parse(value)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigError(
                f"{value!r}: expected a limit such as '5/10s', or the seconds for one event"
            )
        return cls(1, value)

    def __str__(self) -> str:
        """The shortest text that `parse` reads as this limit."""
        unit_ms, short, full = next(u for u in _WRITTEN if self.period_ms % u[0] == 0)
        count = self.period_ms // unit_ms
        text = f"{self.amount}/{full if count == 1 else f'{count}{short}'}"
        if self.algorithm is Algorithm.SLIDING_WINDOW:
            return f"{text} sliding"
        if self.algorithm is Algorithm.TOKEN_BUCKET:
            return f"{text} bucket" if self.burst == self.amount else f"{text} burst {self.burst}"
        return text


_NO_LIMIT: Final = (
    "; to switch limiting off, leave the rule or the middleware out, or for one handler set the "
    "flag rate_limit=False"
)


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_AMOUNT:
        off = _NO_LIMIT if value == 0 and value is not False else ""
        raise ConfigError(f"{name}={value!r}: expected a whole number from 1 to {MAX_AMOUNT}{off}")


class _Reader:
    """Reads a text from left to right and reports where it stopped."""

    def __init__(self, text: str, example: str) -> None:
        self.text = text
        self.example = example
        self.at = 0

    def take(self, pattern: str) -> str | None:
        match = re.compile(rf"\s*({pattern})", re.IGNORECASE).match(self.text, self.at)
        if match is None:
            return None
        self.at = match.end()
        return match[1].lower()

    def need(self, pattern: str, expected: str) -> str:
        found = self.take(pattern)
        if found is None:
            raise self.error(f"expected {expected}")
        return found

    def end(self) -> None:
        if self.text[self.at :].strip():
            raise self.error("expected nothing more")

    def error(self, what: str, at: int | None = None) -> ConfigError:
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
    reader = _Reader(text, "a period is [N]UNIT, for example '15m'")
    seconds = _period(reader)
    reader.end()
    return seconds


def _period(reader: _Reader) -> float:
    count = reader.take(r"[0-9]{1,15}(?:\.[0-9]{1,15})?") or "1"
    unit_at = reader.at
    unit_ms = _UNITS_MS.get(reader.need(r"[a-z]+", "a unit (ms, s, m, h, d, w)"))
    if unit_ms is None:
        raise reader.error("expected a unit (ms, s, m, h, d, w)", unit_at)
    return float(count) * unit_ms / 1_000


@lru_cache(maxsize=256)
def _parse(text: str) -> Limit:
    reader = _Reader(text, "a limit is AMOUNT/PERIOD, for example '5/minute' or '5/10s sliding'")
    amount = reader.need(r"[0-9]{1,15}", "a whole number")
    reader.need(r"/|per(?![a-z])", "'/' or 'per'")
    period = _period(reader)
    algorithm, burst = Algorithm.FIXED_WINDOW, None
    if reader.take(r"sliding(?![a-z])"):
        algorithm = Algorithm.SLIDING_WINDOW
    elif reader.take(r"bucket(?![a-z])"):
        algorithm = Algorithm.TOKEN_BUCKET
    elif reader.take(r"burst(?![a-z])"):
        algorithm, burst = Algorithm.TOKEN_BUCKET, reader.need(r"[0-9]{1,15}", "a whole number")
    reader.end()
    try:
        return Limit(int(amount), period, algorithm, None if burst is None else int(burst))
    except ConfigError as error:
        raise ConfigError(f"{text!r}: {error}") from None
