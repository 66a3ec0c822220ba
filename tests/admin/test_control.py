"""Control: what operators can do, on every storage."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis.asyncio as aioredis
from redis.asyncio.cluster import RedisCluster

from bot_ratelimit import (
    ConfigError,
    Limiter,
    MemoryStorage,
    Penalty,
    RateLimitMiddleware,
    RedisStorage,
    Rule,
    Scope,
    Settings,
    StorageError,
    Subject,
)
from bot_ratelimit.admin import sending as what_is_sent
from bot_ratelimit.admin import sheets
from bot_ratelimit.admin.changes import ConflictError
from bot_ratelimit.admin.cli import terminal
from bot_ratelimit.admin.control import Control
from bot_ratelimit.admin.health import health_app
from bot_ratelimit.admin.wording import ENGLISH, limit_of
from bot_ratelimit.admin.words import plain
from bot_ratelimit.config.overrides import Overrides
from bot_ratelimit.limiter.bans import FOREVER
from bot_ratelimit.storage.base import Storage
from bot_ratelimit.testing import FlakyStorage
from tests.admin.test_health import get
from tests.admin.web import Site, running_bot, sending
from tests.servers import Server, running_cluster

ANNA = Subject(user=42, chat=42)
PENALTY = Penalty("2/h", "1h")


OUTCOMES = ("allowed", "refused", "banned")


class OperatedBot(NamedTuple):
    """A bot, and an operator in another process."""

    site: Site
    control: Control

    async def allowed(self, times: int) -> int:
        await self.refresh()
        return await self.site.send(times)

    async def refresh(self) -> None:
        await self.site.obey()


async def obeying(*rules: Any, **options: Any) -> RateLimitMiddleware:
    """A middleware that has read the live limits and reports its rules."""
    middleware = RateLimitMiddleware(*rules, live=True, **options)
    assert middleware.live is not None
    await middleware.live.refresh()
    return middleware


@pytest.fixture
async def bot(storage: Storage) -> AsyncIterator[OperatedBot]:
    rules = [Rule("3/h", name="messages"), Rule("100/h", Scope.CHAT), Rule("50/h", Scope.GLOBAL)]
    async with running_bot(storage, rules=rules, penalty=PENALTY, statistics=False) as site:
        yield OperatedBot(site, Control(Limiter(storage, timeout=5), "anna@shell", patience=0))


async def test_a_refused_user_is_seen_and_forgiven(bot: OperatedBot) -> None:
    """Every rule is listed, and what a user has left of it; reading it charges nothing.

    Forgiving deletes counts and bans, all or rule by rule; shared counts stay.
    """
    rules = {rule.name: rule for rule in await bot.control.limits()}
    assert list(rules) == ["messages", "chat", "global", "ban", "bots:member"]
    assert (rules["messages"].limit, rules["messages"].scope) == ("3/hour", "user")
    assert (rules["ban"].ban_ms, rules["ban"].origin) == (3_600_000, "code")
    assert await bot.allowed(7) == 3
    for _ in range(3):
        found = await bot.control.show(ANNA)
    counts = {each.rule: each for each in found.counts}
    assert not found.allowed
    assert (counts["messages"].allowed, counts["messages"].capacity) == (False, 3)
    assert counts["messages"].key == "bot:ratelimit:messages:42"
    assert (counts["messages"].remaining, counts["chat"].remaining) == (0, 97)
    assert 3_590 < counts["messages"].retry_after <= found.retry_after <= 3_600
    stranger = await bot.control.show(Subject(user=1))
    assert stranger.allowed
    assert {each.rule: each.remaining for each in stranger.counts}["messages"] == 3
    assert await bot.control.forgive(ANNA, ["messages"]) == ("messages",)
    assert await bot.allowed(1) == 0  # still banned
    assert set(await bot.control.forgive(ANNA)) == {"chat", "ban"}
    assert await bot.allowed(1) == 1
    remaining = {each.rule: each.remaining for each in (await bot.control.show(ANNA)).counts}
    assert remaining["global"] == 46
    assert await bot.control.forgive(Subject(user=5)) == ()


async def test_a_test_call_says_what_would_be_decided(bot: OperatedBot) -> None:
    """Allowed with what is left, refused with the wait, or free: exempt, or all limits off.

    A penalty limits nobody who is not refused, so it is never named as the nearest limit.
    """
    control = bot.control
    decision = (await control.try_(ANNA)).decision
    assert decision is not None
    assert (decision.allowed, decision.remaining) == (True, 3)
    await bot.allowed(4)
    found = await control.try_(ANNA)
    assert found.decision is not None
    assert not found.allowed
    assert 3_590 < found.decision.retry_after <= 3_600
    await control.changes.set_exempt(42, True)
    assert (await control.try_(ANNA)).exempt
    await control.changes.set_exempt(42, False)
    await control.changes.pause("1h")
    found = await control.try_(ANNA)
    assert (found.allowed, found.off_until > 0) == (True, True)
    assert (await control.show(ANNA)).off_until > 0
    with pytest.raises(ConfigError, match="no rule is called 'ai': expected one of ban, bots:mem"):
        await control.try_(ANNA, "ai")
    await control.changes.resume()
    for name in ("messages", "chat", "global"):
        await control.set_rule(name, off=True)
    await bot.refresh()
    assert sheets.trial(ENGLISH, await control.try_(ANNA)).lines == ["Allowed: no limit applies."]


async def test_only_the_last_20_versions_and_200_changes_are_kept(bot: OperatedBot) -> None:
    """History and audit are bounded, and say when, who, what, and what was different."""
    changes = bot.control.changes
    for number in range(1, 206):
        await changes.set_exempt(number, True)
    assert [each.version for each in await changes.history()] == [*range(205, 185, -1)]
    audit = await bot.control.audit()
    assert len(audit) == 200
    assert (audit[0].by, audit[0].what) == ("anna@shell", "exempt 205")
    assert audit[0].changed == ("exempt: 205 added",)
    assert audit[0].at == pytest.approx((await changes.current()).at, abs=2)


async def test_history_and_audit_say_what_changed(bot: OperatedBot) -> None:
    """Each change holds, and is a line with the old and the new value; a rollback undoes it."""
    control, changes = bot.control, bot.control.changes
    assert (await control.set_rule("messages", "1/h")).version == 1
    assert await bot.allowed(2) == 1
    await control.set_rule("messages", "9/hour", shadow=True)
    assert await bot.allowed(3) == 3
    changed = {rule.name: rule for rule in await control.limits()}["messages"]
    assert (changed.limit, changed.shadow, changed.origin) == ("9/hour", True, "live")
    assert (changed.otherwise, changed.rule().shadow) == ("3/hour", True)  # type: ignore[union-attr]
    await control.set_rule("chat", off=True)
    await changes.set_penalty("5/hour", "2h")
    await changes.set_exempt(42, False)
    await changes.pause("1h")
    assert await bot.allowed(9) == 9
    await changes.rollback(1)
    assert (await changes.current()).rules == {"messages": {"limit": "1/hour"}}
    await control.forgive(ANNA)
    assert await bot.allowed(3) == 1
    said = [each.changed for each in await control.history()]
    assert said[1:] == [
        (said[1][0],),
        ("not exempt: 42 added",),
        ("penalty: as configured -> 2h after 5/hour",),
        ("chat: 100/hour -> 100/hour (off)",),
        ("messages: 1/hour -> 9/hour (trial)",),
        ("messages: 3/hour -> 1/hour",),
    ]
    assert re.fullmatch(r"all limits: on -> off until 20[-\d]+ [:\d]+ UTC", said[1][0])
    assert said[0] == (
        "chat: 100/hour (off) -> 100/hour",
        "messages: 9/hour (trial) -> 1/hour",
        "penalty: 2h after 5/hour -> as configured",
        "not exempt: 42 removed",
        said[1][0].replace("on -> off", "off") + " -> on",
    )
    audit = [each.changed for each in await control.audit() if "forgive" not in each.what]
    assert audit == said
    await changes.set_penalty(None)
    assert (await changes.rollback()).what == "rollback to 7"
    with pytest.raises(ConfigError, match="there is no version 99 to roll back to: expected 0, 1"):
        await changes.rollback(99)


async def test_a_handler_without_a_flag_gets_a_limit_of_its_own(bot: OperatedBot) -> None:
    """By the name that is listed, on every instance, previewed, in the history, and taken away."""
    control = bot.control
    await bot.refresh()
    (name,) = (await control.instances())[0].handlers
    assert name.endswith("Instance._handle")
    with pytest.raises(ConfigError, match="has no limit of its own: give it one"):
        await control.set_rule(name, off=True)
    seen = await control.preview(name, "2/h")
    assert limit_of(ENGLISH, seen.before) == "as every handler"
    assert (seen.after.limit, seen.before.where) == ("2/hour", name)
    await control.set_rule(name, "2/h", if_version=seen.version)
    assert await bot.allowed(5) == 2
    views = {each.name: each for each in await control.limits()}
    assert (views[name].limit, views[name].where, views[name].origin) == ("2/hour", name, "live")
    counts = {each.rule: each.remaining for each in (await control.show(ANNA)).counts}
    assert (counts[name], counts["messages"]) == (0, 3)
    assert (await control.history())[0].changed == (f"{name}: as configured -> 2/hour",)
    assert name in await control.forgive(ANNA)
    back = await control.preview(name, default=True)
    assert limit_of(ENGLISH, back.after) == "as every handler"
    await control.set_rule(name, default=True)
    assert await bot.allowed(9) == 3
    assert name not in {each.name for each in await control.limits()}


async def test_a_forgotten_pause_does_not_look_healthy(bot: OperatedBot) -> None:
    """While all limits are off, health is degraded and says until when, and by whom.

    A change during the pause does not alter who is named.
    """
    boris = Control(bot.control.limiter, "boris@web", patience=0)
    found = await boris.health()
    assert (found.ok, found.status, found.problem) == (True, "healthy", "")
    assert (found.instances, found.behind) == (1, 0)
    await bot.control.changes.pause("1h")
    await boris.changes.set_exempt(7, True)
    await bot.refresh()
    found = await boris.health()
    assert (found.ok, found.status, found.off_by) == (True, "degraded", "anna@shell")
    for sheet, by in (
        (sheets.health(ENGLISH, found), ", by anna@shell."),
        (sheets.limits(ENGLISH, await boris.config()), ", by anna@shell."),
        (sheets.trial(ENGLISH, await boris.try_(ANNA)), ""),
        (sheets.subject(ENGLISH, await boris.show(ANNA)), ""),
    ):
        (said,) = [line for line in sheet.lines if "All limits are off until 20" in line]
        assert said.endswith(by)
    await boris.changes.resume()
    await bot.refresh()
    assert (await boris.health()).status == "healthy"
    await boris.changes.rollback(2)
    assert (await boris.health()).off_by == "anna@shell"


@pytest.mark.parametrize(
    ("policy", "meanwhile"),
    [
        ("allow", "the bot handles every update, without a limit"),
        ("deny", "the bot refuses every update"),
        ("memory", "each instance counts for itself"),
    ],
)
async def test_an_outage_says_first_what_it_means_for_users(
    environment: pytest.MonkeyPatch, policy: Any, meanwhile: str
) -> None:
    """The first sentence says what happens meanwhile, by the policy of the bot; then why.

    Looking at a user is an error, not a guess. A pause goes on, and its operators read that.
    """
    environment.setenv("REDIS_URL", "redis://127.0.0.1:1")
    environment.setenv("RATE_LIMIT_ON_ERROR", policy)
    control = Control.from_settings(Settings(), "anna", patience=0)
    found = await control.health()
    assert not found.ok
    first, second = sheets.health(ENGLISH, found).lines
    assert first == f"Redis does not answer: meanwhile {meanwhile}."
    assert ("127.0.0.1:1" in second, " ms" in second) == (True, False)
    with pytest.raises(StorageError):
        await control.show(ANNA)
    await control.close()
    storage = FlakyStorage()
    storage.source = "redis"
    middleware = await obeying("1/h", limiter=Limiter(storage, on_error=policy))
    control = Control.of(middleware, "anna@web", patience=0)
    await control.changes.pause("1h")
    assert middleware.live is not None
    await middleware.live.refresh()
    await control.clear(everything=True)
    assert (await control.health()).off_by == "anna@web"
    storage.fail()
    paused, first, *_ = sheets.health(ENGLISH, await control.health()).lines
    assert re.fullmatch("All limits are off until 20.* UTC, by anna@web.", paused)
    assert "meanwhile the bot handles every update, without a limit" in first
    status, ready = await get(health_app(middleware), "/ready")
    assert (status, ready["status"], ready["all_limits_off"]) == (200, "degraded", True)


async def test_two_admins_do_not_overwrite_each_other(
    bot: OperatedBot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simultaneous changes are all kept; a change of an outdated version is refused.

    Without a version, a rollback is of the version that was newest when it was asked for.
    """
    changes = bot.control.changes
    other = Control(Limiter(bot.control.limiter.storage, timeout=5), "boris", patience=0)
    await asyncio.gather(
        bot.control.set_rule("messages", "2/h"),
        other.set_rule("chat", "9/h"),
        other.changes.set_exempt(7, True),
    )
    live = await changes.current()
    assert live.rules == {"messages": {"limit": "2/hour"}, "chat": {"limit": "9/hour"}}
    assert (live.version, live.exempt) == (3, {7})
    await other.set_rule("messages", "8/h", if_version=3)
    with pytest.raises(ConflictError, match=r"boris changed the live limits in .*\(set messag"):
        await bot.control.set_rule("messages", "9/h", if_version=3)
    look = changes.current

    async def slow_look() -> Overrides:
        found = await look()
        await other.set_rule("global", "1/minute")
        return found

    monkeypatch.setattr(changes, "current", slow_look)
    with pytest.raises(ConflictError, match="boris changed the live limits in the meantime"):
        await changes.rollback()
    assert set((await other.changes.current()).rules) == {"messages", "chat", "global"}


