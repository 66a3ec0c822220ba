"""RedisStorage behind Sentinel: three real sentinels, a primary and a replica."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import redis.asyncio as aioredis
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError

from bot_ratelimit import Limiter, RedisStorage, StorageError, Subject
from bot_ratelimit.storage.base import Ask
from bot_ratelimit.storage.redis import driver
from bot_ratelimit.storage.redis import sentinel as sentinels
from tests.benches import TIMEOUT, charge
from tests.proxy import distant
from tests.servers import wait_until
from tests.tables import table
from tests.topologies import SERVICE, Sentinels, running_sentinels

BACK_WITHIN = 2.0
"""Seconds from the sentinels' own decision until Redis decides about hits again."""


def slack() -> float:
    """Seconds that the machine may add: half a second, times the processes for each processor."""
    return 0.5 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Sentinels]:
    with running_sentinels(tmp_path) as group:
        yield group


CLIENTS: dict[str, Callable[[Sentinel], aioredis.Redis]] = {
    "text": lambda sentinel: sentinel.master_for(SERVICE, decode_responses=True),
    "RESP2": lambda sentinel: sentinel.master_for(SERVICE, protocol=2),
    "RESP3": lambda sentinel: sentinel.master_for(SERVICE, protocol=3),
    "time-outs": lambda sentinel: sentinel.master_for(SERVICE, socket_timeout=0.1),
    "from_pool": lambda sentinel: aioredis.Redis.from_pool(
        SentinelConnectionPool(SERVICE, sentinel, health_check_interval=1, check_connection=True)
    ),
}


@asynccontextmanager
async def limiters(group: Sentinels) -> AsyncIterator[dict[str, Limiter]]:
    """One for each kind of client, all connected."""
    async with AsyncExitStack() as stack:
        found: dict[str, Limiter] = {}
        for protocol in (2, 3):
            sentinel = Sentinel(group.addresses, sentinel_kwargs={"protocol": protocol})
            for each in sentinel.sentinels:
                stack.push_async_callback(each.aclose)
            for kind, make in CLIENTS.items():
                storage = RedisStorage(make(sentinel), close_client=True)
                limiter = found[f"{kind}, sentinels by RESP{protocol}"] = Limiter(storage)
                stack.push_async_callback(limiter.close)
        assert await asyncio.wait_for(asyncio.gather(*map(returned, found.values())), 3)
        yield found


async def returned(limiter: Limiter) -> float:
    """The time at which Redis decides about a hit again, under constant updates."""
    while (await limiter.hit("1000/s", Subject(user=7))).source != "redis":  # noqa: ASYNC110 - updates come
        await asyncio.sleep(0.02)
    return monotonic()


def decided(group: Sentinels) -> float:
    """Wait until the sentinels name the replica as the primary; return the time."""
    ask = partial(group.says, group.sentinels[-1].port, "GET-MASTER-ADDR-BY-NAME", SERVICE)
    wait_until(lambda: int(ask()[1]) == group.replica.port, "the failover", 15)
    return monotonic()


@pytest.mark.parametrize("first_sentinel", ["well", "kill", "hang"])
@pytest.mark.parametrize("primary", ["kill", "hang"])
async def test_a_failover_is_followed(group: Sentinels, primary: str, first_sentinel: str) -> None:
    """Redis decides again within 2 s of the sentinels' decision, for every kind of client."""
    async with limiters(group) as asked:
        if first_sentinel != "well":
            getattr(group.sentinels[0], first_sentinel)()
        getattr(group.primary, primary)()
        watching = asyncio.create_task(asyncio.to_thread(decided, group))

        async def ask(limiter: Limiter) -> float:
            while not watching.done():  # updates continue, so that circuits open
                await limiter.hit("1000/s", Subject(user=7))
                await asyncio.sleep(0.05)
            return await returned(limiter)

        async with asyncio.timeout(20):
            back = dict(zip(asked, await asyncio.gather(*map(ask, asked.values())), strict=True))
        took = {kind: round(at - watching.result(), 2) for kind, at in back.items()}
        assert max(took.values()) < BACK_WITHIN + slack(), took
        async with aioredis.Redis(port=group.replica.port) as promoted:
            assert await promoted.exists("bot:ratelimit:1000/s:7", "bot:ratelimit:7")


