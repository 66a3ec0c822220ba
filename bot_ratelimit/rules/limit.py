"""Limit: how many events in how much time, as a value and as text."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from typing import Any, Final

from bot_ratelimit.errors import ConfigError
from bot_ratelimit.rules.calendar import DAY_MS, MONTH_MS, WEEK_MS, check_zone, window_ends
from bot_ratelimit.rules.periods import PERIOD, period_seconds, shown, unreadable

MAX_AMOUNT: Final = 1_000_000
MAX_PERIOD_MS: Final = 366 * 86_400_000
MAX_FILLING_US: Final = 10 * MAX_PERIOD_MS * 1_000
"""The longest time in microseconds in which a bucket may fill. The double that says when it will be
full has quarters of a microsecond until the year 2041."""

# How a period is written: in the largest unit that divides it, with the full word for one unit.
_WRITTEN: Final = (
    (604_800_000, "w", "week"),
    (86_400_000, "d", "day"),
    (3_600_000, "h", "hour"),
    (60_000, "m", "minute"),
    (1_000, "s", "s"),
    (1, "ms", "ms"),
)
_CALENDAR: Final = {DAY_MS: "day", WEEK_MS: "week", MONTH_MS: "month"}


class Algorithm(Enum):
    """How hits are counted against a limit; docs/algorithms.md draws all three.

    ==================  ====================  ==============================================
    `FIXED_WINDOW`      `5/10s`               the default: a window that the first hit opens
                        `100/day in UTC`      or one that ends with the day of a time zone
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
        zone: Fixed window only: a time zone such as `"Europe/Moscow"`. The window then ends with
            the day (86,400 s), the week (7 days, Monday to Sunday) or the month (31 days) there.

    Raises:
        ConfigError: A value is outside its range.
    """

    amount: int
    period: float
    algorithm: Algorithm = Algorithm.FIXED_WINDOW
    burst: int | None = None
    zone: str = ""
    period_ms: int = field(init=False, repr=False, compare=False)
    key_part: str = field(init=False, repr=False, compare=False)
    """What stands in the keys of its counts, so that a changed algorithm never meets the value of
    another one: `sliding:`, `bucket:`, or nothing for a fixed window."""
    _hash: int = field(init=False, repr=False, compare=False)

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
            self._check_bucket(period_ms)
        elif self.burst is not None:
            raise ConfigError(
                f"burst={self.burst!r}: only a token bucket has a burst; "
                "add algorithm=Algorithm.TOKEN_BUCKET or leave it out"
            )
        if self.zone != "":
            self._check_calendar(period_ms)
        object.__setattr__(self, "period", period_ms / 1_000)
        object.__setattr__(self, "period_ms", period_ms)
        word = _KEYWORDS.get(self.algorithm)
        object.__setattr__(self, "key_part", f"{word}:" if word else "")
        parts = self.amount, period_ms, self.algorithm, self.burst, self.zone
        object.__setattr__(self, "_hash", hash(parts))

    def __hash__(self) -> int:
        """The hash, calculated once: limits are looked up for every hit."""
        return self._hash

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle the arguments: a hash is another one in another process."""
        return Limit, (self.amount, self.period, self.algorithm, self.burst, self.zone)

    def _check_bucket(self, period_ms: int) -> None:
        burst = self.amount if self.burst is None else self.burst
        _check_count("burst", burst)
        object.__setattr__(self, "burst", burst)
        period_us = period_ms * 1_000
        if self.amount > period_us or burst * period_us > MAX_FILLING_US * self.amount:
            raise ConfigError(
                f"{self.amount} in {period_ms / 1_000:g} s, burst={burst}: a bucket fills with at "
                "most one token in a microsecond, and in at most 10 years"
            )

    def _check_calendar(self, period_ms: int) -> None:
        if self.algorithm is not Algorithm.FIXED_WINDOW:
            raise ConfigError(
                f"zone={self.zone!r}: only a fixed window ends with the calendar; leave out "
                f"{_KEYWORDS[self.algorithm]!r} or the zone"
            )
        if period_ms not in _CALENDAR:
            raise ConfigError(
                f"period={self.period!r}: a window in a time zone is one day, one week or one "
                "month, for example '100/day in Europe/Moscow'"
            )
        check_zone(self.zone)

    @property
    def capacity(self) -> int:
        """The most that can be granted at one moment, and so the highest cost of one hit."""
        return self.amount if self.burst is None else self.burst

    def window_ends(self, now: float) -> tuple[int, int, int]:
        """For a limit with a zone: see `calendar.window_ends`; `now` is in seconds since 1970."""
        return window_ends(self.period_ms, self.zone, int(now * 1_000))

    @classmethod
    def parse(cls, text: str) -> Limit:
        """Parse a limit: `5/10s`, `20/minute`, `1 per 2 hours`, `5/10s sliding`, `30/s burst 60`.

        `100/day in Europe/Moscow` ends at midnight there; also `week` and `month`.

        The format is `AMOUNT / PERIOD` or `AMOUNT per PERIOD`. A period is `[N]UNIT`, with the
        units ms, s, sec, second(s), m, min, minute(s), h, hour(s), d, day(s), w, week(s). Spaces
        are optional. `sliding` selects the sliding window; `bucket` or `burst N` selects the token
        bucket.

        Raises:
            ConfigError: The text is not a limit; the message has the text and an example.
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
                f"a limit is a {type(value).__name__}: expected text such as '5/10s', or the "
                "seconds for one event"
            )
        return cls(1, value)

    def __str__(self) -> str:
        """The shortest text that `parse` reads as this limit."""
        if self.zone:
            return f"{self.amount}/{_CALENDAR[self.period_ms]} in {self.zone}"
        unit_ms, short, full = next(u for u in _WRITTEN if self.period_ms % u[0] == 0)
        count = self.period_ms // unit_ms
        text = f"{self.amount}/{full if count == 1 else f'{count}{short}'}"
        if self.algorithm is Algorithm.SLIDING_WINDOW:
            return f"{text} sliding"
        if self.algorithm is Algorithm.TOKEN_BUCKET:
            return f"{text} bucket" if self.burst == self.amount else f"{text} burst {self.burst}"
        return text


_KEYWORDS: Final = {Algorithm.SLIDING_WINDOW: "sliding", Algorithm.TOKEN_BUCKET: "bucket"}


_NO_LIMIT: Final = (
    "; to switch limiting off, give None, leave the rule out, or for one handler set the flag "
    "rate_limit=False"
)


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_AMOUNT:
        off = _NO_LIMIT if value == 0 and value is not False else ""
        raise ConfigError(f"{name}={value!r}: expected a whole number from 1 to {MAX_AMOUNT}{off}")


_LIMIT: Final = re.compile(
    rf"\s*(?P<amount>[0-9]{{1,15}})\s*(?:/|per(?![a-z]))\s*{PERIOD}"
    r"(?:\s+(?:(?P<sliding>sliding)|(?P<bucket>bucket)|burst\s*(?P<burst>[0-9]{1,15})))?"
    r"(?:\s+in\s+(?P<zone>\S+))?\s*",
    re.IGNORECASE,
)
_HINTS: Final = {
    r"\A\s*\Z": "; remove a ';' without a limit beside it",
    "://": "; a URL or a client comes after the limit",
    "[,|]": ", with ';' between several",
    r"(?i)\bmonth": "; a month needs a time zone, '1000/month in UTC'",
}


def _no_limit(text: str) -> ConfigError:
    hint = next((hint for pattern, hint in _HINTS.items() if re.search(pattern, text)), "")
    return unreadable(text, f"AMOUNT/PERIOD, for example '5/minute' or '5/10s sliding'{hint}")


@lru_cache(maxsize=256)
def _parse(text: str) -> Limit:
    match = _LIMIT.fullmatch(text)
    if match is None:
        raise _no_limit(text)
    zone = match["zone"] or ""
    is_month = zone and match["unit"].lower() == "month" and match["count"] in (None, "1")
    period = MONTH_MS / 1_000 if is_month else period_seconds(match)
    if period is None:
        raise _no_limit(text)
    algorithm, burst = Algorithm.FIXED_WINDOW, None
    if match["sliding"]:
        algorithm = Algorithm.SLIDING_WINDOW
    elif match["bucket"] or match["burst"]:
        algorithm = Algorithm.TOKEN_BUCKET
        burst = None if match["bucket"] else int(match["burst"])
    try:
        return Limit(int(match["amount"]), period, algorithm, burst, zone)
    except ConfigError as error:
        raise ConfigError(f"{shown(text)}: {error}") from None
