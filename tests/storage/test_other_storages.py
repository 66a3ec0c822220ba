"""Memcached through `limits`, and storages that users write: what they can do, and what not."""

from __future__ import annotations

import asyncio
import logging
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from bot_ratelimit import (
    Concurrency,
    ConfigError,
    Limiter,
    LimitsStorage,
    MemoryStorage,
    Penalty,
    RateLimitMiddleware,
    Rule,
    StorageError,
    Subject,
)
from bot_ratelimit.storage.base import Ask, Storage
from bot_ratelimit.testing import check_storage
from tests.benches import Bench
from tests.guide.pages import program
from tests.servers import free_port
from tests.tables import table

USER = Subject(user=42)


@pytest.fixture(scope="module")
def memcached() -> Iterator[str]:
    """A Memcached of its own; the reason is listed where there is none."""
    binary = shutil.which("memcached")
    if binary is None:
        pytest.skip("not run: there is no memcached here (Debian: apt-get install memcached)")
    port = free_port()
    process = subprocess.Popen([binary, "-u", "nobody", "-l", "127.0.0.1", "-p", str(port)])
    time.sleep(0.3)
    yield f"memcached://127.0.0.1:{port}"
    process.kill()
    process.wait()


@pytest.fixture
async def storage(memcached: str) -> AsyncIterator[LimitsStorage]:
    storage = LimitsStorage(memcached)
    yield storage
    await storage.close()


async def test_every_storage_of_the_package_conforms(bench: Bench) -> None:
    """Memory, fakeredis, Redis and Valkey keep what `Storage` promises."""
    await check_storage(bench.storage, advance=bench.advance)


async def test_memcached_conforms(storage: LimitsStorage) -> None:
    """Fixed windows in a real Memcached keep what `Storage` promises."""
    await check_storage(storage, advance=asyncio.sleep)


async def test_the_documented_storage_conforms() -> None:
    """The custom storage beside docs/storages.md has 40 lines and works: only `ask` is needed."""
    shown = program("dict_storage.py").text
    namespace: dict[str, Any] = {"__name__": "dict_storage"}
    exec(compile(shown, "dict_storage.py", "exec"), namespace)
    await check_storage(namespace["DictStorage"](), advance=asyncio.sleep)
    assert Storage.__abstractmethods__ == {"ask"}
    assert len([line for line in shown.splitlines() if line.strip()]) <= 45


async def test_a_broken_storage_is_told_what_is_broken() -> None:
    """The error of `check_storage` names the promise."""

    class Generous(MemoryStorage):
        def answer(self, ask: Ask) -> Any:
            return [each._replace(wait=0) for each in super().answer(ask)]

    with pytest.raises(AssertionError, match="a refused hit says how long to wait"):
        await check_storage(Generous())


async def test_a_bot_on_memcached(memcached: str, caplog: pytest.LogCaptureFixture) -> None:
    """Two instances share one limit exactly, and the log says where counts are kept."""
    caplog.set_level(logging.INFO)
    limiters = [
        RateLimitMiddleware("5/m", limiter=Limiter(LimitsStorage(memcached), timeout=5)).limiter
        for _ in range(2)
    ]
    assert "Using memcached for distributed rate limiting (limit: 5/minute per user" in caplog.text
    hits = [limiter.hit("5/m", USER) for limiter in limiters for _ in range(10)]
    decisions = await asyncio.gather(*hits)
    assert {decision.source for decision in decisions} == {"memcached"}
    assert sum(decision.allowed for decision in decisions) == 5
    refused = await limiters[0].hit("5/m", USER)
    assert 50 < refused.retry_after <= 61
    charged = await limiters[1].charge("9/h", Subject(user=7), 12)
    assert (charged.remaining, charged.allowed) == (0, False)
    assert await limiters[0].reset("9/h", Subject(user=7))
    assert await limiters[1].hit("9/h", Subject(user=7))
    strange = await limiters[0].hit(Rule("1/m", lambda _: "ключ " * 100, "strange"), USER)
    assert (strange.source, strange.allowed) == ("memcached", True)
    for limiter in limiters:
        await limiter.close()


async def test_a_memcached_that_is_away_is_an_outage(caplog: pytest.LogCaptureFixture) -> None:
    """The policy answers, and the log names the store that does not, and what happens meanwhile."""
    where = f"127.0.0.1:{free_port()}"
    limiter = Limiter(LimitsStorage(f"memcached://{where}"), timeout=5)
    assert (await limiter.hit("5/m", USER)).source == "policy"
    with pytest.raises(StorageError):
        await limiter.charge("5/m", USER, 2)
    await limiter.close()
    assert f"memcached rate limit check failed: {where}" in caplog.text
    assert "Until memcached answers, updates are handled without a limit" in caplog.text
    assert "Redis" not in caplog.text


async def test_what_memcached_cannot_do_is_an_error(
    storage: LimitsStorage, caplog: pytest.LogCaptureFixture
) -> None:
    """A rule that needs more than a fixed window names itself and the way out: `on_error` answers
    for it. So does a feature."""
    for rules, told in (
        ("5/m sliding", "memcached has fixed windows only: use Redis for this rule"),
        ("5/m burst 2", "fixed windows only"),
        ("5/day in UTC", "fixed windows only"),
        ("5/31 days", "windows of 30 days at most"),
        (["5/m", Penalty("9/m", "1h")], "memcached has no penalties"),
    ):
        caplog.clear()
        limiter = Limiter(storage, timeout=5, clock=lambda: time.monotonic())  # a log of its own
        assert (await limiter.hit(rules, USER)).source == "policy"  # type: ignore[arg-type]  # a list of both
        assert told in caplog.text
    with pytest.raises(ConfigError, match="does not support slots"):
        async with limiter.slot(Concurrency(1), USER):
            pass
    with pytest.raises(ConfigError, match="does not support bans"):
        await limiter.ban(USER, "1h")
    with pytest.raises(ConfigError, match="cannot give back"):
        await limiter.refund("5/m", USER)
    with pytest.raises(ConfigError, match="does not support live limits"):
        RateLimitMiddleware("5/m", limiter=limiter, live=True)


@table("url", ["redis://h", "memory://", "etcd://h", "memcached"])
def test_another_scheme_is_an_error(url: str) -> None:
    """The error lists the schemes, and shows nothing of the URL."""
    with pytest.raises(ConfigError, match=r"^LimitsStorage: unknown scheme; expected one of memca"):
        LimitsStorage(url)
