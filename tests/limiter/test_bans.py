"""Bans by hand on all instances, and the list of all bans."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis.asyncio as aioredis
from fakeredis import FakeAsyncRedis, FakeServer

from bot_ratelimit import (
    ConfigError,
    Limiter,
    MemoryStorage,
    Penalty,
    RedisStorage,
    Rule,
    Scope,
    StorageError,
    Subject,
)
from bot_ratelimit.limiter import bans as bans_module
from bot_ratelimit.rules.rule import rules_of
from bot_ratelimit.storage import banlist
from bot_ratelimit.testing import Clock, FlakyStorage
from tests.benches import TIMEOUT, Bench, eventually
from tests.servers import Server
from tests.tables import table

ANNA = Subject(user=42, chat=-100)
BORIS = Subject(user=43, chat=-100)
USER = Subject(user=42)


async def banned(limiter: Limiter, subject: Subject = ANNA) -> bool:
    decision = await limiter.hit("1000/s", subject)
    assert decision.banned is not decision.allowed
    return decision.banned


async def until_banned(limiter: Limiter, expected: bool = True) -> None:
    """Wait until an instance knows a ban, for the promised second at most."""

    async def is_known() -> bool:
        return await banned(limiter) is expected

    await eventually(is_known, within=1)


async def settled(limiter: Limiter) -> None:
    """Wait until background writes to the list are done."""
    await limiter._bans._writes.finish()


async def test_a_ban_applies_on_all_instances_within_a_second(
    bench: Bench, limiter: Limiter, other: Limiter
) -> None:
    """At once on the banning instance, and in the first decision of a new one; unban likewise."""
    ban = await limiter.ban(USER, "1h", reason="spam")
    assert ban.until == ban.since + timedelta(hours=1)
    assert await banned(limiter)
    await until_banned(other)
    assert not await banned(other, BORIS)
    assert await other.hit(Rule("5/s", Scope.GLOBAL), Subject())  # a poll, without a user
    decision = await other.hit("1/s", ANNA)
    assert (decision.allowed, decision.banned, decision.remaining) == (False, True, 0)
    assert 3_590 < decision.retry_after <= 3_600
    assert decision.source == other.storage.source
    assert (await other.peek("1/s", ANNA)).banned
    storage = bench.storage if bench.client is None else RedisStorage(bench.client)
    fresh = Limiter(storage, timeout=5)
    assert await banned(fresh)
    await fresh.close()
    started = Limiter(storage, timeout=5)
    started.open()
    await eventually(lambda: started.is_banned(USER))  # before its first decision
    await started.close()
    for narrower in (USER._replace(topic=9), USER._replace(business="Bc")):
        assert not await limiter.unban(narrower)
    assert await banned(limiter)
    assert await limiter.unban(USER)
    assert not await banned(limiter)
    await until_banned(other, False)
    assert not await limiter.unban(USER)


@pytest.mark.parametrize("bench", ["memory", "redis-server"], indirect=True)
async def test_bans_end(bench: Bench, limiter: Limiter) -> None:
    """A ban with a length ends after it, a doubled one of a penalty after twice; so the list."""
    rules: Any = ["1/d", Penalty("2/m", 1, grows=True)]
    for _ in range(5):  # refused four times: that is twice two
        await limiter.hit(rules, BORIS)
        await settled(limiter)
    await limiter.ban(USER, 1)
    assert await banned(limiter)
    await bench.advance(1.01)
    assert not await banned(limiter)
    assert [ban.subject for ban in await limiter.bans()] == [Subject(user=43)]
    await bench.advance(1)
    assert await limiter.bans() == []


async def test_users_chats_and_members_can_be_banned(limiter: Limiter) -> None:
    """A ban of a user applies everywhere, of a chat to all in it, of a member only there."""
    private, seventh = Subject(user=42, chat=42), Subject(user=42, chat=-100, bot=7)
    for who, refused in (
        (USER, [ANNA, private, seventh]),
        (Subject(chat=-100), [ANNA, BORIS, seventh]),
        (ANNA, [ANNA, seventh]),
        (Subject(user=42, bot=7), [seventh]),
    ):
        await limiter.ban(who, "1h")
        asked = (ANNA, BORIS, private, seventh)
        assert [each for each in asked if await banned(limiter, each)] == refused
        await limiter.unban(who)


async def test_the_list_has_all_details(bench: Bench, limiter: Limiter) -> None:
    """Each subject once with its last ban, earliest end first, in pages; every key has a TTL."""
    before = datetime.now(UTC) - timedelta(seconds=1)
    permanent = await limiter.ban(Subject(chat=-5), None, "a raid \N{FIRE}", by="admin 1")
    await limiter.ban(USER)
    await limiter.ban(USER, "1h", reason="second thoughts")
    await limiter.ban(BORIS, 60)
    listed = await limiter.bans()
    assert [(b.subject, b.reason, b.by) for b in listed] == [
        (BORIS, "", ""),
        (USER, "second thoughts", ""),
        (Subject(chat=-5), "a raid \N{FIRE}", "admin 1"),
    ]
    assert all(before < ban.since <= datetime.now(UTC) + timedelta(seconds=1) for ban in listed)
    assert listed[1].until is not None
    assert abs((listed[1].until - listed[1].since).total_seconds() - 3_600) < 1
    assert [*await limiter.bans(limit=2), *await limiter.bans(2, 2)] == listed
    assert await limiter.bans(offset=3) == []
    assert permanent.until is listed[2].until is None
    decision = await limiter.hit("1/s", Subject(user=1, chat=-5))
    assert decision.retry_after == bans_module.FOREVER
    ttls = [ttl for key, ttl in (await bench.ttls()).items() if "{bans}" in key]
    assert len(ttls) == 3 * (bench.client is not None)
    assert all(ttl > 9 * 365 * 86_400_000 for ttl in ttls)  # ten years, as long as the last one


@pytest.mark.parametrize(
    ("scope", "who"),
    [(Scope.USER, USER), (Scope.CHAT, Subject(chat=-100)), (Scope.MEMBER, ANNA)],
)
async def test_bans_of_a_penalty_are_listed_and_lifted(
    limiter: Limiter, other: Limiter, scope: Scope, who: Subject
) -> None:
    """A Penalty's ban is in the list at once; `unban` lifts it on all instances, `reset` too."""
    rules: Any = ["1/m", Penalty("2/m", "15m", scope=scope)]
    await limiter.ban(BORIS, "1d")
    found = [await limiter.hit(rules, ANNA) for _ in range(3)]
    assert [decision.banned for decision in found] == [False, False, True]
    first, _ = await limiter.bans()
    assert (first.subject, first.by, first.reason) == (who, "penalty", str(rules[1]))
    assert first.until is not None
    assert 890 < (first.until - datetime.now(UTC)).total_seconds() <= 901
    assert (await other.hit(rules, ANNA)).banned
    assert await other.unban(who)
    assert [ban.subject for ban in await limiter.bans()] == [BORIS]
    assert not (await limiter.hit(rules, ANNA)).banned
    while not (await limiter.hit(rules, ANNA)).banned:
        pass
    assert await limiter.unban(who)  # while its ban is being listed
    assert [ban.subject for ban in await limiter.bans()] == [BORIS]
    while not (await limiter.hit(rules, ANNA)).banned:
        pass
    await limiter.ban(who, "1h")  # by hand, which a reset leaves
    assert len(await limiter.bans()) == 3
    assert await limiter.reset(rules, ANNA)
    await settled(limiter)
    assert {ban.by for ban in await limiter.bans()} == {""}
    assert await banned(limiter)


