"""What observers are told, and that they disturb nothing."""

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
    """Hits that are allowed, refused or without a rule; but not `peek` and a cost of 0."""
    recorder = Recorder()
    limiter = Limiter(MemoryStorage(), observer=recorder)
    await limiter.peek("1/10s", ANNA)
    await limiter.hit("1/10s", ANNA, cost=0)
    assert recorder.events == []
    rules = ["1/10s", "1/10s", Rule("1/s", Scope.TOPIC)]
    decisions = [await limiter.hit(rule, ANNA) for rule in rules]
    assert [event[1:3] for event in recorder.events] == [(each, ANNA) for each in decisions]
    assert [each.allowed for each in decisions] == [True, False, True]
    assert decisions[2].source == "none"
    assert all(0 < event[3] < 1 for event in recorder.events)


async def test_without_an_observer_decisions_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is read only for observers."""

    def never() -> float:
        raise AssertionError("read")

    monkeypatch.setattr("bot_ratelimit.limiter.limiter.time.perf_counter", never)
    assert await Limiter(MemoryStorage()).hit("1/s", ANNA)
    assert await Limiter(MemoryStorage(), observer=Observer()).hit("1/s", ANNA)
    with pytest.raises(AssertionError, match="read"):
        await Limiter(MemoryStorage(), observer=Recorder()).hit("1/s", ANNA)


class Broken(Observer):
    """Raises in every method."""

    def decided(self, decision: Decision, subject: Subject, seconds: float) -> None:
        raise RuntimeError("broken")

    def banned(self, key: str, seconds: float) -> None:
        raise RuntimeError("broken")


async def test_a_failing_observer_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Decisions and other observers are not affected, and there is one traceback."""
    recorder = Recorder()
    limiter = Limiter(MemoryStorage(), observer=[Broken(), recorder])
    rules = [Rule("1/10s"), Penalty("1/10s", "1m")]
    allowed = [(await limiter.hit(rules, ANNA)).allowed for _ in range(3)]
    assert allowed == [True, False, False]
    assert len(recorder.named("decided")) == 3
    errors = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert [(r.getMessage().split(";")[0], r.exc_info is not None) for r in errors] == [
        ("The observer Broken failed in decided", True),
        ("The observer Broken failed in banned", True),
    ]


class Raising:
    """A class that is mixed into an observer; it knows nothing of observers."""

    def decided(self, decision: Decision, subject: Subject, seconds: float) -> None:
        raise RuntimeError("broken")


class Mixed(Raising, Observer):
    """Has its method from the other class."""


class Counting(Observer):
    """Counts decisions."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def decided(self, decision: Decision, subject: Subject, seconds: float) -> None:
        self.seconds.append(seconds)


class Derived(Counting):
    """Hands on by name, and has a method without an instance."""

    def decided(self, decision: Decision, subject: Subject, seconds: float) -> None:
        super().decided(decision, subject, seconds=seconds)

    @staticmethod
    def banned(key: str, seconds: float) -> None:
        bans.append(key)


bans: list[str] = []


async def test_methods_are_safe_and_called_wherever_they_come_from(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A method of a class that is mixed in, a call of the method above, and a static method."""
    derived = Derived()
    limiter = Limiter(MemoryStorage(), observer=[Mixed(), derived])
    rules = [Rule("1/10s"), Penalty("1/10s", "1m")]
    assert [(await limiter.hit(rules, ANNA)).allowed for _ in range(3)] == [True, False, False]
    assert len(derived.seconds) == 3
    assert len(bans) == 1
    assert [text.split(";")[0] for text in caplog.messages if "observer" in text] == [
        "The observer Mixed failed in decided"
    ]


async def test_an_observer_given_twice_is_told_once() -> None:
    """Several observers become one, which contains each of them once."""
    recorder, other = Recorder(), Recorder()
    both = observers_of(recorder, [other, recorder], None)
    assert observers_of(both, other, recorder).each == both.each
    both.configured(3)
    assert recorder.events == other.events == [("configured", 3)]
    assert observers_of(None, []).each == ()


@pytest.mark.parametrize("wrong", [Observer, object(), "log", [LogObserver]])
def test_a_wrong_observer_is_an_error(wrong: Any) -> None:
    """The error names what was given and what to pass."""
    with pytest.raises(ConfigError, match=r"observer=\w+: expected an Observer; "):
        Limiter(MemoryStorage(), observer=wrong)


@pytest.mark.parametrize("attribute", [False, print])
def test_an_attribute_that_hides_a_method_is_an_error(attribute: Any) -> None:
    """It would be called in place of the method, and its error would reach who asks for a hit."""
    observer: Any = Counting()
    observer.closed = attribute
    with pytest.raises(ConfigError, match=r"observer=Counting: the attribute 'closed' hides"):
        Limiter(MemoryStorage(), observer=observer)


@table("event", sorted(EVENTS))
def test_every_event_reaches_every_observer(event: str) -> None:
    """Also the events of other parts: waits, slots, requests, live limits."""
    recorder, other = Recorder(), Recorder()
    parameters = list(inspect.signature(getattr(Observer, event)).parameters)[1:]
    assert getattr(Observer(), event)(*parameters) is None  # override what you need
    getattr(Observers([recorder, Observer(), other]), event)(*parameters)
    assert recorder.events == other.events == [(event, *parameters)]


async def test_a_ban_is_reported_once() -> None:
    """The hit that causes the ban reports its key and length; further hits do not."""
    recorder = Recorder()
    limiter = Limiter(MemoryStorage(), observer=recorder)
    rules = [Rule("1/10s"), Penalty("2/10s", "5m")]
    for _ in range(6):
        await limiter.hit(rules, ANNA)
    assert recorder.named("banned") == [("banned", "bot:ratelimit:ban:42", 300.0)]


