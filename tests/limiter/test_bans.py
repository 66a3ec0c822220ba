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
from bot_ratelimit.storage.redis import banlist as redis_banlist
from bot_ratelimit.testing import Clock
from tests.benches import TIMEOUT, Bench, eventually, movable
from tests.servers import Server
from tests.tables import table

ANNA = Subject(user=42, chat=-100)
BORIS = Subject(user=43, chat=-100)
USER = Subject(user=42)


async def banned(limiter: Limiter, subject: Subject = ANNA) -> bool:
    decision = await limiter.hit("1000/s", subject)
    assert decision.banned is not decision.allowed
    return decision.banned


async def until(limiter: Limiter, expected: bool, subject: Subject = ANNA) -> None:
    """Wait until an instance knows a ban, for the promised second at most."""

    async def is_known() -> bool:
        return await banned(limiter, subject) is expected

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
    await until(other, True)
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
    assert await limiter.unban(USER)
    assert not await banned(limiter)
    await until(other, False)
    assert not await limiter.unban(USER)


@pytest.mark.parametrize("bench", ["memory", "redis-server"], indirect=True)
async def test_a_ban_ends(bench: Bench, limiter: Limiter) -> None:
    """A ban with a length ends after it and leaves the list."""
    seconds = 3_600 if bench.exact else 0.2
    ban = await limiter.ban(USER, seconds)
    await bench.advance(seconds * 0.5)
    found = await banned(limiter), len(await limiter.bans())
    assert ban.until is not None
    too_late = not bench.exact and datetime.now(UTC) >= ban.until  # on a busy machine
    assert found == (True, 1) or too_late
    await bench.advance(seconds * 0.5 + 0.01)
    assert not await banned(limiter)
    assert await limiter.bans() == []


@pytest.mark.parametrize("bench", ["memory", "fakeredis", "redis-server"], indirect=True)
@pytest.mark.parametrize("other", [USER._replace(topic=9), USER._replace(business="Bc")])
async def test_unbanning_a_topic_or_business_leaves_the_ban_of_the_user(
    limiter: Limiter, other: Subject
) -> None:
    """A ban by hand ends with the unban of its own subject, and of no other with the same user."""
    await limiter.ban(USER)
    assert not await limiter.unban(other)
    assert await banned(limiter, USER)
    assert [each.subject for each in await limiter.bans()] == [USER]
    assert await limiter.unban(USER)
    assert not await banned(limiter, USER)


@pytest.mark.parametrize("bench", ["memory", "redis-server"], indirect=True)
async def test_the_bans_of_a_subject_are_found(bench: Bench, limiter: Limiter) -> None:
    """By hand and by a penalty, of user, chat, member and topic; the one that ends last first."""
    topic = Subject(user=42, chat=-100, topic=7)
    await limiter.ban(USER, "3h", "user")
    await limiter.ban(Subject(chat=-100), "2h", "chat")
    await limiter.ban(ANNA, None, "member")
    await limiter.ban(Subject(user=42, bot=5), "4h", "one bot")
    await limiter.ban(Subject(user=43), "5h", "somebody else")
    penalties = [Penalty("1/h", "10m", scope=scope) for scope in (Scope.USER, Scope.TOPIC)]
    for _ in range(3):  # with a ban by hand the hit is not counted
        await limiter.decider.hit(rules_of(["1/h", *penalties]), topic)
    await settled(limiter)
    found = await limiter.bans_of(topic)
    reasons = [str(penalties[0])] * 2
    assert [ban.reason for ban in found] == ["member", "user", "chat", *reasons]
    assert {ban.subject for ban in found[3:]} == {USER, Subject(chat=-100, topic=7)}
    found = await limiter.bans_of(Subject(user=42, bot=5))
    assert [ban.reason for ban in found] == ["one bot", "user"]
    assert await limiter.bans_of(Subject(user=1)) == []
    with pytest.raises(ConfigError, match="names nobody"):
        await limiter.bans_of(Subject())


async def test_a_permanent_ban_has_no_end(bench: Bench, limiter: Limiter) -> None:
    """It is listed without an end, and its keys have a TTL of ten years."""
    assert (await limiter.ban(USER)).until is None
    (ban,) = await limiter.bans()
    assert ban.until is None
    assert (await limiter.hit("1/s", ANNA)).retry_after == bans_module.FOREVER
    ttls = await bench.ttls()
    assert all(ttl > 9 * 365 * 86_400_000 for key, ttl in ttls.items() if "{bans}" in key)
    assert len(ttls) == 3 * (bench.client is not None)


