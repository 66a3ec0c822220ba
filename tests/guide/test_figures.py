"""The figures of the documentation are about those of a real server and of the benchmarks."""

from __future__ import annotations

import re

import pytest
import redis.asyncio as aioredis

from bot_ratelimit import Limiter, RedisStorage, Subject

from .pages import DOCS

ROWS = re.findall(
    r"(?m)^\| `([^`]+)`, (?:(\d+) messages|any number) \| (\d+) B \|",
    (DOCS / "algorithms.md").read_text(encoding="utf-8"),
)


@pytest.mark.parametrize(("rule", "messages", "bytes_"), ROWS)
async def test_a_key_is_as_large_as_the_table_says(
    client: aioredis.Redis, rule: str, messages: str, bytes_: str
) -> None:
    """`MEMORY USAGE` of a key is within a third of the figure, on this version of Redis too."""
    limiter = Limiter(RedisStorage(client), key_prefix="my_bot", timeout=5)
    for _ in range(int(messages or 3)):
        assert (await limiter.hit(rule, Subject(user=7_000_000_042))).allowed
    (key,) = await client.keys("my_bot:ratelimit:*7000000042")
    used = await client.memory_usage(key)
    await limiter.close()
    assert used == pytest.approx(int(bytes_), rel=0.34)


def measured(row: str) -> float:
    """A number of docs/project/performance.md."""
    page = (DOCS / "project" / "performance.md").read_text(encoding="utf-8")
    (line,) = (each for each in page.splitlines() if each.startswith(f"| {row}"))
    return float(line.split("|")[2].strip().replace(",", ""))


def test_the_figures_are_those_of_the_benchmarks() -> None:
    """What docs/storages.md says that a Redis and a process carry was measured."""
    page = (DOCS / "storages.md").read_text(encoding="utf-8")
    for pattern, row in (
        (r"about ([\d,]+) webhook requests a second", "webhook requests a second of one process"),
        (r"one Redis decides ([\d,]+)", "decisions a second of one Redis"),
    ):
        (said,) = re.findall(pattern, page)
        assert float(said.replace(",", "")) == pytest.approx(measured(row), rel=0.5)


def test_the_table_is_found() -> None:
    """Three rows of the table are small enough to be measured."""
    assert len(ROWS) == 3
