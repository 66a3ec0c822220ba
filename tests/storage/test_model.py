"""One semantics: a plain model, memory and Redis decide equally about equal histories."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic
from typing import NamedTuple

import pytest
import redis.asyncio as aioredis
import time_machine
from fakeredis import FakeAsyncRedis, FakeServer
from hypothesis import assume, given, reject, settings
from hypothesis import strategies as st

from bot_ratelimit import Algorithm, Limit, MemoryStorage, Penalty, RedisStorage
from bot_ratelimit.algorithms.verdict import Verdict
from bot_ratelimit.storage.base import Ask, Count, Op, Storage
from bot_ratelimit.testing import Clock
from tests.benches import TIMEOUT
from tests.servers import Server
from tests.storage.model import START, Model

FIXED, SLIDING, BUCKET = Algorithm
DAY_MS = 86_400_000
MILLISECOND = 0.001
TOO_SLOW = 0.8
"""Seconds within which a history has to be played on a real server, where nothing changes within a
second."""


class Scale(NamedTuple):
    """The time scale of a history."""

    tick: int
    """Microseconds that all times are multiples of."""
    periods_ms: Sequence[int]
    bans: Sequence[float]
    longest_ban: float
    algorithms: Sequence[Algorithm | None]
    """None is a penalty."""
    amounts: st.SearchStrategy[int]
    zones: Sequence[str] = ()


FEW = st.integers(1, 3)
MILLISECONDS = Scale(
    1_000,
    [1, 7, 100, 1_000, 61_000, 61_000, 366 * DAY_MS],
    [0.005, 1, 90],
    100,
    [*Algorithm, None],
    st.sampled_from([1, 1, 2, 2, 3, 3, 1_000_000]),
    ["UTC", "Europe/Berlin", "America/Santiago"],
)
# A key's TTL is whole milliseconds, so only logs and buckets tell microseconds apart.
MICROSECONDS = MILLISECONDS._replace(tick=1, algorithms=[SLIDING, BUCKET], zones=())
# On a real server some time passes by itself. Here nothing changes within a second.
SECONDS = Scale(
    1_000_000, [60_000, 120_000, 600_000, DAY_MS], [60, 120], 600, [*Algorithm, None], FEW
)


class Step(NamedTuple):
    pause: int | str
    """Ticks; or "told": as long as the last refusal said, or "early": one tick less."""
    ask: Ask


class History(NamedTuple):
    tick: int
    steps: list[Step]


@st.composite
def histories(draw: st.DrawFn, scale: Scale) -> History:
    # Of each rule some versions that follow each other: its limit changes over time.
    names = range(draw(st.integers(1, 3)))
    rules = [draw(versions(f"r{name}", scale)) for name in names]
    if None in scale.algorithms and draw(st.booleans()):
        rules.append(draw(st.lists(penalties(scale), min_size=1, max_size=2)))
    longest = max(rule.limit.period_ms * 1_000 for each in rules for rule in each) // scale.tick
    minute = 60_000_000 // scale.tick
    pauses = (
        st.sampled_from(["told", "early", 0, 0, 0, minute - 1, minute])  # around a token's minute
        | st.just(0)
        | st.just("early")
        | st.integers(0, 20)
        | st.integers(0, 2 * longest)
    )
    ops = st.sampled_from([Op.HIT] * 7 + [Op.CHARGE, Op.REFUND] * 2 + [Op.PEEK, Op.RESET])
    tokens = st.sampled_from([None, None, "a", "a", "b"]) if scale.tick > 1 else st.none()
    together = draw(st.booleans())
    some = st.sets(st.integers(0, len(rules) - 1), min_size=1)
    steps = []
    for _ in range(draw(st.integers(3, 14))):
        chosen = range(len(rules)) if together else sorted(draw(some))
        user = draw(st.sampled_from([1, 1, 1, 2]))
        counts = [draw(st.sampled_from(rules[i])) for i in chosen]
        counts = [each._replace(key=f"{each.key}:{user}") for each in counts]
        op, once = draw(ops), draw(tokens)
        if op in (Op.CHARGE, Op.REFUND):
            cost = draw(st.sampled_from([1, 1, 2, 3, 5, 20]))
            counts = [each._replace(cost=cost) for each in counts if not each.penalty]
        once = f"{once}:{[each.key for each in counts]}" if once and op is Op.HIT else None
        if counts:
            steps.append(Step(draw(pauses), Ask(counts, op, once)))
    return History(scale.tick, steps)


@st.composite
def versions(draw: st.DrawFn, name: str, scale: Scale) -> list[Count]:
    """What a rule counts, and its changes: another amount, period, algorithm, burst or cost."""
    shadow = draw(st.sampled_from([False, False, True]))
    first = draw(limits(scale))
    changed = [first]
    if draw(st.booleans()):
        # The sub-millisecond TTLs of fakeredis are not those of a server: only the amount changes.
        fixed = {"period": first.period, "algorithm": first.algorithm} if scale.tick == 1 else {}
        changed += draw(st.lists(limits(scale, **fixed), min_size=1, max_size=2))
    costs = [draw(st.sampled_from([1, 1, 1, 2, 3])) for _ in changed]
    return [
        Count(f"{limit.algorithm.value}:{name}", limit, min(cost, limit.capacity), shadow)
        for limit, cost in zip(changed, costs, strict=True)
    ]


@st.composite
def limits(
    draw: st.DrawFn, scale: Scale, period: float = 0, algorithm: Algorithm | None = None
) -> Limit:
    period = period or draw(st.sampled_from(scale.periods_ms)) / 1_000
    algorithm = algorithm or draw(st.sampled_from([a for a in scale.algorithms if a]))
    burst = draw(st.none() | st.integers(1, 5)) if algorithm is BUCKET else None
    if algorithm is FIXED and scale.zones and draw(st.sampled_from([True, False, False])):
        days = draw(st.sampled_from([1, 1, 7, 31]))
        return Limit(draw(FEW), days * 86_400, zone=draw(st.sampled_from(scale.zones)))
    amount = draw(scale.amounts)
    if algorithm is BUCKET:
        amount = min(amount, round(period * 1_000_000))
    return Limit(amount, period, algorithm, burst)


@st.composite
def penalties(draw: st.DrawFn, scale: Scale) -> Count:
    after = Limit(draw(st.integers(1, 2)), draw(st.sampled_from(scale.periods_ms)) / 1_000)
    grows = draw(st.booleans())
    longest = scale.longest_ban if grows else None
    penalty = Penalty(after, draw(st.sampled_from(scale.bans)), grows=grows, longest=longest)
    return Count("ban", after, penalty=penalty)


class Player:
    """Plays histories on the model and on storages, and counts the events."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()

    async def play(
        self,
        history: History,
        storages: Sequence[Storage],
        move_to: Callable[[int], Awaitable[None]],
        *,
        exact: bool = True,
    ) -> None:
        model, now, told, began = Model(linger_ms=int(exact)), 0, 0, monotonic()
        happened: set[str] = {"history"}
        for pause, ask in history.steps:
            if isinstance(pause, str):
                pause = max(0, -(-told // history.tick) - (pause == "early"))
            now += pause * history.tick
            await move_to(now)
            counts, op, once = ask
            answers = [await each.ask(ask, timeout=TIMEOUT) for each in storages]
            passed = monotonic() - began
            if not exact and passed > TOO_SLOW:
                reject()  # the machine was busy
            if op is Op.RESET:
                were = model.reset(now, counts)
                assert [[verdict.reset > 0 for verdict in each] for each in answers] == [
                    were
                ] * len(answers)
                continue
            happened |= {"shared"} if once in model.told else set()
            if op is Op.HIT:
                expected = model.hit(now, counts, once)
            elif op is Op.PEEK:
                expected = model.decide(now, counts, charge=False)
            else:
                ones, cost = [each._replace(cost=1) for each in counts], counts[0].cost
                before = model.decide(now, ones, charge=False)
                expected = model.adjust(now, counts, cost if op is Op.CHARGE else -cost)
                happened |= {op.value} if before != expected else set()
            for answer in answers:
                for count, verdict, right in zip(counts, answer, expected, strict=True):
                    equal(known(count, verdict), known(count, right), 0 if exact else passed)
            for count, verdict in zip(counts, expected, strict=True):
                if wait := known(count, verdict).wait:
                    told = told if count.shadow else wait
                    kind = "shadowed" if count.shadow else "banned" if count.penalty else "refused"
                    happened.add(kind)
        self.seen.update(happened)

    @property
    def is_eventful(self) -> bool:
        """Whether the rarest events happened, which the histories of one run may lack."""
        return bool(self.seen["banned"] and self.seen["shared"])

    def check(self) -> None:
        """Fail if the histories were too uneventful to prove anything."""
        shares = {what: self.seen[what] / self.seen["history"] for what in self.seen}
        for what in ("refused", "shadowed", "charge", "refund"):
            assert shares.get(what, 0) > 0.05, shares
        assert self.is_eventful, shares


def known(count: Count, verdict: Verdict) -> Verdict:
    """What a decision takes from a verdict: of a penalty, also the ban that its hit caused."""
    left, reset = verdict.remaining, verdict.reset
    return verdict._replace(wait=0 if left else reset or verdict.wait) if count.penalty else verdict


def equal(found: Verdict, expected: Verdict, passed: float) -> None:
    """Equal, but for the time that has passed by itself on a real server."""
    tolerance = round((passed + MILLISECOND) * 1e6) if passed else 1
    assert found.remaining == expected.remaining
    assert 0 <= expected.wait - found.wait < tolerance
    assert 0 <= expected.reset - found.reset < tolerance
    assert (found.wait > 0) == (expected.wait > 0)


def play_all(
    player: Player, scale: Scale, examples: int, play: Callable[[History], Awaitable[None]]
) -> None:
    """Play many histories, and more if the rarest events are missing, as in one run of many."""
    with asyncio.Runner() as runner:

        @settings(max_examples=examples)
        @given(histories(scale))
        def run(history: History) -> None:
            runner.run(play(history))

        for _ in range(5):
            run()
            if player.is_eventful or scale is MICROSECONDS:
                break


@pytest.mark.parametrize("scale", [MILLISECONDS, MICROSECONDS], ids=["ms", "us"])
def test_model_memory_and_redis_agree(scale: Scale, pytestconfig: pytest.Config) -> None:
    """For any events in any order under any limits, all three give the same verdicts."""
    player, examples = Player(), 60 if pytestconfig.getoption("quick") else 250

    async def play(history: History) -> None:
        clock = Clock()
        async with FakeAsyncRedis(server=FakeServer()) as client:
            storages = (
                MemoryStorage(clock=clock, wall_clock=lambda: clock.now - 1_000 + START),
                RedisStorage(client),
            )
            with time_machine.travel(START, tick=False) as traveller:

                async def move_to(now: int) -> None:
                    # After 2038 a float does not tell all microseconds apart.
                    assume(scale.tick > 1 or START + now / 1_000_000 < 2**31)
                    clock.now = 1_000 + now / 1_000_000
                    traveller.move_to(START + now / 1_000_000)

                await player.play(history, storages, move_to)

    play_all(player, scale, examples, play)
    if scale is MILLISECONDS:
        player.check()


def test_lua_5_4_decides_the_same() -> None:
    """Servers with Lua 5.4, for example Dragonfly, keep all promises, and decide as the model."""
    command = [sys.executable, "-m", "pytest", "-q", "--quick", "-p", "no:cacheprovider"]
    command += ["-k", "fakeredis or model_memory_and_redis"]
    suites = ["conformance", "faults", "model"]
    command += [f"tests/storage/test_{suite}.py" for suite in suites]
    done = subprocess.run(
        command,
        env={**os.environ, "FAKEREDIS_LUA_VERSION": "5.4"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3_000:]
    assert " passed" in done.stdout


def test_model_and_a_real_server_agree(redis_server: Server) -> None:
    """A real Redis decides like the model; its keys are aged instead of moving its clock."""
    player = Player()

    async def play(history: History) -> None:
        async with aioredis.Redis(port=redis_server.port, decode_responses=True) as client:
            await client.flushall()
            storage = RedisStorage(client)
            passed = 0

            async def move_to(now: int) -> None:
                nonlocal passed
                await age(client, now - passed)
                passed = now

            await player.play(history, [storage], move_to, exact=False)
            await storage.close()

    play_all(player, SECONDS, 150, play)
    player.check()


async def age(client: aioredis.Redis, us: int) -> None:
    """Let time pass for all keys by moving their contents and TTLs into the past."""
    if not us:
        return
    async for key in client.scan_iter():
        left = await client.pttl(key)
        assert left != -1  # every key has a TTL
        left -= us // 1_000
        # The last millisecond is left out: more than that passes by itself.
        if left <= 1:
            await client.delete(key)
            continue
        if await client.type(key) == "zset":
            log = await client.zrange(key, 0, -1, withscores=True)
            await client.zadd(key, {member: int(score) - us for member, score in log})
        elif key.startswith("token bucket"):
            full_at = float(await client.get(key))
            await client.set(key, f"{full_at - us if full_at > 0 else full_at + us:.17g}")
        await client.pexpire(key, left)
