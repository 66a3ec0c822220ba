"""Limiter on a failing storage: which answer callers get, what is logged, and a true health."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
import redis.asyncio as aioredis

from bot_ratelimit import (
    Concurrency,
    ConfigError,
    Decision,
    Limiter,
    Penalty,
    RedisStorage,
    Rule,
    StorageError,
    Subject,
)
from bot_ratelimit.algorithms.verdict import Verdict
from bot_ratelimit.errors import NotConnectedError
from bot_ratelimit.limiter.decider import Decider
from bot_ratelimit.rules.limit import Algorithm
from bot_ratelimit.rules.rule import rules_of
from bot_ratelimit.storage.base import Ask, ConnectionStatus, Count
from bot_ratelimit.storage.deadline import Deadline
from bot_ratelimit.testing import Clock, FlakyStorage
from tests.benches import eventually
from tests.servers import Server, free_port

ANNA = Subject(user=42)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def broken() -> FlakyStorage:
    storage = FlakyStorage()
    storage.fail()
    return storage


async def hits(limiter: Limiter, rules: Any, count: int, **options: Any) -> list[Decision]:
    return [await limiter.hit(rules, ANNA, **options) for _ in range(count)]


@pytest.mark.parametrize(
    ("on_error", "answers"),
    [
        ("allow", [(True, 3, "policy")] * 4),
        ("deny", [(False, 0, "policy")] * 4),
        ("memory", [(True, r, "memory") for r in (2, 1, 0)] + [(False, 0, "memory")]),
    ],
)
@pytest.mark.parametrize("error", [StorageError("away"), ConfigError("NOPERM"), KeyError("bug")])
async def test_the_policy_answers_for_a_storage_that_cannot(
    broken: FlakyStorage, error: Exception, on_error: Any, answers: Iterable[Any]
) -> None:
    """Unreachable, misconfigured or buggy: no storage error reaches the caller.

    A shadow rule never refuses, whatever the policy is.
    """
    broken.fail(error)
    limiter, trial = Limiter(broken, on_error=on_error), Rule("1/m", name="trial", shadow=True)
    decisions = await hits(limiter, [trial, Rule("3/m")], 4)
    assert [(d.allowed, d.remaining, d.source) for d in decisions] == answers
    assert all((d.retry_after > 0) is not d.allowed for d in decisions)
    assert {d.rule for d in decisions} == {Rule("3/m")}
    assert all(await hits(limiter, trial, 3))


async def test_what_is_logged_of_faults(
    broken: FlakyStorage, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """An unexpected error is logged with its traceback, once a minute; each configuration fault is
    one line, and a storage that fails now and then does not fill the log."""
    broken.fail(ZeroDivisionError("in a storage"))
    limiter = Limiter(broken, clock=clock)
    for pause, logged in ((59.9, 1), (0.1, 1), (0, 2)):
        await hits(limiter, "1/m", 5)
        clock.move(pause)
        assert len(caplog.records) == logged
    assert caplog.messages[0].startswith("Redis rate limit check failed: ZeroDivisionError(")
    assert "in misbehave" in caplog.text
    assert broken.calls == 15  # the server did answer: the circuit stays closed
    caplog.clear()
    for fault in ["WRONGTYPE - choose another key_prefix", "NOPERM - ACL SETUSER"] * 3:
        broken.fail(ConfigError(fault))
        await hits(limiter, "1/m", 2)
    assert [(r.levelname, r.exc_info) for r in caplog.records] == [("ERROR", None)] * 2
    assert [("WRONGTYPE" in m, "NOPERM" in m) for m in caplog.messages] == [(1, 0), (0, 1)]
    caplog.clear()
    for _ in range(5):
        broken.fail()
        await hits(limiter, "9/m", 1)
        broken.heal()
        await hits(limiter, "9/m", 1)
    failed, answers = caplog.messages
    assert "out of reach" in failed
    assert "answers again" in answers


async def test_a_reset_works_during_an_outage(
    broken: FlakyStorage, caplog: pytest.LogCaptureFixture
) -> None:
    """With on_error="memory" counts and bans of this process are deleted, and it is logged.

    A reset on the storage deletes them too; where there is nothing to delete here, it raises.
    """
    limiter = Limiter(broken, on_error="memory")
    rules = [Rule("1/m"), Penalty("1/m", "1h")]
    assert [d.allowed for d in await hits(limiter, rules, 3)] == [True, False, False]
    caplog.clear()
    assert await limiter.reset(rules, ANNA)
    (line,) = caplog.messages
    assert "in this process only: out of reach" in line
    assert "bot:ratelimit:ban:42" in line
    acme = Rule("1/m", lambda subject: "a\nINFO forged", name="acme")
    await hits(limiter, acme, 1)
    await limiter.reset(acme, ANNA)
    assert "custom:a\\nINFO forged" in caplog.messages[-1]
    assert [d.allowed for d in await hits(limiter, rules, 3)] == [True, False, False]
    broken.heal()
    await limiter.reset(rules, ANNA)
    broken.fail()
    assert [d.allowed for d in await hits(limiter, rules, 1)] == [True]
    for nothing in (Limiter(broken), Limiter(broken, on_error="memory")):
        with pytest.raises(StorageError):
            await nothing.reset("1/m", ANNA)


async def test_a_cancelled_probe_leaves_its_place_to_the_next(
    broken: FlakyStorage, clock: Clock
) -> None:
    """A cancelled hit raises the cancellation, and the next one is decided normally.

    Until the probe, a refusal by the policy has the time that is left.
    """
    limiter = Limiter(broken, timeout=5, clock=clock, on_error="deny")
    refused = await hits(limiter, "1/m", 9)
    assert broken.calls == 3  # the circuit is open
    clock.move(0.3)
    refused += await hits(limiter, "1/m", 1)
    assert [each.retry_after for each in refused[-2:]] == [0.5, pytest.approx(0.2)]
    broken.hang()
    clock.move(60)
    probe = asyncio.create_task(limiter.hit("1/m", ANNA))
    await asyncio.sleep(0)
    assert (await limiter.hit("1/m", ANNA)).source == "policy"
    probe.cancel()
    with pytest.raises(asyncio.CancelledError):
        await probe
    broken.heal()
    assert (await limiter.hit("1/m", ANNA)).source == "memory"
    await limiter.close()
    await limiter.close()  # which does no harm
    assert broken.closed


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


async def test_an_outage_ends_when_every_part_is_connected_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One part connects a second later than the other: that is no further outage for each hit."""

    class Connecting(FlakyStorage):  # to a server that others ask, too
        key_space = "shared"

        def server(self, counts: Sequence[Count]) -> str:
            return "redis.test:6379"

        def status(self) -> Sequence[ConnectionStatus]:
            error = "" if self._error is None else str(self._error)
            return [ConnectionStatus("redis.test:6379", not error, 0.001, True, error)]

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
    strict, free = Limiter(storage, on_error="deny"), Rule("5/d", on_error="allow")
    assert await strict.hit([free, Penalty("9/m", "1h")], ANNA)  # which never refuses by policy
    counting = Limiter(storage, on_error="memory")
    decision = await counting.hit([free, Penalty("9/m", "1h")], ANNA)
    assert (decision.rule, decision.remaining, decision.source) == (free, 5, "policy")
    trial = Rule("1/d", name="trial", shadow=True)
    for others in ([Penalty("9/m", "1h"), free], [free, trial], [trial, free]):
        described = await counting.hit(others, ANNA)
        assert (described.rule, described.remaining, described.source) == (free, 5, "policy")


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
    async with limiter.slot(Concurrency(1), ANNA, deadline=deadline) as slot:
        assert (slot.source, storage.calls) == ("policy", calls)
    deadline = Deadline(0.25)  # however long the bot itself was busy, a step has 0.3 of the time
    deadline.waited(time.monotonic() - 10, answered=True)
    assert deadline.left() == pytest.approx(0.075)
    deadline = Deadline(100)
    deadline.waited(time.monotonic() - 10, answered=True)
    assert deadline.left() == pytest.approx(90, abs=1)
    deadline.renew()
    assert deadline.left() == 100
    deadline.waited(time.monotonic(), answered=False)
    deadline.renew()
    assert deadline.left() == 0


