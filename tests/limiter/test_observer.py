"""What observers are told, and that they disturb nothing; statistics by hour over all instances."""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import Any

import pytest
import redis.asyncio as aioredis

from bot_ratelimit import (
    Concurrency,
    ConfigError,
    Decision,
    Limiter,
    LogObserver,
    MemoryStorage,
    Observer,
    Penalty,
    RedisStorage,
    Rule,
    Scope,
    StorageError,
    Subject,
)
from bot_ratelimit.limiter.observer import EVENTS, Observers, observers_of
from bot_ratelimit.testing import Clock, FlakyStorage
from tests.benches import eventually
from tests.recorder import Recorder
from tests.servers import Server
from tests.tables import table

ANNA = Subject(user=42, chat=42)


async def test_every_hit_is_reported_with_its_time() -> None:
    """Hits that are allowed, refused or without a rule, not `peek` and a cost of 0; a ban once."""
    recorder = Recorder()
    limiter = Limiter(MemoryStorage(), observer=recorder)
    await limiter.peek("1/10s", ANNA)
    await limiter.hit("1/10s", ANNA, cost=0)
    assert recorder.events == []
    rules: list[Any] = ["1/10s", "1/10s", Rule("1/s", Scope.TOPIC)]
    decisions = [await limiter.hit(rule, ANNA) for rule in rules]
    assert [event[1:3] for event in recorder.events] == [(each, ANNA) for each in decisions]
    assert [each.allowed for each in decisions] == [True, False, True]
    assert decisions[2].source == "none"
    assert all(0 < event[3] < 1 for event in recorder.events)
    for _ in range(6):
        await limiter.hit([Rule("1/10s"), Penalty("2/10s", "5m")], ANNA)
    assert recorder.named("banned") == [("banned", "bot:ratelimit:ban:42", 300.0)]


async def test_a_failing_observer_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """Wherever its methods come from, decisions and other observers go on; one traceback each."""

    class Raising:
        def decided(self, decision: Decision, subject: Subject, seconds: float) -> None:
            raise RuntimeError("broken")

    class Broken(Raising, Observer):
        @staticmethod
        def banned(key: str, seconds: float) -> None:
            raise RuntimeError("broken")

    recorder = Recorder()
    limiter = Limiter(MemoryStorage(), observer=[Broken(), recorder])
    rules = [Rule("1/10s"), Penalty("1/10s", "1m")]
    assert [(await limiter.hit(rules, ANNA)).allowed for _ in range(3)] == [True, False, False]
    assert len(recorder.named("decided")) == 3
    errors = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert [r.getMessage().split(".Broken ")[1].split(";")[0] for r in errors] == [
        "failed in decided",
        "failed in banned",
    ]
    assert all(record.exc_info for record in errors)


@pytest.mark.parametrize("wrong", [Observer, object(), "log", [LogObserver]])
def test_a_wrong_observer_is_an_error(wrong: Any) -> None:
    """The error names what was given; an attribute that hides a method is one, too."""
    with pytest.raises(ConfigError, match=r"observer=\w+: expected an Observer; "):
        Limiter(MemoryStorage(), observer=wrong)
    hiding: Any = Recorder()
    hiding.closed = print
    with pytest.raises(ConfigError, match=r"observer=Recorder: the attribute 'closed' hides"):
        Limiter(MemoryStorage(), observer=hiding)


@table("event", sorted(EVENTS))
def test_every_event_reaches_every_observer(event: str) -> None:
    """Also the events of other parts: waits, slots, requests, live limits."""
    recorder, other = Recorder(), Recorder()
    parameters = list(inspect.signature(getattr(Observer, event)).parameters)[1:]
    assert getattr(Observer(), event)(*parameters) is None  # override what you need
    getattr(Observers([recorder, Observer(), other]), event)(*parameters)
    assert recorder.events == other.events == [(event, *parameters)]


async def test_begin_and_end_of_an_outage_are_reported() -> None:
    """Failures, open circuit and recovery come in order; a single failure is no outage."""
    clock, storage, recorder = Clock(), FlakyStorage(), Recorder()
    limiter = Limiter(storage, clock=clock, observer=recorder)
    late, fault = StorageError("late", kind="timeout"), ConfigError("foreign")
    for error, times in ((late, 1), (fault, 1), (StorageError("gone", kind="refused"), 5)):
        storage.fail(error)
        for _ in range(times):
            await limiter.hit("9/s", ANNA)
        clock.move(2.5)
        storage.heal()
        await limiter.hit("9/s", ANNA)
    told = [event for event in recorder.events if event[0] != "decided"]
    assert told == [
        ("storage_failed", "memory", "timeout"),
        ("storage_failed", "memory", fault.kind),
        *[("storage_failed", "memory", "refused")] * 3,
        ("breaker_changed", "memory", True),
        ("outage_began", "memory", "refused"),
        ("breaker_changed", "memory", False),
        ("outage_ended", "memory", 2.5),
    ]
    sources = [event[1].source for event in recorder.named("decided")]
    assert sources == ["policy", "memory"] * 2 + ["policy"] * 5 + ["memory"]