async def test_clear_forgets_counts_and_keeps_the_live_limits(
    bot: OperatedBot, client: aioredis.Redis
) -> None:
    """Only this bot's counts are deleted; live limits and audit are deleted only on request.

    Then only the newest version is known, once the instances report again: to drop it has to be
    said. Until then no rule is known; the error says to repeat the change.
    """
    changes = bot.control.changes
    await bot.control.set_rule("messages", "3/h")
    await bot.control.set_rule("messages", "2/h")
    await bot.allowed(5)
    if bot.control.limiter.storage.source == "redis":
        await client.mset({f"bot:ratelimit:{n}": 1 for n in range(1_200)})
        await client.set("bot2:ratelimit:1", 1)
        assert await bot.control.clear() >= 1_200
        left = {key.decode() for key in await client.keys()}
        names = ("live", "history", "audit", "instances")
        assert left == {"bot2:ratelimit:1", *(f"bot:ratelimit:{name}" for name in names)}
    else:
        await bot.control.clear()
    assert await bot.allowed(3) == 2
    await bot.control.clear(everything=True)
    assert (await changes.current()).version == 0
    with pytest.raises(ConfigError, match=r"no running bot reports .* repeat it in a few seconds"):
        await bot.control.set_rule("messages", "1/h")
    await bot.refresh()  # writes the newest version back
    assert [each.version for each in await changes.history()] == [2]
    with pytest.raises(ConfigError, match="Redis has lost the previous version: roll back"):
        await changes.rollback()
    assert (await changes.current()).rules == {"messages": {"limit": "2/hour"}}
    assert (await changes.rollback(0)).rules == {}


