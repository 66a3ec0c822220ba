"""RedisStorage on a real server: its commands, its clients, its keys, its event loops."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import redis.asyncio as aioredis
from redis import UsernamePasswordCredentialProvider
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from bot_ratelimit import ConfigError, Limit, Limiter, RedisStorage, StorageError, Subject
from bot_ratelimit.algorithms.verdict import Verdict
from bot_ratelimit.storage.base import Ask, Count, Op
from bot_ratelimit.storage.redis import connection
from tests.benches import TIMEOUT, charge, reset
from tests.servers import Server, running, running_cluster

KEY = "bot:ratelimit:42"


async def hit(storage: RedisStorage, *charges: Count, once: str | None = None) -> list[Verdict]:
    return await storage.ask(Ask(charges, once=once), timeout=TIMEOUT)


@asynccontextmanager
async def on_the_wire(server: Server) -> AsyncIterator[list[str]]:
    """The commands that clients send, except those that open a connection."""
    commands: list[str] = []
    async with aioredis.Redis(port=server.port) as client, client.monitor() as monitor:
        yield commands
        await client.echo("that was all")
        async for seen in monitor.listen():
            command = seen["command"]
            if "that was all" in command:
                return
            if seen["client_type"] != "lua" and not command.startswith(("HELLO", "CLIENT")):
                commands.append(command)


async def test_a_decision_is_one_command(redis_server: Server, client: aioredis.Redis) -> None:
    """One command decides, however many rules there are; another one peeks."""
    storage = RedisStorage(client)
    several = [charge("1/s", "a"), charge("20/m sliding", "b"), charge("99/h bucket", "c")]
    await hit(storage, *several)
    for name, rules in (("a", several[:1]), ("b", several[1:2]), ("c", several)):
        for once in (None, f"bot:ratelimit:once:{name}"):
            async with on_the_wire(redis_server) as commands:
                await hit(storage, *rules, once=once)
                await storage.ask(Ask(rules, Op.PEEK), timeout=TIMEOUT)
            assert [command.split()[0] for command in commands] == ["EVALSHA"] * 2


@pytest.mark.parametrize(("algorithm", "most"), [("", 4), (" sliding", 6), (" bucket", 6)])
async def test_simultaneous_decisions_share_commands(
    redis_server: Server, client: aioredis.Redis, algorithm: str, most: int
) -> None:
    """A hundred simultaneous decisions are a few commands on one connection."""
    users = [charge(f"1/minute{algorithm}", f"{user % 50}") for user in range(100)]
    async with aioredis.Redis(port=redis_server.port) as own:
        storage = RedisStorage(own)
        await hit(storage, charge("1/minute", "warm"))
        await client.config_resetstat()
        verdicts = await asyncio.gather(*(hit(storage, user) for user in users))
        assert [verdict.wait == 0 for (verdict,) in verdicts] == [True] * 50 + [False] * 50
        assert (await client.info("commandstats"))["cmdstat_evalsha"]["calls"] <= most
    assert (await client.info("stats"))["total_connections_received"] == 0


async def test_hits_that_share_a_command_keep_their_limits_and_costs(
    client: aioredis.Redis,
) -> None:
    """Neighbours with the same limit, another cost or limit, or which charge, do not mix."""
    storage = RedisStorage(client)
    five, nine = Limit(5, 3_600), Limit(9, 3_600)
    terms = [(five, 1), (five, 1), (five, 2), (five, 1), (nine, 1), (five, 3), (five, 3), (nine, 2)]
    asks = [Ask([Count(f"bot:{i}", *each)]) for i, each in enumerate(terms)]
    asks += [each._replace(op=Op.CHARGE) for each in asks[2:4]]
    found = await asyncio.gather(*(storage.ask(each, timeout=TIMEOUT) for each in asks))
    assert [verdict.remaining for (verdict,) in found] == [4, 4, 3, 4, 8, 2, 2, 7, 1, 3]
    assert all(3_590_000_000 < verdict.reset <= 3_600_000_000 for (verdict,) in found)


@pytest.mark.parametrize("protocol", [2, 3])
async def test_what_a_server_forgets_costs_no_decision(own_server: Server, protocol: int) -> None:
    """It gets a lost script again, also after a restart, and each hit is charged once. Over a
    connection that it closed while idle nothing was sent, so a retry is safe."""
    one = charge("9/minute")
    async with (
        aioredis.Redis(port=own_server.port, protocol=protocol) as client,
        aioredis.Redis(port=own_server.port) as admin,
    ):
        storage = RedisStorage(client)
        await hit(storage, one)
        await admin.script_flush()
        assert (await hit(storage, one))[0].remaining == 7
        await admin.client_kill_filter(_type="normal", skipme=True)
        await asyncio.sleep(0.01)  # so that the event loop notices it
        assert (await hit(storage, one))[0].remaining == 6
        await admin.script_flush()
        verdicts = await asyncio.gather(*(hit(storage, one) for _ in range(5)))
        assert sorted(verdict.remaining for (verdict,) in verdicts) == [1, 2, 3, 4, 5]
        own_server.kill()
        with pytest.raises(StorageError):
            await hit(storage, one)
        own_server.start()
        assert (await hit(storage, one))[0].remaining == 8


CLIENTS: dict[str, Callable[[Server, Path], aioredis.Redis]] = {
    "text": lambda server, _: aioredis.Redis(port=server.port, decode_responses=True),
    "RESP2": lambda server, _: aioredis.Redis(port=server.port, protocol=2),
    "RESP2 text": lambda server, _: aioredis.Redis(
        port=server.port, protocol=2, decode_responses=True
    ),
    "RESP3 text": lambda server, _: aioredis.Redis(
        port=server.port, protocol=3, decode_responses=True
    ),
    "another encoding": lambda server, _: aioredis.Redis(port=server.port, encoding="utf-16"),
    "from_url": lambda server, _: aioredis.Redis.from_url(f"{server.url}/3"),
    "unix socket": lambda _, path: aioredis.Redis(unix_socket_path=str(path / "redis.sock")),
    "single_connection_client": lambda server, _: aioredis.Redis(
        port=server.port, single_connection_client=True
    ),
    "health checks": lambda server, _: aioredis.Redis(port=server.port, health_check_interval=1),
}


@pytest.mark.parametrize("kind", CLIENTS)
async def test_every_kind_of_client_works(own_server: Server, tmp_path: Path, kind: str) -> None:
    """Decisions and errors are the same with every kind of client. It stays open when the storage
    is closed, which can be used again."""
    async with CLIENTS[kind](own_server, tmp_path) as client:
        storage = RedisStorage(client)
        rules = charge("3/minute"), charge("9/minute sliding", "b")
        verdicts = await asyncio.gather(*(hit(storage, *rules) for _ in range(30)))
        assert sum(first.wait == 0 for first, _ in verdicts) == 3
        await client.rpush(b"bot:ratelimit:list", "x")
        with pytest.raises(ConfigError, match="WRONGTYPE"):
            await hit(storage, charge("1/s", "list"))
        assert await reset(storage, *rules) == 2
        assert (await hit(storage, *rules))[1].remaining == 8
        await storage.close()
        assert await client.ping()
        assert (await hit(storage, *rules))[1].remaining == 7


@pytest.mark.parametrize("exhausted", [False, True], ids=["busy", "exhausted"])
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("kind", [aioredis.ConnectionPool, aioredis.BlockingConnectionPool])
async def test_a_small_pool_never_opens_the_limiter(
    own_server: Server, kind: type[aioredis.ConnectionPool], size: int, exhausted: bool
) -> None:
    """Redis decides everything, however few connections the bot's own client has."""
    pool = kind(port=own_server.port, max_connections=size)
    async with aioredis.Redis.from_pool(pool) as shared, AsyncExitStack() as stack:
        limiter = Limiter(RedisStorage(shared), timeout=TIMEOUT)
        stack.push_async_callback(limiter.close)
        limiter.open()
        for i in range(size):
            if exhausted:
                stack.push_async_callback(pool.release, await pool.get_connection())
            else:
                working = asyncio.create_task(shared.blpop([f"nothing{i}"], timeout=60))
                stack.callback(working.cancel)
                await asyncio.sleep(0.01)
        users = [Subject(user=user) for user in range(50)] * 10
        found = await asyncio.gather(*(limiter.hit("3/m", user) for user in users))
        assert {each.source for each in found} == {"redis"}
        assert sum(each.allowed for each in found) == 150


