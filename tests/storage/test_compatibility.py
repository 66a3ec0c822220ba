"""RedisStorage with TLS, credential providers, other event loops, and event loops that end."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as aioredis
from redis import CredentialProvider
from redis.asyncio.cluster import RedisCluster

from bot_ratelimit import Limiter, RedisStorage, Settings, Subject
from bot_ratelimit.storage.base import Ask
from tests.benches import TIMEOUT, charge
from tests.certificates import Certificates
from tests.proxy import distant
from tests.servers import Server, running_cluster

LOOPS = ["asyncio", "uvloop"]


def new_loop(kind: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if kind == "asyncio":
        return asyncio.new_event_loop
    if importlib.util.find_spec("uvloop") is None:
        pytest.skip("uvloop is not installed: pip install uvloop")
    import uvloop

    found: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return found


async def four(storage: RedisStorage, user: int) -> list[bool]:
    found = await asyncio.gather(
        *(storage.ask(Ask([charge("3/minute", f"{user}")]), timeout=TIMEOUT) for _ in range(4))
    )
    return [not verdict.wait for (verdict,) in found]


@pytest.mark.parametrize("close", [True, False], ids=["closed", "left open"])
@pytest.mark.parametrize("kind", LOOPS)
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of the loop that ended with a connection
def test_a_second_run_uses_the_same_storage(own_server: Server, kind: str, close: bool) -> None:
    """A module's storage works in several `asyncio.run` calls, closed or not."""
    storage = RedisStorage(aioredis.Redis(port=own_server.port))

    async def use(user: int) -> list[bool]:
        found = await four(storage, user)
        if close:
            await storage.close()
        return found

    for user in range(3):
        with asyncio.Runner(loop_factory=new_loop(kind)) as runner:
            assert runner.run(use(user)) == [True, True, True, False]


@pytest.mark.parametrize("kind", LOOPS)
def test_a_cluster_in_a_second_run(tmp_path: Path, kind: str) -> None:
    """The same is true for a cluster."""
    with running_cluster(tmp_path) as node:
        storage = RedisStorage(RedisCluster(host="127.0.0.1", port=node.port))

        async def use(user: int) -> list[bool]:
            found = await four(storage, user)
            await storage.close()
            return found

        for user in range(2):
            with asyncio.Runner(loop_factory=new_loop(kind)) as runner:
                assert runner.run(use(user)) == [True, True, True, False]


class Provider(CredentialProvider):
    """Passwords that change, as on cloud servers."""

    def __init__(self, password: str) -> None:
        self.password = password
        self.asked = 0

    def get_credentials(self) -> tuple[str, str]:
        self.asked += 1
        return "default", self.password


async def test_a_credential_provider_is_asked_again(own_server: Server) -> None:
    """A new connection uses the current password."""
    async with aioredis.Redis(port=own_server.port) as admin:
        await admin.config_set("requirepass", "first")
        provider = Provider("first")
        async with aioredis.Redis(port=own_server.port, credential_provider=provider) as client:
            storage = RedisStorage(client)
            assert await four(storage, 1) == [True, True, True, False]
            await admin.config_set("requirepass", "second")
            provider.password = "second"
            await admin.client_kill_filter(_type="normal", skipme=True)
            await asyncio.sleep(0.02)
            assert await four(storage, 2) == [True, True, True, False]
            assert provider.asked >= 2
            await storage.close()
        await admin.config_set("requirepass", "")


@pytest.fixture
def over_tls(redis_server: Server, tmp_path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """A TLS port that requires a client certificate, and the options for it."""
    certificates = Certificates(tmp_path)
    with ExitStack() as stack:
        context = certificates.context(wants_client=True)
        proxy = stack.enter_context(distant(redis_server.port, tls=context))
        yield (
            proxy.port,
            {
                "ssl_ca_certs": certificates.authority,
                "ssl_certfile": certificates.client,
                "ssl_keyfile": certificates.client_key,
            },
        )


@pytest.mark.parametrize("kind", ["Redis", "from_url", "Settings"])
@pytest.mark.parametrize("protocol", [2, 3])
async def test_tls_with_a_clients_certificate(
    client: aioredis.Redis, over_tls: tuple[int, dict[str, Any]], kind: str, protocol: int
) -> None:
    """The client certificate is used, however the client was configured."""
    port, options = over_tls
    query = "&".join(f"{name}={value}" for name, value in options.items())
    url = f"rediss://127.0.0.1:{port}/0?{query}&protocol={protocol}"
    if kind == "Redis":
        own = aioredis.Redis(host="127.0.0.1", port=port, ssl=True, protocol=protocol, **options)
        storage: Any = RedisStorage(own, close_client=True)
    elif kind == "from_url":
        storage = RedisStorage(aioredis.Redis.from_url(url), close_client=True)
    else:
        storage = Settings(redis_url=url).storage()
    limiter = Limiter(storage, timeout=TIMEOUT)
    found = await asyncio.gather(*(limiter.hit("3/m", Subject(user=1)) for _ in range(200)))
    assert sum(each.allowed for each in found) == 3
    assert {each.source for each in found} == {"redis"}
    await limiter.close()


async def test_health_checks_of_the_client_do_not_interfere(redis_server: Server) -> None:
    """A client with health checks every second does not disturb our connection."""
    async with aioredis.Redis(port=redis_server.port, health_check_interval=1) as client:
        await client.flushall()
        storage = RedisStorage(client)
        found = await four(storage, 1)
        await asyncio.sleep(1.2)
        assert [*found, *(await four(storage, 1))] == [True] * 3 + [False] * 5
        await storage.close()
