"""Limiter on a failing storage: which answer callers get, and what is logged."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any

import pytest

from bot_ratelimit import ConfigError, Decision, Limiter, Penalty, Rule, StorageError, Subject
from bot_ratelimit.testing import Clock, FlakyStorage

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
    """Unreachable, misconfigured or buggy: no storage error reaches the caller."""
    broken.fail(error)
    decisions = await hits(Limiter(broken, on_error=on_error), "3/m", 4)
    assert [(d.allowed, d.remaining, d.source) for d in decisions] == answers
    assert all((d.retry_after > 0) is not d.allowed for d in decisions)


async def test_a_bug_in_a_storage_is_logged_with_its_traceback(
    broken: FlakyStorage, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """An unexpected error is logged with its traceback, once a minute."""
    broken.fail(ZeroDivisionError("in a storage"))
    limiter = Limiter(broken, clock=clock)
    await hits(limiter, "1/m", 5)
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage().startswith("Redis rate limit check failed: ZeroDivisionError(")
    assert "in misbehave" in caplog.text
    clock.move(59.9)
    await hits(limiter, "1/m", 5)
    assert len(caplog.records) == 1
    clock.move(0.1)
    await hits(limiter, "1/m", 5)
    assert len(caplog.records) == 2
    assert broken.calls == 15  # the server did answer: the circuit stays closed


async def test_each_fault_is_logged_separately(
    broken: FlakyStorage, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """A configuration fault is one line, and another fault is logged too."""
    limiter = Limiter(broken, clock=clock)
    for fault in ["WRONGTYPE - choose another key_prefix", "NOPERM - ACL SETUSER"] * 3:
        broken.fail(ConfigError(fault))
        await hits(limiter, "1/m", 2)
    assert [(r.levelname, r.exc_info) for r in caplog.records] == [("ERROR", None)] * 2
    assert [("WRONGTYPE" in m, "NOPERM" in m) for m in caplog.messages] == [(1, 0), (0, 1)]


async def test_single_failures_are_logged_once_a_minute(
    broken: FlakyStorage, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """A storage that fails now and then does not fill the log; its recovery is logged."""
    limiter = Limiter(broken, clock=clock)
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
    assert [d.allowed for d in await hits(limiter, rules, 3)] == [True, False, False]
    broken.heal()
    await limiter.reset(rules, ANNA)
    broken.fail()
    assert [d.allowed for d in await hits(limiter, rules, 1)] == [True]
    for nothing in (Limiter(broken), Limiter(broken, on_error="memory")):
        with pytest.raises(StorageError):
            await nothing.reset("1/m", ANNA)


@pytest.mark.parametrize("on_error", ["allow", "deny", "memory"])
async def test_a_shadow_rule_never_refuses_in_an_outage(
    broken: FlakyStorage, on_error: Any
) -> None:
    """Whatever the policy is; "deny" refuses by the real rule."""
    limiter = Limiter(broken, on_error=on_error)
    trial, real = Rule("1/m", name="trial", shadow=True), Rule("1/m")
    assert all(await hits(limiter, trial, 3))
    decisions = await hits(limiter, [trial, real], 2)
    assert [decision.allowed for decision in decisions] == [on_error != "deny", on_error == "allow"]
    assert on_error == "memory" or {decision.rule for decision in decisions} == {real}


async def test_the_standby_is_bounded(broken: FlakyStorage) -> None:
    """`memory_size` bounds the counts of this process in an outage."""
    limiter = Limiter(broken, on_error="memory", memory_size=3)
    for user in range(4):
        assert await limiter.hit("1/h", Subject(user))
    assert await limiter.hit("1/h", Subject(0))
    assert not await limiter.hit("1/h", Subject(3))


async def test_a_cancelled_probe_leaves_its_place_to_the_next(
    broken: FlakyStorage, clock: Clock
) -> None:
    """A cancelled hit raises the cancellation, and the next one is decided normally."""
    limiter = Limiter(broken, timeout=5, clock=clock)
    assert {each.source for each in await hits(limiter, "1/m", 9)} == {"policy"}
    assert broken.calls == 3  # the circuit is open
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
