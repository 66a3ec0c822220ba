"""The Redis of the demo: one inside this process, or the user's own behind a proxy."""

import asyncio
import secrets
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Protocol, cast

from redis.asyncio import Redis
from redis.asyncio.connection import parse_url
from redis.exceptions import RedisError

from bot_ratelimit import ConfigError
from example_bot.demo.proxy import Proxy, Streams


class Backend(Protocol):
    """A Redis that can be made unreachable."""

    name: str
    """A description for the display."""

    def client(self) -> Redis:
        """A client for one instance of the bot; the caller closes it."""
        ...

    async def cut(self) -> None:
        """Become unreachable: connections break, and new ones are refused."""
        ...

    async def repair(self) -> None:
        """Become reachable again, with all data from before."""
        ...


@asynccontextmanager
async def open_backend(url: str | None, prefix: str) -> AsyncIterator[Backend]:
    """Open the server at this address, or an embedded one.

    Args:
        url: `redis://`, `rediss://` or `unix://`; None or an empty string for an embedded server.
        prefix: The keys with this prefix are deleted from the server at the end.

    Raises:
        ConfigError: The server cannot be reached, or fakeredis is not installed.
    """
    if not url:
        yield Embedded()
        return
    try:
        address = cast(dict[str, Any], parse_url(url))
    except ValueError as error:
        raise ConfigError(f"REDIS_URL: {error}") from None
    async with Redis.from_url(url) as direct:
        await _check(direct, address)
        async with Proxy(lambda: _connect(address)) as proxy:
            try:
                yield Proxied(proxy, address)
            finally:
                async for key in direct.scan_iter(match=f"{prefix}:*", count=1000):
                    await direct.delete(key)


def random_prefix() -> str:
    """A random key prefix, so that runs on one server do not collide."""
    return f"demo-{secrets.token_hex(4)}"


class Embedded:
    """A Redis inside this process, which all instances share."""

    name = "an embedded Redis (set REDIS_URL to use your own)"

    def __init__(self) -> None:
        try:
            from fakeredis import FakeAsyncRedis, FakeServer
        except ImportError:
            raise ConfigError(
                "the demo needs either REDIS_URL or: pip install 'fakeredis[lua]'"
            ) from None
        self._server = FakeServer()
        self._client_class = FakeAsyncRedis

    def client(self) -> Redis:
        """A client of the embedded server."""
        return self._client_class(server=self._server, host="embedded-redis")

    async def cut(self) -> None:
        """Fail every command from now on."""
        self._server.connected = False

    async def repair(self) -> None:
        """Serve again."""
        self._server.connected = True


class Proxied:
    """A real server behind a proxy that can be cut."""

    def __init__(self, proxy: Proxy, address: dict[str, Any]) -> None:
        self.name = f"Redis at {_place(address)}"
        self._proxy = proxy
        self._login = {
            each: address[each] for each in ("db", "username", "password") if each in address
        }

    def client(self) -> Redis:
        """A client that connects through the proxy."""
        return Redis.from_url(f"redis://127.0.0.1:{self._proxy.port}", **self._login)

    async def cut(self) -> None:
        """Break all connections and refuse new ones."""
        await self._proxy.cut()

    async def repair(self) -> None:
        """Accept connections again."""
        await self._proxy.repair()


async def _check(direct: Redis, address: dict[str, Any]) -> None:
    try:
        async with asyncio.timeout(3.0):
            await direct.ping()
    except (RedisError, OSError, TimeoutError) as error:
        raise ConfigError(
            f"REDIS_URL: Redis at {_place(address)} does not answer ({type(error).__name__}); "
            "without REDIS_URL the demo uses an embedded Redis"
        ) from None


def _place(address: dict[str, Any]) -> str:
    """The address of the server, without the password that a URL may contain."""
    return str(
        address.get("path") or f"{address.get('host', 'localhost')}:{address.get('port', 6379)}"
    )


async def _connect(address: dict[str, Any]) -> Streams:
    if path := address.get("path"):
        return await asyncio.open_unix_connection(path)
    host, port = address.get("host", "localhost"), address.get("port", 6379)
    # The client speaks plain Redis to the proxy on loopback, so the proxy speaks TLS and checks the
    # certificate.
    secure = "SSL" in getattr(address.get("connection_class"), "__name__", "")
    return await asyncio.open_connection(host, port, ssl=_tls(address) if secure else None)


def _tls(address: dict[str, Any]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=address.get("ssl_ca_certs"))
    if address.get("ssl_cert_reqs") == "none":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if certificate := address.get("ssl_certfile"):
        context.load_cert_chain(certificate, address.get("ssl_keyfile"))
    return context
