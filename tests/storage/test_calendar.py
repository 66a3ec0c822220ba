"""Calendar windows: they end with the day, the week or the month of a time zone."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
import redis.asyncio as aioredis
import time_machine
from fakeredis import FakeAsyncRedis, FakeServer

from bot_ratelimit import ConfigError, MemoryStorage, RedisStorage
from bot_ratelimit.algorithms.verdict import Verdict
from bot_ratelimit.storage.base import Ask, Storage
from bot_ratelimit.storage.redis import encoding
from bot_ratelimit.testing import Clock
from tests.benches import TIMEOUT, charge
from tests.tables import table

MILLISECOND = timedelta(milliseconds=1)
ENDS = [
    ("1/day in UTC", "2026-03-10T22:30:00Z", "2026-03-11T00:00:00Z"),
    ("1/day in Europe/Moscow", "2026-03-10T22:30:00Z", "2026-03-11T21:00:00Z"),
    ("1/day in Europe/Berlin", "2026-03-29T00:30:00+01:00", "2026-03-30T00:00:00+02:00"),  # 23 h
    ("1/day in Europe/Berlin", "2026-10-25T00:30:00+02:00", "2026-10-26T00:00:00+01:00"),  # 25 h
    ("1/day in America/Santiago", "2026-09-05T12:00:00-04:00", "2026-09-06T01:00:00-03:00"),
    ("1/week in UTC", "2026-03-10T12:00:00Z", "2026-03-16T00:00:00Z"),  # a Tuesday to a Monday
    ("1/month in UTC", "2026-02-01T00:00:00Z", "2026-03-01T00:00:00Z"),  # 28 days
    ("1/month in UTC", "2028-02-29T12:00:00Z", "2028-03-01T00:00:00Z"),
    ("1/month in Asia/Almaty", "2026-12-31T20:00:00Z", "2027-01-31T19:00:00Z"),
]


async def told(storage: Storage, limit: str) -> Verdict:
    (verdict,) = await storage.ask(Ask([charge(limit)]), timeout=TIMEOUT)
    return verdict


@table(("limit", "now", "end"), ENDS)
async def test_a_window_ends_with_the_calendar(limit: str, now: str, end: str) -> None:
    """Summer time, short months and Mondays are those of the zone; the next window is empty."""
    begins, ends = datetime.fromisoformat(now), datetime.fromisoformat(end)
    left, clock = ends - begins, Clock()
    us = round(left.total_seconds() * 1e6)
    with time_machine.travel(begins, tick=False) as traveller:
        async with FakeAsyncRedis(server=FakeServer()) as client:
            for storage in (MemoryStorage(clock=clock), RedisStorage(client)):
                traveller.move_to(begins)
                assert await told(storage, limit) == (0, 0, us)
                assert await told(storage, limit) == (us, 0, us)
                for step, allowed in ((left - MILLISECOND, False), (MILLISECOND, True)):
                    clock.move(step.total_seconds())
                    traveller.shift(step)
                    assert (not (await told(storage, limit))[0]) is allowed


@pytest.mark.parametrize("hours", [-72, -20, -0.2, 0, 0.2, 20, 72])
async def test_the_clock_of_the_server_decides(
    client: aioredis.Redis, monkeypatch: pytest.MonkeyPatch, hours: float
) -> None:
    """An instance whose own clock is wrong opens the same window as all others. If that would be
    too long, or over already, the error says why."""
    monkeypatch.setattr(encoding.time, "time", lambda now=time.time: now() + hours * 3_600)
    storage, zone = RedisStorage(client), ZoneInfo("Asia/Tokyo")
    if abs(hours) > 24:
        with pytest.raises(ConfigError, match="more than a day apart"):
            await told(storage, "9/day in Asia/Tokyo")
        return
    _, remaining, reset = await told(storage, "9/day in Asia/Tokyo")
    monkeypatch.undo()
    now = datetime.now(zone)
    midnight = datetime(now.year, now.month, now.day, tzinfo=zone) + timedelta(days=1)
    assert reset / 1e6 == pytest.approx((midnight - now).total_seconds(), abs=1)
    assert remaining == 8
    assert await client.pttl("bot:ratelimit:42") == pytest.approx(reset / 1_000, abs=1_000)
