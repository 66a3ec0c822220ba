"""The figures of the documentation are about those of a real server and of the benchmarks."""

from __future__ import annotations

import re

import pytest
import redis.asyncio as aioredis

from bot_ratelimit import Limiter, RedisStorage, Subject

from .pages import DOCS


async def test_a_key_is_as_large_as_the_table_says(client: aioredis.Redis) -> None:
    """`MEMORY USAGE` of a key is within a third of the figure, on this version of Redis too."""
    page = (DOCS / "algorithms.md").read_text(encoding="utf-8")
    row = r"(?m)^\| `([^`]+)`, (?:(\d+) messages|any number) \| (\d+) B \|"
    assert len(re.findall(row, page)) == 3
    for rule, messages, bytes_ in re.findall(row, page):
        await client.flushall()
        limiter = Limiter(RedisStorage(client), key_prefix="my_bot", timeout=5)
        for _ in range(int(messages or 3)):
            assert (await limiter.hit(rule, Subject(user=7_000_000_042))).allowed
        (key,) = await client.keys("my_bot:ratelimit:*7000000042")
        used = await client.memory_usage(key)
        await limiter.close()
        assert used == pytest.approx(int(bytes_), rel=0.34), rule


def test_the_figures_are_those_of_the_benchmarks() -> None:
    """What docs/storages.md says that a Redis and a process carry was measured."""
    page = (DOCS / "storages.md").read_text(encoding="utf-8")
    performance = (DOCS / "project" / "performance.md").read_text(encoding="utf-8")
    for pattern, row in (
        (r"about ([\d,]+) webhook requests a second", "webhook requests a second of one process"),
        (r"one Redis decides ([\d,]+)", "decisions a second of one Redis"),
    ):
        (said,) = re.findall(pattern, page)
        (measured,) = re.findall(rf"(?m)^\| {row}[^|]*\| ([\d,]+) ", performance)
        assert float(said.replace(",", "")) == pytest.approx(
            float(measured.replace(",", "")), rel=0.5
        )
