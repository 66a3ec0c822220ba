"""Errors of a server: an outage passes, a fault must be fixed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import redis
import redis.asyncio as aioredis
from redis._parsers.base import BaseParser

from bot_ratelimit import ConfigError, RedisStorage, StorageError
from bot_ratelimit.storage.base import Ask, Count
from bot_ratelimit.storage.redis.faults import translated
from tests.benches import TIMEOUT, charge, reset
from tests.servers import Server, free_port
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


OUTAGES: dict[str, tuple[Callable[..., Awaitable[Any]], Callable[..., Awaitable[Any]]]] = {
    "READONLY": (
        lambda admin: admin.execute_command("REPLICAOF", "127.0.0.1", free_port()),
        lambda admin: admin.execute_command("REPLICAOF", "NO", "ONE"),
    ),
    "OOM": (
        lambda admin: admin.config_set("maxmemory", 1),
        lambda admin: admin.config_set("maxmemory", 0),
    ),
    "NOREPLICAS": (
        lambda admin: admin.config_set("min-replicas-to-write", 1),
        lambda admin: admin.config_set("min-replicas-to-write", 0),
    ),
    "MASTERDOWN": (
        lambda admin: asyncio.gather(
            admin.config_set("replica-serve-stale-data", "no"),
            admin.execute_command("REPLICAOF", "127.0.0.1", free_port()),
        ),
        lambda admin: admin.execute_command("REPLICAOF", "NO", "ONE"),
    ),
}


@pytest.mark.parametrize("loaded", [True, False], ids=["warm", "cold"])
@pytest.mark.parametrize("algorithm", ["", " sliding", " bucket"])
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
        await begin(admin)
        for _ in range(2):
            with pytest.raises(StorageError, match=f"^localhost:{own_server.port}: .*{outage}"):
                await hit(storage, one)
        await end(admin)
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
    """The parser of redis-py, which a substitute of its connection may use, removes the code. A bug
    is not explained by a server."""
    for error in (aioredis.ResponseError(text), BaseParser.parse_error(text)):
        told = translated(error, "redis.test:6379")
        assert isinstance(told, StorageError)
        assert told.kind == kind
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
    advised = str(told.value).partition("ACL SETUSER <user> ")[2].replace("<prefix>", "bot")
    async with user(redis_server, client, *advised.split()) as worker:
        storage = RedisStorage(worker)
        rules = [charge(f"9/m{alg}", f"{i}") for i, alg in enumerate(("", " sliding", " bucket"))]
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
