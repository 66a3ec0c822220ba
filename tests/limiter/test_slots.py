"""Slots: so many at a time, free at the end of the block, and a report when lost."""

from __future__ import annotations

import asyncio
import logging
import math
from typing import Any

import pytest
import redis.asyncio as aioredis

from bot_ratelimit import (
    Concurrency,
    ConfigError,
    Decision,
    Limiter,
    MemoryStorage,
    RedisStorage,
    Rule,
    Scope,
    Slot,
    StorageError,
    Subject,
)
from bot_ratelimit.limiter import slots as slots_module
from bot_ratelimit.testing import FlakyStorage
from tests.benches import Bench, eventually
from tests.servers import Server
from tests.tables import table

ANNA, BORIS = Subject(user=42, chat=-100), Subject(user=43, chat=-100)
ONE = Concurrency(1, name="report")
LIMITER = Limiter(MemoryStorage())
KEY = "bot:ratelimit:slot:report:42"


async def taken(limiter: Limiter, subject: Subject = ANNA, slots: Concurrency = ONE) -> Slot:
    async with limiter.slot(slots, subject) as slot:
        return slot


def waiter(limiter: Limiter, timeout: float | None) -> asyncio.Task[Slot]:
    """A caller that waits for a slot, and keeps it."""
    return asyncio.create_task(limiter.slot(ONE, ANNA, timeout=timeout).__aenter__())


async def test_one_at_a_time_on_all_instances(
    bench: Bench, limiter: Limiter, other: Limiter, caplog: pytest.LogCaptureFixture
) -> None:
    """While a block runs a second one is refused on every instance; later it is granted.

    The key is the documented one and lives as long as a lease; nothing is logged.
    """
    async with limiter.slot(ONE, ANNA) as slot:
        assert (slot.allowed, slot.remaining, slot.rule, slot.lost) == (True, 0, ONE, False)
        ttls = {key: ttl for key, ttl in (await bench.ttls()).items() if ":slot:" in key}
        assert bench.client is None or 29_000 < ttls.pop(KEY) <= 30_000
        assert ttls == {}
        for each in (limiter, other):
            refused = await taken(each)
            assert (refused.allowed, refused.remaining) == (False, 0)
            assert 29 < refused.retry_after <= 30
            assert refused.source == each.storage.source
        assert await taken(limiter, BORIS)  # others have slots of their own
        assert await taken(limiter, ANNA, Concurrency(1))
        nobody = await taken(limiter, Subject(chat=-100))
        assert (nobody.allowed, nobody.source) == (True, "none")
    assert isinstance(slot, Decision)
    assert await taken(other)
    three = Concurrency(3, Scope.CHAT)
    async with limiter.slot(three, ANNA) as a, other.slot(three, BORIS) as b:
        async with limiter.slot(three, ANNA) as c:
            assert [a.remaining, b.remaining, c.remaining] == [2, 1, 0]
            assert not await taken(other, slots=three)
        assert await taken(other, slots=three)
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


async def test_a_slot_is_free_after_an_exception_and_a_cancellation(limiter: Limiter) -> None:
    """However a block ends, the next one can run, and nothing of it is kept."""

    async def work() -> None:
        async with asyncio.timeout(0.2), limiter.slot(ONE, ANNA):
            await asyncio.sleep(60)

    with pytest.raises(RuntimeError):
        async with limiter.slot(ONE, ANNA):
            raise RuntimeError
    assert await taken(limiter)
    with pytest.raises(TimeoutError):
        await work()
    await asyncio.sleep(0.02)  # the release is on its way
    assert await taken(limiter)
    assert not limiter._slots._in_use


async def test_a_dead_process_leaves_its_slot_when_the_lease_ends(
    bench: Bench, limiter: Limiter, other: Limiter
) -> None:
    """An unrenewed slot is free after its lease, not before, and no key is left."""
    short = Concurrency(1, name="report", lease=1 if not bench.exact else 30)
    context = limiter.slot(short, ANNA)
    slot = await context.__aenter__()
    slot._lease.renewing.cancel()  # type: ignore[union-attr]  # as if the process were gone
    share = 0.8 if bench.exact else 0.2  # of the lease; the rest is there for a busy machine
    await bench.advance(short.lease * share)
    refused = await taken(other, slots=short)
    assert 0 < refused.retry_after <= short.lease * (1 - share) + 0.001
    await bench.advance(refused.retry_after + 0.01)
    assert await taken(other, slots=short)
    await bench.advance(short.lease + 0.01)
    assert await bench.ttls() == {}


