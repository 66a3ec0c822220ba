"""The promises of every storage, on memory, fakeredis, Redis and Valkey.

What is decided is compared with a model, for any history, in `test_model.py`.
"""

from __future__ import annotations

import asyncio
import time
from datetime import datetime, timedelta
from time import monotonic
from zoneinfo import ZoneInfo

import pytest
import redis.asyncio as aioredis
import time_machine
from fakeredis import FakeAsyncRedis, FakeServer

from bot_ratelimit import (
    ConfigError,
    Limit,
    Limiter,
    MemoryStorage,
    Penalty,
    RedisStorage,
    Rule,
    StorageError,
    Subject,
)
from bot_ratelimit.algorithms.verdict import Verdict
from bot_ratelimit.rules.penalty import block_at, blocking
from bot_ratelimit.rules.rule import OnError
from bot_ratelimit.storage.base import Ask, Count, Storage
from bot_ratelimit.storage.redis import encoding
from bot_ratelimit.testing import Clock, FlakyStorage
from tests.benches import TIMEOUT, Bench, charge, movable
from tests.tables import table

ALGORITHMS = ("", " sliding", " bucket")
"""What makes a limit's text one of each algorithm."""

BAN = Count("bot:ratelimit:ban:42", Limit.parse("2/m"), penalty=Penalty("2/minute", 300))

per_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)


@per_algorithm
async def test_a_count(bench: Bench, algorithm: str) -> None:
    """Exactly the amount is granted, and every hit says how long and how much; a cost that does not
    fit charges nothing. A peek tells the same, and charges nothing; a reset says what there was."""
    one, other = charge(f"2/minute{algorithm}"), charge(f"2/minute{algorithm}", "43")
    per_token = 30 if algorithm == " bucket" else 60
    assert await bench.reset(one, other) == 0
    assert await bench.peek(one) == [(0, 2, 0)]
    assert await bench.ttls() == {}
    for remaining, reset in ((1, per_token), (0, 60)):
        assert not (await bench.peek(one))[0].wait
        assert await bench.hit(one) == [(0, remaining, bench.about(reset))]
        assert not await bench.allowed(one._replace(cost=2))
    for ask in (bench.peek, bench.hit, bench.peek):
        assert await ask(one) == [(bench.about(per_token), 0, bench.about(60))]
    assert await bench.reset(one, other, BAN) == 1  # the strike that a hit would be is not one
    assert await bench.reset(one) == 0
    assert await bench.peek(one) == [(0, 2, 0)]


@per_algorithm
async def test_a_wait_is_exact(bench: Bench, algorithm: str) -> None:
    """A refused hit is allowed when its wait is over, and not before."""
    one = charge(f"1/100ms{algorithm}")
    before = monotonic()
    await bench.hit(one)
    after, passed_ms = monotonic(), 90
    await bench.advance(0.09)
    asked = monotonic()
    while not await bench.allowed(one):
        assert bench.exact or asked - after < 0.102
        await bench.advance(0.002)
        passed_ms += 2
        asked = monotonic()
    if bench.exact:
        assert passed_ms == 100
    else:  # a server's milliseconds are cut off
        assert monotonic() - before > 0.099


@per_algorithm
async def test_nothing_is_remembered_after_reset_time(bench: Bench, algorithm: str) -> None:
    """After `reset` the count is empty, and no key is left."""
    one = charge(f"3/60ms{algorithm}")
    verdicts = [await bench.hit(one) for _ in range(4)]
    await bench.advance(verdicts[-1][0].reset / 1_000_000 + 0.003)
    assert await bench.ttls() == {}
    assert (await bench.peek(one))[0] == (0, 3, 0)


@movable
@per_algorithm
async def test_a_clock_set_back_locks_nobody_out(bench: Bench, algorithm: str) -> None:
    """After the storage's clock went back an hour, the announced wait is still enough."""
    one = charge(f"1/10s{algorithm}")
    await bench.hit(one)
    await bench.advance(-3_600)
    (verdict,) = await bench.hit(one)
    assert verdict.wait <= 10_000_000
    await bench.advance(verdict.wait / 1_000_000)
    assert verdict.wait == 0 or await bench.allowed(one)


