"""Decisions by hour, rule and outcome over all instances, and the users refused most."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pytest
import redis.asyncio as aioredis
import time_machine

from bot_ratelimit import (
    ConfigError,
    Limiter,
    LogObserver,
    MemoryStorage,
    Penalty,
    RedisStorage,
    Rule,
    StorageError,
    Subject,
)
from bot_ratelimit.limiter.statistics import HourCount, MinuteCount, Refusals, Statistics
from bot_ratelimit.storage.tallies import MAX_USERS, MemoryTallies
from tests.benches import Bench, eventually
from tests.servers import Server

ANNA = Subject(user=42, chat=42)

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def counts(found: tuple[HourCount, ...]) -> dict[tuple[str, str], int]:
    total: Counter[tuple[str, str]] = Counter()
    for each in found:
        total[each.rule, each.outcome] += each.count
    return dict(total)


async def test_decisions_of_all_instances_are_added_up(bench: Bench) -> None:
    """By rule and outcome, with the users refused most; `close` writes the rest; keys have TTLs."""
    clients = [bench.client] * 3 if bench.client is not None else []
    storages = [RedisStorage(client) for client in clients] or [bench.storage] * 3
    limiters = [Limiter(storage, statistics=True) for storage in storages]
    rules = [Rule("2/m"), Penalty("3/m", "1h")]
    for user, hits in ((1, 2), (2, 4), (3, 7)):
        for number in range(hits):
            await limiters[number % 3].hit(rules, Subject(user=user))
    await limiters[0].hit(Rule("1/d", name="ai"), Subject(user=3))
    for limiter in limiters[1:]:
        await limiter.close()
    assert counts(await limiters[0].statistics()) == {
        ("user", "allowed"): 6,
        ("user", "refused"): 4,
        ("ban", "banned"): 3,
        ("ai", "allowed"): 1,
    }
    assert await limiters[0].top_refused(2) == (Refusals(3, 5), Refusals(2, 2))
    await limiters[0].close()
    kinds = set()
    for key, left in (await bench.ttls()).items():
        if ":stats:" in key:
            kinds.add(kind := key.rpartition("}")[2])
            # The current hour, and those that are read.
            seconds = 3_600 * (2 if kind == ":minutes" else 49)
            assert seconds - 5 <= left / 1_000 <= seconds
    assert bench.client is None or kinds == {"", ":refused", ":minutes"}


def test_another_event_loop_writes_too(
    own_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """After an `asyncio.run` that ended without `close`, the next one writes what both counted.

    LogObserver too.
    """
    caplog.set_level(logging.INFO, "bot_ratelimit")
    storage = RedisStorage(aioredis.Redis(port=own_server.port))
    statistics = Statistics(storage, "bot", 1.0, every=0.05)
    limiter = Limiter(storage, observer=[statistics, LogObserver(every=0.05)])

    async def second() -> None:
        await limiter.hit("1/d", ANNA)
        await eventually(lambda: not (statistics._hours or statistics._sending))
        assert counts(await statistics.read(1)) == {("user", "allowed"): 1, ("user", "refused"): 1}
        await eventually(lambda: "1 allowed, 1 refused" in caplog.text)
        await storage.close()

    asyncio.run(limiter.hit("1/d", ANNA))
    asyncio.run(second())


async def test_a_write_whose_answer_is_lost_counts_once(client: aioredis.Redis) -> None:
    """It is sent again under its number, which the server already knows; no hit fails of it."""
    storage = RedisStorage(client)
    execute, lost = storage.execute, [True, True]

    async def lose(*values: Any, **named: Any) -> Any:
        reply = await execute(*values, **named)
        if lost and lost.pop():  # the server has executed it
            raise StorageError("no answer", kind="timeout")
        return reply

    storage.execute = lose  # type: ignore[method-assign]  # a stand-in
    statistics = Statistics(storage, "bot", 1.0)
    limiter = Limiter(MemoryStorage(), observer=statistics)
    await limiter.hit("1/d", ANNA)
    await limiter.hit("1/d", ANNA)
    for _ in range(2):
        with pytest.raises(StorageError):
            await statistics.flush()
    await limiter.hit("1/d", ANNA)
    assert counts(await statistics.read(1)) == {("user", "allowed"): 1, ("user", "refused"): 2}
    assert await statistics.top_refused(10, 1) == (Refusals(42, 2),)
    await storage.close()


async def test_an_outage_is_bridged_and_what_it_costs_is_logged(
    own_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """Decisions of an outage are written when Redis is back; at the end the log counts the rest."""
    async with aioredis.Redis(port=own_server.port) as client:
        limiter = Limiter(RedisStorage(client), statistics=True)
        await limiter.hit("9/d", ANNA)
        own_server.kill()
        for _ in range(5):
            assert await limiter.hit("9/d", ANNA)
        with pytest.raises(StorageError):
            await limiter.statistics()
        own_server.start()

        async def is_back() -> bool:
            return (await limiter.check()).ok

        await eventually(is_back)
        assert counts(await limiter.statistics()) == {("user", "allowed"): 6}
        await limiter.hit("9/d", ANNA)
        own_server.kill()
        await limiter.close()
    assert "The statistics of 1 decisions could not be written: " in caplog.text


@pytest.mark.parametrize("bench", ["memory", "redis-server"], indirect=True)
async def test_only_the_worst_are_kept(bench: Bench) -> None:
    """Of a flood, the thousand refused most are kept for an hour; others then have no number."""
    limiter = Limiter(bench.storage, statistics=True)
    for user in range(MAX_USERS * 3 + 500):
        if user == MAX_USERS - 1:
            assert (await limiter.refused(0), await limiter.refused(9_999)) == (3, 0)
        for _ in range(4 if user < 5 else 2):
            await limiter.hit("1/d", Subject(user=user))
    assert await limiter.top_refused(6) == (*(Refusals(i, 3) for i in range(5)), Refusals(5, 1))
    assert (await limiter.refused(0), await limiter.refused(9_999)) == (3, None)
    if bench.client is not None:
        (key,) = await bench.client.keys("bot:ratelimit:stats:*:refused")
        assert await bench.client.zcard(key) <= MAX_USERS
    await limiter.close()


async def test_statistics_are_off_by_default(client: aioredis.Redis) -> None:
    """Nothing is written, and reading says how to switch them on; wrong numbers are named."""
    limiter = Limiter(RedisStorage(client))
    await limiter.hit("1/s", ANNA)
    with pytest.raises(ConfigError, match="pass statistics=True"):
        await limiter.statistics()
    await limiter.close()
    assert not await client.keys("bot:ratelimit:stats:*")
    limiter = Limiter(MemoryStorage(), statistics=True)
    for hours in (0, 49, True, 1.5, "24"):
        with pytest.raises(ConfigError, match=r"hours=.*expected a whole number from 1 to 48"):
            await limiter.statistics(hours)
    with pytest.raises(ConfigError, match=r"n=0: expected a whole number from 1 to 1000"):
        await limiter.top_refused(0)
    for user in ("42", ANNA, None):
        with pytest.raises(ConfigError, match=r"user=.*: expected an id, a whole number"):
            await limiter.refused(user)  # type: ignore[arg-type]  # as if it was not checked


@pytest.mark.parametrize("bench", ["memory", "fakeredis"], indirect=True)
async def test_hours_and_the_last_minutes_are_kept_apart(bench: Bench) -> None:
    """Decisions and requests have their hour, of the last 60 minutes their minute as well."""
    before, late = NOON.replace(minute=58), NOON.replace(hour=13)
    with time_machine.travel(before, tick=False) as traveller:
        limiter = Limiter(bench.storage, statistics=True)
        sending = Statistics(bench.storage, "bot", 1.0)
        for _ in range(2):
            await limiter.hit("1/d", ANNA)
        traveller.shift(120)
        await limiter.hit("1/d", ANNA)
        sending.request_done("SendMessage", "sent", 0.0)
        sending.flood_waited("chat", 3.0)
        await sending.flush()
        new = (
            MinuteCount(late, "chat", "429", 1),
            MinuteCount(late, "user", "refused", 1),
            MinuteCount(late, "SendMessage", "sent", 1),
        )
        old = [MinuteCount(before, "user", outcome, 1) for outcome in ("allowed", "refused")]
        assert await limiter.last_hour() == (*old, *new)
        assert await limiter.statistics(2) == (
            HourCount(NOON, "user", "allowed", 1),
            HourCount(NOON, "user", "refused", 1),
            HourCount(late, "user", "refused", 1),
        )
        assert counts(await limiter.statistics(1)) == {("user", "refused"): 1}
        requests = {("SendMessage", "sent"): 1, ("chat", "429"): 1}
        assert counts(await limiter.requests()) == requests
        traveller.shift(58 * 60)
        assert await limiter.last_hour() == new
        traveller.shift(120)
        assert await limiter.last_hour() == ()
        traveller.shift(49 * 3_600)
        assert await limiter.statistics(48) == ()
        await limiter.close()


async def test_a_busy_bot_writes_now_and_then(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What is counted during a write waits for the next one; a refusal of the server is logged."""
    limiter, written = Limiter(MemoryStorage(), statistics=True), []
    add = MemoryTallies.add

    async def slowly(self: MemoryTallies, *values: Any, **named: Any) -> None:
        written.append(await limiter.hit("9/d", ANNA))
        await add(self, *values, **named)

    monkeypatch.setattr(MemoryTallies, "add", slowly)
    for number in range(1, 4):
        await limiter.hit("9/d", ANNA)
        assert counts(await limiter.statistics()) == {("user", "allowed"): 2 * number - 1}
        assert len(written) == number

    async def refused(*_: Any, **__: Any) -> None:
        raise ConfigError("NOPERM - allow EVALSHA")

    monkeypatch.setattr(MemoryTallies, "add", refused)
    statistics = Statistics(MemoryStorage(), "bot", 1.0, every=0.01)
    statistics.request_done("SendMessage", "sent", 0.0)
    await eventually(lambda: bool(caplog.messages))
    await asyncio.sleep(0.05)
    assert caplog.messages == ["The statistics cannot be written: NOPERM - allow EVALSHA"]
    await statistics.flush_at_end()
