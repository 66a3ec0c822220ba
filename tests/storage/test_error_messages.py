"""Log messages and errors of unreachable servers, for every kind of client."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pytest
import redis
import redis.asyncio as aioredis
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.sentinel import Sentinel

from bot_ratelimit import Limiter, Rule, Settings, StorageError, Subject
from bot_ratelimit.storage.base import Ask, Storage
from bot_ratelimit.storage.redis.storage import RedisStorage
from tests.benches import TIMEOUT, charge
from tests.certificates import Certificates
from tests.proxy import Proxy, distant
from tests.servers import Server, free_port, running, running_cluster
from tests.topologies import SERVICE, SentinelServer

CONNECT_TIMEOUT = 1.0
FAILED = "Redis rate limit check failed: "
SECRETS = ("wr0ng", "s3cret", "right")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("plain")
    socket = str(directory / "redis.sock")
    with running("redis-server", directory, "--unixsocket", socket) as server:
        yield server


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_cluster(tmp_path_factory.mktemp("node")) as server:
        yield server


class Address(NamedTuple):
    """The address, credentials and TLS options of a client."""

    server: Server
    host: str
    port: int
    options: dict[str, Any]


@contextmanager
def by_class(at: Address) -> Iterator[Storage]:
    yield RedisStorage(
        aioredis.Redis(host=at.host, port=at.port, **at.options), connect_timeout=CONNECT_TIMEOUT
    )


@contextmanager
def by_url(at: Address) -> Iterator[Storage]:
    yield RedisStorage(aioredis.Redis.from_url(url_of(at)), connect_timeout=CONNECT_TIMEOUT)


@contextmanager
def by_settings(at: Address) -> Iterator[Storage]:
    yield Settings(redis_url=url_of(at), rate_limit_connect_timeout=CONNECT_TIMEOUT).storage()


@contextmanager
def by_sentinel(at: Address) -> Iterator[Storage]:
    """A client whose sentinel names this address; the connection to the primary fails."""
    with ExitStack() as stack:
        addresses = [(at.host, at.port)]
        if not at.host.endswith(".invalid"):
            directory = Path(stack.enter_context(TemporaryDirectory())) / "sentinel"
            server = SentinelServer(directory, at.port, down_after=600)
            stack.callback(server.kill)
            server.start()
            addresses = [("127.0.0.1", server.port)]
        primary = Sentinel(addresses).master_for(SERVICE, **at.options)
        yield RedisStorage(primary, connect_timeout=CONNECT_TIMEOUT)


@contextmanager
def by_cluster(at: Address) -> Iterator[Storage]:
    yield RedisStorage(
        RedisCluster(
            host=at.host,
            port=at.port,
            address_remap=lambda address: (address[0], at.port),
            **at.options,
        ),
        connect_timeout=CONNECT_TIMEOUT,
    )


def url_of(at: Address) -> str:
    options = dict(at.options)
    scheme = "rediss" if options.pop("ssl", False) else "redis"
    user, password = options.pop("username", ""), options.pop("password", "")
    credentials = f"{user}:{password}@" if password else ""
    query = "&".join(f"{name}={value}" for name, value in options.items())
    return f"{scheme}://{credentials}{at.host}:{at.port}/0?{query}"


CLIENTS = {
    "Redis": by_class,
    "from_url": by_url,
    "Settings": by_settings,
    "Sentinel": by_sentinel,
    "Cluster": by_cluster,
}


Heal = Callable[[], Any]
Fault = Callable[[ExitStack, Server, Certificates], "tuple[Address, Heal | None, str]"]


def admin(server: Server, *command: object) -> Any:
    with redis.Redis(port=server.port) as client:
        return client.execute_command(*command)


def at(server: Server, port: int = 0, **options: Any) -> Address:
    return Address(server, "127.0.0.1", port or server.port, options)


def wrong_password(stack: ExitStack, server: Server, _: Certificates) -> Any:
    heal = protect(stack, server, ">wr0ng")
    return at(server, password="wr0ng"), heal, "check the user name and the password"


def no_password(stack: ExitStack, server: Server, _: Certificates) -> Any:
    return at(server), protect(stack, server, "nopass"), "check the user name and the password"


def protect(stack: ExitStack, server: Server, allowed_later: str) -> Heal:
    """Set a password on the server; one connection stays open to remove it."""
    client = stack.enter_context(redis.Redis(port=server.port, single_connection_client=True))

    def allow(*what: str) -> None:
        client.execute_command("ACL SETUSER", "default", *what)

    allow("resetpass", ">right")
    stack.callback(allow, "nopass")
    return partial(allow, allowed_later)


def wrong_user(stack: ExitStack, server: Server, _: Certificates) -> Any:
    def heal() -> None:
        admin(server, "ACL SETUSER", "bob", "on", ">wr0ng", "~*", "+@all")

    stack.callback(admin, server, "ACL DELUSER", "bob")
    return (
        at(server, username="bob", password="wr0ng"),
        heal,
        "check the user name and the password",
    )


def refused(stack: ExitStack, server: Server, _: Certificates) -> Any:
    port = free_port()

    def heal() -> None:
        proxy = Proxy(server.port)
        proxy.port = port
        proxy.start()
        stack.callback(proxy.stop)

    return at(server, port), heal, "Connection refused"


def unknown_host(stack: ExitStack, server: Server, _: Certificates) -> Any:
    return at(server)._replace(host="nowhere.invalid"), None, "unknown host name"


def foreign_certificate(stack: ExitStack, server: Server, certificates: Certificates) -> Any:
    context = certificates.context(foreign=True)
    port = stack.enter_context(distant(server.port, tls=context)).port
    address = at(server, port, ssl=True, ssl_ca_certs=certificates.authority)
    return address, lambda: certificates.use(context), "does not trust .* REDIS_TLS_CA"


def client_certificate_missing(stack: ExitStack, server: Server, certificates: Any) -> Any:
    context = certificates.context(wants_client=True)
    port = stack.enter_context(distant(server.port, tls=context)).port
    return at(server, port, ssl=True, ssl_ca_certs=certificates.authority), None, "TLS|ssl"


def authority_missing(stack: ExitStack, server: Server, certificates: Certificates) -> Any:
    port = stack.enter_context(distant(server.port, tls=certificates.context())).port
    missing = certificates.authority + ".missing"
    heal = lambda: Path(missing).write_text(Path(certificates.authority).read_text())  # noqa: E731 - short
    stack.callback(Path(missing).unlink, missing_ok=True)
    return at(server, port, ssl=True, ssl_ca_certs=missing), heal, "check the paths in REDIS_TLS_CA"


def tls_to_plain(stack: ExitStack, server: Server, certificates: Certificates) -> Any:
    return at(server, ssl=True, ssl_ca_certs=certificates.authority), None, "redis://"


def plain_to_tls(stack: ExitStack, server: Server, certificates: Certificates) -> Any:
    port = stack.enter_context(distant(server.port, tls=certificates.context())).port
    return at(server, port), None, "use rediss://"


def too_many_clients(stack: ExitStack, server: Server, _: Certificates) -> Any:
    client = stack.enter_context(redis.Redis(port=server.port))
    client.config_set("maxclients", 1)
    heal = lambda: client.config_set("maxclients", 1000)  # noqa: E731 - short
    stack.callback(heal)
    return at(server), heal, "raise maxclients on the server"


FAULTS: list[Fault] = [
    wrong_password,
    no_password,
    wrong_user,
    refused,
    unknown_host,
    foreign_certificate,
    client_certificate_missing,
    authority_missing,
    tls_to_plain,
    plain_to_tls,
    too_many_clients,
]


def alone(storage: Storage) -> Limiter:
    """A limiter whose outages have lines of their own.

    An outage of a server is one line for the whole process, and limiters of earlier tests, with the
    same server, may still be there. Limiters with different clocks share nothing.
    """
    return Limiter(storage, clock=lambda: time.monotonic())


async def until(condition: Callable[[], object], limiter: Limiter, seconds: float = 8) -> None:
    """Send updates of several users until the condition holds."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.gather(*(limiter.hit("9/m", Subject(user=i)) for i in range(4)))
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("kind", CLIENTS)
@pytest.mark.parametrize("fault", FAULTS)
async def test_the_real_reason_is_logged(
    fault: Fault,
    kind: str,
    request: pytest.FixtureRequest,
    certificates: Certificates,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The log says once host and port, reason and fix, no secret, and later the recovery."""
    server: Server = request.getfixturevalue("node" if kind == "Cluster" else "plain")
    with ExitStack() as stack:
        address, heal, told = fault(stack, server, certificates)
        limiter = alone(stack.enter_context(CLIENTS[kind](address)))

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


@pytest.mark.parametrize("step", ["connect", "read_response"])
async def test_a_bug_while_connecting_keeps_its_traceback(
    step: str, plain: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What is neither Redis nor the network is logged once, with its name and its traceback."""
    client = aioredis.Redis(port=plain.port)

    async def buggy(*args: Any, **options: Any) -> None:
        raise AttributeError("no such thing")

    monkeypatch.setattr(client.connection_pool.connection_class, step, buggy)
    limiter = alone(RedisStorage(client))
    await until(lambda: caplog.messages, limiter)
    await until(lambda: True, limiter)
    (record,) = [each for each in caplog.records if "AttributeError: no such thing" in each.message]
    assert record.exc_info is not None
    assert "in buggy" in caplog.text
    await limiter.close()
    await client.aclose()


async def test_a_missing_socket_is_named(
    tmp_path: Path, plain: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """The path of a unix socket takes the place of host and port."""
    path = tmp_path / "redis.sock"
    for storage in (
        RedisStorage(aioredis.Redis(unix_socket_path=str(path))),
        RedisStorage(aioredis.Redis.from_url(f"unix://{path}")),
        Settings(redis_url=f"unix://{path}").storage(),
    ):
        caplog.clear()
        limiter = alone(storage)
        await until(lambda: caplog.messages, limiter)
        (line,) = caplog.messages
        assert f"{path}" in line
        assert "No such file or directory" in line
        assert "the path of its socket" in line
        await limiter.close()


async def test_errors_of_an_outage_do_not_grow() -> None:
    """A million updates during an outage use no memory, because their error does not grow."""
    storage = RedisStorage(aioredis.Redis(port=free_port()))
    limits = []
    for _ in range(100):
        with pytest.raises(StorageError) as raised:
            await storage.ask(Ask([charge("9/m")]), timeout=TIMEOUT)
        limits.append(len(raised.traceback))
    assert max(limits) == limits[1]
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