async def test_health_knows_what_was_not_decided() -> None:
    """A rule that the storage refuses is a problem, although others are decided or nobody hits."""

    class Strict(FlakyStorage):  # like a server without scripts
        async def ask(self, ask: Ask, *, timeout: float) -> Sequence[Verdict]:
            if any(each.limit.algorithm is Algorithm.SLIDING_WINDOW for each in ask.counts):
                raise ConfigError("NOPERM evalsha")
            return await super().ask(ask, timeout=timeout)

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
    for _ in range(101):  # however often another rule is asked for, as an object of its own
        await limiter.hit(Rule("9/m"), ANNA)
    clock.move(60)  # in which nobody has asked; a check does
    assert (await limiter.health()).ok
    assert not (await limiter.check()).ok


async def test_a_check_that_one_server_answers_tells_of_the_others() -> None:
    """A bot that refuses a part of its users is not ready, whichever server is asked."""

    class Cluster(FlakyStorage):  # the server with the counts of users is gone
        def server(self, counts: Sequence[Count]) -> str:
            return "near" if counts[0].key.endswith(":check") else "gone"

        async def ask(self, ask: Ask, *, timeout: float) -> Sequence[Verdict]:
            if self.server(ask.counts) == "gone":
                raise StorageError("Connection refused")
            return await super().ask(ask, timeout=timeout)

    limiter = Limiter(Cluster(), on_error="deny")
    for _ in range(3):
        assert not await limiter.hit("9/m", ANNA)
    for health in (await limiter.health(), await limiter.check()):
        assert (health.ok, health.ready, health.problem) == (False, False, "Connection refused")


