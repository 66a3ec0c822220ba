"""Values and lists beside the counts, on memory, fakeredis, Redis and Valkey."""

from __future__ import annotations

from tests.benches import Bench

KEY = "bot:ratelimit:collect:1"
LIVE = "bot:ratelimit:live"


async def test_a_value_is_replaced_only_if_nobody_else_did(bench: Bench) -> None:
    """Of two callers that read the same value, one writes, and the other is told so."""
    documents = bench.storage.documents()
    for before, after in ((None, b"a"), (b"a", b"b")):
        assert await documents.swap(LIVE, before, after) is True
        assert await documents.swap(LIVE, before, b"c") is False
        assert await documents.read(LIVE) == after


async def test_a_list_is_taken_in_time_or_left(bench: Bench) -> None:
    """In time a caller gets the whole list; later only its own value is deleted."""
    documents = bench.storage.documents()
    for value in (b"a", b"b", b"c", b"b"):
        await documents.push(KEY, value, 9, 60)
    now = await documents.now(KEY)
    assert await documents.take_list(KEY, now - 0.001, b"b") is None
    assert await documents.listed(KEY) == [b"c", b"a"]
    assert await documents.take_list(KEY, now + 60, b"a") == [b"c", b"a"]
    assert await documents.take_list(KEY, now + 60, b"a") == []
    await documents.push(KEY, b"d", 9, 60)
    assert await documents.take_list(KEY, 0.0, b"d") is None
    assert await documents.waiting(KEY, b"d") == []
