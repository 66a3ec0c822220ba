"""Limit: text, value, ranges, and the errors for invalid text."""

from __future__ import annotations

import math
import pickle
from contextlib import suppress
from operator import mul
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from bot_ratelimit import Algorithm, ConfigError, Limit
from tests.tables import table

DAY = 86_400
YEAR = 366 * DAY
FIXED, SLIDING, BUCKET = Algorithm


@st.composite
def limits(draw: st.DrawFn) -> Limit:
    """Any valid limit, with round and odd periods equally likely."""
    units = st.sampled_from([1, 1_000, 60_000, 3_600_000, DAY * 1_000])
    period_ms = draw(st.integers(1, YEAR * 1_000) | st.builds(mul, st.integers(1, 366), units))
    algorithm = draw(st.sampled_from(Algorithm))
    amount = draw(st.integers(1, 1_000_000))
    burst = draw(st.none() | st.integers(1, 1_000_000)) if algorithm is BUCKET else None
    assume((burst or 1) * period_ms <= 10 * YEAR * 1_000 * amount)
    if algorithm is BUCKET:
        assume(amount <= period_ms * 1_000)
    if algorithm is FIXED and draw(st.booleans()):
        zone = draw(st.sampled_from(["UTC", "Europe/Moscow", "Etc/GMT+5"]))
        return Limit(amount, draw(st.sampled_from([1, 7, 31])) * DAY, zone=zone)
    return Limit(amount, period_ms / 1_000, algorithm, burst)


@table(
    ("text", "limit"),
    [
        ("5/ms", Limit(5, 0.001)),
        *((f"5/{unit}", Limit(5, 1)) for unit in ["s", "sec", "second", "seconds"]),
        *((f"5/{unit}", Limit(5, 60)) for unit in ["m", "min", "minute", "minutes"]),
        *((f"5/{unit}", Limit(5, 3_600)) for unit in ["h", "hour", "hours"]),
        *((f"5/{unit}", Limit(5, DAY)) for unit in ["d", "day", "days"]),
        *((f"5/{unit}", Limit(5, 7 * DAY)) for unit in ["w", "week", "weeks", "1 week", "7 days"]),
        *((text, Limit(5, 10)) for text in ["5/10s", "5per10s", "005/010s", "5\t/\n10s"]),
        ("1 per 2 hours", Limit(1, 7_200)),
        ("5/1.5s", Limit(5, 1.5)),
        ("  5  /  0.5   min  ", Limit(5, 30)),
        ("5 PER 10 Seconds Sliding", Limit(5, 10, SLIDING)),
        *((text, Limit(30, 1, BUCKET)) for text in ["30/s bucket", "30/s burst 30"]),
        *((text, Limit(30, 1, BUCKET, 60)) for text in ["30/s burst 60", "30/s burst60"]),
        ("1000000/366d", Limit(1_000_000, YEAR)),
        ("100/day in Europe/Moscow", Limit(100, DAY, zone="Europe/Moscow")),
        ("5 per week in UTC", Limit(5, 7 * DAY, zone="UTC")),
        ("1000/month in Asia/Almaty", Limit(1_000, 31 * DAY, zone="Asia/Almaty")),
    ],
)
def test_the_grammar(text: str, limit: Limit) -> None:
    """A limit is AMOUNT/PERIOD or AMOUNT per PERIOD, optionally followed by an algorithm."""
    assert Limit.parse(text) == limit


@table(
    ("text", "shortest"),
    [
        *((text, text) for text in ("5/s", "5/10s", "5/90s", "5/hour", "5/10s sliding", "1/ms")),
        *(("5/60s", "5/minute"), ("5/120s", "5/2m"), ("5/24h", "5/day"), ("5/7d", "5/week")),
        *(("5/14d", "5/2w"), ("1/1.5s", "1/1500ms"), ("30/s burst 30", "30/s bucket")),
        *(("30/1s burst 60", "30/s burst 60"), ("5/day in UTC", "5/day in UTC")),
    ],
)
def test_the_text_is_the_shortest_one(text: str, shortest: str) -> None:
    """The text of a limit is the shortest one that parses to it."""
    assert str(Limit.parse(text)) == shortest


@given(limits())
def test_is_a_value_whose_text_reads_back(limit: Limit) -> None:
    """Equal limits are one dictionary key; what a log or an error shows can be a setting."""
    assert Limit.parse(str(limit)) == limit
    assert hash(Limit.parse(str(limit))) == hash(limit)
    assert Limit.of(limit) is limit
    assert pickle.loads(pickle.dumps(limit)) == limit


BAD = [
    *("", "   ", "fast", "5 minutes", "5", "/s", "5/", "5/10", "5//s", "5/10 parsecs"),
    *("5/1.5.5s", "5/-10s", "-5/10s", "5.5/10s", "1e3/s", "5/1e3s", "٥/s"),
    *("5 perhaps 10s", "5/10s slide", "5/10s sliding bucket", "5/10s burst"),
    *("5/10s burst many", "5/10s burst 1.5", "5/10s; 1/s", "5/10s, 1/s", "5/10s | 1/s"),
    *("5/month", "5/month sliding", "5/2month in UTC", "5/day in", "5/day in UTC sliding"),
    *(text.format("9" * 5_000) for text in ("{}/s", "5/{}s", "5/s burst {}")),
]


