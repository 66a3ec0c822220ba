"""Log messages and errors of unreachable servers, for every kind of client."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from ssl import SSLContext
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pytest
import redis
import redis.asyncio as aioredis
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.sentinel import Sentinel

from bot_ratelimit import Limiter, RedisStorage, Rule, Settings, StorageError, Subject
from bot_ratelimit.storage.base import Ask, Storage
from tests.benches import TIMEOUT, charge
from tests.certificates import Certificates
from tests.proxy import Proxy, distant
from tests.servers import Server, free_port, running, running_cluster
from tests.topologies import SERVICE, SentinelServer

CONNECT_TIMEOUT = 1.0
FAILED = "Redis rate limit check failed: "
SECRETS = ("wr0ng", "right")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running("redis-server", tmp_path_factory.mktemp("plain")) as server:
        yield server


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_cluster(tmp_path_factory.mktemp("node")) as server:
        yield server


class Address(NamedTuple):
    """The address, credentials and TLS options of a client."""

    port: int
    host: str = "127.0.0.1"
    options: dict[str, Any] = {}  # noqa: RUF012 - nobody changes it


def by_class(_: ExitStack, at: Address) -> Storage:
    client = aioredis.Redis(host=at.host, port=at.port, **at.options)
    return RedisStorage(client, connect_timeout=CONNECT_TIMEOUT)


def by_settings(_: ExitStack, at: Address) -> Storage:
    options = dict(at.options)
    scheme = "rediss" if options.pop("ssl", False) else "redis"
    credentials = f":{options.pop('password')}@" if "password" in options else ""
    query = "&".join(f"{name}={value}" for name, value in options.items())
    url = f"{scheme}://{credentials}{at.host}:{at.port}/0?{query}"
    return Settings(redis_url=url, rate_limit_connect_timeout=CONNECT_TIMEOUT).storage()


def by_sentinel(stack: ExitStack, at: Address) -> Storage:
    """A client whose sentinel names this address; the connection to the primary fails."""
    addresses = [(at.host, at.port)]
    if not at.host.endswith(".invalid"):
        directory = Path(stack.enter_context(TemporaryDirectory())) / "sentinel"
        server = SentinelServer(directory, at.port, down_after=600)
        stack.callback(server.kill)
        server.start()
        addresses = [("127.0.0.1", server.port)]
    primary = Sentinel(addresses).master_for(SERVICE, **at.options)
    return RedisStorage(primary, connect_timeout=CONNECT_TIMEOUT)


def by_cluster(_: ExitStack, at: Address) -> Storage:
    remap = lambda address: (address[0], at.port)  # noqa: E731 - short
    client = RedisCluster(host=at.host, port=at.port, address_remap=remap, **at.options)
    return RedisStorage(client, connect_timeout=CONNECT_TIMEOUT)


CLIENTS = {
    "Redis": by_class,
    "Settings": by_settings,
    "Sentinel": by_sentinel,
    "Cluster": by_cluster,
}


Fault = tuple[Address, Callable[[], Any] | None, str]
"""Where a client connects, what heals the fault, if anything, and what the log says."""
FAULTS = [
    *("wrong password", "no password", "refused", "unknown host", "foreign certificate"),
    *("no certificate", "authority missing", "TLS to plain", "plain to TLS", "too many clients"),
]


def begin(fault: str, stack: ExitStack, server: Server, certificates: Certificates) -> Fault:
    admin = stack.enter_context(redis.Redis(port=server.port, single_connection_client=True))
    trusting = {"ssl": True, "ssl_ca_certs": certificates.authority}

    def over_tls(**options: bool) -> tuple[SSLContext, int]:
        context = certificates.context(**options)
        return context, stack.enter_context(distant(server.port, tls=context)).port

    match fault:
        case "wrong password" | "no password":
            has = {"password": "wr0ng"} if fault == "wrong password" else {}
            allow = partial(admin.execute_command, "ACL SETUSER", "default")
            allow("resetpass", ">right")
            stack.callback(allow, "nopass")
            heal = partial(allow, ">wr0ng" if has else "nopass")
            return Address(server.port, options=has), heal, "check the user name and the password"
        case "refused":
            proxy = Proxy(server.port)
            proxy.port = free_port()

            def listen() -> None:
                proxy.start()
                stack.callback(proxy.stop)

            return Address(proxy.port), listen, "Connection refused"
        case "unknown host":
            return Address(server.port, "nowhere.invalid"), None, "unknown host name"
        case "foreign certificate":
            context, port = over_tls(foreign=True)
            heal = partial(certificates.use, context)
            return Address(port, options=trusting), heal, "does not trust .* REDIS_TLS_CA"
        case "no certificate":
            _, port = over_tls(wants_client=True)
            return Address(port, options=trusting), None, "TLS|ssl"
        case "authority missing":
            authority, file = (
                Path(certificates.authority),
                Path(f"{certificates.authority}.missing"),
            )
            stack.callback(file.unlink, missing_ok=True)
            address = Address(over_tls()[1], options=trusting | {"ssl_ca_certs": str(file)})
            heal = partial(file.write_bytes, authority.read_bytes())
            return address, heal, "check the paths in REDIS_TLS_CA"
        case "TLS to plain":
            return Address(server.port, options=trusting), None, "redis://"
        case "plain to TLS":
            return Address(over_tls()[1]), None, "use rediss://"
        case _:
            admin.config_set("maxclients", 1)
            heal = partial(admin.config_set, "maxclients", 1000)
            stack.callback(heal)
            return Address(server.port), heal, "raise maxclients on the server"


async def until(condition: Callable[[], object], limiter: Limiter, seconds: float = 8) -> None:
    """Send updates of several users until the condition holds."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.gather(*(limiter.hit("9/m", Subject(user=i)) for i in range(4)))
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("kind", CLIENTS)
@pytest.mark.parametrize("fault", FAULTS)
async def test_the_real_reason_is_logged(
    fault: str,
    kind: str,
    request: pytest.FixtureRequest,
    certificates: Certificates,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The log says once host and port, reason and fix, no secret, and later the recovery."""
    server: Server = request.getfixturevalue("node" if kind == "Cluster" else "plain")
    with ExitStack() as stack:
        address, heal, told = begin(fault, stack, server, certificates)
        limiter = Limiter(CLIENTS[kind](stack, address))

        def lines() -> list[str]:
            return [text for text in caplog.messages if told in text or re.search(told, text)]

        await until(lines, limiter)
        for _ in range(10):
            await asyncio.gather(*(limiter.hit("9/m", Subject(user=i)) for i in range(9)))
            await asyncio.sleep(0.02)
        line, *given_up = lines()
        assert len(given_up) <= 1  # over RESP2 a password is asked for with each hit, not before
        assert line.startswith(FAILED)
        where = address.host if kind == "Sentinel" else f"{address.host}:{address.port}"
        assert where in line
        assert len(caplog.messages) <= 3, caplog.messages
        if heal is not None:
            heal()
            await until(lambda: "Redis answers again after" in caplog.text, limiter)
            assert (await limiter.hit("9/m", Subject(user=1))).source == "redis"
        assert not any(secret in caplog.text for secret in SECRETS)
        await limiter.close()
        await asyncio.sleep(0.05)  # asyncio ends a TLS handshake that was cancelled a little later


@pytest.mark.parametrize("step", ["connect", "read_response"])
async def test_a_bug_while_connecting_keeps_its_traceback(
    step: str, plain: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What is neither Redis nor the network is logged once, with its name and its traceback."""
    client = aioredis.Redis(port=plain.port)

    async def buggy(*args: Any, **options: Any) -> None:
        raise AttributeError("no such thing")

    monkeypatch.setattr(client.connection_pool.connection_class, step, buggy)
    limiter = Limiter(RedisStorage(client))
    await until(lambda: caplog.messages, limiter)
    await until(lambda: True, limiter)
    (record,) = [each for each in caplog.records if "AttributeError: no such thing" in each.message]
    assert record.exc_info is not None
    assert "in buggy" in caplog.text
    await limiter.close()
    await client.aclose()


async def test_a_missing_socket_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The path of a unix socket takes the place of host and port."""
    path = tmp_path / "redis.sock"
    limiter = Limiter(Settings(redis_url=f"unix://{path}").storage())
    await until(lambda: caplog.messages, limiter)
    (line,) = caplog.messages
    for part in (f"{path}", "No such file or directory", "the path of its socket"):
        assert part in line
    await limiter.close()


async def test_errors_of_an_outage_do_not_grow() -> None:
    """A million updates during an outage use no memory, because their error does not grow."""
    storage = RedisStorage(aioredis.Redis(port=free_port()))
    lengths = []
    for _ in range(100):
        with pytest.raises(StorageError) as raised:
            await storage.ask(Ask([charge("9/m")]), timeout=TIMEOUT)
        lengths.append(len(raised.traceback))
    assert max(lengths) == lengths[1]
    await storage.close()


FORGED = "7\n2026-01-01 ERROR all is lost \x1b[31m\r\x85\u2028"


@pytest.mark.parametrize("rule", ["9/m bucket", "9/m"])
async def test_keys_cannot_forge_log_lines(
    own_server: Server, caplog: pytest.LogCaptureFixture, rule: str
) -> None:
    """The text of a custom scope is not logged; users with the same error are one line."""
    async with aioredis.Redis(port=own_server.port) as client:
        await client.execute_command(
            "ACL", "SETUSER", "worker", "on", ">pw", "~*", "+@all", "-@scripting"
        )
        await client.execute_command("ACL", "SETUSER", "reader", "on", ">pw", "~other:*", "+@all")
    for name in ("worker", "reader"):
        caplog.clear()
        async with aioredis.Redis(port=own_server.port, username=name, password="pw") as client:
            limiter = Limiter(RedisStorage(client), timeout=TIMEOUT)
            scoped = Rule(rule, lambda subject: f"{FORGED}{subject.user}", name="own")
            for user in range(20):
                await limiter.hit(scoped, Subject(user=user))
            await limiter.close()
        assert len(caplog.messages) <= 2
        assert all(text.isprintable() and "all is lost" not in text for text in caplog.messages)
