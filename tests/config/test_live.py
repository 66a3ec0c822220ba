"""Live limits: changes by operators apply on all instances, and no failure loosens limits."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from aiogram import F

from bot_ratelimit import Limiter, MemoryStorage, Penalty, RateLimitMiddleware, Rule, Subject
from bot_ratelimit.admin.control import Control
from bot_ratelimit.config.live import Live
from bot_ratelimit.config.overrides import Overrides, applied
from bot_ratelimit.limiter.decision import NO_LIMIT
from bot_ratelimit.rules.rule import rules_of
from bot_ratelimit.storage.documents import LIFETIME
from bot_ratelimit.testing import Clock, FlakyStorage
from tests.benches import Bench
from tests.incoming.support import Instance, message
from tests.recorder import Recorder

LIVE = "bot:ratelimit:live"
SEVEN = message()["from"] | {"id": 7}
TIGHT = Overrides(version=3, rules={"user": {"limit": "2/h"}})


def tight(old: bytes, new: bytes) -> bytes:
    """The document, changed."""
    return TIGHT.to_json().replace(old, new)


async def write(storage: Any, overrides: Overrides | bytes | None) -> None:
    """Write or delete the document, whatever is there."""
    documents = storage.documents()
    document = overrides.to_json() if isinstance(overrides, Overrides) else overrides
    while not await documents.swap(LIVE, await documents.read(LIVE), document or b""):
        pass
    if document is None:
        if isinstance(storage, MemoryStorage):
            documents._values.clear()  # type: ignore[attr-defined]  # as if Redis were emptied
        else:
            await storage.execute((b"DEL", LIVE.encode()), key=LIVE, timeout=5)


async def change(live: Live, storage: Any, overrides: Overrides | bytes | None) -> None:
    """Write the document, and let an instance read it."""
    await write(storage, overrides)
    await live.refresh()


async def allowed(instance: Instance, times: int = 6, **fields: Any) -> int:
    return sum(await instance.send(*["hi"] * times, **fields))


@pytest.fixture
async def bot() -> AsyncIterator[Any]:
    """Makes a bot with live limits on a storage."""
    started: list[Live] = []

    def make(storage: Any, **options: Any) -> tuple[Instance, Live]:
        limiter = Limiter(storage, timeout=5)
        middleware = RateLimitMiddleware("5/h", limiter=limiter, live=True, **options)
        assert middleware.live is not None
        started.append(middleware.live)
        return Instance(middleware), middleware.live

    yield make
    for live in started:
        await live.stop()


async def test_a_changed_limit_keeps_its_counts(bench: Bench, bot: Any) -> None:
    """After `5/h` becomes `2/h`, a user with one event used has one left.

    A new instance decides nothing before it has read the document.
    """
    instance, live = bot(bench.storage)
    assert await allowed(instance, 1) == 1
    await change(live, bench.storage, TIGHT)
    assert await allowed(instance, 3) == 1
    newcomer, its = bot(bench.storage)
    assert await allowed(newcomer, 4, **{"from": SEVEN}) == 2
    assert its.is_ready
    await change(live, bench.storage, replace(TIGHT, version=4, rules={}))
    assert live.overrides.version == 4
    assert await allowed(instance, 5) == 1  # the refused attempts of the full window count too


async def test_every_key_has_a_ttl(bench: Bench, bot: Any) -> None:
    """The document lives 400 days after the last read, the report 30 seconds or until the end."""
    await write(bench.storage, TIGHT)
    documents = bench.storage.documents()
    await documents.push("bot:ratelimit:history", b"1", 20)
    for _ in range(2):
        instance, live = bot(bench.storage)
        if bench.client is not None:
            await bench.client.expire(LIVE, 100)
        await allowed(instance, 1)
    ttls = await bench.ttls()
    assert all(ttl > 0 for ttl in ttls.values())
    if bench.client is not None:
        assert ttls[LIVE] > (LIFETIME - 60) * 1_000
        assert 20_000 < ttls["bot:ratelimit:instances"] <= 30_000
    reports = await documents.reports("bot:ratelimit:instances")
    assert len(reports) == 2
    assert all(b'"version": 3' in each and b'"otherwise"' in each for each in reports.values())
    await live.stop()
    assert len(await documents.reports("bot:ratelimit:instances")) == 1


@pytest.mark.parametrize(
    ("document", "told"),
    [
        (b"nonsense", "is not JSON"),
        (b"[]", "is not a JSON object"),
        (tight(b'"format": 1', b'"format": 2'), "has format 2"),
        (tight(b"2/h", b"2 an hour"), "the live document: the change of 'user': '2 an hour'"),
        (tight(b'"limit"', b'"limits"'), "limits is unknown; expected limit, shadow, off"),
        (tight(b'"version": 3', b'"version": "3"'), "version='3': expected a whole number"),
        (b'{"format": 1}', "version is missing"),
    ],
)
@pytest.mark.parametrize("bench", ["memory", "redis-server"], indirect=True)
async def test_a_bad_document_changes_nothing(
    bench: Bench, bot: Any, document: bytes, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With an invalid or newer document the last valid one stays in force, also on an instance
    that starts, and which keeps reporting the problem."""
    instance, live = bot(bench.storage)
    await change(live, bench.storage, TIGHT)
    for each in (TIGHT.to_json(), document):
        await bench.storage.documents().push("bot:ratelimit:history", each, 20)
    await write(bench.storage, document)
    for _ in range(3):
        await live.refresh()
    assert await allowed(instance) == 2
    assert (live.rejected, live.overrides.version) == (1, 3)
    assert told in live.problem
    errors = [each for each in caplog.messages if "live document is not applied" in each]
    assert len(errors) == 1
    assert "Version 3 stays in force" in errors[0]
    newcomer, its = bot(bench.storage)
    assert await allowed(newcomer, **{"from": SEVEN}) == 2
    await its.refresh()
    assert (its.overrides, its.rejected) == (TIGHT, 1)
    assert its.problem.startswith("the live document")
    await change(live, bench.storage, replace(TIGHT, version=4))
    assert (live.problem, live.overrides.version) == ("", 4)


