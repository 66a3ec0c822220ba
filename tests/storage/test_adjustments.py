"""Charges above the limit and refunds, on memory, fakeredis, Redis and Valkey."""

from __future__ import annotations

import asyncio

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
from tests.tables import table

US = Subject(user=42)


@pytest.mark.parametrize(
    ("limit", "waits", "remaining"),
    [
        ("5/minute", 60, 5),  # full until it ends; what a full window counts is not kept
        ("5/minute sliding", 60, 1),  # until enough has left
        ("5/minute bucket", 108, 1),  # below empty: 8 + 1 tokens of 12 seconds are missing
    ],
)
async def test_a_charge_may_exceed_the_limit(
    bench: Bench, limit: str, waits: float, remaining: int
) -> None:
    """A charge above the limit is taken, refuses what follows, and can be refunded."""
    limiter = Limiter(bench.storage, timeout=TIMEOUT)
    assert (await limiter.charge(limit, US, 3)).remaining == 2
    full = await limiter.charge(limit, US, 10)
    assert not full
    assert full.remaining == 0
    assert full.retry_after * 1e6 == bench.about(waits)
    assert not await limiter.hit(limit, US)
    assert (await limiter.refund(limit, US, 9)).remaining == remaining
    hits = [bool(await limiter.hit(limit, US)) for _ in range(remaining + 1)]
    assert hits == [True] * remaining + [False]


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
async def test_charges_and_refunds_leave_a_ttl(bench: Bench, algorithm: str) -> None:
    """A key has a TTL after each charge and each refund; a refund of everything deletes it."""
    one = charge(f"5/minute{algorithm}", cost=4)
    for op, left in ((Op.CHARGE, 1), (Op.CHARGE, 1), (Op.REFUND, 1)):
        await bench.storage.ask(Ask([one], op), timeout=TIMEOUT)
        ttls = (await bench.ttls()).values()
        assert len(ttls) == (bench.client is not None and left)
        assert all(0 < ttl <= 60_000 * 8 for ttl in ttls)
    await bench.storage.ask(Ask([one._replace(cost=99)], Op.REFUND), timeout=TIMEOUT)
    assert await bench.ttls() == {}
    assert (await bench.peek(one._replace(cost=1)))[0] == (0, 5, 0)


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


async def test_a_refund_without_a_cost_gives_each_rule_its_own_back(bench: Bench) -> None:
    """What a hit has charged to rules with different costs is refunded to each."""
    limiter = Limiter(bench.storage, timeout=TIMEOUT)
    rules = [Rule("10/hour"), Rule("100/day sliding", name="b", cost=5)]
    await limiter.charge(rules, US, 5)
    await limiter.hit(rules, US)
    await limiter.refund(rules, US)
    assert [(await limiter.peek(rule, US)).remaining for rule in rules] == [5, 95]
    with pytest.raises(ConfigError, match="cost=None: expected a whole number from 1"):
        await limiter.charge(rules, US, None)  # type: ignore[arg-type]  # a charge needs one


@table("cost", [0, -1, 1.5, True, "3", 1_000_001])
async def test_a_cost_is_a_positive_whole_number(cost: object) -> None:
    """Any other cost is a ConfigError that says what is expected."""
    limiter = Limiter(MemoryStorage())
    for pay in (limiter.charge, limiter.refund):
        with pytest.raises(ConfigError, match=r"cost=.*expected a whole number from 1"):
            await pay("5/m", US, cost)  # type: ignore[arg-type]  # what is tested


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
