"""Lists of collected messages: what was taken, and what the server has lost."""

from __future__ import annotations

import pytest

from tests.benches import Bench

KEY = "bot:ratelimit:collect:1"


async def test_a_value_that_was_taken_differs_from_one_that_was_lost(bench: Bench) -> None:
    """Who looks for a value learns that another one has it, or that nobody has."""
    documents = bench.storage.documents()
    until = await documents.now(KEY) + 60
    assert await documents.push(KEY, b"a", 9, 60) == 1
    assert await documents.push(KEY, b"b", 9, 60) == 2
    assert await documents.waiting(KEY, b"a") == [b"b", b"a"]
    assert await documents.take_list(KEY, until, b"b") == [b"b", b"a"]
    assert await documents.waiting(KEY, b"a") == []
    long = b"number 000000001" + b"x" * 99
    assert await documents.push(KEY, long, 9, 60) == 1
    assert await documents.waiting(KEY, b"a") == [long]
    assert await documents.take_list(KEY, until, long) == [long]
    for taken in (b"a", b"b", long):
        assert await documents.waiting(KEY, taken) == []
    if bench.client is None:
        return
    assert await bench.client.lrange(KEY, 0, -1) == [b"", long[:16], b"b", b"a"]  # in 16 bytes
    assert await documents.waiting(KEY, b"c") is None  # as after a restart with older data
    assert await documents.take_list(KEY, until, b"c") is None
    assert 0 < await bench.client.ttl(KEY) <= 60
    await bench.client.flushall()
    assert await documents.push(KEY, b"d", 9, 60) == 1
    assert await documents.take_list(KEY, until, b"c") is None
    assert await documents.take_list(KEY, until, b"d") == [b"d"]
    assert await documents.waiting(KEY, b"c") is None


@pytest.mark.parametrize("bench", ["fakeredis", "redis-server"], indirect=True)
async def test_the_mark_of_a_list_that_was_taken_goes_away(bench: Bench) -> None:
    """It has a TTL of its own, so that no list is left behind for each user of a day."""
    documents = bench.storage.documents()
    await documents.push(KEY, b"a", 9, 86_400)
    assert await documents.take_list(KEY, await documents.now(KEY) + 60, b"a", 1) == [b"a"]
    await bench.advance(1.1)
    assert await bench.client.keys() == []
