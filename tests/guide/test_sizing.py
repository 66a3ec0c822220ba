"""The memory that docs/sizing.md promises is about what a real server uses."""

from __future__ import annotations

import re

import pytest
import redis.asyncio as aioredis

from bot_ratelimit import Limiter, RedisStorage, Subject

from .pages import DOCS

ROWS = re.findall(
    r"(?m)^\| `([^`;]+)`, (?:(\d+) messages|any[^|]*) \| 1 \| (\d+) B \|",
    (DOCS / "sizing.md").read_text(),
)


@pytest.mark.parametrize(("rule", "messages", "bytes_"), ROWS)
async def test_a_key_is_as_large_as_the_table_says(
    client: aioredis.Redis, rule: str, messages: str, bytes_: str
) -> None:
    """`MEMORY USAGE` of a key is within a third of the figure, on this version of Redis too."""
    limiter = Limiter(RedisStorage(client), key_prefix="my_bot", timeout=5)
    for _ in range(int(messages or 3)):
        assert (await limiter.hit(rule, Subject(user=7_000_000_042))).allowed
    used = await client.memory_usage("my_bot:ratelimit:7000000042")
    await limiter.close()
    assert used == pytest.approx(int(bytes_), rel=0.34)


def test_the_table_is_found() -> None:
    """Four rows of the table have one key."""
    assert len(ROWS) == 4