@pytest.mark.parametrize(
    ("who", "anna", "boris", "elsewhere"),
    [
        (Subject(user=42), True, False, True),
        (Subject(chat=-100), True, True, False),
        (Subject(user=42, chat=-100), True, False, False),
        (Subject(user=42, bot=7), False, False, False),
    ],
)
async def test_users_chats_and_members_can_be_banned(
    limiter: Limiter, who: Subject, anna: bool, boris: bool, elsewhere: bool
) -> None:
    """A ban of a user applies everywhere, of a chat to all in it, of a member only there."""
    await limiter.ban(who, "1h")
    assert [await banned(limiter, each) for each in (ANNA, BORIS)] == [anna, boris]
    assert await banned(limiter, Subject(user=42, chat=42)) is elsewhere
    assert await banned(limiter, Subject(user=42, chat=-100, bot=7)) is (anna or who.bot == 7)


async def test_the_list_has_all_details(limiter: Limiter) -> None:
    """Each subject once with its last ban, earliest end first, in pages of their size."""
    before = datetime.now(UTC) - timedelta(seconds=1)
    await limiter.ban(Subject(chat=-5), None, "a raid \N{FIRE}", by="admin 1")
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


@pytest.mark.parametrize(
    ("scope", "who"),
    [(Scope.USER, USER), (Scope.CHAT, Subject(chat=-100)), (Scope.MEMBER, ANNA)],
)
async def test_bans_of_a_penalty_are_listed_and_lifted(
    limiter: Limiter, other: Limiter, scope: Scope, who: Subject
) -> None:
    """A Penalty's ban is in the list, and `unban` lifts it on all instances."""
    rules: Any = ["1/m", Penalty("2/m", "15m", scope=scope)]
    await limiter.ban(BORIS, "1d")
    found = [await limiter.hit(rules, ANNA) for _ in range(3)]
    assert [decision.banned for decision in found] == [False, False, True]
    assert (await other.hit(rules, ANNA)).banned
    await settled(limiter)
    first, _ = await limiter.bans()
    assert (first.subject, first.by, first.reason) == (who, "penalty", str(rules[1]))
    assert first.until is not None
    assert 890 < (first.until - datetime.now(UTC)).total_seconds() <= 901
    assert await other.unban(who)
    assert [ban.subject for ban in await limiter.bans()] == [BORIS]
    assert not (await limiter.hit(rules, ANNA)).banned


async def test_a_ban_of_a_penalty_is_listed_at_once(bench: Bench, limiter: Limiter) -> None:
    """On every storage, `bans` right after the hit that caused a ban has it."""
    for _ in range(4):
        await limiter.hit([Rule("1/h"), Penalty("2/h", "1h")], Subject(user=42))
    assert [ban.subject for ban in await limiter.bans()] == [Subject(user=42)]


async def test_a_ban_that_is_reset_leaves_the_list(limiter: Limiter) -> None:
    """`reset` of the penalty lifts only its own ban; a ban by hand stays."""
    rules: Any = ["1/m", Penalty("1/m", "15m")]
    for _ in range(2):
        await limiter.hit(rules, ANNA)
    await settled(limiter)
    await limiter.ban(USER, "1h")
    assert len(await limiter.bans()) == 2
    assert await limiter.reset(rules, ANNA)
    await settled(limiter)
    assert [ban.by for ban in await limiter.bans()] == [""]
    assert await banned(limiter)


@movable
async def test_a_growing_ban_is_listed_with_its_end(bench: Bench, limiter: Limiter) -> None:
    """A doubled ban is listed with its new end."""
    rules: Any = ["1/d", Penalty("2/m", "15m", grows=True)]
    for _ in range(5):  # refused four times: that is twice two
        await limiter.hit(rules, ANNA)
        await settled(limiter)
    await bench.advance(16 * 60)
    assert [ban.by for ban in await limiter.bans()] == ["penalty"]
    await bench.advance(15 * 60)
    assert await limiter.bans() == []


async def test_a_full_list_is_an_error(limiter: Limiter, monkeypatch: pytest.MonkeyPatch) -> None:
    """A further ban by hand is an error; subjects in the list can be banned again."""
    for module in (banlist, redis_banlist):
        monkeypatch.setattr(module, "MAX_BANS", 1)
    await limiter.ban(USER)
    await limiter.ban(USER, "1h")
    with pytest.raises(ConfigError, match="the list of bans is full"):
        await limiter.ban(BORIS)


class Unwritable(MemoryStorage):
    """Decides, but its list of bans is out of reach."""

    def bans(self, prefix: str) -> banlist.MemoryBanList:
        bans = super().bans(prefix)

        async def put(ban: banlist.Ban, seconds: float, *, timeout: float) -> bool:
            raise StorageError("out of reach")

        bans.put = put  # type: ignore[method-assign]  # a stand-in
        return bans


async def test_a_ban_that_cannot_be_listed_applies(caplog: pytest.LogCaptureFixture) -> None:
    """The log says that the list was not written; the penalty bans all the same."""
    limiter = Limiter(Unwritable())
    rules: Any = ["1/m", Penalty("1/m", "15m")]
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