async def test_waiters_are_served_in_order(limiter: Limiter, other: Limiter) -> None:
    """Waiters of a process get slots in order, without those that gave up or were cancelled.

    A slot that another instance releases is found within a moment.
    """
    order, loop = list[int](), asyncio.get_running_loop()

    async def work(number: int) -> None:
        async with limiter.slot(ONE, ANNA, timeout=20) as slot:
            assert slot.allowed
            order.append(number)
            await asyncio.sleep(0)

    async with limiter.slot(ONE, ANNA):
        began = loop.time()
        assert not await waiter(limiter, 0.12)
        assert 0.1 < loop.time() - began < 2
        first, *tasks = [asyncio.create_task(work(number)) for number in range(10)]
        await asyncio.sleep(0.02)
        assert not await taken(limiter)  # no place before those who wait
        first.cancel()
    await asyncio.gather(*tasks)
    assert order == [*range(1, 10)]
    async with limiter.slot(ONE, ANNA):
        waiting = waiter(other, 20)
        await asyncio.sleep(0.05)
        assert not waiting.done()
    async with asyncio.timeout(2):
        assert await waiting


async def test_shutdown_leaves_no_slot_taken(client: aioredis.Redis) -> None:
    """A release is finished before the limiter is closed; a block may also outlive its limiter."""
    limiter, other = Limiter(RedisStorage(client), timeout=5), Limiter(RedisStorage(client))
    begun, ends = asyncio.Event(), asyncio.Event()

    async def block() -> None:
        async with limiter.slot(ONE, ANNA):
            begun.set()
            await ends.wait()

    running = asyncio.create_task(block())
    await begun.wait()
    ends.set()
    await asyncio.sleep(0)  # the block ends, and its release begins
    await limiter.close()
    assert await asyncio.gather(running, return_exceptions=True) == [None]
    assert await taken(other)
    async with limiter.slot(ONE, ANNA):
        await limiter.close()
    assert await taken(other)
    await limiter.close()
    await other.close()


async def test_closing_refuses_those_who_wait(bench: Bench) -> None:
    """Callers with `timeout=None` wait without end, but not longer than the limiter lives."""
    limiter = Limiter(bench.storage, timeout=5)
    async with limiter.slot(ONE, ANNA):
        waiting = [waiter(limiter, None) for _ in range(3)]
        await asyncio.sleep(0.02)
        assert not any(task.done() for task in waiting)
        await limiter.close()
        async with asyncio.timeout(5):
            slots = await asyncio.gather(*waiting)
        assert [(slot.allowed, slot.source) for slot in slots] == [(False, "policy")] * 3