async def test_an_invalid_document_hides_nothing(bot: OperatedBot) -> None:
    """The last good version is shown, with the problem, and actions on users work.

    Changes refuse to build on the document and say how to get out; a rollback replaces it. Nor
    do entries and reports of another version of this package hide the others.
    """
    documents = bot.control._documents
    await bot.control.set_rule("messages", "2/h")
    assert await bot.allowed(3) == 2
    good = await documents.read("bot:ratelimit:live")
    assert await documents.swap("bot:ratelimit:live", good, b"nonsense")
    await bot.refresh()
    config, shown = await bot.control.config(), await bot.control.show(ANNA)
    assert (config.live.version, config.behind) == (1, 0)
    problem = "is not JSON; a rollback replaces it with the last good version"
    assert config.problem.endswith(problem)
    assert "is not JSON" in (await bot.control.health()).problem
    assert (shown.allowed, shown.counts[0].capacity) == (False, 2)
    assert not (await bot.control.try_(ANNA)).allowed
    await bot.control.forgive(ANNA)
    with pytest.raises(ConfigError, match=problem):
        await bot.control.set_rule("messages", "9/h")
    await bot.control.changes.rollback()
    live = await bot.control.changes.current()
    assert (live.version, live.rules) == (2, {"messages": {"limit": "2/hour"}})
    assert await bot.allowed(3) == 2
    for raw in (b'{"at": 1, "by": "new", "newer": 2}', b"[]", b"x"):
        await documents.push("bot:ratelimit:audit", raw, 200)
    assert len(await bot.control.audit()) == 3
    odd = b'{"version": 1, "rejected": 0, "problem": "", "rules": [1]}'
    for report in (b"nonsense", b"{}", odd):
        await documents.report("bot:ratelimit:instances", "odd", report, 30)
        found = {each.name: each for each in await bot.control.instances()}
        assert (len(found), found["odd"].problem) == (2, "its report cannot be read")
    assert len(await bot.control.limits()) == 5


