"""Statistics: decisions by hour over all instances, without Prometheus."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pytest
import redis.asyncio as aioredis
import time_machine

from bot_ratelimit import (
    ConfigError,
    Limiter,
    MemoryStorage,
    Penalty,
    RedisStorage,
    Rule,
    StorageError,
    Subject,
)
from bot_ratelimit.limiter.observer import MAX_LABELS
from bot_ratelimit.limiter.statistics import HourCount, MinuteCount, Refusals, Statistics
from bot_ratelimit.storage.tallies import MAX_USERS
from tests.benches import Bench, eventually
from tests.servers import Server

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
ANNA = Subject(user=42)


def counts(found: tuple[HourCount, ...]) -> dict[tuple[str, str], int]:
    total: Counter[tuple[str, str]] = Counter()
    for each in found:
        total[each.rule, each.outcome] += each.count
    return dict(total)


async def test_decisions_are_counted_by_rule_and_outcome(bench: Bench) -> None:
    """On every storage: allowed, refused and banned decisions, and the users refused most."""
    limiter = Limiter(bench.storage, statistics=True)
    rules = [Rule("2/m"), Penalty("3/m", "1h")]
    for user, hits in ((1, 2), (2, 4), (3, 7)):
        for _ in range(hits):
            await limiter.hit(rules, Subject(user=user))
    await limiter.hit(Rule("1/d", name="ai"), Subject(user=3))
    assert counts(await limiter.statistics()) == {
        ("user", "allowed"): 6,
        ("user", "refused"): 4,
        ("ban", "banned"): 3,
        ("ai", "allowed"): 1,
    }
    assert await limiter.top_refused(2) == (Refusals(3, 5), Refusals(2, 2))


async def test_instances_are_added_up(client: aioredis.Redis) -> None:
    """`close` writes the rest; each instance returns the sum of all; every key has its TTL."""
    limiters = [Limiter(RedisStorage(client), statistics=True) for _ in range(3)]
    for limiter in limiters:
        for _ in range(4):
            await limiter.hit("5/d", ANNA)
    for limiter in limiters[1:]:
        await limiter.close()
    found = counts(await limiters[0].statistics())
    assert found == {("user", "allowed"): 5, ("user", "refused"): 7}
    assert await limiters[0].top_refused() == (Refusals(42, 7),)
    await limiters[0].close()
    keys = await client.keys("bot:ratelimit:stats:*")
    assert {key.decode().rpartition("}")[2] for key in keys} == {"", ":refused", ":minutes"}
    for key in keys:
        hours = 2 if key.endswith(b":minutes") else 49  # the current one, and those that are read
        seconds = hours * 3_600
        assert seconds - 5 <= await client.ttl(key) <= seconds


async def test_decisions_are_written_automatically(client: aioredis.Redis) -> None:
    """Some time after the first decision everything is written in one command, and that is all."""
    storage, others = RedisStorage(client), asyncio.all_tasks()
    # Longer than the hits take on a busy machine.
    limiter = Limiter(MemoryStorage(), observer=Statistics(storage, "bot", 1.0, every=1.0))
    for i in range(50):
        await limiter.hit("5/d", Subject(user=i % 7))
    assert not await client.keys("bot:ratelimit:stats:*")

    async def scripts_run() -> int:
        stats = await client.info("commandstats")
        found = [stats.get(f"cmdstat_{name}", {}) for name in ("eval", "evalsha")]
        return sum(each.get("calls", 0) - each.get("failed_calls", 0) for each in found)

    before = await scripts_run()
    await eventually(lambda: client.keys("bot:ratelimit:stats:*"))
    assert await scripts_run() == before + 1
    await eventually(lambda: asyncio.all_tasks() == others)  # nothing is left to write
    await storage.close()


def test_another_event_loop_writes_too(own_server: Server) -> None:
    """After an `asyncio.run` that ended without `close`, the next one writes what both counted."""
    storage = RedisStorage(aioredis.Redis(port=own_server.port))
    statistics = Statistics(storage, "bot", 1.0, every=0.05)
    limiter = Limiter(storage, observer=statistics)

    async def second() -> None:
        await limiter.hit("5/d", ANNA)
        await eventually(lambda: not (statistics._hours or statistics._sending))
        assert counts(await statistics.read(1)) == {("user", "allowed"): 2}
        await storage.close()

    asyncio.run(limiter.hit("5/d", ANNA))
    asyncio.run(second())


class Unsure(RedisStorage):
    """A storage whose server executes every command, but whose answers are sometimes lost."""

    lost = 0

    async def execute(self, command: Any, *, key: str, timeout: float) -> Any:
        reply = await super().execute(command, key=key, timeout=timeout)
        if self.lost:
            self.lost -= 1
            raise StorageError("no answer", kind="timeout")
        return reply


async def test_a_write_whose_answer_is_lost_counts_once(client: aioredis.Redis) -> None:
    """It is sent again under its number, which the server already knows; no hit fails of it."""
    unsure = Unsure(client)
    statistics = Statistics(unsure, "bot", 1.0)
    limiter = Limiter(MemoryStorage(), observer=statistics)
    await limiter.hit("1/d", ANNA)
    await limiter.hit("1/d", ANNA)
    unsure.lost = 2
    for _ in range(2):
        with pytest.raises(StorageError):
            await statistics.flush()
    await limiter.hit("1/d", ANNA)
    assert counts(await statistics.read(1)) == {("user", "allowed"): 1, ("user", "refused"): 2}
    assert await statistics.top_refused(10, 1) == (Refusals(42, 2),)
    await unsure.close()


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
    for user in range(MAX_USERS * 2 + 500):
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


async def test_generated_names_are_bounded() -> None:
    """Rules after the first hundred are counted together."""
    limiter = Limiter(MemoryStorage(), statistics=True)
    for i in range(MAX_LABELS + 50):
        await limiter.hit(Rule("1/s", name=f"n{i}"), ANNA)
    found = counts(await limiter.statistics())
    assert len(found) == MAX_LABELS + 1
    assert found["other", "allowed"] == 50


async def test_statistics_are_off_by_default(client: aioredis.Redis) -> None:
    """Nothing is written, and reading says how to switch them on; wrong numbers are named."""
    limiter = Limiter(RedisStorage(client))
    await limiter.hit("1/s", ANNA)
    with pytest.raises(ConfigError, match="pass statistics=True"):
        await limiter.statistics()
    await limiter.close()
    assert not await client.keys("bot:ratelimit:stats:*")
    wrong: list[Any] = [0, 49, True, 1.5, "24"]
    limiter = Limiter(MemoryStorage(), statistics=True)
    for hours in wrong:
        with pytest.raises(ConfigError, match=r"hours=.*expected a whole number from 1 to 48"):
            await limiter.statistics(hours)
    with pytest.raises(ConfigError, match=r"n=0: expected a whole number from 1 to 1000"):
        await limiter.top_refused(0)


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
