"""RedisStorage on a Redis Cluster of three nodes: failures of one shard, and moving slots."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import redis.asyncio as aioredis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.crc import key_slot

from bot_ratelimit import ConfigError, Decision, Limiter, RedisStorage, StorageError, Subject
from bot_ratelimit.storage.base import Ask
from bot_ratelimit.storage.redis import cluster as shards
from tests.benches import TIMEOUT, charge, eventually, reset
from tests.proxy import distant
from tests.recorder import Recorder
from tests.servers import Server, free_port, wait_until
from tests.topologies import Cluster, running_nodes

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
        wait_until(partial(nodes.do, node, "PING"), "the node answers")
        nodes.do(node, "FLUSHALL")
        nodes.do(node, "CONFIG RESETSTAT")
    for slot in SLOTS:
        source = nodes.owner(slot)
        for node in nodes.nodes:
            nodes.do(node, "CLUSTER SETSLOT", slot, "STABLE")
        for node in (source, *nodes.nodes):
            nodes.do(node, "CLUSTER SETSLOT", slot, "NODE", nodes.ids[source.port])
    for node in nodes.nodes:
        wait_until(partial(nodes.is_healthy, node), "all nodes see each other")


def key(user: int) -> str:
    return f"bot:ratelimit:{user}"


SLOTS = sorted({key_slot(key(user).encode()) for user in USERS})


@asynccontextmanager
async def limiting(nodes: Cluster, prefix: str = "bot", **options: Any) -> AsyncIterator[Limiter]:
    """A limiter whose client knows only the first node."""
    client = RedisCluster(host="127.0.0.1", port=nodes.primaries[0].port, **options)
    limiter = Limiter(RedisStorage(client, close_client=True), key_prefix=prefix)
    try:
        yield limiter
    finally:
        await limiter.close()


async def everybody(limiter: Limiter, users: Sequence[int] = USERS) -> list[Decision]:
    """A hit of each of them."""
    return await asyncio.gather(*(limiter.hit("99/m", Subject(user=user)) for user in users))


async def connected(limiter: Limiter) -> None:
    """Wait until the limiter has decided on every shard."""

    async def is_connected() -> bool:
        found = await everybody(limiter, range(100, 160))
        return {each.source for each in found} == {"redis"}

    await eventually(is_connected)


def on(nodes: Cluster, node: Server) -> list[int]:
    """Users whose keys are on this node."""
    return [user for user in USERS if nodes.owner(key_slot(key(user).encode())) is node]


def moving(nodes: Cluster, name: str) -> tuple[int, Server, Server]:
    """The slot of a key, the node that has it, and another one."""
    slot = key_slot(name.encode())
    source = nodes.owner(slot)
    return slot, source, next(node for node in nodes.primaries if node is not source)


def total(nodes: Cluster, user: int) -> int:
    """The count of a user, on whichever node it is."""
    counts = []
    for node in nodes.nodes:
        with suppress(Exception):  # MOVED: it is not there
            counts.append(int(nodes.do(node, "GET", key(user)) or 0))
    return sum(counts)


async def redirected(nodes: Cluster, limiter: Limiter) -> bool:
    """Whether any node redirects any hit of these users."""
    for node in nodes.nodes:
        nodes.do(node, "CONFIG RESETSTAT")
    await everybody(limiter)
    return any("errorstat_MOVED" in nodes.do(node, "INFO", "errorstats") for node in nodes.nodes)


async def directly(nodes: Cluster, limiter: Limiter) -> None:
    """Wait until it is known who has what; a node that does not know it yet may be asked."""
    async with asyncio.timeout(5):
        while await redirected(nodes, limiter):  # noqa: ASYNC110 - the nodes decide
            await asyncio.sleep(0.1)


async def test_limits_hold_from_the_first_hit(cluster: Cluster) -> None:
    """A new storage that knows one node decides for all users, exactly, over one connection to
    each node, which gets the script again if it has lost it, and then only its hash."""
    async with limiting(cluster, client_name="ours") as limiter:
        limiter.timeout = 2
        found = []
        for _ in range(2):
            found += await asyncio.gather(
                *(limiter.hit("5/minute", Subject(user=user)) for _ in range(4) for user in USERS)
            )
            for node in cluster.primaries:
                cluster.do(node, "SCRIPT FLUSH")
                names = [each["name"] for each in cluster.do(node, "CLIENT LIST")]
                assert names.count("ours") == 1
        await everybody(limiter, range(100, 160))
        for node in cluster.primaries:
            cluster.do(node, "CONFIG RESETSTAT")
        await everybody(limiter, range(100, 160))
        sent = [cluster.do(node, "INFO", "commandstats") for node in cluster.primaries]
        assert [("cmdstat_evalsha" in each, "cmdstat_eval" in each) for each in sent] == [
            (True, False)
        ] * 3
    assert {each.source for each in found} == {"redis"}
    for i, user in enumerate(USERS):
        assert sum(each.allowed for each in found[i :: len(USERS)]) == 5
        assert total(cluster, user) == 8


async def test_a_foreign_value_concerns_its_user_only(cluster: Cluster) -> None:
    """Hits of several users that are sent together have a reply each."""
    cluster.do(cluster.owner(key_slot(key(7).encode())), "SET", key(7), "not a count")
    async with limiting(cluster) as limiter:
        await connected(limiter)
        found = await everybody(limiter)
    assert [user for user in USERS if found[user].source != "redis"] == [7]
    assert [found[user].remaining for user in USERS if user != 7] == [98] * 59


async def test_several_rules_need_a_hash_tag(cluster: Cluster) -> None:
    """With a prefix in braces, all keys of a bot are in one slot. Without, the error says what to
    do; a single rule, whose verdict may be shared, and a reset need none."""
    rules, anna = "3/minute; 9/h sliding", Subject(user=7)
    async with limiting(cluster, "{bot}") as limiter:
        await connected(limiter)
        found = [await limiter.hit(rules, anna, once=f"u{i}") for i in range(4)]
        assert [(d.allowed, d.source) for d in found] == [(True, "redis")] * 3 + [(False, "redis")]
        assert not (await limiter.hit(rules, anna, once="u3")).allowed
        assert await limiter.reset(rules, anna)
        counts = [charge("3/minute", "7"), charge("9/h", "9/h:7"), charge("9/h sliding", "s:7")]
        with pytest.raises(ConfigError, match=r"tag into key_prefix, for example '\{bot\}'"):
            await limiter.storage.ask(Ask(counts), timeout=TIMEOUT)
        for one in counts:
            await limiter.storage.ask(Ask([one]), timeout=TIMEOUT)
        assert [await reset(limiter.storage, *counts) for _ in range(2)] == [3, 0]
    async with limiting(cluster, "bot") as limiter:
        await connected(limiter)
        for user in range(1, 9):
            found = [await limiter.hit("1/m", Subject(user=user), once="a") for _ in range(2)]
            assert [(each.allowed, each.source) for each in found] == [(True, "redis")] * 2


async def test_a_cluster_reports_its_nodes_and_keeps_statistics(cluster: Cluster) -> None:
    """Nodes are named in the status; the statistics of an hour share a slot."""
    recorder = Recorder()
    client = RedisCluster(host="127.0.0.1", port=cluster.primaries[0].port)
    storage = RedisStorage(client, close_client=True)
    limiter = Limiter(storage, timeout=TIMEOUT, observer=recorder, statistics=True)
    for i in range(20):
        await limiter.hit("1/minute", Subject(user=i % 10))
    health = await limiter.check()
    names = {server.name for server in health.servers if server.connected}
    assert health.ok
    assert len(names) == 3
    assert sum(each.count for each in await limiter.statistics()) == 20
    assert sum(each.count for each in await limiter.top_refused(100)) == 20 - 10
    assert {event[1] for event in recorder.named("connected")} == names
    assert sum(event[2] for event in recorder.named("batch_answered")) >= 20
    await limiter.close()
    assert {event[1] for event in recorder.named("closed")} == names


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
    """MOVED is followed: no hit is lost or counted twice, and the next one goes directly. Nodes
    that redirect a hit back and forth are an outage, not an endless loop."""
    slot, source, target = moving(cluster, key(7))
    async with limiting(cluster) as limiter:
        await connected(limiter)
        # Only the source knows: without ASKING the target redirects back to it.
        cluster.do(source, "CLUSTER SETSLOT", slot, "NODE", cluster.ids[target.port])
        with pytest.raises(StorageError, match="slots are being moved"):
            await limiter.storage.ask(Ask([charge("99/m", "7")]), timeout=TIMEOUT)
        cluster.do(source, "CLUSTER SETSLOT", slot, "NODE", cluster.ids[source.port])
        await everybody(limiter, [7] * 3)
        cluster.move(slot, source, target)
        found = await everybody(limiter, [7] * 20)
        assert sorted(each.remaining for each in found) == list(range(99 - 23, 99 - 3))
        assert total(cluster, 7) == 23
        await directly(cluster, limiter)


@pytest.mark.parametrize("prefix", ["bot", "{bot}"])
async def test_a_migrating_slot_is_followed(cluster: Cluster, prefix: str) -> None:
    """ASK is followed, also for several users of a slot that is partly moved."""
    names = [f"{prefix}:ratelimit:{user}" for user in USERS]
    routes = {name: moving(cluster, name) for name in names}
    async with limiting(cluster, prefix) as limiter:
        await connected(limiter)
        await everybody(limiter, USERS[:30])
        for route in set(routes.values()):
            cluster.begin_to_move(*route)
        for name in names[:15]:
            _, source, target = routes[name]
            cluster.do(source, "MIGRATE", "127.0.0.1", target.port, name, 0, 5000)
        for remaining in (97, 96):
            found = await everybody(limiter)
            assert [each.source for each in found] == ["redis"] * 60
            expected = [remaining] * 30 + [remaining + 1] * 30
            assert [each.remaining for each in found] == expected
        for slot, _, target in set(routes.values()):
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
    slot, source, target = moving(cluster, key(user))
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
                await eventually(lambda: total(cluster, user) == 2)
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

            def promoted() -> float:
                wait_until(lambda: "master" in nodes.do(replica, "ROLE"), "it is promoted")
                return monotonic()

            chosen = asyncio.create_task(asyncio.to_thread(promoted))
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
                found = await everybody(limiter)
                assert [each.source for each in found] == ["redis"] * len(USERS)
                assert {each.remaining for each in found} == {remaining}
            await directly(cluster, limiter)
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
        cluster.do(node, "ACL SETUSER", "limits", "on", ">pw", "~*", "+@all", "-cluster")
    try:
        async with limiting(cluster, username="limits", password="pw") as limiter:
            await connected(limiter)
            await asyncio.sleep(0.1)
    finally:
        for node in cluster.primaries:
            cluster.do(node, "ACL DELUSER", "limits")
    (told,) = [text for text in caplog.messages if "CLUSTER SLOTS" in text]
    assert any(f"127.0.0.1:{node.port} " in told for node in cluster.primaries)
    assert "ACL SETUSER <user> +cluster|slots" in told
    assert "pw" not in told


async def test_a_plain_client_of_a_cluster_node_is_an_error(cluster: Cluster) -> None:
    """The error says that a client of the cluster is needed."""
    node, user = cluster.primaries[0], on(cluster, cluster.primaries[1])[0]
    async with aioredis.Redis(port=node.port) as client:
        storage = RedisStorage(client)
        told = rf"localhost:{node.port} is a node of a Redis Cluster: .*RedisCluster"
        with pytest.raises(ConfigError, match=told):
            await storage.ask(Ask([charge("9/m", f"{user}")]), timeout=TIMEOUT)
        await storage.close()
