"""RedisStorage with credential providers, other event loops, and event loops that end."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import redis.asyncio as aioredis
from redis import CredentialProvider
from redis.asyncio.cluster import RedisCluster

from bot_ratelimit import RedisStorage
from bot_ratelimit.storage.base import Ask
from tests.benches import TIMEOUT, charge
from tests.servers import Server, running, running_cluster


def new_loop(kind: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if kind == "asyncio":
        return asyncio.new_event_loop
    if importlib.util.find_spec("uvloop") is None:
        pytest.skip("uvloop is not installed: pip install uvloop")
    import uvloop

    found: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return found


async def four(storage: RedisStorage, user: int) -> list[bool]:
    ask = Ask([charge("3/minute", f"{user}")])
    found = await asyncio.gather(*(storage.ask(ask, timeout=TIMEOUT) for _ in range(4)))
    return [not verdict.wait for (verdict,) in found]


@pytest.mark.parametrize("ends", ["closed", "left open", "cluster, closed"])
@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of the loop that ended with a connection
def test_a_second_run_uses_the_same_storage(tmp_path: Path, kind: str, ends: str) -> None:
    """A module's storage works in several `asyncio.run` calls, closed or left with a request."""
    is_cluster = "cluster" in ends
    with running_cluster(tmp_path) if is_cluster else running("redis-server", tmp_path) as server:
        make = RedisCluster if is_cluster else aioredis.Redis
        storage = RedisStorage(make(host="127.0.0.1", port=server.port))

        async def use(user: int) -> list[bool]:
            found = await four(storage, user)
            left = asyncio.create_task(four(storage, 100))
            await asyncio.sleep(0)
            if "closed" in ends:
                await left
                await storage.close()
            return found

        for user in range(3):
            with asyncio.Runner(loop_factory=new_loop(kind)) as runner:
                assert runner.run(use(user)) == [True, True, True, False]


class Provider(CredentialProvider):
    """Passwords that change, as on cloud servers."""

    def __init__(self) -> None:
        self.password = "first"

    def get_credentials(self) -> tuple[str, str]:
        return "default", self.password


async def test_a_credential_provider_is_asked_again(own_server: Server) -> None:
    """A new connection uses the current password."""
    provider = Provider()
    async with (
        aioredis.Redis(port=own_server.port) as admin,
        aioredis.Redis(port=own_server.port, credential_provider=provider) as client,
    ):
        storage = RedisStorage(client)
        for user, provider.password in enumerate(("first", "second")):
            await admin.config_set("requirepass", provider.password)
            await admin.client_kill_filter(_type="normal", skipme=True)
            await asyncio.sleep(0.02)
            assert await four(storage, user) == [True, True, True, False]
        await storage.close()
        await admin.config_set("requirepass", "")
