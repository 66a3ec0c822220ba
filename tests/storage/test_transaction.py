"""Servers without scripts: a fixed window as MULTI/EXEC, and a clear error for the rest."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from time import monotonic

import pytest
import redis.asyncio as aioredis

from bot_ratelimit import ConfigError, Limiter, Rule, Subject
from bot_ratelimit.algorithms.verdict import Verdict
from bot_ratelimit.storage.base import Ask, Count, Op
from bot_ratelimit.storage.redis.storage import RedisStorage
from tests.benches import TIMEOUT, charge, reset
from tests.servers import Server

KEY = "bot:ratelimit:42"
ALGORITHMS = ("", " sliding", " bucket")


@pytest.fixture(params=[False, True], ids=["bytes", "text"])
async def plain(
    request: pytest.FixtureRequest, redis_server: Server, client: aioredis.Redis
) -> AsyncIterator[RedisStorage]:
    """A storage whose Redis user may do everything except run scripts."""
    permissions = "reset", "on", ">pw", "~*", "+@all", "-@scripting"
    await client.execute_command("ACL", "SETUSER", "plain", *permissions)
    async with aioredis.Redis(
        port=redis_server.port, username="plain", password="pw", decode_responses=request.param
    ) as user:
        yield RedisStorage(user)
    await client.acl_deluser("plain")


async def ask(
    storage: RedisStorage, *counts: Count, op: Op = Op.HIT, once: str | None = None
) -> Sequence[Verdict]:
    return await storage.ask(Ask(counts, op, once), timeout=TIMEOUT)


async def waits(storage: RedisStorage, one: Count, times: int) -> list[int]:
    return [(await ask(storage, one))[0].wait for _ in range(times)]


async def test_a_fixed_window_needs_no_script(plain: RedisStorage, client: aioredis.Redis) -> None:
    """The default limit works, and its key shows attempts and the rest of the window. A peek
    charges nothing and leaves no key."""
    one = charge("3/minute")
    assert await ask(plain, one, op=Op.PEEK) == [(0, 3, 0)]
    assert await client.dbsize() == 0
    found = await waits(plain, one, 5)
    assert [wait == 0 for wait in found] == [True, True, True, False, False]
    assert all(59_000_000 < wait <= 60_000_000 for wait in found[3:])
    (verdict,) = await ask(plain, one, op=Op.PEEK)
    assert verdict.remaining == 0
    assert 59_000_000 < verdict.wait == verdict.reset <= 60_000_000
    assert await client.get(KEY) == b"5"
    assert 59_000 < await client.pttl(KEY) <= 60_000


async def test_a_window_lasts_its_period(plain: RedisStorage) -> None:
    """A window ends when the refusal said, and not before."""
    one = charge("1/100ms")
    before = monotonic()
    await waits(plain, one, 1)
    after = asked = monotonic()
    while (await waits(plain, one, 1))[0]:
        assert asked - after < 0.102
        await asyncio.sleep(0.002)
        asked = monotonic()
    assert monotonic() - before > 0.098


@pytest.mark.parametrize("value", ["-5", "", "many", "9" * 30, None])
async def test_foreign_data_affects_only_its_hit(
    plain: RedisStorage, client: aioredis.Redis, value: str | None
) -> None:
    """A value that is no count, or a list, is an error of one hit, and of a peek."""
    await (client.rpush(KEY, "x") if value is None else client.set(KEY, value))  # type: ignore[misc]  # redis-py's types
    found = await asyncio.gather(
        *(ask(plain, charge("9/m", name)) for name in ("a", "b")),
        *(ask(plain, charge("9/m"), op=op) for op in (Op.PEEK, Op.HIT)),
        return_exceptions=True,
    )
    assert [each[0].remaining for each in found[:2]] == [8, 8]
    for error in found[2:] if value != "-5" else found[2:3]:  # which a hit makes a -4
        assert isinstance(error, ConfigError)
        assert "choose another key_prefix" in str(error)


async def test_batched_hits_are_all_counted(plain: RedisStorage, client: aioredis.Redis) -> None:
    """Hits in one batch are decided one by one, in order."""
    users = [charge("3/minute", f"{i % 10}") for i in range(100)]
    found = await asyncio.gather(*(ask(plain, one) for one in users))
    assert [verdict.remaining for (verdict,) in found[:30]] == [2] * 10 + [1] * 10 + [0] * 10
    assert [verdict.wait == 0 for (verdict,) in found] == [True] * 30 + [False] * 70
    assert await client.mget(f"bot:ratelimit:{i}" for i in range(10)) == [b"10"] * 10


@pytest.mark.parametrize("kept_for", [None, 3_600])
async def test_a_counter_without_a_ttl_gets_one(
    plain: RedisStorage, client: aioredis.Redis, kept_for: int | None
) -> None:
    """A counter without a TTL, or with one longer than its window, is repaired."""
    await client.set(KEY, 1, ex=kept_for)
    assert [wait > 0 for wait in await waits(plain, charge("2/minute"), 2)] == [False, True]
    assert 59_000 < await client.pttl(KEY) < 60_000  # it exists in its last millisecond too
    assert await client.get(KEY) == b"3"


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (Ask([charge("5/m sliding")]), "a sliding window (5/minute sliding)"),
        (Ask([charge("5/m bucket")]), "a token bucket (5/minute bucket)"),
        (Ask([charge("5/m"), charge("1/s", "b")]), "several rules"),
        (Ask([charge("5/m", cost=2)]), "a cost of 2"),
        (Ask([charge("5/m")], once="bot:ratelimit:once:a"), "once"),
        (Ask([charge("5/m")], Op.CHARGE), "a charge afterwards"),
        (Ask([charge("5/m")], Op.REFUND), "a refund"),
    ],
    ids=["sliding", "bucket", "several", "cost", "once", "charge", "refund"],
)
async def test_rules_that_need_a_script_are_an_error(
    plain: RedisStorage, client: aioredis.Redis, asked: Ask, told: str
) -> None:
    """The error names the rule and the permission; a window in the same batch is decided."""
    found = await asyncio.gather(
        ask(plain, charge("9/m", "first")),
        plain.ask(asked, timeout=TIMEOUT),
        ask(plain, charge("9/m", "neighbour")),
        return_exceptions=True,
    )
    assert [each[0].remaining for each in (found[0], found[2])] == [8, 8]
    assert isinstance(found[1], ConfigError)
    for part in (told, str(asked.counts[0].limit), "needs a script", "+@scripting"):
        assert part in str(found[1])
    assert KEY not in str(found[1])  # the fault of many users is one, and is logged once
    assert not await client.exists(KEY)


@pytest.mark.parametrize("plain", [False], indirect=True, ids=["bytes"])  # once for each server
async def test_refused_scripts_are_logged_once(
    plain: RedisStorage, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says once what the server refuses and how to allow it."""
    limiter = Limiter(plain, timeout=TIMEOUT)
    with caplog.at_level(logging.INFO, "bot_ratelimit"):
        decisions = [await limiter.hit("2/minute", Subject(user=7)) for _ in range(3)]
        for _ in range(3):
            told = await limiter.hit(Rule("2/minute sliding", name="b"), Subject(user=7))
    assert [(d.allowed, d.source) for d in decisions] == [
        (True, "redis"),
        (True, "redis"),
        (False, "redis"),
    ]
    assert (told.allowed, told.source) == (True, "policy")
    refused, failed = [record.getMessage() for record in caplog.records]
    assert "refuses scripts" in refused
    assert "Redis rate limit check failed" in failed


async def test_everything_can_be_reset_without_a_script(
    plain: RedisStorage, client: aioredis.Redis
) -> None:
    """Counts of all algorithms can be reset after scripts were forbidden."""
    charges = [charge(f"5/m{algorithm}", f"{i}") for i, algorithm in enumerate(ALGORITHMS)]
    await ask(RedisStorage(client), *charges)
    unused = charge("5/m sliding", "unused")
    assert await reset(plain, *charges, unused) == 3
    assert not await client.exists(*(one.key for one in charges))
    assert await reset(plain, *charges) == 0
