"""acquire: waiting for a limit, on every storage and through outages."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from typing import Any

import pytest
import redis.asyncio as aioredis

from bot_ratelimit import (
    ConfigError,
    Decision,
    Limiter,
    MemoryStorage,
    Penalty,
    RedisStorage,
    Rule,
    Subject,
)
from bot_ratelimit.algorithms.verdict import Verdict
from bot_ratelimit.limiter import waiting
from bot_ratelimit.storage.base import Ask
from bot_ratelimit.testing import FlakyStorage
from tests.benches import TIMEOUT, eventually
from tests.outgoing.virtual import now, virtual, virtual_limiter
from tests.servers import Server
from tests.tables import table

US = Subject(user=42)


async def after(limiter: Limiter, limit: str, count: int, **options: float) -> list[Decision]:
    """The results of waiters that come one after the other."""
    tasks = [asyncio.create_task(limiter.acquire(limit, US, **options)) for _ in range(count)]
    return await asyncio.gather(*tasks)


@table(
    ("limit", "least"),
    [("2/50ms", 0.1), ("2/50ms sliding", 0.1), ("2/50ms bucket", 0.1), ("1/25ms", 0.125)],
)
@virtual
async def test_waits_until_it_is_allowed_and_charged(limit: str, least: float) -> None:
    """Waiters are granted in order, as soon as the limit allows, and never before."""
    limiter, began, order = virtual_limiter(), now(), list[int]()

    async def wait(number: int) -> Decision:
        decision = await limiter.acquire(limit, US)
        order.append(number)
        return decision

    found = await asyncio.gather(*map(wait, range(6)))
    assert all(found)
    assert order == list(range(6))
    assert now() - began == pytest.approx(least, abs=0.001)
    assert found[0].waited == 0
    assert found[-1].waited == pytest.approx(now() - began)


async def test_asks_redis_about_once_for_each_grant(client: aioredis.Redis) -> None:
    """Of thirty waiters only the first asks, and it does not poll."""
    storage = RedisStorage(client)
    limiter = Limiter(storage, timeout=TIMEOUT)
    await limiter.peek("5/30ms", US)
    await client.config_resetstat()
    began = time.monotonic()
    found = await after(limiter, "5/30ms", 30)
    assert all(found)
    assert 0.149 < found[-1].waited <= time.monotonic() - began
    calls = (await client.info("commandstats"))["cmdstat_evalsha"]["calls"]
    assert calls <= 30 + 7
    await storage.close()


@pytest.mark.parametrize("heirs", [0, 1])
@pytest.mark.parametrize("moment", ["asked", "granted"])
async def test_a_grant_of_a_cancelled_waiter_is_returned(heirs: int, moment: str) -> None:
    """A waiter cancelled during its hit is refunded, and the next one gets the unit at once."""

    class Cancelling(FlakyStorage):
        async def ask(self, ask: Ask, *, timeout: float) -> Sequence[Verdict]:
            if moment == "asked":
                tasks[0].cancel()
                await asyncio.sleep(0)
            found = await super().ask(ask, timeout=timeout)
            tasks[0].cancel()  # before the caller runs again
            return found

    limiter = Limiter(Cancelling())
    tasks = [asyncio.create_task(limiter.acquire("1/h", US)) for _ in range(1 + heirs)]
    await asyncio.gather(tasks[0], return_exceptions=True)
    assert tasks[0].cancelled()
    async with asyncio.timeout(1):
        assert all([await task for task in tasks[1:]])
        while limiter._waiters._returns:  # noqa: ASYNC110 - no event tells of it
            await asyncio.sleep(0)
    assert (await limiter.charge("2/h", US, 1)).remaining == 1 - heirs


@virtual
async def test_a_wait_that_would_be_too_long_is_refused_at_once() -> None:
    """A waiter that would exceed its `timeout` is refused at once and not charged."""
    limiter = virtual_limiter()
    assert all(await after(limiter, "5/minute", 5, timeout=0))
    began = now()
    refused = await after(limiter, "5/minute", 3, timeout=59)
    assert now() == began
    assert not any(refused)
    assert {(each.retry_after, each.waited) for each in refused} == {(60, 0)}
    limiter = virtual_limiter()
    found = await after(limiter, "1/100ms", 4, timeout=0.15)  # the third would wait for 0.2 s
    assert [bool(each) for each in found] == [True, True, False, False]
    assert found[2].waited == pytest.approx(0.1, abs=0.001)  # until it was the first
    assert (await limiter.peek("1/100ms", US)).remaining == 0
    late = asyncio.create_task(limiter.acquire("1/100ms", US))
    await asyncio.sleep(0.01)
    began = now()
    assert not await limiter.acquire("1/100ms", US, timeout=0.05)
    assert now() == began  # it knows what the first was told
    assert await late


@virtual
async def test_a_cancelled_waiter_costs_nothing_and_delays_nobody() -> None:
    """Cancelled waiters are not charged, and those behind them move up, but nobody is woken before
    its time: they cost no command and no attempt."""
    storage = FlakyStorage(MemoryStorage(clock=now))
    limiter = Limiter(storage, clock=now)
    await limiter.acquire("1/60ms", US)
    began = now()
    first, *gone = [asyncio.create_task(limiter.acquire("1/60ms", US)) for _ in range(50)]
    stay = [asyncio.create_task(limiter.acquire("1/60ms", US)) for _ in range(2)]
    await asyncio.sleep(0.01)
    calls = storage.calls
    for task in gone:
        task.cancel()
    await asyncio.sleep(0.01)
    assert storage.calls == calls
    first.cancel()
    for task, moment in zip(stay, (0.06, 0.12), strict=True):
        assert await task
        assert now() - began == pytest.approx(moment, abs=0.001)


async def test_a_cancelled_waiter_is_refunded_where_it_was_charged() -> None:
    """In an outage this process counts, and gives back; a shadow rule gets what it was charged."""
    storage = FlakyStorage()
    storage.source = "redis"
    limiter = Limiter(storage, on_error="memory")
    trial = Rule("2/h", name="trial", shadow=True)
    await limiter.hit(trial, US, 2)
    for is_out in (False, True):
        if is_out:
            storage.fail()
        calls = storage.calls
        waiting = asyncio.create_task(limiter.acquire(["9/h", trial], US))
        while storage.calls == calls:  # noqa: ASYNC110 - no event tells of it
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await eventually(lambda: not limiter._waiters._returns)
        assert (await limiter.peek("9/h", US)).remaining == 9
    storage.heal()
    assert (await limiter.peek(trial, US)).remaining == 0


async def test_closing_refuses_a_caller_whose_first_request_is_under_way() -> None:
    """It does not begin to wait after the limiter was closed."""

    class Closing(FlakyStorage):
        async def ask(self, ask: Ask, *, timeout: float) -> Sequence[Verdict]:
            found = await super().ask(ask, timeout=timeout)
            if self.calls == 2:
                await limiter.close()
            return found

    limiter = Limiter(Closing())
    await limiter.hit("1/h", US)
    async with asyncio.timeout(5):
        assert (await limiter.acquire(["1/h", Penalty("9/m", "1h")], US)).source == "policy"


async def test_in_an_outage_a_waiter_asks_memory_as_seldom_as_redis() -> None:
    """With on_error="memory" a waiter sleeps for as long as this process's counts say."""
    storage = FlakyStorage()
    storage.source = "redis"
    limiter = Limiter(storage, on_error="memory")
    storage.fail()
    for _ in range(3):
        await limiter.hit("1/h", Subject(user=7))
    asked, answer = list[Ask](), limiter.decider.standby.answer
    limiter.decider.standby.answer = lambda ask: asked.append(ask) or answer(ask)  # type: ignore[method-assign,func-returns-value]  # counts
    granted = [await limiter.acquire("1/300ms", US, timeout=5) for _ in range(2)]
    assert [(each.allowed, each.source) for each in granted] == [(True, "memory")] * 2
    assert len(asked) <= 4


