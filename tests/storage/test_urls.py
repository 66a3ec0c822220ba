"""Redis by its URL: every kind of server, and what a wrong URL says."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bot_ratelimit import (
    ConfigError,
    OutgoingLimits,
    RateLimitMiddleware,
    Settings,
    Subject,
)
from bot_ratelimit.storage.redis.urls import client_from_url
from tests.admin.shell import run
from tests.certificates import Certificates
from tests.proxy import distant
from tests.servers import Server, running, running_cluster
from tests.tables import table
from tests.topologies import SERVICE, running_sentinels

SECRET = "hunter2"
USER = Subject(user=42)

Found = tuple[str, dict[str, str]]
"""A URL, and the options that it needs."""
SETTINGS = {
    "ssl_ca_certs": "redis_tls_ca",
    "ssl_certfile": "redis_tls_cert",
    "ssl_keyfile": "redis_tls_key",
    "sentinel_password": "redis_sentinel_password",
}
"""The settings that mean the same as options of a URL."""


@pytest.fixture(params=["redis", "valkey", "socket", "TLS", "sentinels", "cluster"])
def found(request: pytest.FixtureRequest, redis_server: Server, tmp_path: Path) -> Iterator[Found]:
    """Each kind of Redis in turn, with the secrets that it asks for."""
    if request.param == "redis":
        yield redis_server.url, {}
    elif request.param == "valkey":
        server = request.getfixturevalue("valkey_server")
        yield f"valkey://127.0.0.1:{server.port}/1", {}
    elif request.param == "socket":
        socket = tmp_path / "r.sock"
        with running("redis-server", tmp_path, "--unixsocket", str(socket)):
            yield f"unix://{socket}?db=1", {}
    elif request.param == "TLS":
        files = Certificates(tmp_path)
        with distant(redis_server.port, tls=files.context(wants_client=True)) as proxy:
            paths = (files.authority, files.client, files.client_key)
            yield f"rediss://127.0.0.1:{proxy.port}", dict(zip(SETTINGS, paths, strict=False))
    elif request.param == "sentinels":
        with running_sentinels(tmp_path, SECRET) as group:
            hosts = ",".join(f"{host}:{port}" for host, port in group.addresses)
            yield f"redis+sentinel://{hosts}/{SERVICE}/1", {"sentinel_password": SECRET}
    else:
        with running_cluster(tmp_path) as server:
            yield f"redis+cluster://127.0.0.1:{server.port}", {}


async def test_a_url_is_enough(found: Found) -> None:
    """Middleware, outgoing limits and REDIS_URL reach every kind of Redis, in code and settings;
    and so does the command, which finds the counts and bans of the bot."""
    url, options = found
    query = "&".join(f"{name}={value}" for name, value in options.items())
    own = f"{url}?{query}" if query else url
    settings = {SETTINGS[name]: value for name, value in options.items()}
    outgoing = OutgoingLimits(own)
    limiters = [
        RateLimitMiddleware("5/h", own, "urls").limiter,
        outgoing.limiter,
        RateLimitMiddleware.from_settings(Settings(redis_url=url, **settings)).limiter,
    ]
    for limiter in limiters:
        limiter.timeout = 5.0  # a cluster and its certificates take a while on a busy machine
        await limiter.reset("5/h", USER)
        decision = await limiter.hit("5/h", USER)
        assert (decision.source, decision.remaining) == ("redis", 4)
    environment = {name.upper(): value for name, value in settings.items()}
    environment |= {"REDIS_URL": url, "RATE_LIMIT": "5/h", "RATE_LIMIT_TIMEOUT": "5"}
    assert '"remaining": 4' in (await run("show", "42", "--json", **environment)).out
    await limiter.ban(USER, "1h")
    assert "42" in (await run("bans", **environment)).out
    assert (await run("unban", "42", "--yes", **environment)).status == 0
    assert not await limiter.bans_of(USER)
    await outgoing.close()
    for limiter in limiters:
        await limiter.close()


def kwargs(url: str, **defaults: Any) -> dict[str, Any]:
    client: Any = client_from_url(url, defaults)
    return dict(client.connection_pool.connection_kwargs)


@table(
    ("url", "expected"),
    [
        ("redis://h", {"host": "h", "port": 6379, "db": 7, "username": None, "password": "d"}),
        ("redis://me:p%40%2F@h:1/5", {"username": "me", "password": "p@/", "port": 1, "db": 5}),
        ("redis://[::1]:6379/0", {"host": "::1", "db": 0}),
        ("redis://", {"host": "localhost"}),
        ("valkeys://h", {"host": "h"}),
        ("valkey+unix:///tmp/r.sock", {"path": "/tmp/r.sock", "db": 7}),
        ("redis://h?socket_timeout=5&client_name=x", {"socket_timeout": 5.0, "client_name": "x"}),
        ("redis+sentinel://me:p@h1,h2:1/svc/2", {"username": "me", "password": "p", "db": 2}),
    ],
)
def test_what_a_url_leaves_open_is_filled_in(url: str, expected: dict[str, Any]) -> None:
    """The parts of the URL win over the defaults, and are unescaped."""
    options = kwargs(url, db=7, password="d")
    assert {name: options.get(name) for name in expected} == expected


def test_the_sentinels_of_a_url_have_their_own_credentials() -> None:
    """The user of the URL is that of Redis; sentinels get theirs from options or settings."""
    client: Any = client_from_url("redis+sentinel://:p@h1,[::1]:7/svc?sentinel_password=q")
    sentinels = client.connection_pool.sentinel_manager.sentinels
    found = [each.connection_pool.connection_kwargs for each in sentinels]
    addresses = [(each["host"], each["port"], each["password"]) for each in found]
    assert addresses == [("h1", 26379, "q"), ("::1", 7, "q")]


@table(
    ("url", "told"),
    [
        (f"http://:{SECRET}@h", "unknown scheme"),
        ("rediss+unix:///x", "a socket has no TLS"),
        (f" redis://:{SECRET}@h", "spaces or a line end around the URL"),
        (f"redis://:{SECRET}@h1,h2", "several hosts need redis+sentinel:// or redis+cluster://"),
        (f"redis+sentinel://:{SECRET}@h1,h2", "the service is missing"),
        ("redis+sentinel://h1,/svc", "a host is missing"),
        (f"redis+sentinel://h1/svc/{SECRET}", "the path is not the number of a database"),
        ("redis+cluster://h/3", "a cluster has only the database 0"),
        ("unix://run/redis.sock", "three slashes"),
        (f"redis://:{SECRET}@h:port", "the port is not a number"),
        ("redis://h:0", "the port is not between 1 and 65535"),
        ("redis://h?socket_timeuot=1", "unknown (like socket_timeout, but not the same)"),
        (f"redis://h?sentinel_password={SECRET}", "one of the options after ? is unknown"),
        (f"redis://h?{SECRET}=1", "one of the options after ? is unknown"),
        ("redis://h?ssl_ca_certs=x", "ssl_ca_certs is given, but the URL is without TLS"),
        ("redis://h?socket_timeout=soon", "the value of the option socket_timeout is wrong"),
        (f"rediss://h?ssl_cert_reqs={SECRET}", "one of the options ssl_cert_reqs is wrong here"),
        (f"redis://h?{SECRET}", "after ? expected options, NAME=VALUE"),
        (f"redis://h/0#{SECRET}", "a character of the password or the path is not escaped"),
        (f"redis://:12/{SECRET}@h", "a character of the password or the path is not escaped"),
    ],
)
def test_an_error_says_which_part_is_wrong(url: str, told: str) -> None:
    """The error is one line: the part, and what a right URL looks like. Not even its traceback
    shows a part that may be secret."""
    with pytest.raises(ConfigError, match=r"^redis_client: .*; expected a redis://, ") as error:
        RateLimitMiddleware("5/h", url)
    assert told in str(error.value)
    assert "\n" not in str(error.value)
    assert SECRET not in "".join(traceback.format_exception(error.value))
