"""What observers hear, and that they disturb nobody."""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import Any

import pytest
import redis.asyncio as aioredis

from bot_ratelimit import (
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
from bot_ratelimit.observer import EVENTS, Observers, label_of, observers_of
from bot_ratelimit.testing import Clock, FlakyStorage
from tests.recorder import Recorder
from tests.servers import Server

ANNA = Subject(user=42, chat=42)


async def test_an_observer_hears_of_every_hit_and_how_long_it_took() -> None:
    """Allowed and refused hits are told with their decision, their subject and their time."""
    recorder = Recorder()
    limiter = Limiter(MemoryStorage(), observer=recorder)
    decisions = [await limiter.hit("1/10s", ANNA) for _ in range(2)]
    assert [event[1:3] for event in recorder.events] == [(each, ANNA) for each in decisions]
    assert [each.allowed for each in decisions] == [True, False]
    assert all(0 < event[3] < 1 for event in recorder.events)


async def test_a_look_is_not_told() -> None:
    """`peek`, and a hit of cost 0, charge nothing, and observers hear nothing of them."""
    recorder = Recorder()
    limiter = Limiter(MemoryStorage(), observer=recorder)
    await limiter.peek("1/10s", ANNA)
    await limiter.hit("1/10s", ANNA, cost=0)
    assert recorder.events == []


async def test_a_hit_to_which_no_rule_applies_is_told() -> None:
    """What observers count adds up to the hits that were made, whoever answered."""
    recorder = Recorder()
    limiter = Limiter(MemoryStorage(), observer=recorder)
    await limiter.hit(Rule("1/s", Scope.CHAT), Subject(user=42))
    [(_, decision, _, _)] = recorder.events
    assert (decision.allowed, decision.source) == (True, "none")


async def test_without_an_observer_no_time_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock that times decisions is read only for observers."""

    def never() -> float:
        raise AssertionError("read")

    monkeypatch.setattr("bot_ratelimit.limiter.time.perf_counter", never)
    assert await Limiter(MemoryStorage()).hit("1/s", ANNA)
    with pytest.raises(AssertionError, match="read"):
        await Limiter(MemoryStorage(), observer=Observer()).hit("1/s", ANNA)


class Broken(Observer):
    """Raises, whatever it is told."""

    def decided(self, decision: Decision, subject: Subject, seconds: float) -> None:
        raise RuntimeError("broken")

    def banned(self, key: str, seconds: float) -> None:
        raise RuntimeError("broken")


async def test_an_observer_that_raises_harms_nobody_and_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Decisions are made, the observers behind it hear of them, and the log has one traceback."""
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


async def test_an_observer_given_twice_hears_everything_once() -> None:
    """Several observers are one, and each of them stands in it once."""
    recorder, other = Recorder(), Recorder()
    both = observers_of(recorder, [other, recorder], None)
    assert both is not None
    assert both.each == (recorder, other)
    assert observers_of(both, recorder, other) is not both
    both.configured(3)
    assert recorder.events == other.events == [("configured", 3)]
    assert observers_of(None, []) is None


@pytest.mark.parametrize("wrong", [Observer, object(), "log", [LogObserver]])
def test_what_is_no_observer_is_refused(wrong: Any) -> None:
    """The error names what was given, and says what to pass."""
    with pytest.raises(ConfigError, match=r"observer=\w+: expected an Observer; "):
        Limiter(MemoryStorage(), observer=wrong)


@pytest.mark.parametrize("event", sorted(EVENTS))
def test_every_event_reaches_every_observer(event: str) -> None:
    """Also those events whose senders are other parts: waits, slots, requests, live settings."""
    recorder, other = Recorder(), Recorder()
    parameters = list(inspect.signature(getattr(Observer, event)).parameters)[1:]
    getattr(Observers([recorder, Observer(), other]), event)(*parameters)
    assert recorder.events == other.events == [(event, *parameters)]


def test_the_events_of_the_base_class_do_nothing() -> None:
    """An observer overrides what it needs; the rest is silent."""
    for event in EVENTS:
        parameters = list(inspect.signature(getattr(Observer, event)).parameters)[1:]
        assert getattr(Observer(), event)(*parameters) is None


async def test_a_ban_is_told_when_it_begins_and_only_then() -> None:
    """The hit that brings a ban on is told with the ban's key and length; further ones are not."""
    recorder = Recorder()
    limiter = Limiter(MemoryStorage(), observer=recorder)
    rules = [Rule("1/10s"), Penalty("2/10s", "5m")]
    for _ in range(6):
        await limiter.hit(rules, ANNA)
    assert recorder.named("banned") == [("banned", "bot:ratelimit:ban:42", 300.0)]


async def test_an_outage_is_told_when_it_begins_and_when_it_ends() -> None:
    """Failures, the open circuit, and the recovery come in order, each with its server."""
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


async def test_one_late_answer_is_a_failure_but_no_outage() -> None:
    """A single time-out is told as such; no outage begins, and so none ends."""
    storage, recorder = FlakyStorage(), Recorder()
    limiter = Limiter(storage, observer=recorder)
    storage.fail(StorageError("late", kind="timeout"))
    await limiter.hit("9/s", ANNA)
    storage.heal()
    await limiter.hit("9/s", ANNA)
    told = [event for event in recorder.events if event[0] != "decided"]
    assert told == [("storage_failed", "memory", "timeout")]


async def test_a_fault_is_told_by_its_kind() -> None:
    """Foreign data under a key is a failure with the code of Redis' error, and no outage."""
    storage, recorder = FlakyStorage(), Recorder()
    fault = ConfigError("foreign")
    fault.kind = "wrongtype"
    storage.fail(fault)
    await Limiter(storage, observer=recorder).hit("9/s", ANNA)
    assert recorder.named("storage_failed") == [("storage_failed", "memory", "wrongtype")]
    assert recorder.named("outage_began") == []


async def test_the_connection_tells_of_itself_and_of_its_batches(own_server: Server) -> None:
    """Connected, each batch with its size, lost when the server dies, connected again, closed."""
    recorder = Recorder()
    async with aioredis.Redis(port=own_server.port) as client:
        limiter = Limiter(RedisStorage(client), observer=recorder, timeout=2)
        hits = [limiter.hit("99/s", Subject(user=i)) for i in range(40)]
        sources = {each.source for each in await asyncio.gather(*hits)}
        assert sources == {"redis"}
        batches = recorder.named("batch_answered")
        assert sum(size for _, _, size, _ in batches) == 40
        assert all(0 < seconds < 2 for *_, seconds in batches)
        own_server.hang()
        waiting = [asyncio.create_task(limiter.hit("99/s", Subject(user=i))) for i in range(7)]
        await has_heard(recorder, "waiting", f"localhost:{own_server.port}", 7)
        own_server.resume()
        await asyncio.gather(*waiting)
        await has_heard(recorder, "waiting", f"localhost:{own_server.port}", 0)
        own_server.kill()
        async with asyncio.timeout(5):
            while not recorder.named("disconnected"):  # noqa: ASYNC110 - the server decides
                await asyncio.sleep(0.01)
        own_server.start()
        async with asyncio.timeout(5):
            while len(recorder.named("connected")) < 2:  # noqa: ASYNC110 - the server decides
                await asyncio.sleep(0.01)
        await limiter.close()
    told = recorder.named("connected", "disconnected", "closed")
    assert (told[0][0], told[1][0], told[-2][0], told[-1][0]) == (
        *("connected", "disconnected", "connected", "closed"),
    )
    assert {event[1] for event in told} == {f"localhost:{own_server.port}"}


async def has_heard(recorder: Recorder, *event: Any) -> None:
    """Wait until the recorder has heard of this last."""
    async with asyncio.timeout(5):
        while recorder.named(event[0])[-1:] != [event]:  # noqa: ASYNC110 - the server decides
            await asyncio.sleep(0.005)


async def test_two_limiters_on_one_storage_tell_of_a_batch_once(client: aioredis.Redis) -> None:
    """An observer that both of them have hears of the storage they share once."""
    recorder, other, storage = Recorder(), Recorder(), RedisStorage(client)
    first = Limiter(storage, observer=recorder)
    Limiter(storage, observer=[recorder, other])
    await first.hit("9/s", ANNA)
    await storage.close()
    assert len(recorder.named("batch_answered")) == 1
    assert len(other.named("batch_answered")) == 1
    assert len(other.named("decided")) == 0


@pytest.mark.parametrize(
    ("rule", "label"),
    [
        (Rule("1/s"), "user"),
        (Rule("1/s", name="ai"), "ai"),
        (Rule("1/s", Scope.CHAT), "chat"),
        (Rule("1/s", Scope.CHAT, name="ai"), "ai:chat"),
        (Rule("1/s", Scope.GLOBAL), "global"),
        (Penalty("10/m", "15m"), "ban"),
    ],
)
def test_a_rule_is_named_as_in_its_keys(rule: Rule, label: str) -> None:
    """What metrics and the log call a rule stands in its keys, so that both can be put together."""
    assert label_of(rule) == label
    assert label in (rule.key("bot", Subject(1, 2)) or "") or label == "user"


class TestLogObserver:
    async def test_refusals_are_written_at_debug(self, caplog: pytest.LogCaptureFixture) -> None:
        """A refusal is one line with the rule, the wait and who was refused."""
        caplog.set_level(logging.DEBUG, "bot_ratelimit")
        limiter = Limiter(MemoryStorage(clock=Clock()), observer=LogObserver())
        await limiter.hit("1/10s", ANNA)
        await limiter.hit("1/10s", ANNA)
        assert [r.getMessage() for r in caplog.records] == [
            "Refused by '1/10s per user' for 10 s: user 42, chat 42 (memory)"
        ]
        assert caplog.records[0].levelno == logging.DEBUG

    async def test_a_summary_counts_by_rule(self, caplog: pytest.LogCaptureFixture) -> None:
        """After its time a summary says how many were allowed and refused, and by which rule."""
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

    async def test_nothing_is_written_when_nothing_happened(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A bot that sleeps writes no summaries."""
        caplog.set_level(logging.INFO, "bot_ratelimit")
        observer = LogObserver(every=0.01)
        limiter = Limiter(MemoryStorage(), observer=observer)
        await limiter.hit("1/10s", ANNA)
        await asyncio.sleep(0.06)
        observer.summarize()
        assert len(caplog.records) == 1

    async def test_the_last_summary_is_written_at_the_end(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What was counted when the limiter is closed is not lost, and names the policy."""
        caplog.set_level(logging.INFO, "bot_ratelimit")
        storage = FlakyStorage()
        limiter = Limiter(storage, observer=LogObserver())
        storage.fail()
        await limiter.hit("1/10s", ANNA)
        caplog.clear()
        await limiter.close()
        assert [r.getMessage() for r in caplog.records] == [
            "Last 60 s: 1 allowed, 0 refused; 1 of these without the storage"
        ]