async def test_a_full_fixed_window_counts_attempts(bench: Bench) -> None:
    """GET shows every attempt; peeks and hits that would overfill are not counted."""
    for cost, seen in ((2, b"2"), (3, b"2"), (1, b"3"), (1, b"4"), (2, b"6")):
        await bench.hit(charge("3/minute", cost=cost))
        await bench.peek(charge("3/minute"))
        assert bench.client is None or await bench.client.get("bot:ratelimit:42") == seen


TOKEN = "bot:ratelimit:once:album"


@per_algorithm
async def test_one_token_is_charged_once(bench: Bench, algorithm: str) -> None:
    """Hits with one token share a verdict and a charge, even after a reset, which does not look for
    it; another token is another hit."""
    one = charge(f"2/minute{algorithm}")
    shared = [await bench.hit(one, once=TOKEN) for _ in range(3)]
    assert [verdicts[0].remaining for verdicts in shared] == [1, 1, 1]
    assert [v.reset for (v,) in shared] == [bench.about(shared[0][0].reset / 1_000_000)] * 3
    assert (await bench.hit(one, once=f"{TOKEN}2"))[0].remaining == 0
    assert not await bench.allowed(one, once=f"{TOKEN}3")
    assert await bench.reset(one) == 1
    assert (await bench.hit(one, once=TOKEN))[0].remaining == 1
    assert (await bench.peek(one))[0].remaining == 2
    assert set(await bench.ttls()) <= {TOKEN, f"{TOKEN}2", f"{TOKEN}3"}


async def test_a_penalty_counts_refusals_and_then_bans(bench: Bench) -> None:
    """The last tolerated refusal causes the ban, which those who share its verdict are told."""
    rules = charge("1/minute"), BAN
    seen = [(await bench.hit(*rules))[1] for _ in range(2)]
    seen += [(await bench.hit(*rules, once=TOKEN))[1] for _ in range(2)]
    assert [(verdict.wait, verdict.remaining) for verdict in seen[:3]] == [(0, 2), (0, 1), (0, 0)]
    assert (seen[2].reset, seen[3].wait) == (bench.about(300), bench.about(300))
    await bench.reset(rules[0])
    assert not await bench.allowed(*rules)
    assert await bench.reset(*rules) == 1
    assert await bench.allowed(*rules)


@movable
async def test_a_token_is_remembered_for_a_minute(bench: Bench) -> None:
    """After exactly 60 seconds a token is forgotten."""
    seen = []
    for seconds in (0, 59.999, 0.001):
        await bench.advance(seconds)
        seen.append((await bench.hit(charge("5/h"), once=TOKEN))[0].remaining)
    assert seen == [4, 4, 3]


@per_algorithm
async def test_concurrent_hits_are_counted_exactly(bench: Bench, algorithm: str) -> None:
    """Of 100 simultaneous hits exactly the amount is allowed; items of an album are one of them."""
    one = charge(f"7/minute{algorithm}")
    album = [bench.hit(one, once=f"{TOKEN}{i % 2}") for i in range(20)]
    assert {verdict.remaining for (verdict,) in await asyncio.gather(*album)} == {6, 5}
    assert sum(await asyncio.gather(*(bench.allowed(one) for _ in range(100)))) == 5


async def test_every_key_has_a_ttl(bench: Bench) -> None:
    """There is never a key that would stay forever."""
    two = charge("2/minute")
    rules = [charge(f"2/minute{algorithm}", f"{i}:7") for i, algorithm in enumerate(ALGORITHMS)]
    for i in range(4):
        await bench.hit(two, BAN)
        await bench.hit(*rules, once=f"bot:ratelimit:once:{i}")
        await bench.peek(*rules)
        ttls = await bench.ttls()
        assert bench.client is None or len(ttls) == 5 + i + (i > 1)
        assert all(0 < ttl <= 300_000 for ttl in ttls.values())


BLOCK = block_at("out:blocked:", lambda subject: subject.chat)