@pytest.mark.parametrize("is_up", [True, False])
async def test_the_log_says_at_the_start_how_redis_is(
    own_server: Server, caplog: pytest.LogCaptureFixture, is_up: bool, clock: Clock
) -> None:
    """`open` finds out without an update, and leaves no key behind.

    Health has the failing server, the fix, and the time since it failed.
    """
    caplog.set_level(logging.INFO, "bot_ratelimit")
    said = "Connected to Redis (" if is_up else "Redis rate limit check failed"
    port = own_server.port if is_up else free_port()
    async with aioredis.Redis(port=port) as client:
        limiter = Limiter(RedisStorage(client), clock=clock)
        limiter.open()
        await eventually(lambda: said in caplog.text, within=6)
        assert not is_up or await client.keys() == []
        clock.move(12.0)
        [server] = (await limiter.health()).servers
        assert (server.name, server.connected) == (f"localhost:{port}", is_up)
        assert server.out_for == (None if is_up else 12.0)
        assert is_up or "check that Redis is running" in server.problem
        await limiter.close()


async def test_a_check_asks_the_server_and_charges_no_user(own_server: Server) -> None:
    """It takes a real round trip, reports its time, and leaves one key that soon expires; it
    detects a server that accepts no writes. `health` returns known state and sends nothing."""
    async with aioredis.Redis(port=own_server.port) as client:
        limiter = Limiter(RedisStorage(client), on_error="deny")
        assert (await limiter.health()).latency is None
        assert await client.keys() == []
        health = await limiter.check()
        assert (health.ok, health.ready) == (True, True)
        assert health.latency is not None
        assert 0 < health.latency < 1
        [server] = health.servers
        assert (server.connected, server.breaker, server.out_for) == (True, "closed", None)
        assert (server.scripts, server.problem) == (True, "")
        assert server.latency is not None
        assert await client.keys() == [b"bot:ratelimit:check"]
        assert 0 < await client.pttl("bot:ratelimit:check") <= 1_000
        await client.config_set("min-replicas-to-write", 1)
        health = await limiter.check()
        assert (health.ok, health.ready) == (False, False)
        assert "NOREPLICAS" in health.problem
        await limiter.close()


@pytest.mark.parametrize(("policy", "ready"), [("allow", True), ("memory", True), ("deny", False)])
async def test_an_outage_is_reported(policy: Any, ready: bool) -> None:
    """The problem is reported; whether the bot is ready depends on the policy.

    A single late answer is no outage, only several in a row.
    """
    storage = FlakyStorage()
    limiter = Limiter(storage, clock=Clock(), on_error=policy)
    storage.fail(StorageError("no answer within 0.01 s", kind="timeout"))
    for well in (True, True, False):
        await limiter.hit("9/s", ANNA)
        assert (await limiter.health()).ok is well
    for health in (await limiter.health(), await limiter.check()):
        assert (health.ok, health.ready) == (False, ready)
        assert health.problem == "no answer within 0.01 s"
    storage.heal()
    assert (await limiter.check()).ok
    assert not (await limiter.health()).ok  # no update has been decided yet