@table("value", [0, -1, 1_000_001, 10**400, 1.0, "5", None, True, math.nan])
def test_an_amount_is_a_whole_number_in_range(value: Any) -> None:
    """Amounts and bursts are 1 to 1,000,000; a bool or a float is an error."""
    with pytest.raises(ConfigError, match=r"^amount="):
        Limit(value, 1)
    if value is not None:
        with pytest.raises(ConfigError, match=r"^burst="):
            Limit(1, 1, BUCKET, burst=value)


@table(
    "period", [0, -1, 0.0004, YEAR + 0.001, True, "60", None, math.nan, math.inf, -1e306, 10**400]
)
def test_a_period_is_a_number_of_seconds_in_range(period: Any) -> None:
    """Periods are 1 ms to 366 days; anything else is a ConfigError."""
    with pytest.raises(ConfigError, match=r"^period="):
        Limit(1, period)


@table(
    ("text", "says"),
    [
        *((text, "expected AMOUNT/PERIOD, for example '5/minute'") for text in BAD),
        *((text, "units: ms s m h d w") for text in BAD),
        *((f"{amount}/s", f"amount={amount}") for amount in (0, 1_000_001)),
        ("", "remove a ';' without a limit beside it"),
        *((text, "with ';' between several") for text in ("5/10s, 1/s", "5/10s | 1/s")),
        ("5/month", "a month needs a time zone, '1000/month in UTC'"),
        ("0/s", "to switch limiting off, give None"),
        ("5/0s", "period=0.0: expected 0.001 to "),
        ("5/0.4ms", "period=0.0004"),
        ("5/367d", "period=31708800.0"),
        ("5/s burst 0", "burst=0: expected a whole number from 1 to "),
        ("5/s burst 1000001", "burst=1000001"),
        ("1001/ms bucket", "at most one token in a microsecond"),
        ("1/366d burst 11", "in at most 10 years"),
        ("5/day in Europe/Mosow", "did you mean 'Europe/Moscow'?"),
        ("5/day in europe/moscow", "did you mean 'Europe/Moscow'?"),
        ("5/day in ../etc/passwd", "is not a time zone"),
        ("5/h in UTC", "one day, one week or one month"),
        ("5/day bucket in UTC", "only a fixed window ends with the calendar"),
        ("5/с", "'с' is CYRILLIC SMALL LETTER ES"),
    ],
)
def test_a_limit_that_cannot_be_is_explained(text: str, says: str) -> None:
    """The error quotes the text, and says what is meant, what the range is, or gives an example and
    the units."""
    with pytest.raises(ConfigError) as error:
        Limit.parse(text)
    assert str(error.value).startswith(repr(text))
    assert says in str(error.value)


@table(
    ("value", "limit"),
    [
        *((1.0, Limit(1, 1)), (2, Limit(1, 2)), (0.25, Limit(1, 0.25)), ("5/10s", Limit(5, 10))),
        *((0.1 + 0.2, Limit(1, 0.3)), (1.0004, Limit(1, 1)), (1 / 3, Limit(1, 0.333))),
        ("1000000/s bucket", Limit(1_000_000, 1, BUCKET)),
        ("1/366d burst 10", Limit(1, YEAR, BUCKET, 10)),
    ],
)
def test_a_number_is_the_seconds_for_one_event(value: str | float, limit: Limit) -> None:
    """`rate_limit=1.0` means one event a second; a period has the resolution of a Redis TTL."""
    assert Limit.of(value) == limit


@table(
    ("arguments", "says"),
    [
        *(((1, 1, each), "algorithm=.*SLIDING_WINDOW") for each in (None, "sliding window", 1)),
        *(((5, 10, each, 5), "TOKEN_BUCKET") for each in (FIXED, SLIDING)),
    ],
)
def test_a_wrong_algorithm_is_explained(arguments: Any, says: str) -> None:
    """The error lists the three; a burst for a window would have no effect, so it is one too."""
    with pytest.raises(ConfigError, match=says):
        Limit(*arguments)


@table("value", [None, True, False, b"5/s", ["5/s"], 0])
def test_only_texts_and_numbers_are_limits(value: Any) -> None:
    """Anything else is named, with an example; `parse` takes no number either."""
    with pytest.raises(ConfigError, match=r"for example|such as|limiting off"):
        Limit.of(value)
    with pytest.raises(ConfigError, match="expected text such as"):
        Limit.parse(value)


PIECES = [
    *("5", "10", "0", "1.5", "/", "per", "s", "ms", "min", "day"),
    *("sliding", "burst", "bucket", " ", "in UTC"),
]


@given(st.text() | st.lists(st.sampled_from(PIECES)).map("".join), st.floats() | st.integers())
@example("5/\udc80", 0)
@example("5/10s ſliding", 0)
def test_anything_is_a_limit_or_a_config_error(text: str, seconds: float) -> None:
    """Any text, and any number, gives a Limit or a ConfigError."""
    with suppress(ConfigError):
        assert isinstance(Limit.parse(text), Limit)
    with suppress(ConfigError):
        assert Limit.of(seconds).amount == 1
