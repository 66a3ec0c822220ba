"""Charges above the limit and refunds, on memory, fakeredis, Redis and Valkey."""

from __future__ import annotations

import pytest

from bot_ratelimit import (
    ConfigError,
    Limiter,
    MemoryStorage,
    Penalty,
    Rule,
    StorageError,
    Subject,
)
from bot_ratelimit.rules.rule import OnError
from bot_ratelimit.storage.base import Ask, Op
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
    """All rules are charged, shadow rules too; if one cannot be charged, none is. A refund without
    a cost gives each rule back what a hit has charged to it."""
    rules = [
        Rule(f"9/minute{algorithm}"),
        Rule("9/hour sliding", name="b", cost=2, shadow=True),
        Rule("9/day", name="c"),
        Penalty("2/minute", "1h"),
    ]
    limiter = Limiter(bench.storage, timeout=TIMEOUT)

    async def left() -> list[int]:
        return [(await limiter.peek(rule, US)).remaining for rule in rules[:3]]

    await limiter.charge(rules, US, 4)
    assert await left() == [5, 5, 5]
    await limiter.refund(rules, US, 2)
    assert await left() == [7, 7, 7]
    await limiter.hit(rules, US)
    assert await left() == [6, 5, 6]
    await limiter.refund(rules, US)
    assert await left() == [7, 7, 7]
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


@table("cost", [0, -1, 1.5, True, "3", 1_000_001, None])
async def test_a_cost_is_a_positive_whole_number(cost: object) -> None:
    """Any other cost is a ConfigError that says what is expected; only a refund needs none."""
    limiter = Limiter(MemoryStorage())
    for pay in (limiter.charge, limiter.refund)[: 1 if cost is None else 2]:
        with pytest.raises(ConfigError, match=r"cost=.*expected a whole number from 1"):
            await pay("5/m", US, cost)  # type: ignore[arg-type]  # what is tested


@table("on_error", ["allow", "deny", "memory"])
async def test_charges_and_refunds_raise_in_an_outage(on_error: OnError) -> None:
    """In an outage charges and refunds raise, whatever the policy for hits is; where no rule
    applies, nothing is charged, and nothing raises."""
    storage = FlakyStorage()
    limiter = Limiter(storage, on_error=on_error)
    await limiter.charge("5/m", US, 2)
    storage.fail()
    for pay in (limiter.charge, limiter.refund):
        with pytest.raises(StorageError):
            await pay("5/m", US, 2)
        assert (await pay("5/m", Subject(chat=1), 2)).source == "none"
    storage.heal()
    assert (await limiter.peek("5/m", US)).remaining == 3
