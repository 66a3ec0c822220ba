"""Outages are answered in time, and a live Redis is never mistaken for dead."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from time import monotonic
from typing import Any

import pytest
import redis.asyncio as aioredis

from bot_ratelimit import ConfigError, Decision, Limiter, RedisStorage, Subject
from bot_ratelimit.storage.base import Ask, Count
from bot_ratelimit.storage.breaker import LONGEST_PAUSE, Breaker
from bot_ratelimit.testing import Clock, FlakyStorage
from tests.benches import TIMEOUT, Pauses, charge, eventually
from tests.proxy import distant
from tests.servers import Server, black_hole, free_port
from tests.tables import table

# A step is a time, who does what, and whether the breaker said yes. Somebody asks (is the request
# admitted?), fails (did that open the circuit?), succeeds (did that close it?), or goes without a
# result. OPENED is open since 2, to be probed at 2.5.
TWO_FAIL = "0 a asks yes, 0 a fails no, 1 b asks yes, 1 b fails no"
OPENED = f"{TWO_FAIL}, 2 c asks yes, 2 c fails yes"
LATER = "4 a asks yes, 4 a fails no, 5 b asks yes, 5 b fails no, 6 c asks yes, 6 c fails yes"
TABLES = {
    "three failures in a row open it": f"{OPENED}, 2.499 d asks no, 2.5 d asks yes",
    "a success between failures starts the count again": (
        f"{TWO_FAIL}, 1 s asks yes, 1 s succeeds yes, {TWO_FAIL}, 2 c asks yes, 2 c fails yes"
    ),
    "one probe is on its way at a time": f"{OPENED}, 2.5 d asks yes, 2.5 e asks no, 9 e asks no",
    "a probe that succeeds closes it for everybody": (
        f"{OPENED}, 2.5 d asks yes, 2.6 d succeeds yes, 2.6 e asks yes, 2.6 f asks yes"
    ),
    "a probe that fails opens it for twice as long, 2 s at most, and says nothing new": (
        f"{OPENED}, 2.5 d asks yes, 2.75 d fails no, 3.749 e asks no, 3.75 e asks yes, "
        "3.75 e fails no, 5.749 f asks no, 5.75 f asks yes, 5.75 f fails no, 7.749 g asks no, "
        "7.75 g asks yes"
    ),
    "a probe that went away leaves its place to the next": (
        f"{OPENED}, 2.5 d asks yes, 2.6 d goes, 2.6 e asks yes, 2.6 f asks no, 2.7 e succeeds yes"
    ),
    "what was under way together fails as one": (
        "0 a asks yes, 0 b asks yes, 0 c asks yes, 0.2 a fails no, 0.2 b fails no, 0.2 c fails no, "
        "0.2 d asks yes"
    ),
    "a success from before it opened does not close it": (
        f"0 x asks yes, {OPENED}, 2.1 x succeeds no, 2.2 d asks no"
    ),
    "a failure from before it closed does not count": (
        f"{TWO_FAIL}, 2 x asks yes, 2 c asks yes, 2 c fails yes, 2.5 d asks yes, "
        "2.6 d succeeds yes, 2.7 x fails no, 2.7 e asks yes, 2.7 e fails no, 2.7 f asks yes, "
        "2.7 f fails no, 2.7 g asks yes"
    ),
    "after it closed it takes three failures again, and the pause is short again": (
        f"{OPENED}, 2.5 d asks yes, 2.5 d fails no, 3.5 e asks yes, 3.5 e succeeds yes, {LATER}, "
        "6.499 f asks no, 6.5 f asks yes"
    ),
    "one who went away while it was closed changes nothing": (
        f"{TWO_FAIL}, 2 x asks yes, 2 x goes, 2 c asks yes, 2 c fails yes"
    ),
}


@table("table", TABLES)
def test_tables(table: str) -> None:
    """Each table behaves as its heading says."""
    breaker, tickets = Breaker(), dict[str, int | None]()
    for step in TABLES[table].split(", "):
        now, who, does, *said = step.split()
        if does == "asks":
            tickets[who] = breaker.admit(partial(float, now))
            found: object = tickets[who] is not None
        else:
            ticket = tickets[who]
            assert ticket is not None
            found = {
                "fails": partial(breaker.failed, ticket, float(now)),
                "succeeds": partial(breaker.succeeded, ticket),
                "goes": partial(breaker.abandoned, ticket),
            }[does]()
        assert found is (said[0] == "yes" if said else None), step


SLACK = 0.2
"""Seconds that a busy machine may add to a deadline, beside the pauses that it makes."""
Heal = Callable[[], Any]


async def timed(
    limiter: Limiter, user: int, pauses: Pauses | None = None
) -> tuple[Decision, float]:
    """A decision, and how many seconds it took without those in which the machine paused."""
    asked, paused = monotonic(), pauses.total if pauses else 0.0
    decision = await limiter.hit("3/minute", Subject(user=user))
    return decision, monotonic() - asked - (pauses.total - paused if pauses else 0.0)


async def decided_again(limiter: Limiter, clock: Clock | None = None, *, within: float) -> None:
    """Send updates until Redis decides about one."""
    async with asyncio.timeout(within):
        while (await timed(limiter, 7))[0].source != "redis":
            if clock is not None:
                clock.move(0.01)
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "outage", ["hung", "killed", "silent from the start", "never there", "out of memory"]
)
async def test_no_decision_exceeds_the_timeout(own_server: Server, outage: str) -> None:
    """Whatever is wrong with Redis, each decision is in time, alone or with others."""
    async with failing(own_server, outage) as (client, heal):
        clock = Clock()
        limiter = Limiter(RedisStorage(client), timeout=0.1, clock=clock)
        with Pauses() as pauses:
            found = [await timed(limiter, user, pauses) for user in range(10)]
            clock.move(LONGEST_PAUSE)
            found += await asyncio.gather(*(timed(limiter, user, pauses) for user in range(50)))
        assert {(d.allowed, d.source, d.remaining) for d, _ in found} == {(True, "policy", 3)}
        assert max(seconds for _, seconds in found) < 0.1 + SLACK
        if heal is None:
            return
        await (heal() or asyncio.sleep(0))
        limiter.timeout = 1
        await decided_again(limiter, clock, within=3)
        healed = [(await timed(limiter, 99))[0] for _ in range(4)]
        assert [each.allowed for each in healed] == [True, True, True, False]
        assert {each.source for each in healed} == {"redis"}


@pytest.mark.parametrize("together", [False, True], ids=["one by one", "all at once"])
async def test_two_hundred_updates_while_redis_hangs(own_server: Server, together: bool) -> None:
    """All are handled within 0.6 s each and 3 s in total; limits work 6 s after the return."""
    async with failing(own_server, "hung") as (client, _):
        limiter = Limiter(RedisStorage(client))
        began = monotonic()
        with Pauses() as pauses:
            if together:
                asking = (timed(limiter, user % 20, pauses) for user in range(200))
                found = await asyncio.gather(*asking)
            else:
                found = [await timed(limiter, user % 20, pauses) for user in range(200)]
        assert monotonic() - began < 3
        assert all(decision.allowed for decision, _ in found)
        assert max(seconds for _, seconds in found) < 0.6
        own_server.resume()
        await decided_again(limiter, within=6)
        limiter.timeout = TIMEOUT
        decisions = [(await timed(limiter, 8))[0] for _ in range(4)]
    assert [decision.allowed for decision in decisions] == [True, True, True, False]


@pytest.mark.parametrize("away", [0.05, 1.0])
async def test_a_blocked_loop_loses_no_answer(client: aioredis.Redis, away: float) -> None:
    """A handler that blocks the event loop does not make an answer late."""
    limiter = Limiter(RedisStorage(client))
    await limiter.hit("1/s", Subject(user=0))
    asked = [asyncio.create_task(limiter.hit("9/s", Subject(user=i))) for i in range(40)]
    await asyncio.sleep(0)
    time.sleep(away)  # noqa: ASYNC251 - that is what is tested
    asked += [asyncio.create_task(limiter.hit("9/s", Subject(user=i))) for i in range(40)]
    assert {decision.source for decision in await asyncio.gather(*asked)} == {"redis"}
    await limiter.close()


@pytest.mark.parametrize("turns", [0, 1, 3, 5])
@pytest.mark.parametrize("connect_timeout", [5, 0.3])
async def test_a_loop_that_is_blocked_while_connecting_loses_no_decision(
    client: aioredis.Redis, turns: int, connect_timeout: float
) -> None:
    """A bot that loads its data at the start, after it began to connect, is limited at once.

    If that takes longer than connecting may take, the attempt to connect is repeated.
    """
    limiter = Limiter(RedisStorage(client, connect_timeout=connect_timeout), timeout=0.25)
    limiter.open()
    for _ in range(turns):
        await asyncio.sleep(0)
    time.sleep(0.6)  # noqa: ASYNC251 - that is what is tested
    assert (await limiter.hit("9/s", Subject(user=1))).source == "redis"
    await limiter.close()


async def test_a_loop_that_is_busy_in_every_turn_loses_no_answer(client: aioredis.Redis) -> None:
    """Other tasks that take 60 ms per turn delay decisions but do not replace them."""
    limiter = Limiter(RedisStorage(client))
    await decided_again(limiter, within=3)  # connecting takes twenty turns or more
    found, done = [], False

    async def work() -> None:
        while not done:
            time.sleep(0.06)  # noqa: ASYNC251 - that is what is tested
            await asyncio.sleep(0)

    working = asyncio.create_task(work())
    for _ in range(4):
        found += await asyncio.gather(*(limiter.hit("9/s", Subject(user=i)) for i in range(20)))
    done = True
    await working
    assert [decision.source for decision in found] == ["redis"] * 80
    await limiter.close()


async def test_time_of_a_blocked_loop_does_not_count(own_server: Server) -> None:
    """It neither counts against waiting requests nor extends the time-out of later ones."""
    async with aioredis.Redis(port=own_server.port) as client:
        limiter = Limiter(RedisStorage(client), timeout=0.1)
        await limiter.hit("1/s", Subject(user=0))
        own_server.hang()
        before = asyncio.create_task(limiter.hit("1/s", Subject(user=1)))
        await asyncio.sleep(0)
        time.sleep(1)  # noqa: ASYNC251 - that is what is tested
        asked = time.monotonic()
        after = await limiter.hit("1/s", Subject(user=2))
        assert after.source == (await before).source == "policy"
        assert time.monotonic() - asked < 1  # the blocked second is not added to its time-out
        own_server.resume()
        await limiter.close()


@pytest.mark.parametrize(("round_trip", "jitter"), [(0.02, 0), (0.06, 0.05), (0.18, 0)])
async def test_a_distant_redis_decides(
    redis_server: Server, client: aioredis.Redis, round_trip: float, jitter: float
) -> None:
    """Within 3 s of the first update Redis decides everything, also many at once, exactly."""
    with distant(redis_server.port, round_trip, jitter) as proxy:
        limiter = Limiter(RedisStorage(aioredis.Redis(port=proxy.port), close_client=True))
        await decided_again(limiter, within=3)
        found = [await limiter.hit("99/s", Subject(user=2)) for _ in range(5)]
        users = [Subject(user=100 + i % 100) for i in range(1_000)]
        crowd = await asyncio.gather(*(limiter.hit("7/m", user) for user in users))
        assert {decision.source for decision in (*found, *crowd)} == {"redis"}
        assert sum(decision.allowed for decision in crowd) == 700
        await limiter.close()


async def test_a_storm(own_server: Server) -> None:
    """With cancellations, killed connections and flushed scripts every answer is right."""
    total, users = 20_000, 50
    chaos = random.Random(1)
    asked = dict.fromkeys(range(users), 0)
    remaining: dict[int, list[int]] = {user: [] for user in range(users)}
    amounts = {user: 10_000 * (user + 1) for user in range(users)}

    async with aioredis.Redis(port=own_server.port) as client:
        storage = RedisStorage(client)
        admin = aioredis.Redis(port=own_server.port, client_name="admin")

        async def one(user: int) -> None:
            asked[user] += 1
            rule: Count = charge(f"{amounts[user]}/h", f"{user}")
            (verdict,) = await storage.ask(Ask([rule]), timeout=TIMEOUT)
            remaining[user].append(verdict.remaining)

        async def disturb() -> None:
            while not done:  # redis-py may swallow a cancellation
                await asyncio.sleep(0.02)
                await admin.script_flush()
                await asyncio.sleep(0.02)
                for each in await admin.client_list():
                    if each["name"] != "admin":
                        await admin.client_kill_filter(_id=each["id"])

        done = False
        disturbing = asyncio.create_task(disturb())
        for _ in range(total // 200):
            tasks = [asyncio.create_task(one(chaos.randrange(users))) for _ in range(200)]
            for task in chaos.sample(tasks, 66):
                asyncio.get_running_loop().call_later(chaos.random() * 0.004, task.cancel)
            await asyncio.gather(*tasks, return_exceptions=True)
        done = True
        await disturbing

        for user in range(users):
            counted = int(await client.get(f"bot:ratelimit:{user}"))
            answers = remaining[user]
            assert len(answers) == len(set(answers)), "two hits got the same place"
            assert answers == sorted(answers, reverse=True), "answers came out of order"
            assert len(answers) <= counted <= asked[user], "a hit was charged twice, or not at all"
            assert all(amounts[user] - counted <= left < amounts[user] for left in answers)
        assert sum(map(len, remaining.values())) > total / 3
        await admin.aclose()
        await storage.close()


@asynccontextmanager
async def failing(server: Server, outage: str) -> AsyncIterator[tuple[aioredis.Redis, Heal | None]]:
    """A client of a server that cannot answer, and what heals it."""
    async with black_hole() as silent:
        port = {"silent from the start": silent, "never there": free_port()}.get(outage)
        async with aioredis.Redis(port=port or server.port) as client:
            if port is None:
                await client.ping()
            if outage == "hung":
                server.hang()
            elif outage == "killed":
                server.kill()
            elif outage == "out of memory":
                await client.config_set("maxmemory", 1)
            heals: dict[str, Heal] = {
                "hung": server.resume,
                "killed": server.start,
                "out of memory": lambda: client.config_set("maxmemory", 0),
            }
            yield client, heals.get(outage)


@pytest.mark.parametrize("refuses", [False, True])
async def test_an_outage_ends_without_updates(
    monkeypatch: pytest.MonkeyPatch, refuses: bool
) -> None:
    """A quiet bot asks once in a while until the storage answers, and then no more; a refusal is an
    answer, too."""
    monkeypatch.setattr("bot_ratelimit.limiter.health.WATCH_EVERY", 0.01)
    storage = FlakyStorage()
    limiter = Limiter(storage)
    storage.fail()
    for _ in range(3):
        await limiter.hit("9/s", Subject(user=42))
    assert (await limiter.health()).problem == "out of reach"
    refusal = ConfigError("NOPERM")
    refusal.kind = "noperm"
    storage.fail(refusal) if refuses else storage.heal()
    await eventually(lambda: limiter.decider.guard.servers()["memory"].outage() is None)
    assert (await limiter.health()).problem == ("NOPERM" if refuses else "")
    asked = storage.calls
    await asyncio.sleep(0.05)
    assert storage.calls <= asked + 1
    await limiter.close()


async def test_a_closed_limiter_asks_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if something that was left behind fails afterwards, or another part of the bot does; an
    outage that an other part has found is its own to watch."""
    monkeypatch.setattr("bot_ratelimit.limiter.health.WATCH_EVERY", 0.01)

    class Shared(FlakyStorage):
        key_space = "the same server"

    closed, other = Shared(), Shared()
    gone, limiter = Limiter(closed), Limiter(other)
    for each in (gone, limiter):
        each.open()
        await eventually(lambda each=each: not each._watch._starts)
        each.storage.fail()
        await each.hit("9/s", Subject(user=42))
    await gone.close()
    await gone.hit("9/s", Subject(user=42))
    for _ in range(3):
        await limiter.hit("9/s", Subject(user=42))
    asked = closed.calls, other.calls
    await eventually(lambda: other.calls > asked[1])
    assert closed.calls == asked[0]
    await limiter.close()
