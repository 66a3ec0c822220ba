"""Charges above the limit and refunds, on memory, fakeredis, Redis and Valkey."""

from __future__ import annotations

import asyncio
from time import monotonic

import pytest
import redis.asyncio as aioredis

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
from bot_ratelimit.storage.base import Ask, Count, Op
from bot_ratelimit.testing import FlakyStorage
from tests.benches import TIMEOUT, Bench, charge
from tests.storage.test_conformance import per_algorithm

US = Subject(user=42)


@per_algorithm
async def test_a_charge_may_exceed_the_limit(bench: Bench, algorithm: str) -> None:
    """A charge above the limit refuses everything until it is paid or refunded."""
    limiter = Limiter(bench.storage, timeout=TIMEOUT)
    limit = f"5/minute{algorithm}"
    assert (await limiter.charge(limit, US, 3)).remaining == 2
    owing = await limiter.charge(limit, US, 10)
    assert not owing
    assert owing.remaining == 0
    seconds = 108 if algorithm == " bucket" else 120  # 13 = 5 + 5 + 3; or 8 + 1 tokens too many
    assert owing.retry_after * 1e6 == bench.about(seconds)
    assert not await limiter.hit(limit, US)
    back = await limiter.refund(limit, US, 9)
    assert back.remaining == 1
    assert [bool(await limiter.hit(limit, US)) for _ in range(2)] == [True, False]


@per_algorithm
async def test_several_rules_are_charged_together(bench: Bench, algorithm: str) -> None:
    """All rules are charged, shadow rules too; if one cannot be charged, none is."""
    rules = [
        Rule(f"9/minute{algorithm}"),
        Rule("9/hour sliding", name="b", shadow=True),
        Rule("9/day", name="c"),
        Penalty("2/minute", "1h"),
    ]
    limiter = Limiter(bench.storage, timeout=TIMEOUT)
    await limiter.charge(rules, US, 4)
    assert [(await limiter.peek(rule, US)).remaining for rule in rules[:3]] == [5, 5, 5]
    await limiter.refund(rules, US, 2)
    assert [(await limiter.peek(rule, US)).remaining for rule in rules[:3]] == [7, 7, 7]
    if bench.client is not None:
        await bench.client.set("bot:ratelimit:c:42", "foreign", ex=60)
        with pytest.raises(ConfigError, match="c:42"):
            await limiter.charge(rules, US, 4)
        assert [(await limiter.peek(rule, US)).remaining for rule in rules[:2]] == [7, 7]


@per_algorithm
async def test_every_key_of_a_debt_has_a_ttl(bench: Bench, algorithm: str) -> None:
    """A debt expires when it is paid."""
    one = charge(f"2/50ms{algorithm}", cost=5)
    before = monotonic()
    await bench.storage.ask(Ask([one], Op.CHARGE), timeout=TIMEOUT)
    ttls = (await bench.ttls()).values()
    passed_ms = 0 if bench.exact else (monotonic() - before) * 1_000
    assert all(120 - passed_ms < ttl <= 160 for ttl in ttls)
    assert bench.client is None or len(ttls) == 1 or passed_ms > 120
    await bench.advance(0.16)
    assert await bench.ttls() == {}
    assert (await bench.peek(one._replace(cost=1)))[0] == (0, 2, 0)


async def test_an_operator_can_read_a_debt(client: aioredis.Redis) -> None:
    """GET shows the attempts and the debt, TTL how long it lasts."""
    limiter = Limiter(RedisStorage(client))
    await limiter.charge("5/minute", US, 13)
    await limiter.hit("5/minute", US)
    assert await client.get("bot:ratelimit:42") == b"6 +8 5/60000 180000"
    assert 179_000 < await client.pttl("bot:ratelimit:42") <= 180_000
    await limiter.charge(Rule("5/minute bucket", name="b"), US, 13)
    assert (await client.get("bot:ratelimit:b:42")).endswith(b" +8")
    await limiter.charge(Rule("5/minute sliding", name="s"), US, 13)
    log = await client.zrange("bot:ratelimit:s:42", 0, -1)
    assert log[0].endswith(b" 5")
    assert log[1].startswith(b"owed 8 ")
    await limiter.close()


async def test_charges_take_part_in_batches(client: aioredis.Redis) -> None:
    """Hits, peeks, charges and refunds in one command do not affect each other."""
    storage = RedisStorage(client)
    hits = [Count(f"bot:ratelimit:{i}", charge("5/m").limit) for i in range(20)]
    await storage.ask(Ask(hits[:1]), timeout=TIMEOUT)
    found = await asyncio.gather(
        *(
            storage.ask(Ask([each._replace(cost=7)], Op.CHARGE), timeout=TIMEOUT)
            if i % 2
            else storage.ask(Ask([each]), timeout=TIMEOUT)
            for i, each in enumerate(hits)
        )
    )
    assert [verdicts[0].remaining for verdicts in found] == [3, *[0, 4] * 9, 0]
    await storage.close()


@pytest.mark.parametrize("cost", [0, -1, 1.5, True, "3", None, 1_000_001])
async def test_a_cost_is_a_positive_whole_number(cost: object) -> None:
    """Any other cost is a ConfigError that says what is expected."""
    limiter = Limiter(MemoryStorage())
    for pay in (limiter.charge, limiter.refund):
        with pytest.raises(ConfigError, match=r"cost=.*expected a whole number from 1"):
            await pay("5/m", US, cost)  # type: ignore[arg-type]  # what is tested


@pytest.mark.parametrize("age", [-1, float("nan"), float("inf"), True, "3"])
async def test_an_age_is_a_number_of_seconds(age: object) -> None:
    """Any other age of a refund is a ConfigError."""
    with pytest.raises(ConfigError, match=r"age=.*expected the seconds since the charge"):
        await Limiter(MemoryStorage()).refund("5/m", US, age=age)  # type: ignore[arg-type]  # tested


@pytest.mark.parametrize("on_error", ["allow", "deny", "memory"])
async def test_charges_and_refunds_raise_in_an_outage(on_error: str) -> None:
    """In an outage charges and refunds raise, whatever the policy for hits is."""
    storage = FlakyStorage()
    limiter = Limiter(storage, on_error=on_error)  # type: ignore[arg-type]  # one of the three
    await limiter.charge("5/m", US, 2)
    storage.fail()
    with pytest.raises(StorageError):
        await limiter.charge("5/m", US, 2)
    with pytest.raises(StorageError):
        await limiter.refund("5/m", US, 2)
    storage.heal()
    assert (await limiter.peek("5/m", US)).remaining == 3


async def test_rules_that_do_not_apply_are_not_charged() -> None:
    """If no rule applies, nothing is charged."""
    limiter = Limiter(MemoryStorage())
    assert (await limiter.charge("5/m", Subject(chat=1), 2)).source == "none"
    assert (await limiter.refund("5/m", Subject(chat=1), 2)).source == "none"
