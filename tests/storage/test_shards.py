"""RedisStorage on a Redis Cluster of three nodes: failures of one shard, and moving slots."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Any, cast

import pytest
import redis.asyncio as aioredis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.crc import key_slot

from bot_ratelimit import ConfigError, Limiter, RedisStorage, StorageError, Subject
from bot_ratelimit.storage.base import Ask
from bot_ratelimit.storage.redis import cluster as shards
from tests.benches import TIMEOUT, charge
from tests.proxy import distant
from tests.recorder import Recorder
from tests.servers import Server, free_port
from tests.topologies import Cluster, running_nodes, wait_until

USERS = range(60)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_nodes(tmp_path_factory.mktemp("nodes")) as cluster:
        yield cluster


@pytest.fixture
def cluster(nodes: Cluster) -> Iterator[Cluster]:
    """Three nodes, empty and healthy, with their original slots."""
    yield nodes
    for node in nodes.nodes:
        node.resume()
    for node in nodes.nodes:
        wait_until(lambda node=node: nodes.do(node, "PING"), "the node answers")  # type: ignore[misc]  # a default for a loop's variable
        nodes.do(node, "FLUSHALL")
        nodes.do(node, "CONFIG RESETSTAT")
    for slot in SLOTS:
        source = nodes.owner(slot)
        for node in nodes.nodes:
            nodes.do(node, "CLUSTER SETSLOT", slot, "STABLE")
        for node in (source, *nodes.nodes):
            nodes.do(node, "CLUSTER SETSLOT", slot, "NODE", nodes.ids[source.port])
    for node in nodes.nodes:
        wait_until(lambda node=node: nodes.is_healthy(node), "all nodes see each other")  # type: ignore[misc]  # a default for a loop's variable


def key(user: int) -> str:
    return f"bot:ratelimit:{user}"


SLOTS = sorted({key_slot(key(user).encode()) for user in USERS})


@asynccontextmanager
async def limiting(nodes: Cluster, **options: Any) -> AsyncIterator[Limiter]:
    """A limiter whose client knows only the first node."""
    client = RedisCluster(host="127.0.0.1", port=nodes.primaries[0].port, **options)
    limiter = Limiter(RedisStorage(client, close_client=True))
    try:
        yield limiter
    finally:
        await limiter.close()


async def connected(limiter: Limiter) -> None:
    """A limiter that has decided on every shard."""
    async with asyncio.timeout(5):
        while True:
            found = await asyncio.gather(
                *(limiter.hit("99/m", Subject(user=user)) for user in range(100, 160))
            )
            if {each.source for each in found} == {"redis"}:
                return
            await asyncio.sleep(0.02)


def on(nodes: Cluster, node: Server) -> list[int]:
    """Users whose keys are on this node."""
    return [user for user in USERS if nodes.owner(key_slot(key(user).encode())) is node]


def total(nodes: Cluster, user: int) -> int:
    """The count of a user, on whichever node it is."""
    counts = []
    for node in nodes.nodes:
        with suppress(Exception):  # MOVED: it is not there
            counts.append(int(nodes.do(node, "GET", key(user)) or 0))
    return sum(counts)


def redirects_by(nodes: Cluster, node: Server) -> int:
    """How often a node has redirected, at least once."""
    return int(nodes.do(node, "INFO", "errorstats")["errorstat_MOVED"]["count"])


async def test_limits_hold_from_the_first_hit(cluster: Cluster) -> None:
    """A new storage that knows one node decides for all users, exactly."""
    async with limiting(cluster) as limiter:
        limiter.timeout = 2
        found = await asyncio.gather(
            *(limiter.hit("3/minute", Subject(user=user)) for _ in range(5) for user in USERS)
        )
    assert {each.source for each in found} == {"redis"}
    for i, user in enumerate(USERS):
        assert sum(each.allowed for each in found[i :: len(USERS)]) == 3
        assert total(cluster, user) == 5


@pytest.mark.parametrize("harm", ["hang", "kill"])
async def test_shards_fail_independently(cluster: Cluster, harm: str) -> None:
    """While a node is dead or hangs, users on other shards are limited normally."""
    victim, *well = cluster.primaries
    async with limiting(cluster) as limiter:
        await connected(limiter)
        getattr(victim, harm)()
        sources: dict[int, list[str]] = {user: [] for user in USERS}

        async def ask(user: int) -> None:
            sources[user].append((await limiter.hit("99/m", Subject(user=user))).source)

        began = monotonic()
        while monotonic() < began + 4:
            await asyncio.gather(*map(ask, USERS))
            await asyncio.sleep(0.05)
        for node in well:
            for user in on(cluster, node):
                assert set(sources[user]) == {"redis"}
        assert {sources[user][-1] for user in on(cluster, victim)} == {"policy"}
        victim.resume() if harm == "hang" else victim.start()
        async with asyncio.timeout(6):
            while sources[on(cluster, victim)[0]][-1] != "redis":
                await asyncio.gather(*map(ask, USERS))
                await asyncio.sleep(0.02)


async def test_a_slot_that_moved_is_followed(cluster: Cluster) -> None:
    """MOVED is followed: no hit is lost or counted twice, and the next one goes directly."""
    user = 7
    slot = key_slot(key(user).encode())
    source = cluster.owner(slot)
    target = next(node for node in cluster.primaries if node is not source)
    async with limiting(cluster) as limiter:
        await connected(limiter)
        await asyncio.gather(*(limiter.hit("99/m", Subject(user=user)) for _ in range(3)))
        cluster.move(slot, source, target)
        cluster.do(source, "CONFIG RESETSTAT")
        found = await asyncio.gather(*(limiter.hit("99/m", Subject(user=user)) for _ in range(20)))
        assert sorted(each.remaining for each in found) == list(range(99 - 23, 99 - 3))
        assert total(cluster, user) == 23
        async with asyncio.timeout(5):  # a node that does not know it yet may be asked who has it
            moved = 0
            while moved != (moved := redirects_by(cluster, source)):
                await limiter.hit("99/m", Subject(user=user))


@pytest.mark.parametrize("prefix", ["bot", "{bot}"])
async def test_a_migrating_slot_is_followed(cluster: Cluster, prefix: str) -> None:
    """ASK is followed, also for several users of a slot that is partly moved."""
    slots = {key_slot(f"{prefix}:ratelimit:{user}".encode()) for user in USERS}
    async with limiting(cluster) as limiter:
        limiter.key_prefix = prefix
        await connected(limiter)
        await asyncio.gather(*(limiter.hit("99/m", Subject(user=user)) for user in USERS[:30]))
        pairs = {}
        for slot in slots:
            source = cluster.owner(slot)
            target = next(node for node in cluster.primaries if node is not source)
            pairs[slot] = (source, target)
            cluster.begin_to_move(slot, source, target)
        for user in USERS[:15]:
            name = f"{prefix}:ratelimit:{user}"
            source, target = pairs[key_slot(name.encode())]
            cluster.do(source, "MIGRATE", "127.0.0.1", target.port, name, 0, 5000)
        for remaining in (97, 96):
            found = await asyncio.gather(
                *(limiter.hit("99/m", Subject(user=user)) for user in USERS)
            )
            assert [each.source for each in found] == ["redis"] * 60
            expected = [remaining] * 30 + [remaining + 1] * 30
            assert [each.remaining for each in found] == expected
        for slot, (_, target) in pairs.items():
            for node in cluster.primaries:
                cluster.do(node, "CLUSTER SETSLOT", slot, "STABLE")
            if prefix == "{bot}":
                cluster.do(target, "FLUSHALL")


@pytest.mark.parametrize("after", [0.0, 0.1, None])
async def test_a_connection_lost_after_a_redirect_charges_once(
    cluster: Cluster, after: float | None
) -> None:
    """A hit with an unknown outcome after a redirect is not repeated."""
    user = 7
    slot = key_slot(key(user).encode())
    source = cluster.owner(slot)
    target = next(node for node in cluster.primaries if node is not source)
    with distant(target.port, round_trip=0.4) as proxy:

        def remap(address: tuple[str, int]) -> tuple[str, int]:
            return (address[0], proxy.port) if address[1] == target.port else address

        async with limiting(cluster, address_remap=remap) as limiter:
            limiter.timeout = 5
            await connected(limiter)  # by any node, and redirects
            await connected(limiter)  # by each node itself
            limiter.timeout = 2
            await limiter.hit("99/m", Subject(user=user))
            cluster.move(slot, source, target)
            proxy.round_trip = 0.4 if after is not None else 1.2
            asking = asyncio.create_task(limiter.hit("99/m", Subject(user=user)))
            if after is not None:
                await asyncio.sleep(after)
            else:  # when it was charged, and the reply is on its way
                async with asyncio.timeout(5):
                    while total(cluster, user) < 2:  # noqa: ASYNC110 - the node decides
                        await asyncio.sleep(0.01)
            proxy.cut()
            proxy.round_trip = 0.0  # so that it takes no seconds to connect again
            decision = await asking
            await asyncio.sleep(0.3)
            counted = total(cluster, user)
            assert counted in (1, 2)
            if decision.source == "redis":
                assert counted == 2
            if after is None:
                assert (decision.source, counted) == ("policy", 2)
            await connected(limiter)
            assert (await limiter.hit("99/m", Subject(user=user))).remaining == 98 - counted


async def test_one_connection_a_node_is_enough(cluster: Cluster) -> None:
    """200 simultaneous callers share one connection to each node."""
    client = RedisCluster(host="127.0.0.1", port=cluster.primaries[0].port, client_name="ours")
    storage = RedisStorage(client, close_client=True)
    for _ in range(5):
        await asyncio.gather(
            *(storage.ask(Ask([charge("9/m", f"{i}")]), timeout=TIMEOUT) for i in range(200))
        )
    for node in cluster.primaries:
        names = [each["name"] for each in cluster.do(node, "CLIENT LIST")]
        assert names.count("ours") == 1
    await storage.close()


@pytest.mark.parametrize("harm", ["hang", "kill"])
async def test_a_promoted_replica_is_found(
    tmp_path: Path, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    """After a failover the replica is asked, and the log says which node replaces which."""
    with running_nodes(tmp_path, replicas=1) as nodes:
        victim, replica = nodes.primaries[0], nodes.replicas[0]
        user = on(nodes, victim)[0]
        async with limiting(nodes) as limiter:
            await connected(limiter)
            getattr(victim, harm)()

            async def promoted() -> float:
                while "master" not in await asyncio.to_thread(nodes.do, replica, "ROLE"):  # noqa: ASYNC110 - nodes decide
                    await asyncio.sleep(0.02)
                return monotonic()

            chosen = asyncio.create_task(promoted())
            async with asyncio.timeout(15):
                while not chosen.done():  # updates continue, so that circuits open
                    await limiter.hit("99/m", Subject(user=user))
                    await asyncio.sleep(0.02)
                while (await limiter.hit("99/m", Subject(user=user))).source != "redis":  # noqa: ASYNC110 - updates come
                    await asyncio.sleep(0.02)
            assert monotonic() - chosen.result() < 2.5
            took_over = f"127.0.0.1:{replica.port}, asked instead of 127.0.0.1:{victim.port}"
            assert sum(took_over in line for line in caplog.messages) == 1
        assert nodes.do(replica, "GET", key(user))


@pytest.mark.parametrize("endpoint", ["unknown-endpoint", "hostname"])
async def test_nodes_without_a_host(cluster: Cluster, endpoint: str) -> None:
    """A missing host, or a question mark, means the host that was asked."""
    version = cluster.do(cluster.primaries[0], "INFO", "server")["redis_version"]
    if int(version.split(".")[0]) < 7:
        pytest.skip("endpoints can be chosen since Redis 7")
    for node in cluster.nodes:
        cluster.do(node, "CONFIG SET", "cluster-preferred-endpoint-type", endpoint)
    try:
        async with limiting(cluster) as limiter:
            limiter.timeout = 2
            for remaining in (98, 97):
                found = await asyncio.gather(
                    *(limiter.hit("99/m", Subject(user=user)) for user in USERS)
                )
                assert [each.source for each in found] == ["redis"] * len(USERS)
                assert {each.remaining for each in found} == {remaining}

            async def redirects() -> int:
                for node in cluster.nodes:
                    cluster.do(node, "CONFIG RESETSTAT")
                await asyncio.gather(*(limiter.hit("99/m", Subject(user=user)) for user in USERS))
                errors = [cluster.do(node, "INFO", "errorstats") for node in cluster.nodes]
                return sum("errorstat_MOVED" in each for each in errors)

            async with asyncio.timeout(5):  # then it is known who has what
                while await redirects():  # noqa: ASYNC110 - the nodes decide
                    await asyncio.sleep(0.1)
    finally:
        for node in cluster.nodes:
            cluster.do(node, "CONFIG SET", "cluster-preferred-endpoint-type", "ip")


async def test_a_node_that_comes_back_is_not_reported_as_closed() -> None:
    """During a failover the nodes may disagree for a moment about who has the slots."""
    client, recorder = RedisCluster(host="127.0.0.1", port=7000), Recorder()
    nodes = shards.Shards(client, connect_timeout=0.01)
    nodes.observe([recorder])
    for port in (7000, 7001, 7000):
        nodes._use_slots([[0, 16_383, [b"127.0.0.1", port]]], "")
    await asyncio.sleep(0.05)
    assert recorder.named("closed") == [("closed", "127.0.0.1:7001")]
    await client.aclose()


@pytest.mark.parametrize("hangs", [True, False])
async def test_the_first_nodes_may_be_down(
    cluster: Cluster, caplog: pytest.LogCaptureFixture, hangs: bool
) -> None:
    """The first hit is decided by the first node that answers, and nothing is logged."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        down = silent.getsockname()[1] if hangs else free_port()
        ports = [down, cluster.primaries[1].port]
        nodes = [ClusterNode("127.0.0.1", port) for port in ports]
        storage = RedisStorage(RedisCluster(startup_nodes=nodes), close_client=True)
        limiter = Limiter(storage, timeout=TIMEOUT)
        assert (await limiter.hit("9/m", Subject(user=1))).source == "redis"
        assert not caplog.messages
        await limiter.close()


