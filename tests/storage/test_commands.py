"""The command on every kind of server: it reaches the counts and bans of the bot."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bot_ratelimit import Limiter, Settings, Subject
from tests.admin.shell import run
from tests.certificates import Certificates
from tests.proxy import Proxy
from tests.servers import Server
from tests.topologies import SERVICE, running_nodes, running_sentinels

USER = Subject(user=42)


@pytest.fixture(params=["sentinel", "cluster", "tls"])
def environment(
    request: pytest.FixtureRequest, redis_server: Server, tmp_path: Path
) -> Iterator[dict[str, str]]:
    """The variables with which bot and command connect."""
    with ExitStack() as stack:
        if request.param == "sentinel":
            group = stack.enter_context(running_sentinels(tmp_path / "servers"))
            hosts = ",".join(f"{host}:{port}" for host, port in group.addresses)
            yield {"REDIS_URL": f"redis+sentinel://{hosts}/{SERVICE}/0"}
        elif request.param == "cluster":
            nodes = stack.enter_context(running_nodes(tmp_path / "nodes")).primaries
            hosts = ",".join(f"127.0.0.1:{node.port}" for node in nodes)
            yield {"REDIS_URL": f"redis+cluster://{hosts}", "REDIS_KEY_PREFIX": "{shop}"}
        else:
            certificates = Certificates(tmp_path)
            proxy = Proxy(redis_server.port, tls=certificates.context())
            proxy.start()
            stack.callback(proxy.stop)
            url = f"rediss://127.0.0.1:{proxy.port}"
            yield {"REDIS_URL": url, "REDIS_TLS_CA": certificates.authority}


async def test_the_command_reaches_every_kind_of_server(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`health`, `show`, `forgive`, `ban` and `unban` work by Sentinel, on a cluster, over TLS."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = Settings(rate_limit="2/hour")
    limiter = Limiter(settings.storage(), key_prefix=settings.redis_key_prefix, timeout=5)
    limit = {"RATE_LIMIT": "2/hour", "RATE_LIMIT_TIMEOUT": "5"}
    for _ in range(3):
        assert (await limiter.hit("2/hour", USER)).source == "redis"
    healthy = await run("health", **limit)
    assert healthy.status == 0, healthy
    shown = await run("show", "42", "--json", **limit)
    assert '"remaining": 0' in shown.out, shown
    assert (await run("forgive", "42", "--yes", **limit)).status == 0
    assert (await limiter.peek("2/hour", USER)).remaining == 2
    assert (await run("ban", "42", "1h", "--yes", **limit)).status == 0
    assert "42" in (await run("bans", **limit)).out
    assert await limiter.bans_of(USER)
    assert (await run("unban", "42", "--yes", **limit)).status == 0
    assert not await limiter.bans_of(USER)
    await limiter.close()
