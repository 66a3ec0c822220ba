"""Live limits: changes by operators apply on all instances, and no failure loosens limits."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import redis.asyncio as aioredis

from bot_ratelimit import Limiter, MemoryStorage, Penalty, RateLimitMiddleware, RedisStorage, Rule
from bot_ratelimit.config.live import Live
from bot_ratelimit.config.overrides import Overrides, applied
from bot_ratelimit.rules.rule import rules_of
from bot_ratelimit.storage.base import Storage
from bot_ratelimit.storage.documents import LIFETIME, Documents
from bot_ratelimit.testing import Clock, FlakyStorage
from tests.benches import Bench, movable
from tests.incoming.support import Instance, message
from tests.recorder import Recorder
from tests.servers import Server

LIVE = "bot:ratelimit:live"
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
    """After `5/h` becomes `2/h`, a user with one event used has one left."""
    instance, live = bot(bench.storage)
    assert await allowed(instance, 1) == 1
    await change(live, bench.storage, TIGHT)
    assert await allowed(instance, 3) == 1
    await change(live, bench.storage, replace(TIGHT, version=4, rules={}))
    assert live.overrides.version == 4
    assert await allowed(instance, 5) == 1  # the refused attempts of the full window count too


async def test_the_first_update_meets_the_live_limits(bench: Bench, bot: Any) -> None:
    """A new instance decides nothing before it has read the document."""
    await write(bench.storage, TIGHT)
    instance, live = bot(bench.storage)
    assert await allowed(instance, 4) == 2
    assert live.is_ready


async def test_every_key_has_a_ttl(bench: Bench, bot: Any) -> None:
    """The document lives 400 days after the last read, the report 30 seconds."""
    await write(bench.storage, TIGHT)
    documents = bench.storage.documents()
    await documents.push("bot:ratelimit:history", b"1", 20)
    _, live = bot(bench.storage)
    if bench.client is not None:
        await bench.client.expire(LIVE, 100)
    await live.refresh()
    ttls = await bench.ttls()
    assert all(ttl > 0 for ttl in ttls.values())
    if bench.client is not None:
        assert ttls[LIVE] > (LIFETIME - 60) * 1_000
        assert 20_000 < ttls["bot:ratelimit:instances"] <= 30_000


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
async def test_a_bad_document_changes_nothing(
    bench: Bench, bot: Any, document: bytes, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With an invalid or newer document the last valid one stays in force."""
    instance, live = bot(bench.storage)
    await change(live, bench.storage, TIGHT)
    await write(bench.storage, document)
    for _ in range(3):
        await live.refresh()
    assert await allowed(instance) == 2
    assert (live.rejected, live.overrides.version) == (1, 3)
    assert told in live.problem
    errors = [each for each in caplog.messages if "live document is not applied" in each]
    assert len(errors) == 1
    assert "Version 3 stays in force" in errors[0]
    await change(live, bench.storage, replace(TIGHT, version=4))
    assert (live.problem, live.overrides.version) == ("", 4)


@pytest.mark.parametrize("document", [b"", b"nonsense", tight(b'"format": 1', b'"format": 2')])
async def test_a_bad_document_does_not_loosen_an_instance_that_starts(
    bench: Bench, document: bytes, bot: Any
) -> None:
    """It obeys the last good version, like running instances, and keeps reporting the problem."""
    await bench.storage.documents().push("bot:ratelimit:history", TIGHT.to_json(), 20)
    await bench.storage.documents().push("bot:ratelimit:history", document, 20)
    await write(bench.storage, document)
    instance, live = bot(bench.storage)
    assert await allowed(instance) == 2
    await live.refresh()
    assert (live.overrides, live.rejected) == (TIGHT, 1)
    assert live.problem.startswith("the live document ")


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
    seven = message()["from"] | {"id": 7}
    assert await allowed(unaware, **{"from": seven}) == 5  # without `live=True` nothing is read
    for _ in range(2):
        await change(live, bench.storage, None)
    assert await bench.storage.documents().listed("bot:ratelimit:history") == [TIGHT.to_json()]
    newcomer, its = bot(bench.storage)
    assert await allowed(newcomer) == 2
    assert its.overrides == TIGHT
    assert await allowed(instance) == 0


