"""RedisStorage on a Redis Cluster of one node that owns every slot."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

import pytest
import redis.asyncio as aioredis
from redis.asyncio.cluster import RedisCluster

from bot_ratelimit import ConfigError, Limiter, RedisStorage, StorageError, Subject
from bot_ratelimit.storage.base import Ask, Op
from bot_ratelimit.storage.redis import cluster as shards
from tests.benches import TIMEOUT, charge, eventually, reset
from tests.recorder import Recorder
from tests.servers import Server, free_port, running_cluster

RULES = "3/minute; 9/h sliding"


@pytest.fixture(scope="module")
def one_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One node for all tests, because a new one takes two seconds to start."""
    with running_cluster(tmp_path_factory.mktemp("cluster")) as server:
        yield server


@pytest.fixture
def node(one_node: Server) -> Iterator[Server]:
    yield one_node
    one_node.resume()


@pytest.fixture
async def cluster(node: Server) -> AsyncIterator[RedisCluster]:
    async with RedisCluster(host="127.0.0.1", port=node.port) as cluster:
        await cluster.flushall()
        yield cluster


async def test_single_rules_need_no_hash_tag(cluster: RedisCluster) -> None:
    """Single rules are decided wherever their keys are."""
    limiter = Limiter(RedisStorage(cluster), timeout=TIMEOUT)
    users = [Subject(user=i % 20) for i in range(100)]
    decisions = await asyncio.gather(*(limiter.hit("3/minute", user) for user in users))
    for user in range(20):
        found = [decision.allowed for decision in decisions[user::20]]
        assert (len(found), sum(found)) == (5, 3)
    assert {decision.source for decision in decisions} == {"redis"}
    assert await limiter.reset("3/minute", users[0])
    assert (await limiter.peek("3/minute", users[0])).remaining == 3


async def test_several_rules_need_a_hash_tag(cluster: RedisCluster) -> None:
    """With a prefix in braces, all keys of a bot are in one slot, and once tokens too."""
    limiter = Limiter(RedisStorage(cluster), key_prefix="{bot}", timeout=TIMEOUT)
    found = [await limiter.hit(RULES, Subject(user=7), once=f"u{i}") for i in range(4)]
    assert [(d.allowed, d.source) for d in found] == [(True, "redis")] * 3 + [(False, "redis")]
    assert not (await limiter.hit(RULES, Subject(user=7), once="u3")).allowed
    assert await limiter.reset(RULES, Subject(user=7))


async def test_without_a_hash_tag_the_error_says_what_to_do(cluster: RedisCluster) -> None:
    """Keys in several slots cannot be decided together; the error says how to fix it."""
    storage = RedisStorage(cluster)
    charges = [charge("3/minute", "7"), charge("9/h", "9/h:7")]
    for once, several in ((None, charges), ("bot:ratelimit:once:a", charges[:1])):
        with pytest.raises(ConfigError, match=r"hash tag into key_prefix, for example '\{bot\}'"):
            await storage.ask(Ask(several, once=once), timeout=TIMEOUT)
    assert (await storage.ask(Ask(charges[:1], Op.PEEK), timeout=TIMEOUT))[0].remaining == 3


async def test_a_flushed_script_is_loaded_again(node: Server, cluster: RedisCluster) -> None:
    """A node that lost the script also charges a hit once."""
    storage = RedisStorage(cluster)
    async with aioredis.Redis(port=node.port) as client:
        for remaining in (8, 7):
            await client.script_flush()
            (verdict,) = await storage.ask(Ask([charge("9/minute")]), timeout=TIMEOUT)
            assert verdict.remaining == remaining


async def test_the_cluster_clients_own_retries_are_not_used(node: Server) -> None:
    """A hit whose answer did not arrive in time is charged at most once."""
    async with (
        RedisCluster(host="127.0.0.1", port=node.port, socket_timeout=0.05) as cluster,
        aioredis.Redis(port=node.port) as client,
    ):
        await client.flushall()
        storage = RedisStorage(cluster)
        await storage.ask(Ask([charge("9/minute")]), timeout=TIMEOUT)
        node.hang()
        # Between the time-out of the first attempt and that of the client's next attempt.
        asyncio.get_running_loop().call_later(0.075, node.resume)
        with suppress(StorageError):
            await storage.ask(Ask([charge("9/minute")]), timeout=TIMEOUT)
        await asyncio.sleep(0.1)
        assert int(await client.get("bot:ratelimit:42")) <= 2