def block(seconds: float) -> Count:
    imposed = blocking(BLOCK, seconds)
    return Count("bot:ratelimit:out:blocked:42", imposed.limit, penalty=imposed)


async def test_a_block_refuses_for_exactly_its_time(bench: Bench) -> None:
    """An imposed block refuses at once, for exactly its time, and charges nothing."""
    rules = charge("5/minute burst 5"), Count(block(1).key, BLOCK.limit, penalty=BLOCK)
    assert (await bench.hit(*rules))[0].wait == 0
    await bench.hit(block(0.06))
    refused = await bench.hit(*rules)
    assert (refused[0].wait, refused[1].wait) == (0, bench.about(0.06))
    assert refused[0].remaining == 4
    assert set(await bench.ttls()) <= {charge("1/s").key, block(1).key}
    await bench.advance(0.063)
    assert [verdict.wait for verdict in await bench.hit(*rules)] == [0, 0]


async def test_the_block_that_ends_last_wins(bench: Bench) -> None:
    """A shorter block does not shorten a longer one; a longer one replaces it. Refusals neither
    start a block nor make it longer."""
    rules = charge("1/minute"), Count(block(1).key, BLOCK.limit, penalty=BLOCK)
    for _ in range(3):
        await bench.hit(*rules)
    await bench.advance(0.003)
    assert (await bench.peek(rules[1]))[0].wait == 0
    for seconds, left in ((20, 20), (5, 20), (90, 90), (1, 90)):
        await bench.hit(block(seconds))
        for _ in range(3):
            assert (await bench.hit(*rules))[1].wait == bench.about(left)


US = Subject(user=42)


async def test_a_charge_of_several_rules(bench: Bench) -> None:
    """All are charged, also above their limit and shadow rules, or none. A refund without a cost
    gives each rule back what a hit has charged to it."""
    rules = [Rule("5/minute bucket"), Rule("90/hour sliding", name="b", cost=2, shadow=True)]
    limiter = Limiter(bench.storage, timeout=TIMEOUT)

    async def left() -> list[int]:
        return [(await limiter.peek(rule, US)).remaining for rule in rules]

    await limiter.hit(rules, US)
    full = await limiter.charge(rules, US, 10)
    assert (full.allowed, full.retry_after * 1e6) == (False, bench.about(84))
    assert await left() == [0, 78]
    await limiter.refund(rules, US, 10)
    await limiter.refund(rules, US)
    assert await left() == [5, 90]
    if bench.client is not None:
        await bench.client.set("bot:ratelimit:c:42", "foreign", ex=60)
        with pytest.raises(ConfigError, match="c:42"):
            await limiter.charge([*rules, Rule("90/day", name="c")], US, 4)
        assert await left() == [5, 90]


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


async def test_a_value_is_replaced_only_if_nobody_else_did(bench: Bench) -> None:
    """Of two callers that read the same value, one writes, and the other is told so."""
    documents = bench.storage.documents()
    for before, after in ((None, b"a"), (b"a", b"b")):
        assert await documents.swap("bot:ratelimit:live", before, after) is True
        assert await documents.swap("bot:ratelimit:live", before, b"c") is False
        assert await documents.read("bot:ratelimit:live") == after


async def test_a_list_is_taken_in_time_or_left(bench: Bench) -> None:
    """In time a caller gets the whole list; later only its own value is deleted."""
    documents, key = bench.storage.documents(), "bot:ratelimit:collect:1"
    for value in (b"a", b"b", b"c", b"b"):
        await documents.push(key, value, 9, 60)
    now = await documents.now(key)
    assert await documents.take_list(key, now - 0.001, b"b") is None
    assert await documents.listed(key) == [b"c", b"a"]
    assert await documents.take_list(key, now + 60, b"a") == [b"c", b"a"]
    assert await documents.take_list(key, now + 60, b"a") == []
    await documents.push(key, b"d", 9, 60)
    assert await documents.take_list(key, now + 60, b"a") == []  # what waits is left to its owner
    assert await documents.take_list(key, 0.0, b"d") is None
    assert not await documents.waiting(key, b"d")


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