@pytest.mark.parametrize("on_error", ["allow", "deny"])
async def test_an_outage_ends_the_waits(own_server: Server, on_error: Any) -> None:
    """If the circuit opens, or connections are refused, waiters get the policy's answer soon."""
    storage = FlakyStorage()
    limiter = Limiter(storage, on_error=on_error)
    async with aioredis.Redis(port=own_server.port) as client:
        others = Limiter(RedisStorage(client), on_error=on_error)
        for each in (limiter, others):
            await each.acquire("1/h", US)
        tasks = [asyncio.create_task(limiter.acquire("1/h", US)) for _ in range(20)]
        refused = [asyncio.create_task(others.acquire("1/h", US)) for _ in range(3)]
        await asyncio.sleep(0.1)
        storage.fail()
        own_server.kill()
        for user in range(3):
            await limiter.hit("1/h", Subject(user=user))
        async with asyncio.timeout(1):
            found = await asyncio.gather(*tasks)
        async with asyncio.timeout(5):
            while not all(task.done() for task in refused):
                await others.hit("1/h", Subject(user=1))  # others tell that it is gone
                await asyncio.sleep(0.05)
            found += await asyncio.gather(*refused)
        assert {(each.allowed, each.source) for each in found} == {(on_error == "allow", "policy")}
        await others.close()