@pytest.mark.parametrize("queued", [False, True])
async def test_closing_refuses_those_whose_request_is_under_way(queued: bool) -> None:
    """The closed storage does not answer them, and the policy does not let them in."""
    limiter, last = Limiter(storage := MemoryStorage()), 2 if queued else 1

    def closing(call: Any) -> Any:
        calls = 0

        async def asked(*values: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls != last:
                return await call(*values, **named)
            asyncio.get_running_loop().create_task(limiter.close())
            await asyncio.sleep(0.01)
            raise StorageError("the storage was closed", kind="closed")

        return asked

    async with asyncio.timeout(5), limiter.slot(ONE, ANNA):
        leases = storage.leases()
        leases.claim = closing(leases.claim)  # type: ignore[method-assign]  # a stand-in
        slot = await waiter(limiter, None)
    assert (slot.allowed, slot.source) == (False, "policy")
    limiter = Limiter(flaky := FlakyStorage())
    await limiter.hit("1/100ms", ANNA)
    flaky.ask = closing(flaky.ask)  # type: ignore[method-assign]
    async with asyncio.timeout(5):
        decision = await limiter.acquire("1/100ms", ANNA)
    assert (decision.allowed, decision.source) == (False, "policy")


async def test_waiters_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A waiter above the bound is refused at once."""
    monkeypatch.setattr(slots_module, "MAX_WAITING", 1)
    limiter = Limiter(MemoryStorage())
    async with limiter.slot(ONE, ANNA):
        waiting = waiter(limiter, 60)
        await asyncio.sleep(0)
        for _ in range(2):
            assert not await waiter(limiter, 60)
    assert await waiting


@pytest.mark.parametrize("bench", ["redis-server"], indirect=True)
async def test_a_server_that_lost_its_data_is_noticed(
    bench: Bench, limiter: Limiter, other: Limiter, caplog: pytest.LogCaptureFixture
) -> None:
    """A block that takes longer than its lease keeps its slot; if the slot is lost, the block is
    told, and soon has it again."""
    assert bench.client is not None
    short = Concurrency(1, name="report", lease=1)
    async with limiter.slot(short, ANNA) as slot:
        for _ in range(4):
            await asyncio.sleep(0.3)
            assert not await taken(other, slots=short)
        assert not slot.lost
        await bench.client.delete(KEY)
        async with asyncio.timeout(2):
            await slot.wait_lost()
        assert slot.lost
        assert not await taken(other, slots=short)  # the block has its slot again
    assert await taken(other, slots=short)
    assert sum("A slot was lost" in message for message in caplog.messages) == 1


async def test_a_context_has_one_use_and_a_blocked_loop_loses_its_slot() -> None:
    """Two blocks with one context would release each other's slot; a Concurrency cannot be hit.

    If the event loop is blocked for a whole lease, the block sees it at once.
    """
    with pytest.raises(ConfigError, match=r"1 at a time per user 'report'.* does not count hits"):
        await LIMITER.hit(ONE, ANNA)
    async with (context := LIMITER.slot(ONE, ANNA)) as slot:
        with pytest.raises(ConfigError, match="entered twice"):
            await context.__aenter__()
        assert not slot.lost
        slot._lease.ends -= 30  # type: ignore[union-attr]  # seconds of the loop's clock
        assert slot.lost


@pytest.mark.parametrize(
    ("on_error", "allowed", "source"),
    [("allow", True, "policy"), ("deny", False, "policy"), ("memory", True, "memory")],
)
async def test_an_outage_is_answered_by_the_policy(
    on_error: Any, allowed: bool, source: str
) -> None:
    """Also those who wait get a slot, a refusal, or a slot of this process, as `on_error` says."""
    storage = FlakyStorage()
    limiter = Limiter(storage, on_error=on_error)
    async with limiter.slot(ONE, ANNA):
        context = limiter.slot(ONE, ANNA, timeout=60)
        waiting = asyncio.create_task(context.__aenter__())
        await asyncio.sleep(0.01)
        storage.fail()
        async with asyncio.timeout(2):
            slot = await waiting
        assert (slot.allowed, slot.source) == (allowed, source)
        assert (await taken(limiter)).allowed is (on_error == "allow")
        await context.__aexit__(None, None, None)
    assert (await taken(limiter)).allowed is allowed
    await limiter.close()


async def test_an_answer_that_never_came_holds_no_slot(own_server: Server) -> None:
    """A slot that was granted without an answer is released when the server answers."""
    async with aioredis.Redis(port=own_server.port) as client:
        limiter = Limiter(RedisStorage(client), on_error="deny", timeout=0.05)
        await eventually(lambda: taken(limiter))  # it is connected
        own_server.hang()
        assert not await taken(limiter)
        own_server.resume()
        fresh = Limiter(RedisStorage(client), timeout=5)
        async with fresh.slot(ONE, ANNA, timeout=10) as slot:
            assert slot.allowed
        await limiter.close()
        await fresh.close()


@table(
    ("make", "message"),
    [
        (lambda: Concurrency(0), "concurrency=0: expected a whole number from 1 to 1000000"),
        (lambda: Concurrency(True), "concurrency=True"),
        (lambda: Concurrency(1, lease=0.5), r"lease=0\.5: expected seconds from 1 to 86400"),
        (lambda: Concurrency(1, lease="soon"), "lease='soon': expected seconds"),
        (lambda: Concurrency(1, name="a b"), "name='a b'"),
        (lambda: Rule("1/s", name="slot"), "name='slot': this name is reserved"),
        (lambda: LIMITER.slot(ONE, ANNA, timeout=-1), "timeout=-1: expected"),
        (lambda: LIMITER.slot(ONE, ANNA, timeout=math.inf), "timeout=inf: .*None"),
        (lambda: LIMITER.slot(1, ANNA), "concurrency=1: expected"),  # type: ignore[arg-type]  # what people write
        (lambda: LIMITER.slot(ONE, 42), "subject=42: expected a Subject"),  # type: ignore[arg-type]  # what people write
    ],
)
def test_invalid_arguments_are_named(make: Any, message: str) -> None:
    """An invalid argument is a ConfigError with the value and the fix."""
    with pytest.raises(ConfigError, match=message):
        make()
