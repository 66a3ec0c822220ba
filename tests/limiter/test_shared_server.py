"""Parts of a bot that share a server, of which some get no answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence

from bot_ratelimit import Concurrency, Limiter, MemoryStorage, RedisStorage, Subject
from bot_ratelimit.algorithms.verdict import Verdict
from bot_ratelimit.errors import StorageError
from bot_ratelimit.limiter.decider import Decider
from bot_ratelimit.limiter.decision import Decision
from bot_ratelimit.limiter.observer import Observer
from bot_ratelimit.rules.penalty import Penalty
from bot_ratelimit.rules.rule import rules_of
from bot_ratelimit.storage.base import Ask, ConnectionStatus
from bot_ratelimit.storage.leases import Action, Claim, Grant, MemoryLeases
from bot_ratelimit.testing import Clock
from tests.servers import Server

ANNA = Subject(user=42)


class Counting(RedisStorage):
    """Counts what it is asked."""

    asked = 0

    def ask(self, ask: Ask, *, timeout: float) -> Awaitable[Sequence[Verdict]]:
        self.asked += 1
        return super().ask(ask, timeout=timeout)


async def test_waiting_asks_seldom_while_another_part_is_out(redis_server: Server) -> None:
    """A wrong password of another part makes no caller of `acquire` ask again and again."""
    storage = Counting(redis_server.url)
    good = Limiter(storage, timeout=5, key_prefix="shared")
    bad = Limiter(RedisStorage(redis_server.url.replace("://", "://nobody:wrong@")))
    await good.hit("1/0.3s", ANNA)
    assert (await bad.hit("1/s", ANNA)).source == "policy"
    decision = await good.acquire("1/0.3s", ANNA)
    assert decision.allowed
    assert storage.asked <= 4
    await good.close()
    await bad.close()


def test_an_outage_ends_with_its_event_loop(own_server: Server) -> None:
    """What another `asyncio.run` could not reach is no problem of this one."""
    own_server.kill()
    old, new = (Limiter(RedisStorage(own_server.url), timeout=5) for _ in range(2))

    async def fail() -> None:
        assert (await old.hit("1/s", ANNA)).source == "policy"

    async def decide() -> None:
        assert (await new.hit("1/s", ANNA)).source == "redis"
        assert (await new.health()).ok
        await new.close()

    asyncio.run(fail())
    own_server.start()
    asyncio.run(decide())


class Distant(MemoryStorage):
    """Takes 0.3 s to answer, as far as its callers can tell."""

    @property
    def key_space(self) -> str:
        return "distant"

    def status(self) -> list[ConnectionStatus]:
        name = self.server([])
        return [ConnectionStatus(name, True, 0.3, uses_script=True, last_error="")]

    async def ask(self, ask: Ask, *, timeout: float) -> list[Verdict]:
        if timeout < 0.3:
            raise StorageError("no answer within 0.25 s", kind="timeout")
        return self.answer(ask)


async def test_patient_parts_are_answered() -> None:
    """An answer that was too late for one part closes the circuit for those that wait longer."""
    clock, storage, rules = Clock(), Distant(), rules_of("1000/s")
    hasty, patient = (Decider(storage, "bot", timeout=each, clock=clock) for each in (0.25, 1.0))
    for _ in range(5):
        assert [(await patient.hit(rules, ANNA)).source for _ in range(3)] == ["memory"] * 3
        assert [(await hasty.hit(rules, ANNA)).source for _ in range(3)] == ["policy"] * 3
        clock.move(0.6)


class Late(MemoryLeases):
    """Grants slots, but too late."""

    async def claim(self, action: Action, claim: Claim, *, timeout: float) -> Grant:
        grant = await super().claim(action, claim, timeout=timeout)
        if action == "acquire":
            raise StorageError("no answer", kind="timeout")
        return grant


class LateStorage(MemoryStorage):
    """A storage whose slots are granted too late."""

    def __init__(self) -> None:
        super().__init__()
        self.late = Late()

    def leases(self) -> Late:
        return self.late


async def test_no_slot_is_left_that_nobody_holds() -> None:
    """A slot granted after its caller gave up is released, also while the circuit is open."""
    storage = LateStorage()
    limiter = Limiter(storage)
    for _ in range(5):
        async with limiter.slot(Concurrency(1, name="report", lease="1h"), ANNA) as slot:
            assert slot.source == "policy"
    await limiter.close()
    assert not storage.late._held


async def test_waiting_reports_bans() -> None:
    """A caller of `acquire` that a penalty refuses is reported as any refused hit."""
    found = list[Decision]()

    class Noting(Observer):
        def decided(self, decision: Decision, subject: Subject, seconds: float) -> None:
            found.append(decision)

    limiter = Limiter(MemoryStorage(), observer=Noting())
    rules = ["1/h", Penalty("1/h", "1h")]
    for _ in range(2):
        await limiter.hit(rules, ANNA)
    assert not await limiter.acquire(rules, ANNA, timeout=5)
    assert [each.banned for each in found] == [False, True, True]
