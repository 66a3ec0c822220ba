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
from contextlib import suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from inspect import signature
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, cast
from urllib.parse import parse_qsl, unquote

from redis.asyncio import (
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

if TYPE_CHECKING:
    from bot_ratelimit.storage.redis.driver import Client

Kind: TypeAlias = Literal["", "unix", "sentinel", "cluster"]

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


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a URL may leave open; what stands in the URL wins."""

    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    sentinel_username: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None

    @property
    def uses_tls(self) -> bool:
        """Whether a file for TLS is given."""
        return bool(self.tls_ca or self.tls_cert or self.tls_key)


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """The parts of a URL. Only `where` may be shown: any other part may be a secret."""

    kind: Kind
    tls: bool
    hosts: tuple[tuple[str, int], ...]
    path: str = field(repr=False)
    """The path of a socket, or the name of a Sentinel service."""
    db: int | None
    username: str | None = field(repr=False)
    password: str | None = field(repr=False)
    options: dict[str, Any] = field(repr=False)


def client_from_url(url: str, defaults: Defaults = Defaults()) -> Client:
    """Make a client, which connects when it is first used.

    Raises:
        ConfigError: The URL is wrong. The error says which part, and shows none of it: any part may
            belong to the password, as in `redis://:12/3@host`, whose password is `12/3`.
    """
    parts = parse(url)
    if defaults.uses_tls and not parts.tls:
        raise ConfigError("certificates are given, but the URL is without TLS: write rediss://")
    if parts.kind == "cluster" and (defaults.db if parts.db is None else parts.db):
        raise ConfigError("a cluster has only the database 0 (REDIS_DB)")
    client = None
    with suppress(ValueError, TypeError, AttributeError, RedisError):
        client = _client(parts, defaults)
    if client is None:  # raised here, so that no error with a secret becomes its context
        raise ConfigError(
            f"one of the options {', '.join(parts.options)} is wrong here, or has a wrong value"
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


def parse(url: str) -> RedisUrl:
    """Take a URL apart.

    Raises:
        ConfigError: It is wrong; see `client_from_url`.
    """
    if url != url.strip():
        raise ConfigError("spaces or a line end around the URL: remove them")
    match = _URL.fullmatch(url)
    if match is None:
        raise ConfigError("unknown scheme")
    netloc, path, query = match["netloc"], match["path"], match["query"] or ""
    if match["fragment"] or "@" in path or ("@" in query and "@" not in netloc):
        raise ConfigError("a character of the password or the path is not escaped")
    kind = cast(Kind, "unix" if match["scheme"] == "unix" else match["kind"] or "")
    tls = bool(match["tls"])
    user, _, addresses = netloc.rpartition("@")
    username, _, password = map(unquote, user.partition(":"))
    options = _options(query, kind, tls)
    path, db = _path_and_db(path, kind)
    if kind == "unix" and tls:
        raise ConfigError("a socket has no TLS: write unix://")
    return RedisUrl(
        kind,
        tls,
        _hosts(addresses, kind),
        path,
        options.pop("db", db),
        username or None,
        password or None,
        options,
    )


def is_host(text: str) -> bool:
    """Whether this is a host name or an address, without brackets and without a port."""
    if _HOST.fullmatch(text):
        return True
    with suppress(ValueError):
        return bool(ip_address(text.partition("%")[0]))
    return False


def _hosts(addresses: str, kind: Kind) -> tuple[tuple[str, int], ...]:
    if kind == "unix":
        if addresses:
            raise ConfigError("three slashes begin the path of a socket, unix:///run/redis.sock")
        return ()
    found = []
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
    return tuple(found)


def _path_and_db(path: str, kind: Kind) -> tuple[str, int | None]:
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


def _options(query: str, kind: Kind, tls: bool) -> dict[str, Any]:
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


def _client(parts: RedisUrl, defaults: Defaults) -> Client:
    options = {
        "username": parts.username or defaults.username,
        "password": parts.password or defaults.password,
        # Every decision has a time-out of its own, and is not repeated.
        "retry": Retry(NoBackoff(), 0),
        "socket_timeout": None,
        "socket_connect_timeout": None,
        **parts.options,
    }
    if parts.tls:
        options = _tls(defaults) | options
    if parts.kind == "cluster":
        nodes = [ClusterNode(host, port) for host, port in parts.hosts]
        cluster = RedisCluster(startup_nodes=nodes, ssl=parts.tls, **options)
        kwargs: dict[str, Any] = cluster.get_connection_kwargs()
        node: Any = ClusterNode(*parts.hosts[0], **kwargs)
        node.connection_class(**node.connection_kwargs)  # checks every option
        return cluster
    options["db"] = defaults.db if parts.db is None else parts.db
    if parts.kind == "sentinel":
        return _primary(parts, defaults, options)
    if parts.kind == "unix":
        options |= {"connection_class": UnixDomainSocketConnection, "path": parts.path}
    else:
        (host, port), *_ = parts.hosts
        options |= {"host": host, "port": port}
        if parts.tls:
            options["connection_class"] = SSLConnection
    pool: Any = ConnectionPool(**options)
    pool.make_connection()  # connects to nothing yet, but checks every option
    return Redis.from_pool(pool)


def _primary(parts: RedisUrl, defaults: Defaults, options: dict[str, Any]) -> Redis:
    sentinels = {
        "username": options.pop("sentinel_username", defaults.sentinel_username),
        "password": options.pop("sentinel_password", defaults.sentinel_password),
        "retry": options["retry"],
        "ssl": parts.tls,
        **{name: value for name, value in options.items() if name in _TLS_OPTIONS},
    }
    # redis-py does not annotate Sentinel.
    manager = cast(Any, Sentinel)(parts.hosts, sentinel_kwargs=sentinels, ssl=parts.tls, **options)
    client: Redis = manager.master_for(parts.path)
    pool: Any = client.connection_pool
    pool.make_connection()  # checks every option
    return client


def _tls(defaults: Defaults) -> dict[str, Any]:
    given = {
        "ssl_ca_certs": defaults.tls_ca,
        "ssl_certfile": defaults.tls_cert,
        "ssl_keyfile": defaults.tls_key,
    }
    return {name: path for name, path in given.items() if path}