async def test_connections_and_batches_are_reported(own_server: Server) -> None:
    """Connected, each batch with its size, lost, connected again, closed."""
    recorder = Recorder()
    async with aioredis.Redis(port=own_server.port) as client:
        limiter = Limiter(RedisStorage(client), observer=recorder, timeout=2)
        hits = [limiter.hit("99/s", Subject(user=i)) for i in range(40)]
        sources = {each.source for each in await asyncio.gather(*hits)}
        assert sources == {"redis"}
        batches = recorder.named("batch_answered")
        assert sum(size for _, _, size, _ in batches) == 40
        # The clock of time-outs stands still while the loop is busy, so an answer may take 0 s.
        assert all(0 <= seconds < 2 for *_, seconds in batches)
        own_server.hang()
        waiting = [asyncio.create_task(limiter.hit("99/s", Subject(user=i))) for i in range(7)]
        heard = ("waiting", f"localhost:{own_server.port}")
        await eventually(lambda: recorder.named("waiting")[-1:] == [(*heard, 7)])
        own_server.resume()
        await asyncio.gather(*waiting)
        await eventually(lambda: recorder.named("waiting")[-1:] == [(*heard, 0)])
        own_server.kill()
        await eventually(lambda: recorder.named("disconnected"))
        own_server.start()
        await eventually(lambda: len(recorder.named("connected")) == 2)
        await limiter.close()
    told = recorder.named("connected", "disconnected", "closed")
    assert (told[0][0], told[1][0], told[-2][0], told[-1][0]) == (
        *("connected", "disconnected", "connected", "closed"),
    )
    assert {event[1] for event in told} == {f"localhost:{own_server.port}"}


async def test_two_limiters_on_one_storage_report_a_batch_once(client: aioredis.Redis) -> None:
    """An observer of both limiters is told once about their shared storage, also if given twice."""
    recorder, other, storage = Recorder(), Recorder(), RedisStorage(client)
    first = Limiter(storage, observer=[recorder, recorder])
    Limiter(storage, observer=observers_of(observers_of(recorder), [other, recorder], None))
    await first.hit("9/s", ANNA)
    await first.bans()  # which is no decision
    await storage.close()
    assert len(recorder.named("batch_answered")) == 1
    assert len(other.named("batch_answered")) == 1
    assert (len(recorder.named("decided")), len(other.named("decided"))) == (1, 0)


async def test_waits_and_slots_are_reported() -> None:
    """However often `acquire` asks, one decision is reported, with its wait; a refusal too.

    So are taken and released slots, and the wait for them.
    """
    recorder = Recorder()
    limiter = Limiter(MemoryStorage(), observer=recorder)
    rules = ["9/h", Rule("1/50ms", name="ai")]
    await limiter.hit(rules, ANNA)
    decision = await limiter.acquire(rules, ANNA)
    assert decision.waited > 0.02
    assert recorder.named("waited") == [("waited", decision, ANNA, decision.waited)]
    rules = ["9/h", Rule("1/h", name="report")]
    await limiter.hit(rules, ANNA)
    refused = await limiter.acquire(rules, ANNA, timeout=0.1)
    assert (refused.source, refused.rule.name) == ("memory", "report")  # not by the policy
    told = [event[1].allowed for event in recorder.named("decided")]
    assert told == [True, True, True, False]
    report = Concurrency(1, name="report")
    async with limiter.slot(report, ANNA) as slot:
        assert (slot.allowed, slot.waited) == (True, 0.0)
        waiting = asyncio.create_task(limiter.slot(report, ANNA, timeout=5).__aenter__())
        await asyncio.sleep(0)  # on a busy machine it begins to wait only now
        began = asyncio.get_running_loop().time()
        await asyncio.sleep(0.02)
        least = asyncio.get_running_loop().time() - began
    assert (await waiting).waited >= least
    assert recorder.named("slots_in_use") == [("slots_in_use", "report", n) for n in (1, 0, 1)]
    await limiter.close()


async def test_the_log_has_refusals_and_a_summary(caplog: pytest.LogCaptureFixture) -> None:
    """Each refusal is a line at DEBUG; summaries count by rule, if anything happened, and the last
    one at the end is not lost."""
    caplog.set_level(logging.DEBUG, "bot_ratelimit")
    storage = FlakyStorage(MemoryStorage(clock=Clock()))
    limiter = Limiter(storage, observer=LogObserver(every=0.05))
    for rule in ("1/10s", Rule("2/10s", name="ai")):
        for _ in range(3):
            await limiter.hit(rule, ANNA)
    line = "Refused by '1/10s per user' for 10 s: user 42, chat 42 (memory)"
    assert caplog.messages[:2] == [line] * 2
    assert {record.levelno for record in caplog.records} == {logging.DEBUG}
    caplog.set_level(logging.INFO, "bot_ratelimit")
    caplog.clear()
    await asyncio.sleep(0.2)
    assert caplog.messages == ["Last 0.05 s: 3 allowed, 3 refused (user: 2, ai: 1)"]
    await limiter.close()
    assert len(caplog.messages) == 1
    wrong: Any = "60s"
    with pytest.raises(ConfigError, match="every='60s': expected seconds above 0"):
        LogObserver(wrong)
    storage.fail()
    limiter = Limiter(storage, observer=LogObserver())
    await limiter.hit("1/10s", ANNA)
    await limiter.close()
    last, _, counts = caplog.messages[-1].partition(": ")
    assert counts == "1 allowed, 0 refused; 1 of these without the storage"
    assert float(last.removeprefix("Last ").removesuffix(" s")) < 30