async def test_waiters_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A waiter above the bound is refused at once, like a user banned by a penalty; waiting causes
    no ban. Later there is room, and nothing is left."""
    monkeypatch.setattr(waiting, "MAX_WAITERS", 3)
    limiter = Limiter(MemoryStorage())
    await limiter.acquire("1/h", US)
    tasks = [asyncio.create_task(limiter.acquire("1/h", US)) for _ in range(3)]
    await asyncio.sleep(0.01)
    assert not await limiter.acquire("1/h", US)
    assert not await limiter.acquire("5/m", Subject(user=7))
    tasks[0].cancel()
    await asyncio.sleep(0.01)
    assert await limiter.acquire("5/m", Subject(user=7))
    rules = [Rule("1/30ms", name="fast"), Penalty("2/minute", "1h")]
    assert all([await limiter.acquire(rules, US) for _ in range(5)])
    while not (await limiter.hit(rules, US)).banned:
        pass
    assert (await limiter.acquire(rules, US)).banned
    await limiter.close()
    assert not any([await task for task in tasks[1:]])
    assert not limiter._waiters.queues._queues.get()
    assert len(asyncio.all_tasks()) == 1


async def test_a_program_that_cancels_all_tasks_may_wait_again() -> None:
    """A queue whose task was cancelled, even before it began, takes no further callers."""
    for turns in range(4):
        limiter = Limiter(MemoryStorage())
        waiting = asyncio.create_task(limiter.acquire("3/h", US))
        for _ in range(turns):
            await asyncio.sleep(0)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.wait([waiting, *tasks])
        async with asyncio.timeout(5):
            assert await limiter.acquire("3/h", US)


def test_another_event_loop_waits_too() -> None:
    """A queue of an event loop that has ended, without cancelling its tasks, is not used again."""
    limiter, tasks = Limiter(MemoryStorage()), list[asyncio.Task[Decision]]()

    async def leave() -> None:
        tasks.append(asyncio.create_task(limiter.acquire("3/h", US, 3)))
        await asyncio.sleep(0)
        tasks.append(asyncio.create_task(limiter.acquire("1/50ms", US)))

    async def wait() -> bool:
        async with asyncio.timeout(5):
            await limiter.reset("3/h", US)
            return all([await limiter.acquire(each, US) for each in ("3/h", "1/50ms", "1/50ms")])

    with asyncio.Runner() as left:
        left.run(leave())
        assert asyncio.run(wait())


@table(
    ("options", "says"),
    [
        *(({"timeout": each}, "timeout=.*or None") for each in (-1, math.nan, math.inf, True, "5")),
        *(({"cost": each}, "cost=") for each in (0, -1, 1.5, 6)),
    ],
)
async def test_an_invalid_wait_is_an_error(options: dict[str, Any], says: str) -> None:
    """Nobody waits for what can never be granted; without a rule nobody waits at all."""
    limiter = Limiter(MemoryStorage())
    with pytest.raises(ConfigError, match=says):
        await limiter.acquire("5/m", US, **options)
    assert (await limiter.acquire("5/m", Subject(chat=1))).source == "none"


async def test_a_waiter_is_not_granted_long_after_its_timeout() -> None:
    """After the process was stopped, a waiter whose `timeout` is over is refused, not charged."""
    limiter = Limiter(MemoryStorage())
    await limiter.acquire("3/100ms", US, 3)
    late = asyncio.create_task(limiter.acquire("3/100ms", US, timeout=0.2))
    patient = asyncio.create_task(limiter.acquire("3/100ms", US))
    await asyncio.sleep(0.01)
    time.sleep(0.6)  # noqa: ASYNC251 - stops the process, as SIGSTOP does
    assert not await late
    assert late.result().waited > 0.5
    assert late.result().source == "memory"
    assert (await patient).remaining == 2
