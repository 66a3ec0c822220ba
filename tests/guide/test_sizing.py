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
    (key,) = await client.keys("my_bot:ratelimit:*7000000042")
    used = await client.memory_usage(key)
    await limiter.close()
    assert used == pytest.approx(int(bytes_), rel=0.34)


def figures(page: str, row: str, *columns: int) -> list[float]:
    """Numbers of a table's row, which begins with these words."""
    (line,) = (
        each
        for each in (DOCS / f"{page}.md").read_text(encoding="utf-8").splitlines()
        if each.startswith(f"| {row} |")
    )
    cells = [cell.strip().replace(",", "") for cell in line.split("|")[1:]]
    return [float(cells[column]) for column in columns]


def measured(heading: str, row: str, column: int) -> float:
    """A number of docs/performance.md, from the table with this heading."""
    page = (DOCS / "performance.md").read_text(encoding="utf-8")
    table = page.partition(f"**{heading}**")[2].lstrip().partition("\n\n")[0]
    (line,) = (each for each in table.splitlines() if each.startswith(f"| {row} |"))
    return float(line.split("|")[1:][column].strip().replace(",", ""))


def test_the_figures_are_those_of_the_benchmarks() -> None:
    """What one Redis and one process carry is, rounded, what docs/performance.md measured."""
    ours, rate = "bot_ratelimit", "Decisions a second on Redis"
    cpu, http = "Microseconds of CPU for a decision", "Updates over HTTP"
    for row, expected in {
        "one at a time": [measured(rate, ours, 1), measured(cpu, ours, 3)],
        "100 at a time": [measured(rate, ours, 3), measured(cpu, ours, 4)],
    }.items():
        assert figures("sizing", row, 1, 2) == pytest.approx(expected, rel=0.5)
    for row, webhooks in {
        "a webhook without a limit, the handler does nothing": measured(http, "no middleware", 4),
        "the same with `bot_ratelimit` and Redis": measured(http, "bot_ratelimit, Redis", 4),
    }.items():
        assert figures("sizing", row, 1) == pytest.approx([webhooks], rel=0.5)


def test_the_table_is_found() -> None:
    """Four rows of the table have one key."""
    assert len(ROWS) == 4
