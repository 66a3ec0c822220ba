"""Fixtures: storages of every kind, and the servers they need."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime
from itertools import islice
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import redis.asyncio as aioredis
import time_machine
from fakeredis import FakeAsyncRedis, FakeServer
from hypothesis import HealthCheck, settings

from bot_ratelimit import MemoryStorage, RedisStorage
from bot_ratelimit.config.environment import warn_once
from bot_ratelimit.storage.guarded import _key_spaces
from bot_ratelimit.testing import Clock
from example_bot.demo.botapi import BotApi

from .benches import Bench, at_once
from .servers import Server, running

ADDRESS = re.compile("0x[0-9a-f]{8,}")
"""As in the repr of an object: another one in each process."""
SERVERS = ["redis-server", "valkey-server"]
STARTERS = ["redis_server", "valkey_server", "own_server", "lasting_server"]
"""Fixtures that start one of them."""

# A busy machine makes no example wrong.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--quick", action="store_true", help="skip whatever is slow or starts a process"
    )


def pytest_configure(config: pytest.Config) -> None:
    gc.disable()  # until all is imported: what aiogram makes then is never garbage
    # What a shell starts in the background ignores it, and so would the processes of the tests.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "slow: takes long, so it begins first")
    if config.getoption("quick"):  # a test that is left in the middle closes nothing
        config.addinivalue_line("filterwarnings", "ignore::ResourceWarning")
        config.addinivalue_line("filterwarnings", "ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.hookimpl(trylast=True)  # after pytest-randomly
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("quick"):
        items[:] = [item for item in items if not (item.get_closest_marker("slow") or serves(item))]
    for item in items:
        if ADDRESS.search(item.nodeid):  # its workers would not agree on its name
            raise pytest.UsageError(f"{item.nodeid}: an address in its name; leave out `ids=str`")
    items[:] = slowest_first(items, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def serves(item: pytest.Item) -> bool:
    """Whether a test needs a server, as far as its fixtures say so."""
    fixtures: set[str] = {*getattr(item, "fixturenames", ())}
    callspec = getattr(item, "callspec", None)
    chosen = callspec.params.values() if callspec else ()
    return not fixtures.isdisjoint(STARTERS) or any(value in SERVERS for value in chosen)


def slowest_first(items: list[pytest.Item], workers: int) -> list[pytest.Item]:
    """Let no worker begin a slow test when all others have finished.

    pytest-xdist gives each worker an equal share of the tests, in order; later they steal from the
    ends. So each share begins with some of the tests that are marked as slow.
    """
    slow = [item for item in items if item.get_closest_marker("slow")]
    others = iter([item for item in items if not item.get_closest_marker("slow")])
    ordered: list[pytest.Item] = []
    for number in range(workers):
        share = (len(items) - len(ordered)) // (workers - number)
        mine = slow[number::workers]
        ordered += [*mine, *islice(others, max(0, share - len(mine)))]
    return [*ordered, *others]


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Tests wait as much as they compute, so two workers share a core."""
    return 2 * (os.cpu_count() or 1)


@pytest.fixture(scope="session", autouse=True)
def _quick(request: pytest.FixtureRequest) -> Iterator[None]:
    """With `--quick`, a test that starts a server, a browser or another Python is skipped."""
    with pytest.MonkeyPatch.context() as patched:
        if request.config.getoption("quick"):
            patched.setattr(subprocess.Popen, "__init__", _no_process)
            patched.setattr(BaseProcess, "start", _no_process)
        yield


@pytest.fixture(autouse=True)
def _nothing_known() -> None:
    """What one test has found out about a server says nothing to the next one."""
    for space in list(_key_spaces.values()):
        space.servers.clear()
        space.is_failing = False


def _no_process(*_: object, **__: object) -> None:
    pytest.skip("it starts a process: not in `make quick`")


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A Redis for the whole run; use your own keys, or `client`, which empties it."""
    with running("redis-server", tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running("valkey-server", tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    """A Redis for one test, which may hang, kill or misconfigure it."""
    with running("redis-server", tmp_path, "--unixsocket", str(tmp_path / "redis.sock")) as server:
        yield server


@pytest.fixture
def lasting_server(tmp_path: Path) -> Iterator[Server]:
    """The same, with data that survives a restart."""
    options = ("--appendonly", "yes", "--appendfsync", "always")
    with running("redis-server", tmp_path, *options) as server:
        yield server


@pytest.fixture
async def client(redis_server: Server) -> AsyncIterator[aioredis.Redis]:
    """A client of an empty, real Redis."""
    async with aioredis.Redis(port=redis_server.port) as client:
        await client.flushall()
        yield client


@pytest.fixture
async def api() -> AsyncIterator[BotApi]:
    """A stand-in for Telegram."""
    async with BotApi() as api:
        yield api


@pytest.fixture
async def fake_client() -> AsyncIterator[FakeAsyncRedis]:
    async with FakeAsyncRedis(server=FakeServer()) as client:
        yield client


@pytest.fixture(params=["memory", "fakeredis", *SERVERS])
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    """Each kind of storage in turn, empty."""
    if request.param == "memory":
        clock = Clock()
        yield Bench(MemoryStorage(clock=clock), None, at_once(clock.move), exact=True)
    elif request.param == "fakeredis":
        with time_machine.travel(datetime(2026, 1, 1, tzinfo=UTC), tick=False) as traveller:
            async with FakeAsyncRedis(server=FakeServer()) as fake:
                yield Bench(RedisStorage(fake), fake, at_once(traveller.shift), exact=True)
    else:
        server: Server = request.getfixturevalue(request.param.replace("-", "_"))
        async with aioredis.Redis(port=server.port) as real:
            await real.flushall()
            storage = RedisStorage(real)
            yield Bench(storage, real, asyncio.sleep, exact=False)
            await storage.close()


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Sets variables; at the start none of ours is set, and there is no `.env`."""
    for name in [name for name in os.environ if name.upper().startswith(("REDIS_", "RATE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    warn_once.cache_clear()
    return monkeypatch


@pytest.fixture
def connected(client: aioredis.Redis) -> Callable[[int], Awaitable[None]]:
    """Fail unless the Redis soon has this many connections with `?client_name=ours`."""

    async def wait_for(count: int) -> None:
        async def names() -> list[str]:
            return [connection["name"] for connection in await client.client_list()]

        async with asyncio.timeout(2):
            while (await names()).count("ours") != count:  # noqa: ASYNC110 - the server decides
                await asyncio.sleep(0.005)

    return wait_for


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name a value the same in each process: without addresses, and a set in a fixed order."""
    if val is None or isinstance(val, str | bytes | int | float) or hasattr(val, "__name__"):
        return None  # pytest names these well
    text = ",".join(sorted(map(str, val))) if isinstance(val, set | frozenset) else str(val)
    return type(val).__name__ if ADDRESS.search(text) else text[:60]
