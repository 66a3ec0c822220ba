"""Errors of a server: an outage passes, a fault must be fixed, foreign data is not touched."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import redis
import redis.asyncio as aioredis
from redis._parsers.base import BaseParser

from bot_ratelimit import ConfigError, RedisStorage, StorageError
from bot_ratelimit.storage.base import Ask, Count, Op
from bot_ratelimit.storage.redis.faults import translated
from tests.benches import TIMEOUT, charge, reset
from tests.servers import Server
from tests.tables import table

ONE = charge("9/minute")


async def hit(storage: RedisStorage, *charges: Count) -> bool:
    return not (await storage.ask(Ask(charges), timeout=TIMEOUT))[0].wait


@asynccontextmanager
async def user(
    server: Server, admin: aioredis.Redis, *permissions: str
) -> AsyncIterator[aioredis.Redis]:
    """A client of a Redis user with these permissions only, in a database that it selects."""
    await admin.execute_command("ACL", "SETUSER", "worker", "reset", "on", ">pw", *permissions)
    async with aioredis.Redis(port=server.port, db=3, username="worker", password="pw") as client:
        yield client
    await admin.acl_deluser("worker")


ALGORITHMS = ("", " sliding", " bucket")
OUTAGES = {
    "READONLY": ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE"),
    "OOM": ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0"),
    "NOREPLICAS": ("CONFIG SET min-replicas-to-write 1", "CONFIG SET min-replicas-to-write 0"),
    "MASTERDOWN": (
        "CONFIG SET replica-serve-stale-data no, REPLICAOF 127.0.0.1 1",
        "REPLICAOF NO ONE",
    ),
}
"""What begins an outage, and what ends it."""


@pytest.mark.parametrize("loaded", [True, False], ids=["warm", "cold"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("outage", OUTAGES)
async def test_an_outage_passes(
    own_server: Server, outage: str, algorithm: str, loaded: bool
) -> None:
    """A server that cannot serve now is named with the reason; later everything works again."""
    if (outage, algorithm) == ("OOM", " sliding"):
        return  # a script that has already written, here by deleting old hits, goes on
    begin, end = OUTAGES[outage]
    one = charge(f"9/minute{algorithm}")
    async with (
        aioredis.Redis(port=own_server.port) as client,
        aioredis.Redis(port=own_server.port) as admin,
    ):
        storage = RedisStorage(client)
        if loaded:
            await hit(storage, one)
        for command in begin.split(", "):
            await admin.execute_command(*command.split())
        for _ in range(2):
            with pytest.raises(StorageError, match=f"^localhost:{own_server.port}: .*{outage}"):
                await hit(storage, one)
        await admin.execute_command(*end.split())
        verdicts = await storage.ask(Ask([one]), timeout=TIMEOUT)
        assert verdicts[0].remaining == 8 - loaded


@table(
    ("text", "kind"),
    [
        ("READONLY You can't write against a read only replica.", "readonly"),
        ("OOM command not allowed when used memory > 'maxmemory'.", "oom"),
        ("BUSY Redis is busy running a script. You can only call SCRIPT KILL", "busy"),
        ("CLUSTERDOWN Hash slot not served", "clusterdown"),
        ("MASTERDOWN Link with MASTER is down", "masterdown"),
        ("TRYAGAIN Multiple keys request during rehashing of slot", "tryagain"),
        ("MISCONF Redis is configured to save RDB snapshots", "misconf"),
    ],
)
def test_an_outage_is_one_also_if_redis_py_has_parsed_it(text: str, kind: str) -> None:
    """The parser of redis-py, which a substitute of its connection may use, removes the code. If
    the server is full, the settings are named. A bug is not explained by a server."""
    for error in (aioredis.ResponseError(text), BaseParser.parse_error(text)):
        told = translated(error, "redis.test:6379")
        assert isinstance(told, StorageError)
        assert told.kind == kind
        assert ("raise maxmemory" in str(told)) is (kind == "oom")
    bug = AttributeError(text)
    assert translated(bug) is bug


PLAIN = ("~*", "+select")


@pytest.mark.parametrize(
    ("permissions", "error"),
    [
        (("~other:*", "+@all"), ConfigError),
        ((*PLAIN, "+evalsha", "+eval"), ConfigError),
        ((*PLAIN, "+@all", "-incrby"), ConfigError),
        ((*PLAIN, "+@all", "-pexpire"), ConfigError),
        ((*PLAIN, "+@all", "-pttl"), ConfigError),
        (("~*", "+@all", "-select"), StorageError),  # it cannot even connect
    ],
)
async def test_the_advised_permissions_are_enough(
    redis_server: Server, client: aioredis.Redis, permissions: Sequence[str], error: type[Exception]
) -> None:
    """The error says which permissions to grant; with exactly these, every algorithm works."""
    async with user(redis_server, client, *permissions) as worker:
        storage = RedisStorage(worker)
        for _ in range(2):
            # Not every command is needed for the first hit of a window.
            where = f"^localhost:{redis_server.port}: .*ACL SETUSER"
            with pytest.raises(error, match=where) as told:
                await asyncio.gather(*(hit(storage, ONE) for _ in range(3)))
        assert getattr(told.value, "kind") == "noperm"  # noqa: B009 - both have it
        if error is ConfigError:  # the same connection works when it is granted
            await client.execute_command("ACL", "SETUSER", "worker", "~*", "+@all")
            assert await hit(storage, ONE)
    advised = str(told.value).partition("ACL SETUSER <user> ")[2].replace("<prefix>", "bot")
    async with user(redis_server, client, *advised.split()) as worker:
        storage = RedisStorage(worker)
        rules = [charge(f"9/m{alg}", f"{i}") for i, alg in enumerate(ALGORITHMS)]
        for once in (None, "bot:ratelimit:once:a"):
            assert (await storage.ask(Ask(rules, once=once), timeout=TIMEOUT))[0].wait == 0
        assert await reset(storage, *rules) == 3


URL = "redis://:s3cret@localhost/0"


@table(
    ("given", "told"),
    [
        (redis.Redis.from_url(URL), "synchronous"),
        (object(), "builtins.object"),
        (None, "NoneType"),
        (aioredis.ConnectionPool.from_url(URL), r"from_pool\(pool\)"),
        (aioredis.Redis, r"is the class redis\.asyncio.*Redis\(\.\.\.\)"),
    ],
)
def test_a_wrong_client_is_an_error(given: Any, told: str) -> None:
    """Anything but an asynchronous client is named with the fix, and without secrets."""
    with pytest.raises(ConfigError, match=told) as raised:
        RedisStorage(given)
    assert "s3cret" not in str(raised.value)
    assert "redis.asyncio.Redis" in str(raised.value)


KEY = "bot:ratelimit:42"
TOKEN = "bot:ratelimit:once:a"
FOREIGN: dict[str, Callable[[aioredis.Redis, str], Any]] = {
    "list": lambda client, key: client.rpush(key, "x"),
    "hash": lambda client, key: client.hset(key, "x", "y"),
    "set": lambda client, key: client.sadd(key, "x"),
    "text": lambda client, key: client.set(key, "hello", ex=60),
    "JSON without a TTL": lambda client, key: client.set(key, '{"user": 42}'),
    "fraction": lambda client, key: client.set(key, "3.5", ex=60),
    "padded": lambda client, key: client.set(key, "007", ex=60),
    "negative": lambda client, key: client.set(key, "-3", px=30_000),
    "leaderboard": lambda client, key: client.zadd(key, {"anna": 10, "7 1": 20}),
}


@pytest.fixture(params=["fakeredis", "redis-server"])
def server(request: pytest.FixtureRequest) -> Any:
    name = "fake_client" if request.param == "fakeredis" else "client"
    return request.getfixturevalue(name)


async def content(client: aioredis.Redis, key: str) -> tuple[Any, bool]:
    return await client.dump(key), await client.pttl(key) == -1


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("foreign", FOREIGN)
async def test_foreign_data_is_not_changed(
    server: aioredis.Redis, foreign: str, algorithm: str
) -> None:
    """The error names the key; hits in the same batch are charged normally."""
    await FOREIGN[foreign](server, KEY)
    before, storage = await content(server, KEY), RedisStorage(server)
    one, other = charge(f"2/minute{algorithm}"), charge("2/minute", "b")
    calls = [
        storage.ask(Ask([charge("9/m", "first")]), timeout=TIMEOUT),
        storage.ask(Ask([one]), timeout=TIMEOUT),
        storage.ask(Ask([other, one], once=TOKEN), timeout=TIMEOUT),
        storage.ask(Ask([one], Op.PEEK), timeout=TIMEOUT),
        storage.ask(Ask([one], Op.RESET), timeout=TIMEOUT),
        storage.ask(Ask([charge("9/m", "last")]), timeout=TIMEOUT),
    ]
    first, *broken, last = await asyncio.gather(*calls, return_exceptions=True)
    for error in broken:
        assert isinstance(error, ConfigError)
        assert f"'{KEY}'" in str(error)
        assert "choose another key_prefix" in str(error)
    assert (first, last) == ([(0, 8, 60_000_000)],) * 2
    assert await content(server, KEY) == before
    assert not await server.exists("bot:ratelimit:b", TOKEN)


@pytest.mark.parametrize("kept", ["", "0 1 60000000 5", "hello", "0 1 6e7", "-1 0 0"])
async def test_a_bad_shared_verdict_affects_only_its_hit(server: aioredis.Redis, kept: str) -> None:
    """A verdict with too few or too many numbers is an error of that hit only."""
    await server.set(TOKEN, kept, ex=60)
    storage = RedisStorage(server)
    found = await asyncio.gather(
        storage.ask(Ask([charge("9/m", "first")]), timeout=TIMEOUT),
        storage.ask(Ask([charge("7/m")], once=TOKEN), timeout=TIMEOUT),
        storage.ask(Ask([charge("5/m", "last")]), timeout=TIMEOUT),
        return_exceptions=True,
    )
    assert isinstance(found[1], ConfigError)
    assert TOKEN in str(found[1])
    assert [found[0][0].remaining, found[2][0].remaining] == [8, 4]
    assert not await server.exists(KEY)
