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


@pytest.fixture
async def plain(redis_server: Server, client: aioredis.Redis) -> AsyncIterator[RedisStorage]:
    """A storage whose Redis user may do everything except run scripts."""
    permissions = "reset", "on", ">pw", "~*", "+@all", "-@scripting"
    await client.execute_command("ACL", "SETUSER", "plain", *permissions)
    async with aioredis.Redis(port=redis_server.port, username="plain", password="pw") as user:
        yield RedisStorage(user)
    await client.acl_deluser("plain")


async def ask(storage: RedisStorage, *counts: Count, op: Op = Op.HIT) -> Sequence[Verdict]:
    return await storage.ask(Ask(counts, op), timeout=TIMEOUT)


async def waits(storage: RedisStorage, one: Count, times: int) -> list[int]:
    return [(await ask(storage, one))[0].wait for _ in range(times)]


async def test_a_fixed_window_needs_no_script(plain: RedisStorage, client: aioredis.Redis) -> None:
    """The default limit works, and its key shows attempts and the rest of the window. A peek
    charges nothing and leaves no key; and counts of all algorithms can be reset."""
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
    others = [charge(f"5/m{algorithm}", f"{i}") for i, algorithm in enumerate(ALGORITHMS)]
    await ask(RedisStorage(client), *others)
    assert await reset(plain, one, *others, charge("5/m sliding", "unused")) == 4
    assert await client.dbsize() == 0


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


async def test_a_counter_without_a_ttl_gets_one(
    plain: RedisStorage, client: aioredis.Redis
) -> None:
    """A counter without a TTL, or with one longer than its window, is repaired."""
    for kept_for in (None, 3_600):
        await client.set(KEY, 1, ex=kept_for)
        assert [wait > 0 for wait in await waits(plain, charge("2/minute"), 2)] == [False, True]
        assert 59_000 < await client.pttl(KEY) < 60_000  # it exists in its last millisecond too
        assert await client.get(KEY) == b"3"


async def test_rules_that_need_a_script_are_an_error(
    plain: RedisStorage, client: aioredis.Redis
) -> None:
    """The error names the rule and the permission; windows in the same batch are decided."""
    one = charge("5/m")
    cases = {
        "a sliding window (5/minute sliding)": Ask([charge("5/m sliding")]),
        "a token bucket (5/minute bucket)": Ask([charge("5/m bucket")]),
        "several rules together (5/minute, 1/s)": Ask([one, charge("1/s", "b")]),
        "a cost of 2 (5/minute)": Ask([charge("5/m", cost=2)]),
        "(once) (5/minute)": Ask([one], once="bot:ratelimit:once:a"),
        "a charge afterwards (5/minute)": Ask([one], Op.CHARGE),
        "a refund (5/minute)": Ask([one], Op.REFUND),
    }
    first, *errors, last = await asyncio.gather(
        ask(plain, charge("9/m", "first")),
        *(plain.ask(each, timeout=TIMEOUT) for each in cases.values()),
        ask(plain, charge("9/m", "last")),
        return_exceptions=True,
    )
    assert (first, last) == ([(0, 8, 60_000_000)],) * 2
    for told, error in zip(cases, errors, strict=True):
        assert isinstance(error, ConfigError)
        assert f"{told} needs a script" in str(error)
        assert "+@scripting" in str(error)
        assert KEY not in str(error)  # the fault of many users is one, and is logged once
    assert not await client.exists(KEY)


async def test_refused_scripts_are_logged_once(
    plain: RedisStorage, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says once what the server refuses and how to allow it."""
    limiter, anna = Limiter(plain, timeout=TIMEOUT), Subject(user=7)
    with caplog.at_level(logging.INFO, "bot_ratelimit"):
        decisions = [await limiter.hit("2/minute", anna) for _ in range(3)]
        told = [await limiter.hit(Rule("2/m sliding", name="b"), anna) for _ in range(3)]
    assert {each.source for each in decisions} == {"redis"}
    assert [each.allowed for each in decisions] == [True, True, False]
    assert {(each.allowed, each.source) for each in told} == {(True, "policy")}
    refused, failed = caplog.messages
    assert "refuses scripts" in refused
    assert "Redis rate limit check failed" in failed
