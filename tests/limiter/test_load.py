"""A live Redis is never mistaken for dead: floods, busy event loops, distance, storms."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis.asyncio as aioredis

from bot_ratelimit import Limiter, RateLimitMiddleware, RedisStorage, Settings, Subject
from bot_ratelimit.storage.base import Ask, Count
from tests.benches import TIMEOUT, charge
from tests.incoming.support import Instance, message
from tests.proxy import distant
from tests.servers import Server

BURN = "import time\nend = time.time() + 60\nwhile time.time() < end: pass"


@contextmanager
def busy_machine(processes: int) -> Iterator[None]:
    """Run processes that only compute, while the block runs."""
    burning = [subprocess.Popen([sys.executable, "-c", BURN]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in burning:
            process.kill()
            process.wait()


@pytest.mark.parametrize("burning", [0, 3], ids=["idle", "busy"])
async def test_a_flood_is_limited_exactly(client: aioredis.Redis, burning: int) -> None:
    """Of 1,000 updates of one user at once exactly the limit is handled, on a busy machine too."""
    bot = Instance(RateLimitMiddleware("3/minute", client))
    with busy_machine(burning):
        found = await asyncio.gather(*(bot.feed(message=message()) for _ in range(1_000)))
    assert len(found) - found.count(None) == 3
    await bot.dispatcher.emit_shutdown()


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
    await decided(limiter)  # connecting takes twenty turns or more, which is no late answer
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


async def decided(limiter: Limiter) -> None:
    """Send updates until Redis decides about one."""
    async with asyncio.timeout(3):
        while (await limiter.hit("99/s", Subject(user=1))).source != "redis":  # noqa: ASYNC110 - updates come
            await asyncio.sleep(0.01)


CLIENTS: dict[str, Any] = {
    "Redis": lambda port: aioredis.Redis(port=port),
    "from_url": lambda port: aioredis.Redis.from_url(f"redis://127.0.0.1:{port}"),
    "Settings": lambda port: Settings(redis_host="127.0.0.1", redis_port=port).redis_client(),
}


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("kind", CLIENTS)
@pytest.mark.parametrize(("round_trip", "jitter"), [(0.06, 0.05), (0.18, 0)])
async def test_a_distant_redis_decides(
    redis_server: Server, client: aioredis.Redis, kind: str, round_trip: float, jitter: float
) -> None:
    """Within 3 s of the first update Redis decides everything, also many at once, exactly."""
    with distant(redis_server.port, round_trip, jitter) as proxy:
        far = CLIENTS[kind](proxy.port)
        limiter = Limiter(RedisStorage(far))
        await decided(limiter)
        found = [await limiter.hit("99/s", Subject(user=2)) for _ in range(5)]
        users = [Subject(user=100 + i % 100) for i in range(1_000)]
        crowd = await asyncio.gather(*(limiter.hit("7/m", user) for user in users))
        assert {decision.source for decision in (*found, *crowd)} == {"redis"}
        assert sum(decision.allowed for decision in crowd) == 700
        await limiter.close()
        await far.aclose()


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
