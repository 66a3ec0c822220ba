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
    """The default limit works, and its key shows attempts and the rest of the window."""
    found = await waits(plain, charge("3/minute"), 5)
    assert [wait == 0 for wait in found] == [True, True, True, False, False]
    assert all(59_000_000 < wait <= 60_000_000 for wait in found[3:])
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


@pytest.mark.parametrize("value", ["-5", "", "many", "9" * 30])
async def test_foreign_data_is_a_fault_also_of_a_peek(
    plain: RedisStorage, client: aioredis.Redis, value: str
) -> None:
    """A value that is no count is named as such, as by a hit."""
    await client.set(KEY, value)
    with pytest.raises(ConfigError, match="another program"):
        await ask(plain, charge("5/minute"), op=Op.PEEK)


async def test_batched_hits_are_all_counted(plain: RedisStorage, client: aioredis.Redis) -> None:
    """Hits in one batch are decided one by one, in order."""
    users = [charge("3/minute", f"{i % 10}") for i in range(100)]
    found = await asyncio.gather(*(ask(plain, one) for one in users))
    assert [verdict.remaining for (verdict,) in found[:30]] == [2] * 10 + [1] * 10 + [0] * 10
    assert [verdict.wait == 0 for (verdict,) in found] == [True] * 30 + [False] * 70
    assert await client.mget(f"bot:ratelimit:{i}" for i in range(10)) == [b"10"] * 10


async def test_peek_and_reset_need_no_script(plain: RedisStorage, client: aioredis.Redis) -> None:
    """A peek charges nothing and leaves no key; reset returns the number of counts."""
    one = charge("2/minute")
    assert await ask(plain, one, op=Op.PEEK) == [(0, 2, 0)]
    assert await client.dbsize() == 0
    await waits(plain, one, 2)
    (verdict,) = await ask(plain, one, op=Op.PEEK)
    assert verdict.remaining == 0
    assert 59_000_000 < verdict.wait == verdict.reset <= 60_000_000
    assert await client.get(KEY) == b"2"
    assert [await reset(plain, one) for _ in range(2)] == [1, 0]


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
    ("charges", "once", "told"),
    [
        ([charge("5/m sliding")], None, "a sliding window (5/minute sliding)"),
        ([charge("5/m bucket")], None, "a token bucket (5/minute bucket)"),
        ([charge("5/m"), charge("1/s", "b")], None, "several rules"),
        ([charge("5/m", cost=2)], None, "a cost of 2"),
        ([charge("5/m")], "bot:ratelimit:once:a", "once"),
    ],
    ids=["sliding", "bucket", "several", "cost", "once"],
)
async def test_rules_that_need_a_script_are_an_error(
    plain: RedisStorage, client: aioredis.Redis, charges: list[Count], once: str | None, told: str
) -> None:
    """The error names the rule and the permission; a window in the same batch is decided."""
    found = await asyncio.gather(
        ask(plain, charge("9/m", "first")),
        ask(plain, *charges, once=once),
        ask(plain, charge("9/m", "neighbour")),
        return_exceptions=True,
    )
    assert [each[0].remaining for each in (found[0], found[2])] == [8, 8]
    assert isinstance(found[1], ConfigError)
    for part in (told, str(charges[0].limit), "+@scripting"):
        assert part in str(found[1])
    assert KEY not in str(found[1])  # the fault of many users is one, and is logged once
    assert not await client.exists(KEY)


async def test_foreign_data_affects_only_its_hit(
    plain: RedisStorage, client: aioredis.Redis
) -> None:
    """Foreign data is an error of one hit."""
    await client.rpush(KEY, "x")
    found = await asyncio.gather(
        *(ask(plain, charge("9/m", name)) for name in ("a", "42", "b")),
        return_exceptions=True,
    )
    assert [each[0].remaining for each in (found[0], found[2])] == [8, 8]
    with pytest.raises(ConfigError, match=r"WRONGTYPE.*choose another key_prefix"):
        raise found[1]


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


@pytest.mark.parametrize("op", [Op.CHARGE, Op.REFUND], ids=str)
async def test_charge_and_refund_need_a_script(
    plain: RedisStorage, client: aioredis.Redis, op: Op
) -> None:
    """The error says what to allow, and nothing is charged."""
    await ask(plain, charge("3/minute"))
    with pytest.raises(ConfigError, match=r"(charge afterwards|refund) .* needs a script"):
        await ask(plain, charge("3/minute"), op=op)
    assert await client.get(KEY) == b"1"
