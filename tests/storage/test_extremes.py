"""What is rare is decided as anything else, and on Redis as in memory."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
import time_machine
from fakeredis import FakeAsyncRedis

from bot_ratelimit import ConfigError, Limit, MemoryStorage, Penalty, RedisStorage
from bot_ratelimit.storage.base import Ask, Op
from tests.benches import TIMEOUT, Bench, charge


async def test_a_deep_debt_is_told(bench: Bench) -> None:
    """A bucket far below empty is full after 142 years at the latest."""
    debt = charge("1/300d bucket", cost=1_000_000)
    for _ in range(2):
        await bench.storage.ask(Ask([debt], Op.CHARGE), timeout=TIMEOUT)
    (verdict,) = await bench.peek(charge("1/300d bucket"))
    assert verdict.wait == bench.about(2**52 / 1e6)
    assert verdict.reset == bench.about(2**52 / 1e6)


async def test_the_longest_day_has_26_hours(fake_client: FakeAsyncRedis) -> None:
    """At Troll in Antarctica the clocks go back by two hours."""
    half_past_midnight = datetime(2026, 10, 24, 22, 30, tzinfo=UTC)
    with time_machine.travel(half_past_midnight, tick=False):
        for storage in (RedisStorage(fake_client), MemoryStorage()):
            day = charge("5/day in Antarctica/Troll")
            (verdict,) = await storage.ask(Ask([day]), timeout=TIMEOUT)
            assert verdict == (0, 4, round(25.5 * 3_600e6))


def test_a_penalty_counts_by_no_calendar() -> None:
    """Strikes that end with a day would be counted differently in memory and on a server."""
    with pytest.raises(ConfigError, match="without a time zone"):
        Penalty(Limit.parse("3/day in UTC"), "1h")