async def test_a_hung_cluster_is_an_outage(node: Server, cluster: RedisCluster) -> None:
    """The time-out also applies to a cluster."""
    storage = RedisStorage(cluster)
    await storage.ask(Ask([charge("9/minute")]), timeout=TIMEOUT)
    node.hang()
    async with asyncio.timeout(0.5):
        found = await asyncio.gather(
            *(storage.ask(Ask([charge("9/m", f"{i}")]), timeout=0.1) for i in range(20)),
            return_exceptions=True,
        )
    assert {type(each) for each in found} == {StorageError}
    node.resume()
    assert (await storage.ask(Ask([charge("9/minute")]), timeout=TIMEOUT))[0].wait == 0


async def test_an_unreachable_cluster_is_an_outage() -> None:
    """Unreachable nodes are an outage, not a configuration error."""
    cluster = RedisCluster(host="127.0.0.1", port=free_port())
    storage = RedisStorage(cluster)
    for _ in range(2):
        with pytest.raises(StorageError, match=r"Connection refused.*check that Redis is running"):
            await storage.ask(Ask([charge("9/minute")]), timeout=TIMEOUT)
    await cluster.aclose()


async def test_a_cluster_without_slots_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that is being set up has no slots yet: it is asked again, by the given nodes."""
    asked: list[str] = []

    async def no_slots(connection: shards.Connection) -> tuple[list[object], shards.Connection]:
        asked.append(connection.name)
        return [], connection

    monkeypatch.setattr(shards, "REFRESH_EVERY", 0.01)
    monkeypatch.setattr(shards, "_slots", no_slots)
    port = free_port()
    storage = RedisStorage(RedisCluster(host="127.0.0.1", port=port))
    storage.open()
    await eventually(lambda: len(asked) >= 3)
    with pytest.raises(StorageError, match="Connection refused"):
        await storage.ask(Ask([charge("9/minute")]), timeout=TIMEOUT)
    assert set(asked) == {f"127.0.0.1:{port}"}
    await storage.close()


async def test_reset_needs_no_hash_tag(cluster: RedisCluster) -> None:
    """Each key is deleted on its own node, also if several rules are reset."""
    storage = RedisStorage(cluster)
    charges = [charge("3/minute", "7"), charge("9/h", "9/h:7"), charge("9/h sliding", "s:7")]
    for one in charges:
        await storage.ask(Ask([one]), timeout=TIMEOUT)
    assert await reset(storage, *charges) == 3
    assert await reset(storage, *charges) == 0


async def test_a_cluster_reports_its_nodes_and_keeps_statistics(
    cluster: RedisCluster, node: Server
) -> None:
    """Nodes are named in the status; the statistics of an hour share a slot."""
    async with aioredis.Redis(port=node.port) as client:  # a lone node does not know its address
        await client.config_set("cluster-announce-ip", "127.0.0.1")
    recorder = Recorder()
    storage = RedisStorage(cluster)
    limiter = Limiter(storage, timeout=TIMEOUT, observer=recorder, statistics=True)
    for i in range(20):
        await limiter.hit("1/minute", Subject(user=i % 10))
    health = await limiter.check()
    assert health.ok
    (server,) = health.servers
    assert server.connected
    assert sum(each.count for each in await limiter.statistics()) == 20
    assert sum(each.count for each in await limiter.top_refused(100)) == 20 - 10
    told = {event[1] for event in recorder.named("connected")}
    assert told == {server.name for server in health.servers}
    assert sum(event[2] for event in recorder.named("batch_answered")) >= 20
    await limiter.close()
    assert {event[1] for event in recorder.named("closed")} == told