async def test_a_new_version_is_one_line_in_the_log(
    bench: Bench, caplog: pytest.LogCaptureFixture, bot: Any
) -> None:
    """Observers are told of it; a newline in a name or a change begins no other log line."""
    caplog.set_level(logging.INFO)
    recorder = Recorder()
    live = Live(Limiter(bench.storage, timeout=5, observer=recorder))
    await change(live, bench.storage, replace(TIGHT, what="off for 1\nh", by="anna\x1b[2J\nERROR"))
    said = "Live limits: version 3 (off for 1\\nh, by anna\\x1b[2J\\nERROR)"
    assert said in caplog.messages
    assert recorder.named("configured") == [("configured", 3)]


async def test_a_missing_document_is_written_back(
    bench: Bench, bot: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """After Redis was emptied limits stay, new instances find them, the history has them once."""
    instance, live = bot(bench.storage)
    await change(live, bench.storage, TIGHT)
    await change(live, bench.storage, None)
    assert (live.rejected, live.overrides.version) == (0, 3)
    assert "gone from Redis: version 3 stays" in caplog.text
    unaware = Instance(RateLimitMiddleware("5/h", limiter=Limiter(bench.storage, timeout=5)))
    assert await allowed(unaware, **{"from": SEVEN}) == 5  # without `live=True` nothing is read
    for _ in range(2):
        await change(live, bench.storage, None)
    assert await bench.storage.documents().listed("bot:ratelimit:history") == [TIGHT.to_json()]
    newcomer, its = bot(bench.storage)
    assert await allowed(newcomer) == 2
    assert its.overrides == TIGHT
    assert await allowed(instance) == 0


async def test_all_limits_off_and_exemptions(bench: Bench, bot: Any) -> None:
    """Nothing is charged while limits are off, and `rate_limit` is None; a user is exempted live,
    and another one is no longer exempt."""
    instance, live = bot(bench.storage, exempt=[7])
    until = await bench.storage.documents().now() + 3_600
    await change(live, bench.storage, replace(TIGHT, off_until=until))
    assert await allowed(instance) == 6
    assert set(instance.decisions) == {None}
    await change(
        live, bench.storage, replace(TIGHT, exempt=frozenset({42}), limited=frozenset({7}))
    )
    assert await allowed(instance) == 6
    private = {"from": SEVEN, "chat": {"id": 7, "type": "private"}}
    assert await allowed(instance, **private) == 2
    await change(live, bench.storage, replace(TIGHT, version=4))
    assert await allowed(instance) == 2
    assert await allowed(instance, **private) == 6


async def test_an_outage_changes_nothing(bot: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The last version stays in force; `problem` has the reason, and only decisions log it."""
    storage = FlakyStorage()
    _, live = bot(storage)
    await change(live, storage, TIGHT)
    storage.fail()
    for _ in range(3):
        await live.refresh()
    assert (live.overrides, live.problem) == (TIGHT, "out of reach")
    assert "live document" not in caplog.text
    storage.heal()
    await live.refresh()
    assert (live.overrides, live.problem) == (TIGHT, "")


async def test_cancelled_polling_starts_again(monkeypatch: pytest.MonkeyPatch, bot: Any) -> None:
    """A program that cancels all tasks and continues still obeys its operators."""
    monkeypatch.setattr("bot_ratelimit.config.live.EVERY", 0.01)
    storage = MemoryStorage()
    instance, live = bot(storage)
    await allowed(instance, 1)
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    await write(storage, TIGHT)
    async with asyncio.timeout(5):
        while live.overrides.version != 3:
            await allowed(instance, 1)
            await asyncio.sleep(0.01)


async def test_all_limits_off_ends_by_itself() -> None:
    """`off_until` allows everything uncharged, and ends even during an outage.

    A document that would make a rule refuse everything is not applied.
    """
    clock = Clock()
    storage = MemoryStorage(clock=clock)
    live = Live(Limiter(storage), clock=clock)
    rules = rules_of("5/h")
    now = await storage.documents().now()
    await change(live, storage, replace(TIGHT, off_until=now + 60))
    assert live.applied(rules) is None
    assert live.all_off
    clock.move(61)
    assert live.applied(rules) == rules_of("2/h")
    assert live.applied(rules) is live.applied(rules)  # computed once for each document
    live = Live(Limiter(storage))
    costly = rules_of([Rule("9/h", cost=3)])
    assert live.applied(costly) is costly
    await live.refresh()
    assert live.applied(costly) is costly
    assert "never grants more than 2" in live.problem


def test_a_rule_is_changed_by_its_name() -> None:
    """Limit, shadow and off change only the rule of that name; keys stay.

    The live penalty replaces the existing one, or is added.
    """
    rules = rules_of([Rule("5/h"), Rule("9/h", name="ai"), Rule("7/h", name="x", cost=3)])
    changes: dict[str, Any] = {"user": {"shadow": True}, "ai": {"limit": "1/h"}, "x": {"off": True}}
    found = applied(rules, Overrides(rules=changes))
    assert found == (Rule("5/h", shadow=True), Rule("1/h", name="ai"))
    assert applied(rules_of(rules[2]), Overrides(rules=changes)) is NO_LIMIT
    assert applied(rules, Overrides()) is rules
    live = Overrides(penalty={"after": "3/m", "ban": "1h", "grows": True})
    wanted = Penalty("3/m", "1h", grows=True)
    assert applied(rules_of([Rule("5/h"), Penalty("10/m", "15m")]), live) == (Rule("5/h"), wanted)
    assert applied(rules_of("5/h"), live) == (Rule("5/h"), wanted)
    off = replace(live, rules={"ban": {"off": True}})
    assert applied(rules_of([Rule("5/h"), Penalty("10/m", "15m")]), off) == (Rule("5/h"),)


async def test_a_ban_holds_where_every_rule_is_off(bench: Bench, bot: Any) -> None:
    """A rule that is switched off lets no user in who is banned by hand; a pause does.

    `try` says the same. A user who is not banned has no decision.
    """
    instance, live = bot(bench.storage)
    control = Control.of(instance.dispatcher.message.middleware[0], "anna", patience=0)
    await control.ban(Subject(user=42), "1h")
    await control.set_rule("user", off=True)
    await live.refresh()
    assert await allowed(instance, 1) == 0
    assert await allowed(instance, 1, **{"from": SEVEN}) == 1
    assert instance.decisions == [None]
    decision = (await control.try_(Subject(user=42, chat=42))).decision
    assert decision is not None
    assert decision.banned
    await control.changes.pause("1h")
    await live.refresh()
    assert await allowed(instance, 1) == 1


async def test_a_flag_is_changed_by_its_key(bench: Bench, bot: Any) -> None:
    """The limit of a handler can be changed by the key of its flag."""
    instance, live = bot(bench.storage)
    instance.dispatcher.callback_query.middleware(instance.dispatcher.message.middleware[0])
    instance.dispatcher.message.handlers.clear()
    flag = {"rate_limit": {"key": "ai", "limit": "5/h"}}
    instance.dispatcher.message.register(instance._handle, flags=flag)
    await change(live, bench.storage, Overrides(version=1, rules={"ai": {"limit": "1/h"}}))
    assert await allowed(instance, 3) == 1


async def test_a_changed_flag_leaves_handlers_without_flag_alone(bench: Bench, bot: Any) -> None:
    """If the handlers share a name, the one without a flag gets a number, and so its own limit."""
    instance, live = bot(bench.storage)
    observer, name = instance.dispatcher.message, "support.Instance._handle"
    observer.handlers.clear()
    observer.register(partial(instance._handle), F.text == "admin")
    observer.register(instance._handle, F.text == "shop", flags={"rate_limit": "4/h"})
    rules = {name: {"limit": "1/h"}}
    await change(live, bench.storage, Overrides(version=1, rules=rules))
    assert await instance.send(*["shop"] * 2) == [True, False]
    assert await instance.send(*["admin"] * 6) == [True] * 5 + [False]
    rules = {f"{name}#2": {"limit": "2/h"}}
    await change(live, bench.storage, Overrides(version=2, rules=rules))
    assert await instance.send(*["admin"] * 3) == [True, True, False]
    assert await instance.send("shop")