@table("resp", [2, 3])
def test_what_a_sentinel_says_of_the_primary(resp: int) -> None:
    """A promoted replica is the primary at once, also while the sentinel still waits for the other
    replicas to follow it. One that sees too few others is not believed: it may be on the smaller
    side of a divided network."""
    flags = "s_down,o_down,master,failover_in_progress"
    fields = f"ip 127.0.0.1 port 6379 flags {flags} num-other-sentinels 2 config-epoch 4"
    reply: Any = fields.encode().split()
    if resp == 3:
        reply = dict(zip(reply[::2], reply[1::2], strict=True))
    before = sentinels.read_primary(reply, [b"127.0.0.1", b"6379"], 2)
    promoted = sentinels.read_primary(reply, [b"127.0.0.1", b"6380"], 2)
    assert before.address == ("127.0.0.1", 6379)
    assert promoted.address == ("127.0.0.1", 6380)
    assert max(before, promoted) == promoted
    with pytest.raises(RedisConnectionError, match="sees too few other sentinels"):
        sentinels.read_primary(reply, [b"127.0.0.1", b"6379"], 3)


async def test_an_attempt_is_given_up_when_there_is_another_primary(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A connection to the primary that hangs is no longer opened; the other one is taken."""
    monkeypatch.setattr(sentinels, "CHECK_EVERY", 0.01)
    primaries = iter([("old", 1), ("new", 2), ("new", 2)])
    given_up: list[bool] = []

    async def primary(self: object) -> tuple[str, int]:
        return next(primaries)

    async def open_wire(connection: object, connect: Any) -> Any:
        if connect.args == (("old", 1),):
            try:
                await asyncio.Event().wait()
            finally:
                given_up.append(True)
        return "the wire"

    monkeypatch.setattr(sentinels.SentinelEndpoint, "_primary", primary)
    monkeypatch.setattr(driver, "open_wire", open_wire)
    pool = Sentinel([("localhost", 1)]).master_for("shop").connection_pool
    assert await sentinels.SentinelEndpoint(pool, 5).connect() == "the wire"
    await asyncio.sleep(0)
    assert given_up


async def test_a_readonly_connection_is_replaced(group: Sentinels) -> None:
    """A server that became a replica is not asked again on the same connection."""
    sentinel = Sentinel(group.addresses)
    storage = RedisStorage(sentinel.master_for(SERVICE, client_name="ours"), close_client=True)
    one = Ask([charge("9/minute sliding")])
    async with aioredis.Redis(port=group.primary.port) as admin:

        async def ours() -> list[str]:
            return [each["id"] for each in await admin.client_list() if each["name"] == "ours"]

        await storage.ask(one, timeout=TIMEOUT)
        (before,) = await ours()
        await admin.replicaof("127.0.0.1", group.replica.port)
        with pytest.raises(StorageError, match="READONLY"):
            await storage.ask(one, timeout=TIMEOUT)
        async with asyncio.timeout(5):
            while before in await ours():  # noqa: ASYNC110 - the server learns of it when it reads
                await asyncio.sleep(0.005)
    await storage.close()


async def test_sentinels_may_be_far_away(group: Sentinels) -> None:
    """A fifth of a second away, each with a password or not, they tell the primary all the same."""
    with ExitStack() as stack:
        far = [stack.enter_context(distant(port, round_trip=0.2)) for _, port in group.addresses]
        limiter = Limiter(
            RedisStorage(
                Sentinel([("127.0.0.1", each.port) for each in far]).master_for(SERVICE),
                close_client=True,
            )
        )
        assert await asyncio.wait_for(returned(limiter), 8)
        await limiter.close()


async def reason(addresses: list[tuple[str, int]], service: str = SERVICE, **kwargs: Any) -> str:
    """Why a hit fails; empty if it does not."""
    sentinel = Sentinel(addresses, sentinel_kwargs=kwargs)
    storage = RedisStorage(sentinel.master_for(service))
    try:
        await storage.ask(Ask([charge("9/minute")]), timeout=TIMEOUT)
    except StorageError as error:
        return str(error)
    else:
        return ""
    finally:
        await storage.close()


async def test_errors_of_the_sentinels_are_explained(tmp_path: Path) -> None:
    """A wrong service name or sentinel password is reported with its fix; sentinels that cannot be
    reached are named, with the real reason."""
    with running_sentinels(tmp_path, "s3cret") as group:
        assert not await reason(group.addresses, password="s3cret")
        unknown = await reason(group.addresses, "shoop", password="s3cret")
        for part in ("'shoop'", "No such master with that name", "check the service name"):
            assert part in unknown
        for wrong in ({"password": "wr0ng"}, {}):
            text = await reason(group.addresses, **wrong)
            assert f"127.0.0.1:{group.addresses[0][1]}" in text
            assert "sentinel_kwargs" in text
            assert "wr0ng" not in text
    unreachable = await reason([("127.0.0.1", 1), ("nowhere.invalid", 26379)])
    for part in ("127.0.0.1:1", "Connection refused", "nowhere.invalid:26379"):
        assert part in unreachable
