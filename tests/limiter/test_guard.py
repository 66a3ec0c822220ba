"""The guard around a storage: one breaker, one log line, one deadline, and a true health."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import pytest
import redis.asyncio as aioredis

from bot_ratelimit import (
    Concurrency,
    ConfigError,
    Limiter,
    RedisStorage,
    Rule,
    StorageError,
    Subject,
)
from bot_ratelimit.algorithms.verdict import Verdict
from bot_ratelimit.errors import NotConnectedError
from bot_ratelimit.limiter.deadline import Deadline
from bot_ratelimit.limiter.decider import Decider
from bot_ratelimit.rules.limit import Algorithm
from bot_ratelimit.rules.rule import rules_of
from bot_ratelimit.storage.base import Ask, ConnectionStatus, Count
from bot_ratelimit.testing import Clock, FlakyStorage
from tests.benches import eventually
from tests.servers import Server, free_port

ANNA = Subject(user=42)
RULES = rules_of("9/m")


async def test_one_outage_is_one_line_for_all_parts(caplog: pytest.LogCaptureFixture) -> None:
    """The line says what happens to updates and requests; so does the one at the end.

    What one part has found out about the server costs the others no call.
    """
    clock, storage = Clock(), FlakyStorage()
    limiter = Limiter(storage, clock=clock)
    alone = "this process paces by itself"
    requests = Decider(
        storage, "bot", on_error="memory", part="requests", consequence=alone, clock=clock
    )
    for hit in (limiter.hit, requests.hit):
        await hit(RULES, ANNA)
    storage.fail()
    for hit in (limiter.hit, requests.hit) * 5:
        await hit(RULES, ANNA)
    assert storage.calls == 2 + 3
    clock.move(10)
    storage.heal()
    for hit in (limiter.hit, requests.hit):
        await hit(RULES, ANNA)
    began, ended = caplog.messages
    assert "without a limit (on_error='allow'); this process paces by itself" in began
    assert "after 10.0 s" in ended
    assert "updates, requests" in ended


async def test_a_single_late_answer_is_no_outage() -> None:
    """It is logged, and the server is well; only several in a row are an outage."""
    storage = FlakyStorage()
    limiter = Limiter(storage, timeout=0.01)
    storage.fail(StorageError("no answer within 0.01 s", kind="timeout"))
    for well in (True, True, False):
        assert (await limiter.hit(RULES, ANNA)).source == "policy"
        assert (await limiter.health()).ok is well


class Connecting(FlakyStorage):
    """A storage with a connection of its own to a server that others ask, too."""

    key_space = "shared"

    def server(self, counts: Sequence[Count]) -> str:
        return "redis.test:6379"

    def status(self) -> Sequence[ConnectionStatus]:
        error = "" if self._error is None else str(self._error)
        return [ConnectionStatus("redis.test:6379", not error, 0.001, True, error)]


async def test_an_outage_ends_when_every_part_is_connected_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One part connects a second later than the other: that is no further outage for each hit."""
    clock, first, second = Clock(), Connecting(), Connecting()
    limiters = [Limiter(each, clock=clock) for each in (first, second)]
    for storage in (first, second):
        storage.fail(NotConnectedError("Connection refused"))
    for number in range(10):
        if number == 3:
            first.heal()
        if number == 8:
            second.heal()
        for limiter in limiters:
            await limiter.hit(RULES, ANNA)
        clock.move(0.25)
    began, ended = caplog.messages
    assert "Connection refused" in began
    assert "after 2.0 s" in ended


class Distant(FlakyStorage):
    """A server so far away that only patient callers get an answer."""

    latency = 0.4

    async def ask(self, ask: Ask, *, timeout: float) -> Sequence[Verdict]:
        if timeout < self.latency:
            raise StorageError(f"no answer within {timeout:g} s", kind="timeout")
        return await super().ask(ask, timeout=timeout)

    def status(self) -> Sequence[ConnectionStatus]:
        return [ConnectionStatus("memory", True, self.latency, True, "")]