async def test_a_flood_is_decided_or_rejected(
    client: aioredis.Redis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Above the bound of those who wait hits are rejected, which is logged once and opens no
    circuit; the others are exact."""
    monkeypatch.setattr(connection, "MAX_WAITING", 2_000)
    limiter = Limiter(RedisStorage(client), timeout=TIMEOUT)
    await limiter.hit("3/m", Subject(user=0))
    found = await asyncio.gather(*(limiter.hit("3/m", Subject(user=7)) for _ in range(3_000)))
    by_redis = [each for each in found if each.source == "redis"]
    assert (len(by_redis), sum(each.allowed for each in by_redis)) == (2_000, 3)
    assert int(await client.get("bot:ratelimit:7")) == 2_000
    (told,) = caplog.messages
    assert "Too many decisions at once" in told
    assert (await limiter.hit("3/m", Subject(user=8))).source == "redis"
    await limiter.close()


async def test_a_clients_own_retries_are_not_used(own_server: Server) -> None:
    """A hit whose answer did not arrive in time is charged at most once."""
    retrying = aioredis.Redis(
        port=own_server.port, socket_timeout=0.05, retry=Retry(NoBackoff(), 3)
    )
    async with retrying, aioredis.Redis(port=own_server.port) as other:
        storage = RedisStorage(retrying)
        await hit(storage, charge("9/minute"))
        own_server.hang()
        with pytest.raises(StorageError):
            await hit(storage, charge("9/minute"))
        own_server.resume()
        for _ in range(3):  # the server reads what lies in its buffers
            await other.ping()
        assert int(await other.get(KEY)) <= 2
        assert (await hit(storage, charge("9/minute")))[0].wait == 0


async def test_a_counter_without_a_ttl_gets_one(client: aioredis.Redis) -> None:
    """A counter without a TTL, or with one longer than its window, is repaired; so is a key of any
    algorithm by the next charged hit."""
    storage = RedisStorage(client)
    for kept_for in (None, 3_600):
        await client.set(KEY, 3, ex=kept_for)
        for seen in (4, 5, 6):
            (verdict,) = await hit(storage, charge("5/minute"))
            assert (verdict.wait > 0) is (seen > 5)
            assert 0 < await client.pttl(KEY) <= verdict.reset // 1_000 <= 60_000
            assert await client.get(KEY) == b"%d" % seen
    for algorithm in ("", " sliding", " bucket"):
        await client.delete(KEY)
        await hit(storage, charge(f"2/minute{algorithm}"))
        await client.persist(KEY)
        await hit(storage, charge(f"2/minute{algorithm}"))
        assert 0 < await client.pttl(KEY) <= 60_002


async def test_half_a_surrogate_pair_in_a_key(client: aioredis.Redis) -> None:
    """A custom scope may return any str, also an invalid one."""
    names = ["1", "\ud800", "2", "\ud801", "3"]
    storage = RedisStorage(client)
    found = await asyncio.gather(*(hit(storage, charge("9/minute", name)) for name in names))
    assert [verdict.remaining for (verdict,) in found] == [8] * 5
    assert await reset(storage, *[charge("9/minute", names[1])]) == 1


def new_loop(kind: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if kind == "asyncio":
        return asyncio.new_event_loop
    if importlib.util.find_spec("uvloop") is None:
        pytest.skip("uvloop is not installed: pip install uvloop")
    import uvloop

    found: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return found


async def four(storage: RedisStorage, user: int) -> list[bool]:
    ask = Ask([charge("3/minute", f"{user}")])
    found = await asyncio.gather(*(storage.ask(ask, timeout=TIMEOUT) for _ in range(4)))
    return [not verdict.wait for (verdict,) in found]


@pytest.mark.parametrize("ends", ["closed", "left open", "cluster, closed"])
@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of the loop that ended with a connection
def test_a_second_run_uses_the_same_storage(tmp_path: Path, kind: str, ends: str) -> None:
    """A module's storage works in several `asyncio.run` calls, closed or left with a request."""
    is_cluster = "cluster" in ends
    with running_cluster(tmp_path) if is_cluster else running("redis-server", tmp_path) as server:
        make = RedisCluster if is_cluster else aioredis.Redis
        storage = RedisStorage(make(host="127.0.0.1", port=server.port))

        async def use(user: int) -> list[bool]:
            found = await four(storage, user)
            left = asyncio.create_task(four(storage, 100))
            await asyncio.sleep(0)
            if "closed" in ends:
                await left
                await storage.close()
            return found

        for user in range(3):
            with asyncio.Runner(loop_factory=new_loop(kind)) as runner:
                assert runner.run(use(user)) == [True, True, True, False]


async def test_a_credential_provider_is_asked_again(own_server: Server) -> None:
    """A new connection uses the current password."""
    provider = UsernamePasswordCredentialProvider("default", "first")
    async with (
        aioredis.Redis(port=own_server.port) as admin,
        aioredis.Redis(port=own_server.port, credential_provider=provider) as client,
    ):
        storage = RedisStorage(client)
        for user, provider.password in enumerate(("first", "second")):
            await admin.config_set("requirepass", provider.password)
            await admin.client_kill_filter(_type="normal", skipme=True)
            await asyncio.sleep(0.02)
            assert await four(storage, user) == [True, True, True, False]
        await storage.close()
        await admin.config_set("requirepass", "")
