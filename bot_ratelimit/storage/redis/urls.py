"""Makes a client of redis-py from a URL: one server, a socket, Sentinel or a cluster.

====================================  =============================================================
`redis://user:password@host:6379/0`   one server; `rediss://` with TLS
`unix:///run/redis.sock?db=0`         a Unix socket
`redis+sentinel://h1:26379,h2/svc/0`  the primary of service `svc`; also `rediss+…`, with TLS
`redis+cluster://h1:6379,h2`          a Redis Cluster; also `rediss+…`, with TLS
====================================  =============================================================

`valkey` may stand for `redis` everywhere. Options of redis-py follow after `?`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from difflib import get_close_matches
from inspect import signature
from ipaddress import ip_address
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import parse_qsl, unquote

from redis.asyncio import (
    Connection,
    ConnectionPool,
    Redis,
    RedisCluster,
    Sentinel,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import URL_QUERY_ARGUMENT_PARSERS
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from bot_ratelimit.errors import ConfigError
from bot_ratelimit.storage.redis import driver

if TYPE_CHECKING:
    from bot_ratelimit.storage.redis.driver import Client

EXPECTED: Final = (
    "a redis://, rediss://, unix://, redis+sentinel:// or redis+cluster:// URL, such as "
    "redis://:password@host:6379/0, with @ as %40, / as %2F, # as %23, ? as %3F and % as %25 in "
    "the password"
)
"""What errors say about a URL."""
MAX_DB: Final = 2**31 - 1

_URL: Final = re.compile(
    r"(?P<scheme>(?:redis|valkey)(?P<tls>s?)(?:\+(?P<kind>unix|sentinel|cluster))?|unix)://"
    r"(?P<netloc>[^/?#]*)(?P<path>[^?#]*)(?:\?(?P<query>[^#]*))?(?P<fragment>#.*)?",
    re.DOTALL,
)
_HOST: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?")
_HOST_AND_PORT: Final = re.compile(r"(?P<host>\[[^\]]*\]|[^:\[\]]*)(?::(?P<port>[0-9]{1,5}))?")
_NUMBER: Final = re.compile("[0-9]{1,10}")
_TLS_OPTIONS: Final = frozenset(
    name for name in signature(SSLConnection.__init__).parameters if name.startswith("ssl_")
)
_SENTINEL_OPTIONS: Final = frozenset({"sentinel_username", "sentinel_password"})
_OPTIONS: Final = frozenset(
    {"client_name", "decode_responses", "encoding", "encoding_errors", "protocol"}
    | URL_QUERY_ARGUMENT_PARSERS.keys()
    | _TLS_OPTIONS
    | _SENTINEL_OPTIONS
)


def client_from_url(url: str, defaults: Mapping[str, Any] = MappingProxyType({})) -> Client:
    """Make a client, which connects when it is first used.

    Args:
        url: The URL.
        defaults: Options of redis-py, where the URL says nothing else.

    Raises:
        ConfigError: The URL is wrong. The error says which part, and shows none of it: any part may
            belong to the password, as in `redis://:12/3@host`, whose password is `12/3`.
    """
    kind, tls, netloc, path, query = _split(url)
    if uses_tls(defaults) and not tls:
        raise ConfigError("certificates are given, but the URL is without TLS: write rediss://")
    user, _, addresses = netloc.rpartition("@")
    username, _, password = map(unquote, user.partition(":"))
    path, db = _path_and_db(path, kind)
    given = _options(query, kind, tls)
    parts = {"db": db, "username": username or None, "password": password or None}
    options = {
        # Every decision has a time-out of its own, and is not repeated.
        "retry": Retry(NoBackoff(), 0),
        "socket_timeout": None,
        "socket_connect_timeout": None,
        **defaults,
        **{name: value for name, value in parts.items() if value is not None},
        **given,
    }
    hosts = _hosts(addresses, kind)
    if kind == "cluster" and options.pop("db", 0):
        raise ConfigError("a cluster has only the database 0 (REDIS_DB)")
    client = None
    with suppress(ValueError, TypeError, AttributeError, RedisError):
        client = _client(kind, tls, hosts, path, options)
    if client is None:  # raised here, so that no error with a secret becomes its context
        raise ConfigError(
            f"one of the options {', '.join(given)} is wrong here, or has a wrong value"
        )
    return client


def client_given_as(url: str) -> Client:
    """Make a client from a URL that was given in code, in place of a client.

    Raises:
        ConfigError: The URL is wrong; see `client_from_url`.
    """
    try:
        return client_from_url(url)
    except ConfigError as error:
        raise ConfigError(f"redis_client: {error}; expected {EXPECTED}") from None


def uses_tls(options: Mapping[str, Any]) -> bool:
    """Whether one of these options of redis-py needs TLS."""
    return not _TLS_OPTIONS.isdisjoint(options)


def is_host(text: str) -> bool:
    """Whether this is a host name or an address, without brackets and without a port."""
    if _HOST.fullmatch(text):
        return True
    with suppress(ValueError):
        return bool(ip_address(text.partition("%")[0]))
    return False


def _split(url: str) -> tuple[str, bool, str, str, str]:
    """The kind, whether it has TLS, and the parts of a URL."""
    if url != url.strip():
        raise ConfigError("spaces or a line end around the URL: remove them")
    match = _URL.fullmatch(url)
    if match is None:
        raise ConfigError("unknown scheme")
    netloc, path, query = match["netloc"], match["path"], match["query"] or ""
    if match["fragment"] or "@" in path or ("@" in query and "@" not in netloc):
        raise ConfigError("a character of the password or the path is not escaped")
    kind, tls = "unix" if match["scheme"] == "unix" else match["kind"] or "", bool(match["tls"])
    if kind == "unix" and tls:
        raise ConfigError("a socket has no TLS: write unix://")
    return kind, tls, netloc, path, query


def _hosts(addresses: str, kind: str) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = []
    if kind == "unix" and addresses:
        raise ConfigError("three slashes begin the path of a socket, unix:///run/redis.sock")
    if kind == "unix":
        return found
    for address in addresses.split(","):
        match = _HOST_AND_PORT.fullmatch(address)
        if match is None:
            raise ConfigError("the port is not a number, or a character is not escaped")
        host = match["host"].removeprefix("[").removesuffix("]")
        if not host and kind:
            raise ConfigError("a host is missing, such as redis+sentinel://host1,host2/service/0")
        if host and not is_host(host):
            raise ConfigError("neither a host name nor an address before the port")
        port = int(match["port"] or (26379 if kind == "sentinel" else 6379))
        if not 1 <= port <= 65535:
            raise ConfigError("the port is not between 1 and 65535")
        found.append((host or "localhost", port))
    if len(found) > 1 and not kind:
        raise ConfigError("several hosts need redis+sentinel:// or redis+cluster://")
    return found


def _path_and_db(path: str, kind: str) -> tuple[str, int | None]:
    if kind == "unix":
        if not path:
            raise ConfigError("the path of the socket is missing, such as unix:///run/redis.sock")
        return unquote(path), None
    service, db = "", path.removeprefix("/")
    if kind == "sentinel":
        service, _, db = db.partition("/")
        if not service:
            raise ConfigError(
                "the service is missing, such as redis+sentinel://host1,host2/service/0"
            )
    if db and not (_NUMBER.fullmatch(db) and int(db) <= MAX_DB):
        raise ConfigError("the path is not the number of a database")
    return unquote(service), int(db) if db else None


def _options(query: str, kind: str, tls: bool) -> dict[str, Any]:
    """Read what follows after `?`. Only known names are shown: others may belong to a password."""
    pairs = None
    with suppress(ValueError):
        pairs = parse_qsl(query, strict_parsing=True) if query else []
    if pairs is None:
        raise ConfigError("after ? expected options, NAME=VALUE with & between them")
    found: dict[str, Any] = {}
    for name, text in pairs:
        if name not in _OPTIONS or (name in _SENTINEL_OPTIONS and kind != "sentinel"):
            near = get_close_matches(name, _OPTIONS, n=1, cutoff=0.8)
            hint = f" (like {near[0]}, but not the same)" if near else ""
            raise ConfigError(f"one of the options after ? is unknown{hint}")
        if name in _TLS_OPTIONS and not tls:
            raise ConfigError(f"{name} is given, but the URL is without TLS: write rediss://")
        if name == "db" and not _NUMBER.fullmatch(text):
            raise ConfigError("db is not the number of a database")
        parser = URL_QUERY_ARGUMENT_PARSERS.get(name, str)
        with suppress(ValueError, TypeError):
            found[name] = cast(Any, parser)(text)
        if name not in found:
            raise ConfigError(f"the value of the option {name} is wrong")
    return found


def _client(
    kind: str,
    tls: bool,
    hosts: list[tuple[str, int]],
    path: str,
    options: dict[str, Any],
) -> Client:
    sentinels = {name[9:]: options.pop(name) for name in _SENTINEL_OPTIONS if name in options}
    if kind == "cluster":
        nodes = [ClusterNode(host, port) for host, port in hosts]
        cluster = RedisCluster(startup_nodes=nodes, ssl=tls, **options)
        driver.node_endpoint(cluster, hosts[0]).check()
        return cluster
    if kind == "sentinel":
        shared = {"retry", *_TLS_OPTIONS} & options.keys()
        sentinels |= {"ssl": tls, **{name: options[name] for name in shared}}
        # redis-py does not annotate Sentinel.
        manager = cast(Any, Sentinel)(hosts, sentinel_kwargs=sentinels, ssl=tls, **options)
        pool = manager.master_for(path).connection_pool
    elif kind == "unix":
        pool = ConnectionPool(UnixDomainSocketConnection, path=path, **options)
    else:
        ((host, port),) = hosts
        pool = ConnectionPool(SSLConnection if tls else Connection, host=host, port=port, **options)
    driver.Endpoint(pool).check()
    return Redis.from_pool(pool)