async def test_a_full_list_is_an_error(limiter: Limiter, monkeypatch: pytest.MonkeyPatch) -> None:
    """A further ban by hand is an error; subjects in the list can be banned again. Bans of a
    penalty leave room for those by hand."""
    monkeypatch.setattr(banlist, "MAX_BANS", 2)
    monkeypatch.setattr(banlist, "MAX_LISTED", 1)
    everybody = Penalty("1/m", "1h", scope="global")  # is nobody's ban, so it is not in the list
    found = [await limiter.hit(["1/m", everybody], Subject(user=9)) for _ in range(3)]
    assert found[-1].banned
    for user in (1, 2):
        for _ in range(2):
            await limiter.hit(["1/m", Penalty("1/m", "1h")], Subject(user=user))
    await settled(limiter)
    assert [ban.subject.user for ban in await limiter.bans()] == [1]
    await limiter.ban(USER)
    await limiter.ban(USER, "1h")
    with pytest.raises(ConfigError, match="the list of bans is full"):
        await limiter.ban(BORIS)


async def test_a_ban_that_cannot_be_listed_applies(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log says that the list was not written; the penalty bans all the same."""

    async def put(*_: Any, **__: Any) -> bool:
        raise StorageError("out of reach")

    monkeypatch.setattr(banlist.MemoryBanList, "put", put)
    limiter = Limiter(MemoryStorage())
    rules: Any = ["1/m", Penalty("1/m", "1h")]
    assert [(await limiter.hit(rules, ANNA)).banned for _ in range(3)] == [False, True, True]
    await settled(limiter)
    assert "The list of bans could not be written: out of reach" in caplog.messages
    with pytest.raises(StorageError):
        await limiter.ban(USER)


async def test_bans_survive_an_outage(own_server: Server) -> None:
    """When Redis dies, banned users stay banned; `ban`, `unban` and `bans` raise."""
    async with aioredis.Redis(port=own_server.port) as client:
        limiter = Limiter(RedisStorage(client))
        await limiter.ban(USER, "1h")
        assert await banned(limiter)
        own_server.kill()
        for _ in range(8):
            assert await banned(limiter)
            assert not await banned(limiter, BORIS)
            await asyncio.sleep(0.1)
        for call in (limiter.ban(BORIS, "1h"), limiter.unban(USER), limiter.bans()):
            with pytest.raises(StorageError):
                await call
        await limiter.close()


async def test_a_list_that_was_not_loaded_at_the_start_is_waited_for() -> None:
    """The first decision after the storage is there knows all bans."""
    storage = FlakyStorage(RedisStorage(FakeAsyncRedis(server=FakeServer())))
    await Limiter(storage, timeout=5).ban(USER, "1h")
    limiter = Limiter(storage, timeout=5)
    storage.fail()
    limiter.open()
    await asyncio.sleep(0.05)
    storage.heal()
    assert await banned(limiter)
    await limiter.close()


@pytest.mark.parametrize("bench", ["redis-server"], indirect=True)
async def test_bans_cost_a_decision_no_command(bench: Bench, limiter: Limiter) -> None:
    """Bans add no Redis command to a decision."""

    async def commands(subject: Subject) -> int:
        assert bench.client is not None
        before = await bench.client.info("stats")
        for _ in range(200):
            await banned(limiter, subject)
        after = await bench.client.info("stats")
        return int(after["total_commands_processed"] - before["total_commands_processed"])

    await limiter.ban(USER, "1h")
    await limiter.hit("1000/s", ANNA)  # from now on the list is looked at in the background
    assert await commands(ANNA) < 10
    # Each of the others: EVALSHA, and what the script calls.
    assert (await commands(BORIS) - 10) / 200 <= 3


@pytest.mark.parametrize("ends", ["cancelled", "the run ends"])
def test_cancelled_loads_are_repeated(ends: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever all tasks are cancelled, or a run ends, what follows still learns of bans."""
    monkeypatch.setattr(bans_module, "REFRESH", 0.01)

    async def begin(limiter: Limiter, turns: int) -> None:
        task = asyncio.create_task(limiter.hit("1000/s", ANNA))
        for _ in range(turns):
            await asyncio.sleep(0)
        del task

    async def learn(limiter: Limiter, other: Limiter) -> None:
        await other.ban(USER)
        await until_banned(limiter)
        await limiter.close()
        await other.close()

    async def cancel(limiter: Limiter, other: Limiter, turns: int) -> None:
        await begin(limiter, turns)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await learn(limiter, other)

    for turns in range(16):
        client = FakeAsyncRedis(server=FakeServer())
        limiter, other = (Limiter(RedisStorage(client), timeout=TIMEOUT) for _ in range(2))
        if ends == "cancelled":
            asyncio.run(cancel(limiter, other, turns))
        else:
            asyncio.run(begin(limiter, turns))
            asyncio.run(learn(limiter, other))


@table(
    ("arguments", "message"),
    [
        ((Subject(),), r"names nobody: give a user, a chat or both, for example Subject"),
        ((42,), "subject=42: expected a Subject"),
        ((Subject(chat=1, topic=3),), "a user, a chat or a user in a chat can be banned"),
        ((Subject(user="@anna"),), "user='@anna': expected an id, a whole number"),
        ((USER, "soon"), "the length of a ban is 'soon': expected a period such as '1h'"),
        *(((USER, length), "the length of a ban is ") for length in (0, float("nan"), True)),
        ((USER, "1h", 7), "reason=7: expected a str"),
        ((USER, "1h", "\udcff"), "expected text that can be written in UTF-8"),
        ((USER, "1h", "x" * 501), "reason='xxx.*expected a str of at most 500"),
    ],
)
async def test_invalid_arguments_are_named(arguments: Any, message: str) -> None:
    """An invalid ban is a ConfigError with the value and the fix."""
    limiter = Limiter(MemoryStorage())
    with pytest.raises(ConfigError, match=message):
        await limiter.ban(*arguments)
    for page, told in (((0, 0), "limit=0: expected a whole number from 1 to"), ((-1,), "offset=-")):
        with pytest.raises(ConfigError, match=told):
            await limiter.bans(*page)
    with pytest.raises(ConfigError, match="names nobody"):
        await limiter.bans_of(Subject())


async def test_a_raid_does_not_flood_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Of thousands of bans in a minute twenty are logged, then one line."""
    clock = Clock()
    limiter = Limiter(MemoryStorage(clock=clock), clock=clock)
    rules = rules_of(["1/d", Penalty("1/minute", "1h")])
    for user in range(1_000):
        for _ in range(3):
            await limiter.hit(rules, Subject(user=user))
    assert len(caplog.messages) == 21
    assert caplog.messages[19].startswith("Banned for 3600 s: bot:ratelimit:ban:19 ")
    assert "more than 20 users a minute" in caplog.messages[20]
    clock.move(61)
    for _ in range(3):
        await limiter.hit(rules, Subject(user=5_000))
    assert caplog.messages[21].startswith("Banned for 3600 s: bot:ratelimit:ban:5000 ")


@pytest.mark.parametrize("bench", ["memory", "redis-server"], indirect=True)
async def test_the_bans_of_a_subject_are_found(bench: Bench, limiter: Limiter) -> None:
    """By hand and by a penalty, of user, chat, member and topic; the one that ends last first."""
    topic, of_a_bot = Subject(user=42, chat=-100, topic=7), Subject(user=42, bot=5)
    await limiter.ban(USER, "3h", "user")
    await limiter.ban(Subject(chat=-100), "2h", "chat")
    await limiter.ban(ANNA, None, "member")
    await limiter.ban(of_a_bot, "4h", "one bot")
    await limiter.ban(BORIS, "5h", "somebody else")
    penalties = [Penalty("1/h", "10m", scope=scope) for scope in (Scope.USER, Scope.TOPIC)]
    for _ in range(3):  # with a ban by hand the hit is not counted
        await limiter.decider.hit(rules_of(["1/h", *penalties]), topic)
    await settled(limiter)
    reasons = [str(penalties[0])] * 2
    found = await limiter.bans_of(topic)
    assert [ban.reason for ban in found] == ["member", "user", "chat", *reasons]
    assert {ban.subject for ban in found[3:]} == {USER, Subject(chat=-100, topic=7)}
    assert [ban.reason for ban in await limiter.bans_of(of_a_bot)] == ["one bot", "user"]
    assert await limiter.bans_of(Subject(user=1)) == []


async def test_a_raid_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the list does not answer, only so many bans wait to be written; all of them hold."""
    monkeypatch.setattr(bans_module, "MAX_WRITES", 100)

    class Hanging(banlist.MemoryBanList):
        puts = 0

        async def put(self, ban: banlist.Ban, seconds: float, *, timeout: float) -> bool:
            self.puts += 1
            await asyncio.Event().wait()
            return True

    class Storage(MemoryStorage):
        hanging = Hanging()

        def bans(self, prefix: str) -> Hanging:
            return self.hanging

    limiter = Limiter(storage := Storage(), timeout=0.01)
    for user in range(150):
        hits = [await limiter.hit(["1/h", Penalty("1/h", 60)], Subject(user=user)) for _ in "123"]
        assert hits[-1].banned
    await asyncio.sleep(0)
    assert storage.hanging.puts == 100
    await limiter.close()