@pytest.mark.parametrize("bench", ["redis-server"], indirect=True)
async def test_bans_cost_a_decision_no_command(bench: Bench, limiter: Limiter) -> None:
    """Bans add no Redis command to a decision."""

    async def commands() -> int:
        assert bench.client is not None
        return int((await bench.client.info("stats"))["total_commands_processed"])

    await limiter.ban(USER, "1h")
    await limiter.hit("1000/s", ANNA)  # from now on the list is looked at in the background
    before = await commands()
    for _ in range(200):
        assert await banned(limiter)
    assert await commands() - before < 10
    before = await commands()
    for _ in range(200):
        assert not await banned(limiter, BORIS)
    # Each of the others: EVALSHA, and what the script calls.
    assert (await commands() - before - 10) / 200 <= 3


async def test_the_list_is_not_loaded_without_decisions(
    monkeypatch: pytest.MonkeyPatch, fake_client: Any
) -> None:
    """After a pause nothing is sent to Redis until the next decision."""
    monkeypatch.setattr(bans_module, "REFRESH", 0.01)
    monkeypatch.setattr(bans_module, "IDLE", 0.03)
    limiter, other = Limiter(RedisStorage(fake_client)), Limiter(RedisStorage(fake_client))
    assert not await banned(limiter)
    before = asyncio.all_tasks()
    await eventually(lambda: limiter._bans.is_stale)
    assert len([task for task in before if not task.done()]) == len(before) - 1
    await other.ban(USER)
    assert await banned(limiter)
    await limiter.close()
    await other.close()


@pytest.mark.parametrize("turns", range(16))
async def test_cancelled_loads_are_repeated(
    turns: int, monkeypatch: pytest.MonkeyPatch, fake_client: Any
) -> None:
    """A program that cancels all tasks, at any moment, and continues still learns of bans."""
    monkeypatch.setattr(bans_module, "REFRESH", 0.01)
    limiter, other = (Limiter(RedisStorage(fake_client), timeout=TIMEOUT) for _ in range(2))
    await other.ban(BORIS)
    asking = asyncio.create_task(limiter.hit("1000/s", ANNA))
    for _ in range(turns):
        await asyncio.sleep(0)
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.wait([asking, *tasks])
    await other.ban(USER)
    await until(limiter, True)
    await limiter.close()
    await other.close()


def test_bans_are_known_in_the_run_after_one_that_ended_at_any_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However soon the first `asyncio.run` ends, the next one learns of later bans."""
    monkeypatch.setattr(bans_module, "REFRESH", 0.01)

    async def first(limiter: Limiter, turns: int) -> None:
        task = asyncio.create_task(limiter.hit("1000/s", ANNA))
        for _ in range(turns):
            await asyncio.sleep(0)
        del task

    async def second(limiter: Limiter, other: Limiter) -> None:
        await other.ban(USER)
        await until(limiter, True)
        await limiter.close()
        await other.close()

    for turns in range(16):
        client = FakeAsyncRedis(server=FakeServer())
        limiter, other = (Limiter(RedisStorage(client), timeout=TIMEOUT) for _ in range(2))
        asyncio.run(first(limiter, turns))
        asyncio.run(second(limiter, other))


@table(
    ("arguments", "message"),
    [
        ((Subject(),), r"names nobody: give a user, a chat or both, for example Subject"),
        ((Subject(topic=3),), "the subject of a ban names nobody"),
        ((42,), "subject=42: expected a Subject"),
        ((Subject(chat=1, topic=3),), "a user, a chat or a user in a chat can be banned"),
        ((Subject(user="@anna"),), "user='@anna': expected an id, a whole number"),
        ((Subject(chat=True),), "chat=True: expected an id"),
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
    with pytest.raises(ConfigError, match="limit=0: expected a whole number from 1 to 1000"):
        await limiter.bans(limit=0)
    with pytest.raises(ConfigError, match="offset=-1"):
        await limiter.bans(offset=-1)


async def test_a_raid_does_not_flood_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Of thousands of bans in a minute twenty are logged, then one line."""
    clock = Clock()
    limiter = Limiter(MemoryStorage(clock=clock), clock=clock)
    rules = rules_of(["1/d", Penalty("1/minute", "1h")])

    async def flood(*users: int) -> None:
        for user in users:
            for _ in range(3):
                await limiter.hit(rules, Subject(user=user))

    await flood(*range(1_000))
    assert len(caplog.messages) == 21
    assert caplog.messages[19].startswith("Banned for 3600 s: bot:ratelimit:ban:19 ")
    assert "more than 20 users a minute" in caplog.messages[20]
    clock.move(61)
    await flood(5_000)
    assert caplog.messages[21].startswith("Banned for 3600 s: bot:ratelimit:ban:5000 ")