async def test_an_answer_that_is_too_late_for_others_ends_no_outage(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A part that waits longer keeps no circuit closed through which others get no answer."""
    clock, storage = Clock(), Distant()
    limiter = Limiter(storage, clock=clock)
    requests = Decider(storage, "bot", timeout=1.0, part="requests", clock=clock)
    for _ in range(20):
        await requests.hit(RULES, ANNA)
        await limiter.hit(RULES, ANNA)
        clock.move(0.1)
    assert len(caplog.messages) == 1
    calls = storage.calls
    assert calls < 12  # both wait for the circuit
    storage.latency = 0.1
    clock.move(10)
    assert (await limiter.hit(RULES, ANNA)).source == "memory"
    assert "answers again" in caplog.messages[1]


async def test_a_rule_may_have_its_own_policy(caplog: pytest.LogCaptureFixture) -> None:
    """In an outage menus fail open, a paid handler fails closed, and a third one counts here."""
    storage = FlakyStorage()
    limiter = Limiter(storage)
    paid, counted = (
        Rule("9/d", name="ai", on_error="deny"),
        Rule("1/d", name="c", on_error="memory"),
    )
    await limiter.hit([paid, counted], ANNA)
    storage.fail()
    assert await limiter.hit("1/d", ANNA)
    refused = await limiter.hit(["5/d", paid, counted], ANNA)
    assert (refused.allowed, refused.rule, refused.source) == (False, paid, "policy")
    assert "(on_error='allow'), unless a rule has its own on_error" in caplog.messages[0]
    found = [await limiter.hit(["5/d", counted], ANNA) for _ in range(2)]
    assert [(each.allowed, each.source) for each in found] == [(True, "memory"), (False, "memory")]


async def test_one_update_waits_for_one_deadline() -> None:
    """A slot, a hit and a notice together wait for no longer than the time-out.

    Behind an open circuit, when the hit is not even sent, nothing is waited for.
    """
    storage = FlakyStorage()
    limiter = Limiter(storage, timeout=0.1, clock=Clock())
    storage.hang()
    deadline, began = Deadline(limiter.timeout), time.monotonic()
    async with limiter.slot(Concurrency(1), ANNA, deadline=deadline) as slot:
        assert slot.source == "policy"
        for _ in range(2):
            assert (await limiter.hit(RULES, ANNA, deadline=deadline)).source == "policy"
    assert storage.calls == 1  # the release follows in the background
    assert time.monotonic() - began < 0.35
    storage.fail()
    for _ in range(3):
        await limiter.hit(RULES, ANNA)
    calls, deadline = storage.calls, Deadline(limiter.timeout)
    assert (await limiter.hit(RULES, ANNA, deadline=deadline)).source == "policy"
    assert (storage.calls, deadline.left()) == (calls, 0.0)


class Strict(FlakyStorage):
    """A storage that cannot decide by a sliding window, like a server without scripts."""

    async def ask(self, ask: Ask, *, timeout: float) -> Sequence[Verdict]:
        if any(each.limit.algorithm is Algorithm.SLIDING_WINDOW for each in ask.counts):
            raise ConfigError("NOPERM evalsha")
        return await super().ask(ask, timeout=timeout)


async def test_health_knows_what_was_not_decided() -> None:
    """A rule that the storage refuses is a problem, although others are decided or nobody hits."""
    limiter = Limiter(Strict())
    limiter.decider.expect(rules_of("9/m sliding"))
    assert (await limiter.check()).problem == "NOPERM evalsha"
    clock = Clock()
    limiter = Limiter(Strict(), on_error="deny", clock=clock)
    assert await limiter.hit("9/m", ANNA)
    assert (await limiter.check()).ok
    assert not await limiter.hit("9/m sliding", ANNA)
    assert await limiter.hit("9/m", ANNA)
    for health in (await limiter.health(), await limiter.check()):
        assert (health.ok, health.ready, health.problem) == (False, False, "NOPERM evalsha")
    clock.move(60)  # in which nobody has asked; a check does
    assert (await limiter.health()).ok
    assert not (await limiter.check()).ok


class Cluster(FlakyStorage):
    """Two servers, one of which is gone: the one with the counts of users."""

    def server(self, counts: Sequence[Count]) -> str:
        return "near" if counts[0].key.endswith(":check") else "gone"

    async def ask(self, ask: Ask, *, timeout: float) -> Sequence[Verdict]:
        if self.server(ask.counts) == "gone":
            raise StorageError("Connection refused")
        return await super().ask(ask, timeout=timeout)


async def test_a_check_that_one_server_answers_tells_of_the_others() -> None:
    """A bot that refuses a part of its users is not ready, whichever server is asked."""
    limiter = Limiter(Cluster(), on_error="deny")
    for _ in range(3):
        assert not await limiter.hit("9/m", ANNA)
    for health in (await limiter.health(), await limiter.check()):
        assert (health.ok, health.ready, health.problem) == (False, False, "Connection refused")


@pytest.mark.parametrize("is_up", [True, False])
async def test_the_log_says_at_the_start_how_redis_is(
    own_server: Server, caplog: pytest.LogCaptureFixture, is_up: bool
) -> None:
    """`open` finds out without an update, and leaves no key behind."""
    caplog.set_level(logging.INFO, "bot_ratelimit")
    said = "Connected to Redis (" if is_up else "Redis rate limit check failed"
    async with aioredis.Redis(port=own_server.port if is_up else free_port()) as client:
        limiter = Limiter(RedisStorage(client))
        limiter.open()
        await eventually(lambda: said in caplog.text, within=6)
        assert not is_up or await client.keys() == []
        await limiter.close()