async def test_config_says_what_won_and_who_obeys(
    storage: Storage,
    bot: OperatedBot,
    environment: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The version, the instances behind it, and each setting with where it comes from.

    During a deployment it names the rules of an instance that differ from the list.
    """
    environment.setenv("RATE_LIMIT_TIMEOUT", "0.5")
    environment.setenv("REDIS_PASSWORD", "hunter2")
    control = Control(bot.control.limiter, "anna", settings=Settings(), patience=0)
    await control.set_rule("messages", "2/h")
    found = await control.config()
    assert (found.live.version, len(found.instances), found.behind) == (1, 1, 1)
    (instance,) = sheets.config(ENGLISH, found).more[0].rows
    assert instance[1:] == (0, "behind version 1")
    if storage.source == "redis":
        said = sheets.health(ENGLISH, await control.health()).lines[0]
        assert said == "Instances that do not obey version 1 yet: 1."
    settings = {each.name: each for each in found.settings}
    assert settings["RATE_LIMIT_TIMEOUT"].origin == "environment"
    assert settings["RATE_LIMIT"].origin == "code"
    assert "hunter2" not in str(found)
    await control.changes.rollback(0)
    await bot.refresh()
    assert (await control.config()).behind == 0
    assert [each.version for each in await control.wait_for(2)] == [2]
    newer = await obeying([Rule("9/h", name="messages")], limiter=Limiter(storage, timeout=5))
    found = await control.config()
    (other,) = (rule for each in found.instances for rule in found.differing(each))
    listed = [rule.limit for rule in found.rules if rule.name == "messages"]
    assert {*listed, other.limit} == {"3/hour", "9/hour"}
    terminal.say(terminal.laid_out(sheets.config(ENGLISH, found)))
    assert "other limits: messages " in capsys.readouterr().out
    assert newer.live is not None
    await newer.live.stop()


async def test_a_cluster_is_operated_like_one_server(tmp_path: Path) -> None:
    """Live limits, looking and forgiving work on a Redis Cluster; clearing needs a hash tag."""
    with running_cluster(tmp_path) as server:
        async with RedisCluster(host="127.0.0.1", port=server.port) as client:
            storage = RedisStorage(client)
            for prefix in ("bot", "{bot}"):
                limiter = Limiter(storage, key_prefix=prefix, timeout=5)
                middleware = await obeying("5/h", limiter=limiter)
                assert middleware.live is not None
                control = Control(limiter, "anna", patience=0)
                await control.set_rule("user", "2/h")
                await middleware.live.refresh()
                await limiter.hit(middleware.live.applied(middleware.rules), ANNA)
                assert (await control.show(ANNA)).counts[0].remaining == 1
                if prefix == "{bot}":
                    assert await control.clear() == 1
                    continue
                assert await control.forgive(ANNA) == ("user",)
                with pytest.raises(ConfigError, match=r"with a hash tag, '\{my_bot\}', is on one"):
                    await control.clear()
            await storage.close()


SOMEBODY = Subject(user=42)


async def test_a_ban_by_hand_is_shown_and_audited(bot: OperatedBot) -> None:
    """Until when, by whom and why; counts stay visible behind it; `try` says banned."""
    control = bot.control
    await bot.allowed(1)
    await control.ban(SOMEBODY, "1h", "spam")
    (listed,) = await control.bans()
    assert (listed.subject, listed.reason, listed.by) == (SOMEBODY, "spam", "anna@shell")
    assert (await control.bans(0, 1), await control.bans(1)) == ([listed], [])
    found = await control.show(ANNA)
    assert (found.banned, found.allowed, found.exempt) == (listed, False, False)
    assert 3_590 < found.retry_after <= 3_601
    counts = {each.rule: each for each in found.counts}
    assert (counts["messages"].remaining, counts["messages"].allowed) == (2, True)
    decision = (await control.try_(ANNA)).decision
    assert decision is not None
    assert (decision.allowed, decision.banned) == (False, True)
    await control.ban(SOMEBODY, "forever")
    shown = await control.show(ANNA)
    assert shown.banned is not None
    assert (shown.banned.until, shown.retry_after) == (None, FOREVER)
    assert await control.unban(SOMEBODY)
    assert not await control.unban(SOMEBODY)
    assert (await control.show(ANNA)).banned is None
    until = f"until {listed.until:%Y-%m-%d %H:%M:%S} UTC, by anna@shell, spam"
    assert [(each.what, each.changed) for each in await control.audit()] == [
        ("unban user 42", ()),
        ("unban user 42", ("forever, by anna@shell -> not banned",)),
        ("ban user 42", (f"{until} -> forever, by anna@shell",)),
        ("ban user 42", (f"not banned -> {until}",)),
    ]


async def test_a_ban_by_a_penalty_is_shown_and_lifted_by_forgiving(bot: OperatedBot) -> None:
    """It is listed at once with its reason; forgiving removes it, and a ban by hand stays."""
    control = bot.control
    await bot.allowed(7)
    for _ in range(2):  # the second time it is on the list for certain
        banned = (await control.show(ANNA)).banned
        assert banned is not None
        assert (banned.by, banned.key) == ("penalty", "bot:ratelimit:ban:42")
        assert banned.until is not None
        assert 3_590 < (banned.until - banned.since).total_seconds() <= 3_601
        await asyncio.gather(*bot.site.middleware.limiter._bans._writes)
    await control.set_rule("ban", off=True)
    await bot.refresh()
    assert (await control.show(ANNA)).banned is None  # no such penalty is in force
    await control.changes.rollback()
    await bot.refresh()
    await control.ban(Subject(chat=42), "2h", "by hand")
    shown = (await control.show(ANNA)).banned  # the one that ends last
    assert shown is not None
    assert shown.reason == "by hand"
    assert "ban" in await control.forgive(ANNA)
    await asyncio.gather(*control.limiter._bans._writes)  # the list is written behind it
    assert [ban.reason for ban in await control.bans()] == ["by hand"]
    assert await control.unban(Subject(chat=42))
    assert await bot.allowed(1) == 1


async def test_bots_are_operated_apart(storage: Storage) -> None:
    """Of two bots, by prefix or with `per_bot`, only the one that is named bans or forgives."""
    shop, news = (Limiter(storage, key_prefix=name, timeout=5) for name in ("shop", "news"))
    limits = await obeying("1/h", limiter=shop, per_bot=True)
    await Control(news, "anna").ban(SOMEBODY)
    control = Control(shop, "anna", patience=0)
    first, second = (ANNA._replace(bot=number) for number in (1, 2))
    with pytest.raises(ConfigError, match="name the bot's id"):
        await control.show(ANNA)
    shown = await control.show(first)
    assert (shown.banned, shown.counts[0].key) == (None, "shop:ratelimit:bot:1:42")
    await control.ban(SOMEBODY._replace(bot=1), "1h")
    assert (await control.show(first)).banned is not None
    assert (await control.show(second)).banned is None
    assert await control.unban(SOMEBODY._replace(bot=1))
    for subject in (first, second):
        await shop.hit(limits.rules, subject)
    assert await control.forgive(second) == ("user",)
    decisions = [(await control.try_(each)).decision for each in (first, second)]
    assert [each is not None and each.allowed for each in decisions] == [False, True]


async def test_statistics_are_those_of_the_bot(storage: Storage) -> None:
    """By hour for a chart, by rule for its use, the worst users, and how often one was refused."""
    limiter = Limiter(storage, timeout=5, statistics=True)
    is_shared = storage.source == "redis"  # then the operator is in another process
    reader = Limiter(storage, timeout=5, statistics=True) if is_shared else limiter
    control = Control(reader, "anna", patience=0)
    rules = [Rule("2/h"), Rule("100/h", Scope.GLOBAL)]
    await obeying(rules, limiter=limiter)
    for user in [42] * 5 + [43] * 3:
        await limiter.hit(rules, Subject(user=user))
    await limiter.ban(Subject(user=44))
    await limiter.hit(rules, Subject(user=44))
    await limiter._statistics.flush()  # type: ignore[union-attr]  # it is on
    *before, hour = await control.by_hour(3)
    assert (hour.allowed, hour.refused, hour.banned) == (4, 4, 1)
    assert [(each.allowed, each.refused) for each in before] == [(0, 0), (0, 0)]
    assert hour.at - before[0].at == timedelta(hours=2)
    minutes = await control.by_minute()
    assert len(minutes) in (60, 61)  # at the end of a minute
    assert minutes[-1].at - minutes[-60].at == timedelta(minutes=59)
    assert [sum(getattr(each, name) for each in minutes) for name in OUTCOMES] == [4, 4, 1]
    worst = [(each.user, each.count) for each in await control.top()]
    assert worst == [(42, 3), (43, 1), (44, 1)]
    assert [each.count for each in await control.top(1)] == [3]
    refused = [(await control.show(Subject(user=each))).refused for each in (42, 1)]
    assert refused == [3, 0]
    use = {each.rule.name: each for each in await control.use()}
    assert (use["user"].allowed, use["user"].refused, use["user"].remaining) == (4, 4, None)
    assert use["global"].remaining == 96
    assert await control.use(None) == await control.use(24)
    assert sum(each.count for each in await control.statistics(1)) == 9


async def test_what_the_bot_sends_is_seen(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests by method and outcome, 429s, what waits, blocks and broadcasts."""
    control = Control(Limiter(storage, timeout=5, statistics=True), "anna", patience=0)
    told = what_is_sent.sheet(ENGLISH, await control.sending())
    assert "needs OutgoingLimits(..., statistics=True)" in told.foot[0]
    async with sending(storage, monkeypatch):
        for hours in (None, 24):
            found = await control.sending(hours)
            (messages,), (block,), (running,) = found.requests, found.blocks, found.broadcasts
            assert (messages.method, messages.sent > 5, messages.failed) == ("SendMessage", True, 0)
            assert (found.floods, found.waiting > 0) == (1, True)
            assert (block.bot, block.scope, block.what) == (42, "chat", "7")
            assert 20 < block.until - time.time() <= 30
            assert (running.total, running.done > 5, running.per_second > 0) == (1_000, True, True)
        lines = " ".join(map(plain, what_is_sent.sheet(ENGLISH, found).lines))
        broadcast = r"Broadcast: \d+ of 1000 chats \(\d+ %\), .* left, sent \d"
        assert re.search(rf"Answers 429: 1\. {broadcast}", lines)
        assert re.search(r"Blocked by Telegram until 20.* UTC: messages to chat 7$", lines)
    assert (await control.sending()).broadcasts == ()  # the bot has ended


async def test_missing_statistics_are_an_error(
    bot: OperatedBot,
    environment: pytest.MonkeyPatch,
    redis_server: Server,
    client: aioredis.Redis,
) -> None:
    """A bot without statistics: an error with the fix, and no zeros.

    A bot without live limits does not report: then its statistics may be empty.
    """
    reader = Limiter(bot.control.limiter.storage, timeout=5, statistics=True)
    outside = Control(reader, "anna", patience=0)
    for control in (outside, bot.control):
        for call in (control.top, control.statistics, control.by_hour, control.use):
            with pytest.raises(ConfigError, match="pass statistics=True"):
                await call()
        assert (await control.show(ANNA)).refused is None
    environment.setenv("REDIS_URL", redis_server.url)
    environment.setenv("REDIS_KEY_PREFIX", "unreported")
    control = Control.from_settings(Settings(), "anna")
    assert await control.top() == ()
    assert {each.allowed for each in await control.by_hour()} == {0}
    assert (await control.show(ANNA)).refused is None
    await control.close()
    # In the bot's process, and from its settings, the rules are known without any report.
    own = Control.of(RateLimitMiddleware("3/h; 9/d", limiter=Limiter(MemoryStorage())), "anna")
    assert [rule.name for rule in await own.limits()] == ["user", "9/day", "bots:member"]
    environment.setenv("RATE_LIMIT", "7/h")
    (rule,) = await Control.from_settings(Settings(), "anna").limits()
    assert (rule.name, rule.limit, rule.origin) == ("user", "7/hour", "environment")


async def test_a_change_is_previewed(bot: OperatedBot) -> None:
    """Before and after, of the newest version, on how many instances; nothing is changed.

    A change that makes no sense is an error that says so, in the preview already.
    """
    preview = bot.control.preview
    found = await preview("messages", "2 per minute", shadow=True)
    assert (found.before.limit, found.after.limit) == ("3/hour", "2/minute")
    assert (found.before.shadow, found.after.shadow, found.after.off) == (False, True, False)
    assert (found.version, found.instances) == (0, 1)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"name": "massages", "limit": "2/h"}, "no rule is called 'massages': expected one of ban"),
        ({"name": "messages", "limit": "2 an hour"}, "'2 an hour'"),
        ({"name": "messages"}, "no change for 'messages'"),
        ({"name": "ban", "limit": "2/h"}, "'ban' is a penalty"),
        ({"name": "ban", "shadow": True}, "'ban' is a penalty"),
        ({"name": "chat", "default": True}, "'chat' has no live changes"),
        ({"name": "chat", "default": True, "off": True}, "default undoes all changes"),
    ]
    for change, told in wrong:
        for act in (preview, bot.control.set_rule):
            with pytest.raises(ConfigError, match=told):
                await act(**change)
    assert (await bot.control.changes.current()).version == 0
    await bot.control.set_rule("messages", "2/m", shadow=True, if_version=0)
    # The instances read and report it within two seconds.
    assert (await bot.control.limits())[0].limit == "3/hour"
    changed = await preview("messages", "1/h")
    assert (changed.before.limit, changed.before.shadow, changed.version) == ("2/minute", True, 1)
    await bot.refresh()
    back = await preview("messages", default=True)
    assert (back.before.limit, back.before.shadow) == ("2/minute", True)
    assert (back.after.limit, back.after.shadow, back.version) == ("3/hour", False, 1)
    await bot.control.changes.rollback(0)
    dropped = await preview("messages", "1/h")
    assert (dropped.before.limit, dropped.before.shadow) == ("3/hour", False)
