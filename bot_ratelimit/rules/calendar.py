"""Calendar windows: when a day, a week or a month of a time zone ends."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from difflib import get_close_matches
from typing import Final
from zoneinfo import ZoneInfo, available_timezones

from bot_ratelimit.errors import ConfigError

DAY_MS: Final = 86_400_000
WEEK_MS: Final = 7 * DAY_MS
MONTH_MS: Final = 31 * DAY_MS
"""How a limit says "a month of its zone", which has 28 to 31 days."""


def window_ends(period_ms: int, zone: str, now_ms: int) -> tuple[int, int, int]:
    """Return when the window at this time began, when it ends, and when the next one ends.

    In milliseconds since 1970. A server whose clock differs by less than a window finds the end of
    its own window among them.
    """
    found = _latest.get((period_ms, zone))
    if found is None or not found[0] <= now_ms < found[1]:
        today = datetime.fromtimestamp(now_ms / 1_000, ZoneInfo(zone)).date()
        start = _start(today, period_ms)
        after = _next(start, period_ms)
        later = _next(after, period_ms)
        found = _midnight_ms(start, zone), _midnight_ms(after, zone), _midnight_ms(later, zone)
        _latest[period_ms, zone] = found
    return found


_latest: Final[dict[tuple[int, str], tuple[int, int, int]]] = {}
"""The last answer for each period and zone: it is the same until the window ends."""


def check_zone(name: str) -> None:
    """Raise ConfigError unless this is the name of a time zone."""
    try:
        if isinstance(name, str):
            ZoneInfo(name)
            return
    except (ValueError, OSError, KeyError):  # KeyError: ZoneInfoNotFoundError is one
        pass
    names = {each.lower(): each for each in available_timezones()}
    close = get_close_matches(str(name).lower(), names, 1)
    hint = f"did you mean {names[close[0]]!r}?" if close else "for example 'Europe/Moscow' or 'UTC'"
    raise ConfigError(f"{name!r} is not a time zone: {hint}")


def _start(day: date, period_ms: int) -> date:
    if period_ms == MONTH_MS:
        return day.replace(day=1)
    return day - timedelta(days=day.weekday()) if period_ms == WEEK_MS else day


def _next(start: date, period_ms: int) -> date:
    if period_ms == MONTH_MS:
        return (start + timedelta(days=31)).replace(day=1)
    return start + timedelta(milliseconds=period_ms)


def _midnight_ms(day: date, zone: str) -> int:
    """When the day begins; where clocks skip midnight, the moment at which they do."""
    midnight = datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(zone))
    return round(midnight.timestamp() * 1_000)