async def test_an_outage_changes_nothing(
    own_server: Server, bot: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The last version stays in force; `problem` has the reason, and only decisions log it."""
    async with aioredis.Redis(port=own_server.port) as client:
        storage = RedisStorage(client)
        _, live = bot(storage)
        await change(live, storage, TIGHT)
        own_server.kill()
        for _ in range(3):
            await live.refresh()
        assert live.overrides == TIGHT
        assert "live document" not in caplog.text
        assert live.problem
        own_server.start()
        async with asyncio.timeout(10):
            while live.problem:
                await live.refresh()
                await asyncio.sleep(0.02)
        assert await storage.documents().read(LIVE) == TIGHT.to_json()
        await storage.close()


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
    """`off_until` allows everything uncharged, and ends even during an outage."""
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


async def test_an_update_is_handled_uncounted_while_all_is_off(bench: Bench, bot: Any) -> None:
    """Nothing is charged while limits are off, and `rate_limit` is None."""
    instance, live = bot(bench.storage)
    until = await bench.storage.documents().now() + 3_600
    await change(live, bench.storage, replace(TIGHT, off_until=until))
    assert await allowed(instance) == 6
    assert set(instance.decisions) == {None}
    await change(live, bench.storage, replace(TIGHT, version=4))
    assert await allowed(instance) == 2


async def test_exemptions_change_too(bench: Bench, bot: Any) -> None:
    """A user is exempted live, and another one is no longer exempt."""
    instance, live = bot(bench.storage, exempt=[7])
    await change(
        live, bench.storage, replace(TIGHT, exempt=frozenset({42}), limited=frozenset({7}))
    )
    assert await allowed(instance) == 6
    seven = message()["from"] | {"id": 7}
    assert await allowed(instance, **{"from": seven, "chat": {"id": 7, "type": "private"}}) == 2
    await change(live, bench.storage, Overrides(version=4))
    assert await allowed(instance, **{"from": seven}) == 6


def test_a_rule_is_changed_by_its_name() -> None:
    """Limit, shadow and off change only the rule of that name; keys stay."""
    rules = rules_of([Rule("5/h"), Rule("9/h", name="ai"), Rule("7/h", name="x", cost=3)])
    changes: dict[str, Any] = {"user": {"shadow": True}, "ai": {"limit": "1/h"}, "x": {"off": True}}
    found = applied(rules, Overrides(rules=changes))
    assert found == (Rule("5/h", shadow=True), Rule("1/h", name="ai"))
    assert applied(rules_of(rules[2]), Overrides(rules=changes)) is None
    assert applied(rules, Overrides()) is rules


def test_a_penalty_is_changed_added_and_switched_off() -> None:
    """The live penalty replaces the existing one, or is added."""
    live = Overrides(penalty={"after": "3/m", "ban": "1h", "grows": True})
    wanted = Penalty("3/m", "1h", grows=True)
    assert applied(rules_of([Rule("5/h"), Penalty("10/m", "15m")]), live) == (Rule("5/h"), wanted)
    assert applied(rules_of("5/h"), live) == (Rule("5/h"), wanted)
    off = replace(live, rules={"ban": {"off": True}})
    assert applied(rules_of([Rule("5/h"), Penalty("10/m", "15m")]), off) == (Rule("5/h"),)


async def test_an_inapplicable_document_is_rejected_as_a_whole() -> None:
    """A document that would make a rule refuse everything is not applied."""
    storage = MemoryStorage()
    live = Live(Limiter(storage))
    rules = rules_of([Rule("9/h", cost=3)])
    assert live.applied(rules) is rules
    await change(live, storage, TIGHT)
    assert live.applied(rules) is rules
    assert "never grants more than 2" in live.problem


async def test_a_flag_is_changed_by_its_key(bench: Bench, bot: Any) -> None:
    """The limit of a handler can be changed by the key of its flag."""
    instance, live = bot(bench.storage)
    instance.dispatcher.callback_query.middleware(instance.dispatcher.message.middleware[0])
    instance.dispatcher.message.handlers.clear()
    flag = {"rate_limit": {"key": "ai", "limit": "5/h"}}
    instance.dispatcher.message.register(instance._handle, flags=flag)
    await change(live, bench.storage, Overrides(version=1, rules={"ai": {"limit": "1/h"}}))
    assert await allowed(instance, 3) == 1


@asynccontextmanager
async def started(instance: Instance) -> AsyncIterator[None]:
    await instance.dispatcher.emit_startup()
    try:
        yield
    finally:
        await instance.dispatcher.emit_shutdown()


@movable
async def test_instances_report_their_version_until_shutdown(bench: Bench) -> None:
    """Each instance reports its version and rules, and removes the report at shutdown."""
    await write(bench.storage, TIGHT)
    documents = bench.storage.documents()
    async with AsyncExitStack() as stack:
        for _ in range(2):
            limiter = Limiter(bench.storage, timeout=5)
            middleware = RateLimitMiddleware("5/h", limiter=limiter, live=True)
            instance = Instance(middleware, ())
            middleware.setup(instance.dispatcher)
            await stack.enter_async_context(started(instance))
        reports = await documents.reports("bot:ratelimit:instances")
        assert len(reports) == 2
        assert all(b'"version": 3' in each and b'"otherwise"' in each for each in reports.values())
    assert await documents.reports("bot:ratelimit:instances") == {}


def test_a_storage_without_documents_is_an_error() -> None:
    """`live=True` on such a storage is a ConfigError that says so."""

    class OnlyCounts(FlakyStorage):
        def documents(self) -> Documents:
            return Storage.documents(self)

    with pytest.raises(ValueError, match="OnlyCounts, which does not support live limits"):
        RateLimitMiddleware("5/h", limiter=Limiter(OnlyCounts()), live=True)
