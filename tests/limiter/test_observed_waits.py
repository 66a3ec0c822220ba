"""What observers are told about waits, slots and live limits."""

from __future__ import annotations

import asyncio

from bot_ratelimit import Concurrency, Limiter, MemoryStorage, Rule, Subject
from bot_ratelimit.config.live import Live
from bot_ratelimit.config.overrides import Overrides
from bot_ratelimit.storage.base import documents_of
from tests.recorder import Recorder

ANNA = Subject(user=42)


async def test_a_wait_is_one_decision() -> None:
    """However often `acquire` asks, one decision is reported, with its wait."""
    recorder = Recorder()
    limiter = Limiter(MemoryStorage(), observer=recorder)
    await limiter.hit("1/50ms", ANNA)
    decision = await limiter.acquire("1/50ms", ANNA)
    assert decision.waited > 0.02
    told = [(name, values[0].allowed) for name, *values in recorder.named("decided", "waited")]
    assert told == [("decided", True), ("decided", True), ("waited", True)]
    assert recorder.named("waited")[0][3] == decision.waited
    await limiter.close()


async def test_slots_in_use_are_reported() -> None:
    """Taken and released slots are reported, and the wait for them."""
    recorder = Recorder()
    limiter = Limiter(MemoryStorage(), observer=recorder)
    report = Concurrency(1, name="report")

    async def later() -> float:
        async with limiter.slot(report, ANNA, timeout=5) as slot:
            assert slot.allowed
            return slot.waited

    async with limiter.slot(report, ANNA) as slot:
        assert (slot.allowed, slot.waited) == (True, 0.0)
        waiting = asyncio.create_task(later())
        await asyncio.sleep(0.02)
    assert await waiting >= 0.02
    assert recorder.named("slots_in_use") == [("slots_in_use", "report", n) for n in (1, 0, 1, 0)]
    await limiter.close()


async def test_the_version_of_live_limits_is_reported() -> None:
    """Observers are told which version this instance uses."""
    recorder = Recorder()
    storage = MemoryStorage()
    limiter = Limiter(storage, observer=recorder)
    documents = documents_of(storage)
    key = "bot:ratelimit:live"
    document = Overrides(version=3, rules={"user": {"limit": "2/h"}}).to_json()
    assert await documents.swap(key, await documents.read(key), document)
    live = Live(limiter)
    await live.begin()
    assert recorder.named("configured") == [("configured", 3)]
    await live.stop()
    await limiter.close()


async def test_a_wait_that_is_too_long_is_refused_by_the_limit() -> None:
    """The refusal is by the right rule, not by the policy."""
    recorder = Recorder()
    limiter = Limiter(MemoryStorage(), observer=recorder)
    rules = ["9/h", Rule("1/h", name="report")]
    await limiter.acquire(rules, Subject(42))
    decision = await limiter.acquire(rules, Subject(42), timeout=0.1)
    assert (decision.allowed, decision.source, decision.rule.name) == (False, "memory", "report")
    assert [event[1].source for event in recorder.named("decided")] == ["memory", "memory"]
