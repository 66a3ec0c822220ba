"""Limiter: decisions on a working storage."""

from __future__ import annotations

import logging
import math
import re
from typing import Any

import pytest
import redis.asyncio as aioredis

from bot_ratelimit import (
    ConfigError,
    Decision,
    Limiter,
    MemoryStorage,
    RefusedError,
    Rule,
    Scope,
    Subject,
)
from bot_ratelimit.limiter.counts import once_key
from bot_ratelimit.rules.limit import Limit
from bot_ratelimit.storage.base import Count
from bot_ratelimit.testing import Clock, FlakyStorage
from tests.benches import Bench
from tests.tables import table

ANNA = Subject(user=42, chat=-100)
BORIS = Subject(user=43, chat=-100)
SHARED = Rule("1/s", Scope.CHAT, "shared")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limiter(clock: Clock) -> Limiter:
    return Limiter(MemoryStorage(clock=clock), clock=clock)


async def hits(limiter: Limiter, rules: Any, count: int, **options: Any) -> list[Decision]:
    return [await limiter.hit(rules, ANNA, **options) for _ in range(count)]


def shown(decision: Decision) -> tuple[bool, int, float, float]:
    return decision.allowed, *decision[2:5]


async def test_the_worked_example_of_decision(limiter: Limiter, clock: Clock) -> None:
    """The numbers in the docstring of Decision are right."""
    await hits(limiter, "5/10s", 1)
    clock.move(2)
    await hits(limiter, "5/10s", 1)
    (third,) = await hits(limiter, "5/10s", 1)
    clock.move(1)
    *_, sixth = await hits(limiter, "5/10s", 3)
    assert shown(third) == (True, 2, 0.0, 8.0)
    assert shown(sixth) == (False, 0, 7.0, 7.0)
    assert (third.source, third.shadow, third.banned) == ("memory", (), False)


SLOW, FAST, WIDE = Rule("1/m", name="slow"), Rule("1/s", name="fast"), Rule("9/s", name="wide")


@table(
    ("rules", "before", "speaks", "retry_after"),
    [
        ([FAST, SLOW], 1, SLOW, 60.0),
        ([SLOW, FAST], 1, SLOW, 60.0),
        ([WIDE, FAST], 1, FAST, 1.0),
        ([WIDE, SLOW, FAST], 1, SLOW, 60.0),
        ([WIDE, Rule("3/s", name="three")], 1, Rule("3/s", name="three"), 0.0),
        ([Rule("3/s", name="three"), WIDE], 1, Rule("3/s", name="three"), 0.0),
        ([SLOW, WIDE], 0, SLOW, 0.0),
    ],
)
async def test_the_decision_is_of_the_rule_that_matters(
    rules: list[Rule], before: int, speaks: Rule, retry_after: float
) -> None:
    """It is that of the longest refusal, or else of the rule with the least remaining."""
    *_, decision = await hits(Limiter(MemoryStorage(clock=Clock())), rules, before + 1)
    assert (decision.rule, decision.retry_after) == (speaks, retry_after)


@pytest.mark.parametrize("algorithm", ["", " sliding", " bucket"])
async def test_a_peek_charges_nothing(limiter: Limiter, algorithm: str) -> None:
    """`peek` and a cost of 0 return what a hit of that cost would, any number of times."""
    rule = Rule(f"5/m{algorithm}", cost=2)
    assert shown(await limiter.peek(rule, ANNA)) == (True, 5, 0.0, 0.0)
    charged = await limiter.hit(rule, ANNA, cost=4)
    looks = [await limiter.peek(rule, ANNA) for _ in range(5)]
    looks += await hits(limiter, rule, 5, cost=0)
    assert {look.remaining for look in looks} == {charged.remaining} == {1}
    assert {look.allowed for look in looks} == {False}
    refused = await limiter.hit(rule, ANNA)
    assert {look.retry_after for look in looks} == {refused.retry_after}
    assert (await limiter.peek(rule, ANNA, cost=1)).allowed
    assert await limiter.peek(rule, ANNA, cost=3) == await limiter.hit(rule, ANNA, cost=3)
    with pytest.raises(ConfigError, match="never grants more than 5"):
        await limiter.peek(rule, ANNA, cost=6)


async def test_a_shadow_rule_refuses_nobody(
    limiter: Limiter, caplog: pytest.LogCaptureFixture
) -> None:
    """A shadow rule counts, is reported in the decision and once in the log, and allows."""
    caplog.set_level(logging.INFO, "bot_ratelimit")
    trial = Rule("1/m", name="trial", shadow=True)
    decisions = await hits(limiter, [trial, WIDE], 3)
    assert [(d.allowed, d.rule, d.shadow) for d in decisions] == [
        (True, WIDE, ()),
        *[(True, WIDE, (trial,))] * 2,
    ]
    assert [message for message in caplog.messages if str(trial) in message] == [
        "The shadow rule '1/minute per user 'trial'' would have refused a hit"
    ]
    alone = await hits(limiter, Rule("1/m", shadow=True), 2)
    assert [(*shown(d)[::2], len(d.shadow)) for d in alone] == [(True, 0.0, 0), (True, 0.0, 1)]