async def test_a_node_that_fails_while_others_are_closed_opens_nothing(cluster: Cluster) -> None:
    """The slot map is fetched no more."""
    before = asyncio.all_tasks()
    async with limiting(cluster) as limiter:
        await connected(limiter)
        first, *_, last = cast(Any, limiter.storage)._servers.connections()
        close = first.close

        async def close_and_lose() -> None:
            await close()
            last._lost(StorageError("gone"))

        first.close = close_and_lose
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


async def test_a_dropped_storage_stops_asking() -> None:
    """A dropped limiter does not ask for its unreachable cluster forever."""
    before = asyncio.all_tasks()
    limiter = Limiter(RedisStorage(RedisCluster(host="127.0.0.1", port=free_port())))
    assert (await limiter.hit("9/m", Subject(user=1))).source == "policy"
    assert asyncio.all_tasks() != before
    del limiter
    async with asyncio.timeout(20):
        while asyncio.all_tasks() != before:
            gc.collect()  # the dropped objects are in reference cycles
            await asyncio.sleep(0.1)


async def test_a_missing_permission_for_the_slot_map_is_logged(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without CLUSTER SLOTS redirects lead the way, and the log says once what to allow."""
    monkeypatch.setattr(shards, "REFRESH_EVERY", 0.01)
    for node in cluster.primaries:
        allowed = ("on", ">pw", "~*", "+@all", "-cluster")
        cluster.do(node, "ACL SETUSER", "limits", *allowed)
    try:
        async with limiting(cluster, username="limits", password="pw") as limiter:
            await connected(limiter)
            await asyncio.sleep(0.1)
    finally:
        for node in cluster.primaries:
            cluster.do(node, "ACL DELUSER", "limits")
    told = [text for text in caplog.messages if "CLUSTER SLOTS" in text]
    assert len(told) == 1
    assert any(f"127.0.0.1:{node.port} " in told[0] for node in cluster.primaries)
    assert "ACL SETUSER <user> +cluster|slots" in told[0]
    assert "pw" not in told[0]


async def test_a_plain_client_of_a_cluster_node_is_an_error(cluster: Cluster) -> None:
    """The error says that a client of the cluster is needed."""
    node = cluster.primaries[0]
    async with aioredis.Redis(port=node.port) as client:
        storage = RedisStorage(client)
        found = await asyncio.gather(
            *(storage.ask(Ask([charge("9/m", f"{user}")]), timeout=TIMEOUT) for user in USERS),
            return_exceptions=True,
        )
        await storage.close()
    for user, each in zip(USERS, found, strict=True):
        if user in on(cluster, node):
            assert isinstance(each, list)
        else:
            assert isinstance(each, ConfigError)
            assert f"localhost:{node.port} is a node of a Redis Cluster" in str(each)
            assert "RedisCluster" in str(each)


async def test_a_second_redirect_is_an_outage(cluster: Cluster) -> None:
    """Nodes that redirect a hit back and forth are an outage, not an endless loop."""
    user = 7
    slot = key_slot(key(user).encode())
    source = cluster.owner(slot)
    target = next(node for node in cluster.primaries if node is not source)
    async with limiting(cluster) as limiter:
        await connected(limiter)
        # Only the source knows: without ASKING the target redirects back to it.
        cluster.do(source, "CLUSTER SETSLOT", slot, "NODE", cluster.ids[target.port])
        with pytest.raises(StorageError, match="slots are being moved"):
            await limiter.storage.ask(Ask([charge("99/m", f"{user}")]), timeout=TIMEOUT)
        cluster.do(source, "CLUSTER SETSLOT", slot, "NODE", cluster.ids[source.port])