async def test_begin_and_end_of_an_outage_are_reported() -> None:
    """Failures, open circuit and recovery come in order, with their server."""
    clock, storage, recorder = Clock(), FlakyStorage(), Recorder()
    limiter = Limiter(storage, clock=clock, observer=recorder)
    storage.fail(StorageError("gone", kind="refused"))
    for _ in range(5):
        await limiter.hit("9/s", ANNA)
    clock.move(2.5)
    storage.heal()
    await limiter.hit("9/s", ANNA)
    told = [event for event in recorder.events if event[0] != "decided"]
    assert told == [
        *[("storage_failed", "memory", "refused")] * 3,
        ("breaker_changed", "memory", True),
        ("outage_began", "memory", "refused"),
        ("breaker_changed", "memory", False),
        ("outage_ended", "memory", 2.5),
    ]
    sources = [event[1].source for event in recorder.named("decided")]
    assert sources == ["policy"] * 5 + ["memory"]


async def test_a_single_failure_is_not_an_outage() -> None:
    """A time-out or a fault is reported with its kind; no outage begins or ends."""
    for error in (StorageError("late", kind="timeout"), ConfigError("foreign")):
        storage, recorder = FlakyStorage(), Recorder()
        limiter = Limiter(storage, observer=recorder)
        storage.fail(error)
        await limiter.hit("9/s", ANNA)
        storage.heal()
        await limiter.hit("9/s", ANNA)
        told = [event for event in recorder.events if event[0] != "decided"]
        assert told == [("storage_failed", "memory", error.kind)]


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
    """An observer of both limiters is told once about their shared storage."""
    recorder, other, storage = Recorder(), Recorder(), RedisStorage(client)
    first = Limiter(storage, observer=recorder)
    Limiter(storage, observer=[recorder, other])
    await first.hit("9/s", ANNA)
    await storage.close()
    assert len(recorder.named("batch_answered")) == 1
    assert len(other.named("batch_answered")) == 1
    assert len(other.named("decided")) == 0


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
        await asyncio.sleep(0)  # on a busy machine it begins to wait only now
        began = asyncio.get_running_loop().time()
        await asyncio.sleep(0.02)
        least = asyncio.get_running_loop().time() - began
    assert await waiting >= least
    assert recorder.named("slots_in_use") == [("slots_in_use", "report", n) for n in (1, 0, 1, 0)]
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


class TestLogObserver:
    async def test_refusals_are_logged_at_debug(self, caplog: pytest.LogCaptureFixture) -> None:
        """A refusal is one line with the rule, the wait and the subject."""
        caplog.set_level(logging.DEBUG, "bot_ratelimit")
        limiter = Limiter(MemoryStorage(clock=Clock()), observer=LogObserver())
        await limiter.hit("1/10s", ANNA)
        await limiter.hit("1/10s", ANNA)
        assert [r.getMessage() for r in caplog.records] == [
            "Refused by '1/10s per user' for 10 s: user 42, chat 42 (memory)"
        ]
        assert caplog.records[0].levelno == logging.DEBUG

    async def test_a_summary_counts_by_rule(self, caplog: pytest.LogCaptureFixture) -> None:
        """The summary says how many hits were allowed and refused, and by which rule."""
        caplog.set_level(logging.INFO, "bot_ratelimit")
        limiter = Limiter(MemoryStorage(), observer=LogObserver(every=0.02))
        for rule in ("1/10s", Rule("2/10s", name="ai")):
            for _ in range(3):
                await limiter.hit(rule, ANNA)
        assert caplog.records == []
        await asyncio.sleep(0.06)
        assert [r.getMessage() for r in caplog.records] == [
            "Last 0.02 s: 3 allowed, 3 refused (user: 2, ai: 1)"
        ]

    def test_another_event_loop_logs_too(self, caplog: pytest.LogCaptureFixture) -> None:
        """After an `asyncio.run` that ended without `close`, the next one logs its summaries."""
        caplog.set_level(logging.INFO, "bot_ratelimit")
        limiter = Limiter(MemoryStorage(), observer=LogObserver(every=0.05))

        async def second() -> None:
            await limiter.hit("5/d", Subject(user=42))
            await asyncio.sleep(0.2)

        asyncio.run(limiter.hit("5/d", Subject(user=42)))
        asyncio.run(second())
        assert "2 allowed" in caplog.text

    async def test_an_idle_bot_logs_no_summary(self, caplog: pytest.LogCaptureFixture) -> None:
        """Without decisions there is no summary."""
        caplog.set_level(logging.INFO, "bot_ratelimit")
        observer = LogObserver(every=0.01)
        limiter = Limiter(MemoryStorage(), observer=observer)
        await limiter.hit("1/10s", ANNA)
        await asyncio.sleep(0.06)
        observer.summarize()
        assert len(caplog.records) == 1

    async def test_the_last_summary_is_logged_at_the_end(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Counts are not lost at close; the seconds are real, and the policy's answers named."""
        caplog.set_level(logging.INFO, "bot_ratelimit")
        storage = FlakyStorage()
        limiter = Limiter(storage, observer=LogObserver())
        storage.fail()
        await limiter.hit("1/10s", ANNA)
        caplog.clear()
        await limiter.close()
        (summary,) = [record.getMessage() for record in caplog.records]
        last, _, counts = summary.partition(": ")
        assert counts == "1 allowed, 0 refused; 1 of these without the storage"
        assert float(last.removeprefix("Last ").removesuffix(" s")) < 30