@pytest.mark.parametrize("kind", [list, iter])
async def test_where_no_rule_applies_all_is_allowed(kind: Any) -> None:
    """A hit without an applicable rule is allowed without asking the storage."""
    storage = FlakyStorage()
    rules = [SHARED, Rule(lambda s: None, name="nobody")]
    decision = await Limiter(storage, on_error="deny").hit(kind(rules), Subject(user=42))
    assert shown(decision)[::2] == (True, 0.0)
    assert (decision.rule, decision.source, storage.calls) == (SHARED, "none", 0)
    limiter = Limiter(storage)  # where one rule applies, it decides
    decisions = [await limiter.hit([*rules, "1/m"], Subject(user=42)) for _ in range(2)]
    assert [(d.allowed, d.rule) for d in decisions] == [(True, Rule("1/m")), (False, Rule("1/m"))]


@table(
    ("arguments", "names"),
    [
        *(({"on_error": value}, "on_error=") for value in ["Allow", "", None, True, ["allow"]]),
        *(({"statistics": value}, "statistics=") for value in ["no", 1, None]),
        *(({"timeout": value}, "timeout=") for value in [0, -1, None, "1", True, 10**400]),
        *(({"timeout": value}, "timeout=") for value in [math.nan, math.inf]),
        *(({"key_prefix": value}, "key_prefix=") for value in ["", "a b", "a*", None, 5]),
        ({"memory_size": 0}, "memory_size="),
    ],
)
def test_arguments_are_checked_when_given(arguments: dict[str, Any], names: str) -> None:
    """An invalid argument is a ConfigError that names it and its value, without secrets."""
    with pytest.raises(ConfigError) as error:
        Limiter(MemoryStorage(), **arguments)
    assert str(error.value).startswith(names + repr(*arguments.values()))
    client = aioredis.Redis.from_url("redis://:s3cret@localhost")
    for storage, fix in (
        (client, r"RedisStorage\(client\)"),
        (MemoryStorage, r"the class MemoryStorage, .*pass an instance"),
        (None, "NoneType"),
        ("redis://localhost", "a str"),
    ):
        with pytest.raises(ConfigError, match=rf"^storage is .*{fix}") as error:
            Limiter(storage)
        assert "s3cret" not in str(error.value)


@pytest.mark.parametrize(
    ("rules", "options", "says"),
    [
        *((rules, {}, "expected") for rules in ("fast", [], None)),
        *(("5/m", {"cost": cost}, "cost=") for cost in (6, -1, 1.5, True)),
        *(("5/m", {"once": token}, "once=.*expected a str") for token in (42, b"album")),
        (Rule(lambda s: "1/m", name="vip", cost=2), {}, "never grants more than 1"),
    ],
)
async def test_an_invalid_hit_raises(
    limiter: Limiter, rules: Any, options: dict[str, Any], says: str
) -> None:
    """Invalid rules, costs, tokens and subjects are a ConfigError, whatever the storage does."""
    with pytest.raises(ConfigError, match=says):
        await limiter.hit(rules, ANNA, **options)
    for ask in (limiter.hit, limiter.peek, limiter.reset):
        with pytest.raises(ConfigError, match=r"^subject=.*expected a Subject.*Subject\(user=42\)"):
            await ask("1/s", 42)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("a:42", ["b"]), ("a", ["42:b"])),
        (("a", ["x", "y"]), ("a", ["x|y"])),
        (("x" * 10_000, ["b"]), ("x" * 10_000 + "y", ["b"])),
    ],
)
def test_tokens_do_not_collide(one: Any, other: Any) -> None:
    """Whatever the token or the text of a custom scope, other tokens are different hits."""
    keys = {
        once_key("bot", token, [Count(f"bot:ratelimit:{text}", Limit(1, 1)) for text in texts])
        for token, texts in (one, other)
    }
    assert len(keys) == 2
    assert all(key.startswith("bot:ratelimit:once:{bot:ratelimit:") for key in keys)
    once = once_key("{bot}", "a", [Count("{bot}:ratelimit:42", Limit(1, 1))])
    assert re.fullmatch(r"\{bot\}:ratelimit:once:[0-9a-f]{32}", once)


async def test_a_block_runs_only_if_it_may(limiter: Limiter) -> None:
    """`limit` runs a block, or raises an error with the Decision; it works as a decorator."""
    rule = Rule("5/10s", cost=2)
    async with limiter.limit(rule, ANNA) as decision:
        assert decision.remaining == 3
    ran = []

    @limiter.limit(rule, ANNA, cost=3)
    async def work() -> None:
        ran.append(True)

    await work()
    refused = r"^refused by 5/10s per user: try again in 10\.0 s$"
    with pytest.raises(RefusedError, match=refused) as error:
        await work()
    assert (ran, error.value.decision.retry_after) == ([True], 10.0)


async def test_reset_deletes_the_counts_of_former_rules(bench: Bench) -> None:
    """The algorithm stands in the key: a rule that was changed leaves no count that comes back, nor
    one from before a user became exempt."""
    limiter, texts = Limiter(bench.storage, timeout=5), ("1/h", "1/h sliding", "1/h bucket")
    given: list[Any] = [*texts, None]
    rule = Rule(lambda s: given[0], name="ai")
    for _ in texts:
        assert await limiter.hit(rule, ANNA)
        given.pop(0)
    assert await limiter.reset(rule, ANNA)
    assert await bench.ttls() == {}
    for text in texts:
        given[0] = text
        assert await limiter.peek(rule, ANNA)
    assert not await limiter.reset(Rule("1/m"), Subject())
    await limiter.close()
