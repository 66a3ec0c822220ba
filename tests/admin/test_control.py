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
from tests.admin.web import sending
from tests.incoming.support import Instance
from tests.servers import Server, running_cluster

OUTCOMES = ("allowed", "refused", "banned")
ANNA = Subject(user=42, chat=42)
PENALTY = Penalty("2/h", "1h")


class OperatedBot(NamedTuple):
    """A bot, and an operator in another process."""

    instance: Instance
    middleware: RateLimitMiddleware
    control: Control

    async def allowed(self, times: int) -> int:
        await self.refresh()
        return sum(await self.instance.send(*["hi"] * times))

    async def refresh(self) -> None:
        assert self.middleware.live is not None
        await self.middleware.live.refresh()


async def obeying(*rules: Any, **options: Any) -> RateLimitMiddleware:
    """A middleware that has read the live limits and reports its rules."""
    middleware = RateLimitMiddleware(*rules, live=True, **options)
    assert middleware.live is not None
    await middleware.live.refresh()
    return middleware


def rules() -> list[Rule]:
    return [Rule("3/h", name="messages"), Rule("100/h", Scope.CHAT), Rule("50/h", Scope.GLOBAL)]


@pytest.fixture
async def bot(storage: Storage) -> AsyncIterator[OperatedBot]:
    limiter = Limiter(storage, timeout=5)
    middleware = RateLimitMiddleware(rules(), limiter=limiter, live=True, penalty=PENALTY)
    instance = Instance(middleware, ())
    middleware.setup(instance.dispatcher)
    instance.dispatcher.message.register(instance._handle)
    await instance.dispatcher.emit_startup()
    operator = Limiter(storage, timeout=5)
    yield OperatedBot(instance, middleware, Control(operator, "anna@shell", patience=0))
    await instance.dispatcher.emit_shutdown()


async def test_limits_are_those_in_force(bot: OperatedBot) -> None:
    """Every rule of the bot is listed with its name, scope, key and origin, also when changed."""
    found = {rule.name: rule for rule in await bot.control.limits()}
    assert list(found) == ["messages", "chat", "global", "ban", "bots:member"]
    assert (found["messages"].limit, found["messages"].scope) == ("3/hour", "user")
    assert (found["ban"].ban_ms, found["ban"].origin) == (3_600_000, "code")
    await bot.control.set_rule("messages", "2/minute", shadow=True)
    await bot.refresh()
    changed = {rule.name: rule for rule in await bot.control.limits()}["messages"]
    assert (changed.limit, changed.shadow, changed.origin) == ("2/minute", True, "live")
    assert changed.otherwise == "3/hour"
    assert changed.rule() == Rule("2/minute", name="messages", shadow=True)


async def test_a_users_whole_state_is_shown_without_charging(bot: OperatedBot) -> None:
    """The view has what is left, the wait and the key of each rule; reading it charges nothing."""
    await bot.allowed(4)
    for _ in range(3):
        found = await bot.control.show(ANNA)
    counts = {each.rule: each for each in found.counts}
    assert not found.allowed
    assert [counts[name].allowed for name in ("messages", "chat")] == [False, True]
    assert (counts["messages"].remaining, counts["messages"].capacity) == (0, 3)
    assert 3_590 < counts["messages"].retry_after <= 3_600
    assert found.retry_after == counts["messages"].retry_after
    assert counts["messages"].key == "bot:ratelimit:messages:42"
    assert counts["chat"].remaining == 97
    stranger = await bot.control.show(Subject(user=1))
    assert stranger.allowed
    assert {each.rule: each.remaining for each in stranger.counts}["messages"] == 3


async def test_a_refused_user_is_forgiven_and_gets_through(bot: OperatedBot) -> None:
    """Counts and bans are deleted, all or rule by rule; shared counts stay."""
    assert await bot.allowed(7) == 3
    assert not (await bot.control.show(ANNA)).allowed
    assert await bot.control.forgive(ANNA, ["messages"]) == ("messages",)
    assert await bot.allowed(1) == 0  # still banned
    assert set(await bot.control.forgive(ANNA)) == {"chat", "ban"}
    assert await bot.allowed(1) == 1
    remaining = {each.rule: each.remaining for each in (await bot.control.show(ANNA)).counts}
    assert remaining["global"] == 46
    assert await bot.control.forgive(Subject(user=5)) == ()


async def test_a_test_call_says_what_would_be_decided(bot: OperatedBot) -> None:
    """Allowed with what is left, refused with the wait, or free: exempt, or all limits off."""
    decision = (await bot.control.try_(ANNA)).decision
    assert decision is not None
    assert (decision.allowed, decision.remaining) == (True, 3)
    await bot.allowed(4)
    found = await bot.control.try_(ANNA)
    assert found.decision is not None
    assert not found.allowed
    assert 3_590 < found.decision.retry_after <= 3_600
    await bot.control.changes.set_exempt(42, True)
    assert (await bot.control.try_(ANNA)).exempt
    await bot.control.changes.set_exempt(42, False)
    await bot.control.changes.pause("1h")
    found = await bot.control.try_(ANNA)
    assert (found.allowed, found.off_until > 0) == (True, True)
    assert (await bot.control.show(ANNA)).off_until > 0
    with pytest.raises(ConfigError, match="no rule is called 'ai': expected one of ban, bots:mem"):
        await bot.control.try_(ANNA, "ai")


async def test_each_change_holds_and_can_be_rolled_back(bot: OperatedBot) -> None:
    """Limits, switches, penalty and pause change, and a rollback restores each version."""
    control, changes = bot.control, bot.control.changes
    assert (await control.set_rule("messages", "1/h")).version == 1
    assert await bot.allowed(3) == 1
    assert (await control.set_rule("messages", off=True)).version == 2
    await control.set_rule("ban", off=True)
    assert await bot.allowed(3) == 3
    await changes.rollback(1)
    await bot.refresh()
    assert await control.forgive(ANNA)
    assert await bot.allowed(2) == 1
    await changes.rollback()
    assert (await changes.current()).rules == {"messages": {"limit": "1/hour", "off": True},
                                               "ban": {"off": True}}  # fmt: skip
    await changes.rollback(0)
    await control.forgive(ANNA)
    assert await bot.allowed(4) == 3
    await changes.set_penalty("1/h", "2h")
    await changes.pause("10m")
    assert await bot.allowed(9) == 9
    await changes.resume()
    await changes.set_penalty(None)
    assert (await changes.current()).penalty is None
    assert [each.version for each in await changes.history()] == list(range(10, 0, -1))
    with pytest.raises(ConfigError, match="there is no version 99 to roll back to: expected 0, 1"):
        await changes.rollback(99)


async def test_only_the_last_20_versions_and_200_changes_are_kept(bot: OperatedBot) -> None:
    """History and audit are bounded, and say when, who, what, and what was different."""
    for number in range(1, 206):
        await bot.control.changes.set_exempt(number, True)
    assert [each.version for each in await bot.control.changes.history()] == [*range(205, 185, -1)]
    audit = await bot.control.audit()
    assert len(audit) == 200
    assert (audit[0].by, audit[0].what) == ("anna@shell", "exempt 205")
    assert audit[0].changed == ("exempt: 205 added",)
    assert audit[0].at == pytest.approx((await bot.control.changes.current()).at, abs=2)


async def test_rolling_back_does_not_drop_what_came_meanwhile(
    bot: OperatedBot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a version, a rollback is of the version that was newest when it was asked for."""
    changes, boris = bot.control.changes, Control(bot.control.limiter, "boris@web", patience=0)
    await bot.control.set_rule("messages", "2/minute")
    look = changes.current

    async def slow_look() -> Overrides:
        found = await look()
        await boris.set_rule("chat", "1/minute")
        return found

    monkeypatch.setattr(changes, "current", slow_look)
    with pytest.raises(ConflictError, match="boris@web changed the live limits in the meantime"):
        await changes.rollback()
    assert set((await boris.changes.current()).rules) == {"messages", "chat"}


async def test_history_and_audit_say_what_changed(bot: OperatedBot) -> None:
    """A line for each difference, with the old and the new value; no JSON."""
    changes = bot.control.changes
    await bot.control.set_rule("messages", "2/minute")
    await bot.refresh()
    await bot.control.set_rule("messages", "9/minute", shadow=True)
    await bot.control.set_rule("chat", off=True)
    await changes.set_penalty("5/hour", "2h")
    await changes.set_exempt(42, False)
    await changes.pause("1h")
    await changes.rollback(1)
    said = [each.changed for each in await bot.control.audit()]
    assert said == [each.changed for each in await bot.control.history()]
    assert said[1:] == [
        (said[1][0],),
        ("not exempt: 42 added",),
        ("penalty: as configured -> 2h after 5/hour",),
        ("chat: 100/hour -> 100/hour (off)",),
        ("messages: 2/minute -> 9/minute (trial)",),
        ("messages: 3/hour -> 2/minute",),
    ]
    assert re.fullmatch(r"all limits: on -> off until 20[-\d]+ [:\d]+ UTC", said[1][0])
    assert said[0] == (
        "chat: 100/hour (off) -> 100/hour",
        "messages: 9/minute (trial) -> 2/minute",
        "penalty: 2h after 5/hour -> as configured",
        "not exempt: 42 removed",
        said[1][0].replace("on -> off", "off") + " -> on",
    )


async def test_a_handler_without_a_flag_gets_a_limit_of_its_own(bot: OperatedBot) -> None:
    """By the name that is listed, on every instance, previewed, in the history, and taken away."""
    await bot.refresh()
    (name,) = (await bot.control.instances())[0].handlers
    assert name.endswith("Instance._handle")
    with pytest.raises(ConfigError, match="has no limit of its own: give it one"):
        await bot.control.set_rule(name, off=True)
    seen = await bot.control.preview(name, "2/h")
    assert limit_of(ENGLISH, seen.before) == "as every handler"
    assert (seen.after.limit, seen.before.where) == ("2/hour", name)
    await bot.control.set_rule(name, "2/h", if_version=seen.version)
    assert await bot.allowed(5) == 2
    views = {each.name: each for each in await bot.control.limits()}
    assert (views[name].limit, views[name].where, views[name].origin) == ("2/hour", name, "live")
    counts = {each.rule: each.remaining for each in (await bot.control.show(ANNA)).counts}
    assert (counts[name], counts["messages"]) == (0, 3)
    changed = (f"{name}: as configured -> 2/hour",)
    assert (await bot.control.history())[0].changed == changed
    assert (await bot.control.audit())[0].changed == changed
    assert name in await bot.control.forgive(ANNA)
    await bot.control.set_rule(name, "1/h", shadow=True)
    assert await bot.allowed(3) == 3
    back = await bot.control.preview(name, default=True)
    assert limit_of(ENGLISH, back.after) == "as every handler"
    await bot.control.set_rule(name, default=True)
    assert await bot.allowed(9) == 3
    assert name not in {each.name for each in await bot.control.limits()}


async def test_a_forgotten_pause_does_not_look_healthy(bot: OperatedBot) -> None:
    """While all limits are off, health is degraded and says until when and by whom."""
    assert (await bot.control.health()).status == "healthy"
    await bot.control.changes.pause("1h")
    await bot.refresh()
    found = await bot.control.health()
    assert (found.ok, found.status, found.off_by) == (True, "degraded", "anna@shell")
    for sheet in (
        sheets.health(ENGLISH, found),
        sheets.limits(ENGLISH, await bot.control.config()),
        sheets.trial(ENGLISH, await bot.control.try_(ANNA)),
        sheets.subject(ENGLISH, await bot.control.show(ANNA)),
    ):
        assert any("All limits are off until 20" in line for line in sheet.lines)
    await bot.control.changes.resume()
    await bot.refresh()
    assert (await bot.control.health()).status == "healthy"


async def test_a_pause_names_who_paused(bot: OperatedBot) -> None:
    """A change during a pause does not alter who is named as having switched the limits off."""
    await bot.control.changes.pause("1h")
    boris = Control(bot.control.limiter, "boris@web", patience=0)
    await boris.changes.set_exempt(7, True)
    await bot.refresh()
    for line in (
        sheets.health(ENGLISH, await boris.health()).lines[0],
        sheets.limits(ENGLISH, await boris.config()).lines[0],
    ):
        assert line.endswith(", by anna@shell.")
    await boris.changes.resume()
    await boris.changes.rollback(2)
    assert (await boris.health()).off_by == "anna@shell"


async def test_a_penalty_is_not_what_is_left(bot: OperatedBot) -> None:
    """A penalty limits nobody who is not refused, so a test call never names it as the nearest."""
    for name in ("messages", "chat", "global"):
        await bot.control.set_rule(name, off=True)
    await bot.refresh()
    found = await bot.control.try_(ANNA)
    assert sheets.trial(ENGLISH, found).lines == ["Allowed: no limit applies."]


@pytest.mark.parametrize("policy", ["allow", "deny", "memory"])
async def test_a_pause_that_goes_on_in_an_outage_is_told(policy: Any) -> None:
    """While Redis is empty or down, the bot obeys the pause, and its operators read that."""
    storage = FlakyStorage()
    storage.source = "redis"
    limiter = Limiter(storage, on_error=policy)
    middleware = RateLimitMiddleware("1/h", limiter=limiter, live=True)
    control = Control.of(middleware, "anna@web", patience=0)
    await control.changes.pause("1h")
    assert middleware.live is not None
    await middleware.live.refresh()
    await control.clear(everything=True)
    assert (await control.health()).off_by == "anna@web"
    storage.fail()
    paused, meanwhile, *_ = sheets.health(ENGLISH, await control.health()).lines
    assert re.fullmatch("All limits are off until 20.* UTC, by anna@web.", paused)
    assert "meanwhile the bot handles every update, without a limit" in meanwhile
    status, ready = await get(health_app(middleware), "/ready")
    assert (status, ready["status"], ready["all_limits_off"]) == (200, "degraded", True)


async def test_an_instance_behind_comes_before_the_latency(bot: OperatedBot) -> None:
    """A degraded state begins with what is degraded."""
    await bot.control.set_rule("messages", "2/h")
    lines = sheets.health(ENGLISH, (await bot.control.health())).lines
    if bot.control.limiter.storage.source == "redis":
        assert lines[0] == "Instances that do not obey version 1 yet: 1."


@pytest.mark.parametrize(
    ("policy", "meanwhile"),
    [
        ("allow", "the bot handles every update, without a limit"),
        ("deny", "the bot refuses every update"),
        ("memory", "each instance counts for itself"),
    ],
)
async def test_an_outage_says_first_what_it_means_for_users(
    environment: pytest.MonkeyPatch, policy: str, meanwhile: str
) -> None:
    """The first sentence says what happens meanwhile, by the policy of the bot; then why.

    Looking at a user is an error, not a guess.
    """
    environment.setenv("REDIS_URL", "redis://127.0.0.1:1")
    environment.setenv("RATE_LIMIT_ON_ERROR", policy)
    control = Control.from_settings(Settings(), "anna", patience=0)
    found = await control.health()
    assert not found.ok
    assert "127.0.0.1:1" in found.problem
    first, second = sheets.health(ENGLISH, found).lines
    assert first == f"Redis does not answer: meanwhile {meanwhile}."
    assert "127.0.0.1:1" in second
    assert " ms" not in second
    with pytest.raises(StorageError):
        await control.show(ANNA)
    await control.close()


async def test_an_entry_of_a_newer_version_does_not_hide_the_audit(bot: OperatedBot) -> None:
    """While instances are updated, an older one lists the entries that it can read."""
    await bot.control.ban(ANNA, "1h")
    documents = bot.control.limiter.storage.documents()
    for raw in (b'{"at": 1, "by": "new", "newer": 2}', b"[]", b"x"):
        await documents.push("bot:ratelimit:audit", raw, 200)
    assert [entry.what for entry in await bot.control.audit()] == ["ban user 42"]


async def test_two_admins_do_not_overwrite_each_other(bot: OperatedBot) -> None:
    """Simultaneous changes are all kept; a change of an outdated version is refused."""
    other = Control(Limiter(bot.control.limiter.storage, timeout=5), "boris", patience=0)
    await asyncio.gather(
        bot.control.set_rule("messages", "2/h"),
        other.set_rule("chat", "9/h"),
        other.changes.set_exempt(7, True),
    )
    live = await bot.control.changes.current()
    assert live.rules == {"messages": {"limit": "2/hour"}, "chat": {"limit": "9/hour"}}
    assert (live.version, live.exempt) == (3, {7})
    await other.set_rule("messages", "8/h", if_version=3)
    with pytest.raises(ConflictError, match=r"boris changed the live limits in .*\(set messag"):
        await bot.control.set_rule("messages", "9/h", if_version=3)
    assert (await bot.control.changes.current()).rules["messages"] == {"limit": "8/hour"}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"name": "massages", "limit": "2/h"}, "no rule is called 'massages': expected one of ban"),
        ({"name": "messages", "limit": "2 an hour"}, "'2 an hour'"),
        ({"name": "messages"}, "no change for 'messages'"),
        ({"name": "ban", "limit": "2/h"}, "'ban' is a penalty"),
    ],
)
async def test_a_change_that_makes_no_sense_is_refused(
    bot: OperatedBot, change: dict[str, Any], told: str
) -> None:
    """An unknown rule, a bad limit, no change at all: an error that says so, and no new version."""
    with pytest.raises(ConfigError) as raised:
        await bot.control.set_rule(**change)
    assert told in str(raised.value)
    assert (await bot.control.changes.current()).version == 0


async def test_an_invalid_document_is_replaced_by_a_roll_back(bot: OperatedBot) -> None:
    """Changes refuse to build on it and say how to get out; rollback restores the last good one."""
    await bot.control.set_rule("messages", "2/h")
    documents = bot.control._documents
    good = await documents.read("bot:ratelimit:live")
    assert await documents.swap("bot:ratelimit:live", good, b"nonsense")
    with pytest.raises(ConfigError, match="is not JSON; a rollback replaces it with the last good"):
        await bot.control.set_rule("messages", "9/h")
    await bot.control.changes.rollback()
    live = await bot.control.changes.current()
    assert (live.version, live.rules) == (2, {"messages": {"limit": "2/hour"}})
    assert await bot.allowed(3) == 2


async def test_a_roll_back_to_a_version_that_redis_has_lost_drops_nothing(bot: OperatedBot) -> None:
    """After Redis was emptied only the newest version is known: to drop it has to be said."""
    changes = bot.control.changes
    await bot.control.set_rule("messages", "2/h")
    await bot.control.set_rule("chat", "20/h")
    await bot.refresh()
    await bot.control.clear(everything=True)
    await bot.refresh()  # writes the newest version back
    assert [each.version for each in await changes.history()] == [2]
    with pytest.raises(ConfigError, match="Redis has lost the previous version: roll back"):
        await changes.rollback()
    assert (await changes.current()).rules.keys() == {"messages", "chat"}
    assert (await changes.rollback(0)).rules == {}


async def test_an_invalid_document_hides_nothing(bot: OperatedBot) -> None:
    """Limits and counts are shown by the last good version, with the problem; actions work."""
    await bot.control.set_rule("messages", "2/h")
    assert await bot.allowed(3) == 2
    documents = bot.control._documents
    good = await documents.read("bot:ratelimit:live")
    assert await documents.swap("bot:ratelimit:live", good, b"nonsense")
    await bot.refresh()
    config, shown = await bot.control.config(), await bot.control.show(ANNA)
    assert (config.live.version, config.behind) == (1, 0)
    assert config.problem.endswith("is not JSON; a rollback replaces it with the last good version")
    assert (shown.allowed, shown.counts[0].capacity) == (False, 2)
    assert not (await bot.control.try_(ANNA)).allowed
    await bot.control.forgive(ANNA)
    assert await bot.allowed(1) == 1


async def test_clear_forgets_counts_and_keeps_the_live_limits(
    bot: OperatedBot, client: aioredis.Redis
) -> None:
    """Only this bot's counts are deleted; live limits and audit are deleted only on request."""
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
    assert (await bot.control.changes.current()).version == 0


async def test_config_says_what_won_and_who_obeys(
    bot: OperatedBot, environment: pytest.MonkeyPatch
) -> None:
    """The version, the instances behind it, and each setting with where it comes from."""
    environment.setenv("RATE_LIMIT_TIMEOUT", "0.5")
    environment.setenv("REDIS_PASSWORD", "hunter2")
    control = Control(bot.control.limiter, "anna", settings=Settings(), patience=0)
    await control.set_rule("messages", "2/h")
    found = await control.config()
    assert (found.live.version, len(found.instances), found.behind) == (1, 1, 1)
    await bot.refresh()
    assert (await control.config()).behind == 0
    assert [each.version for each in await control.wait_for(1)] == [1]
    settings = {each.name: each for each in found.settings}
    assert settings["RATE_LIMIT_TIMEOUT"].origin == "environment"
    assert settings["RATE_LIMIT"].origin == "code"
    assert "hunter2" not in str(found)


async def test_instances_with_different_limits_are_told_apart(
    storage: Storage, bot: OperatedBot, capsys: pytest.CaptureFixture[str]
) -> None:
    """During a deployment, `config` names the rules of an instance that differ from the list."""
    limiter = Limiter(storage, timeout=5)
    newer = await obeying([Rule("9/h", name="messages")], limiter=limiter)
    assert newer.live is not None
    found = await bot.control.config()
    others = [rule for each in found.instances for rule in found.differing(each)]
    listed = [rule.limit for rule in found.rules if rule.name == "messages"]
    assert {*listed, *(rule.limit for rule in others)} == {"3/hour", "9/hour"}
    assert len(others) == 1
    terminal.say(terminal.laid_out(sheets.config(ENGLISH, found)))
    assert "other limits: messages " in capsys.readouterr().out
    await newer.live.stop()


async def test_an_unreadable_report_is_shown(bot: OperatedBot) -> None:
    """An instance of another version of the package is listed, and hides none of the others."""
    odd = b'{"version": 1, "rejected": 0, "problem": "", "rules": [1]}'
    for report in (b"nonsense", b"{}", odd):
        await bot.control._documents.report("bot:ratelimit:instances", "odd", report, 30)
        found = {each.name: each for each in await bot.control.instances()}
        assert len(found) == 2
        assert found["odd"].problem == "its report cannot be read"
    assert len(await bot.control.limits()) == 5


async def test_health_says_what_is_wrong(bot: OperatedBot) -> None:
    """Health is ok if the storage answers and the instances obey the newest version."""
    found = await bot.control.health()
    assert (found.ok, found.problem, found.instances, found.behind) == (True, "", 1, 0)
    documents = bot.control._documents
    await documents.swap("bot:ratelimit:live", None, b"nonsense")
    await bot.refresh()
    assert "is not JSON" in (await bot.control.health()).problem


async def test_a_cluster_is_operated_like_one_server(tmp_path: Path) -> None:
    """Live limits, looking and forgiving work on a Redis Cluster; clearing needs a hash tag."""
    with running_cluster(tmp_path) as server:
        async with RedisCluster(host="127.0.0.1", port=server.port) as client:
            storage = RedisStorage(client)
            for prefix, clears in (("bot", False), ("{bot}", True)):
                limiter = Limiter(storage, key_prefix=prefix, timeout=5)
                middleware = await obeying("5/h", limiter=limiter)
                assert middleware.live is not None
                control = Control(limiter, "anna", patience=0)
                await control.set_rule("user", "2/h")
                await middleware.live.refresh()
                applied = middleware.live.applied(middleware.rules)
                assert applied == (Rule("2/h"),)
                await limiter.hit(applied, ANNA)
                assert (await control.show(ANNA)).counts[0].remaining == 1
                if clears:
                    assert await control.clear() == 1
                else:
                    assert await control.forgive(ANNA) == ("user",)
                    with pytest.raises(
                        ConfigError, match=r"with a hash tag, '\{my_bot\}', is on one"
                    ):
                        await control.clear()
            await storage.close()


SOMEBODY = Subject(user=42)


async def test_a_ban_by_hand_is_shown_and_audited(bot: OperatedBot) -> None:
    """Until when, by whom and why; counts stay visible behind it; `try` says banned."""
    await bot.allowed(1)
    ban = await bot.control.ban(SOMEBODY, "1h", "spam")
    assert (ban.subject, ban.reason, ban.by) == (SOMEBODY, "spam", "anna@shell")
    (listed,) = await bot.control.bans()
    assert (listed.subject, listed.reason, listed.by) == (SOMEBODY, "spam", "anna@shell")
    assert await bot.control.bans(0, 1) == [listed]
    assert await bot.control.bans(1) == []
    found = await bot.control.show(ANNA)
    assert found.banned == listed
    assert (found.allowed, found.exempt) == (False, False)
    assert 3_590 < found.retry_after <= 3_601
    counts = {each.rule: each for each in found.counts}
    assert (counts["messages"].remaining, counts["messages"].allowed) == (2, True)
    decision = (await bot.control.try_(ANNA)).decision
    assert decision is not None
    assert (decision.allowed, decision.banned) == (False, True)
    await bot.control.ban(SOMEBODY, "forever")
    shown = await bot.control.show(ANNA)
    assert shown.banned is not None
    assert (shown.banned.until, shown.retry_after) == (None, FOREVER)
    assert await bot.control.unban(SOMEBODY)
    assert not await bot.control.unban(SOMEBODY)
    assert (await bot.control.show(ANNA)).banned is None
    entries = [(each.by, each.what, each.changed) for each in await bot.control.audit()]
    until = f"until {listed.until:%Y-%m-%d %H:%M:%S} UTC, by anna@shell, spam"
    assert entries == [
        ("anna@shell", "unban user 42", ()),
        ("anna@shell", "unban user 42", ("forever, by anna@shell -> not banned",)),
        ("anna@shell", "ban user 42", (f"{until} -> forever, by anna@shell",)),
        ("anna@shell", "ban user 42", (f"not banned -> {until}",)),
    ]


async def test_a_ban_of_a_chat_applies_to_its_members(bot: OperatedBot) -> None:
    """If several bans refuse a user, the one that ends last is shown."""
    member = Subject(user=42, chat=-100)
    await bot.control.ban(Subject(user=42), "1h", "of the user")
    await bot.control.ban(Subject(chat=-100), "2h", "of the chat")
    await bot.control.ban(Subject(user=7, chat=-100), "3h", "of somebody else")
    reasons = {}
    for subject in (ANNA, member, Subject(chat=-100), Subject(user=7, chat=-100), Subject(user=1)):
        banned = (await bot.control.show(subject)).banned
        reasons[subject] = None if banned is None else banned.reason
    assert list(reasons.values()) == [
        "of the user", "of the chat", "of the chat", "of somebody else", None
    ]  # fmt: skip
    assert [ban.reason for ban in await bot.control.bans(1, 1)] == ["of the chat"]


async def test_a_ban_by_a_penalty_is_shown_and_lifted_by_forgiving(bot: OperatedBot) -> None:
    """It is listed at once with its reason; forgiving removes it, and a ban by hand stays."""
    await bot.allowed(7)
    for _ in range(2):  # the second time it is on the list for certain
        banned = (await bot.control.show(ANNA)).banned
        assert banned is not None
        assert (banned.by, banned.key) == ("penalty", "bot:ratelimit:ban:42")
        assert banned.until is not None
        assert 3_590 < (banned.until - banned.since).total_seconds() <= 3_601
        await asyncio.gather(*bot.middleware.limiter._bans._writes)
    await bot.control.set_rule("ban", off=True)
    await bot.refresh()
    assert (await bot.control.show(ANNA)).banned is None  # no such penalty is in force
    await bot.control.changes.rollback()
    await bot.refresh()
    await bot.control.ban(Subject(user=42), "2h", "by hand")
    assert "ban" in await bot.control.forgive(ANNA)
    await asyncio.gather(*bot.control.limiter._bans._writes)  # the list is written behind it
    assert [ban.reason for ban in await bot.control.bans()] == ["by hand"]
    assert await bot.control.unban(SOMEBODY)
    assert await bot.allowed(1) == 1


async def until_banned(limiters: list[Limiter], expected: bool) -> None:
    """Wait until all know of a ban, or of its end: they look at the list twice a second."""
    async with asyncio.timeout(5):
        while {each.is_banned(SOMEBODY) for each in limiters} != {expected}:  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.02)


async def test_forgiving_and_unbanning_work_on_every_instance(
    client: aioredis.Redis,
) -> None:
    """On two instances and for two operators: a refused, then banned user is let in at once."""
    instances, limiters = [], []
    for _ in range(2):
        middleware = RateLimitMiddleware("3/h", client, timeout=5, penalty=PENALTY, live=True)
        limiters.append(middleware.limiter)
        instances.append(Instance(middleware, ()))
        middleware.setup(instances[-1].dispatcher)
        instances[-1].dispatcher.message.register(instances[-1]._handle)
        await instances[-1].dispatcher.emit_startup()
    first, second = (
        Control(Limiter(RedisStorage(client), timeout=5), by, patience=0)
        for by in ("anna", "boris")
    )
    one, other = instances
    assert await one.send(*"1234567") == [True] * 3 + [False] * 4
    assert await other.send("8") == [False]
    assert set(await first.forgive(ANNA)) == {"user", "ban"}
    assert await other.send("9") == [True]
    assert await one.send("10") == [True]
    await second.ban(SOMEBODY, "1h", "spam")
    decision = (await first.try_(ANNA)).decision
    assert decision is not None
    assert decision.banned
    shown = (await first.show(ANNA)).banned
    assert shown is not None
    assert (shown.by, shown.reason) == ("boris", "spam")
    await until_banned(limiters, True)
    assert [await each.send("11") for each in instances] == [[False], [False]]
    assert await first.unban(SOMEBODY)
    await until_banned(limiters, False)
    assert [await each.send("12") for each in instances] == [[True], [False]]  # 3 of 3
    for each in instances:
        await each.dispatcher.emit_shutdown()
    for control in (first, second):
        await control.close()


async def test_bots_are_operated_apart(storage: Storage) -> None:
    """Of two bots, by prefix or with `per_bot`, only the one that is named bans or forgives."""
    shop, news = (Limiter(storage, key_prefix=name, timeout=5) for name in ("shop", "news"))
    limits = await obeying("1/h", limiter=shop, per_bot=True)
    await Control(news, "anna").ban(SOMEBODY)
    control = Control(shop, "anna", patience=0)
    first, second = (ANNA._replace(bot=number) for number in (1, 2))
    assert (await control.show(first)).banned is None
    await control.ban(SOMEBODY._replace(bot=1), "1h")
    assert (await control.show(first)).banned is not None
    assert (await control.show(second)).banned is None
    assert await control.unban(SOMEBODY._replace(bot=1))
    for subject in (first, second):
        await shop.hit(limits.rules, subject)
    assert await control.forgive(second) == ("user",)
    decisions = [(await control.try_(each)).decision for each in (first, second)]
    assert [each is not None and each.allowed for each in decisions] == [False, True]


@pytest.fixture
def counting(storage: Storage) -> tuple[Limiter, Control]:
    """A limiter with statistics, and an operator in another process, if the storage is shared."""
    limiter = Limiter(storage, timeout=5, statistics=True)
    reader = limiter
    if storage.source == "redis":
        reader = Limiter(storage, timeout=5, statistics=True)
    return limiter, Control(reader, "anna", patience=0)


async def test_statistics_are_those_of_the_bot(counting: tuple[Limiter, Control]) -> None:
    """By hour for a chart, by rule for its use, the worst users, and how often one was refused."""
    limiter, control = counting
    rules = [Rule("2/h"), Rule("100/h", Scope.GLOBAL)]
    await obeying(rules, limiter=limiter)
    for user, times in ((42, 5), (43, 3)):
        for _ in range(times):
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
    sums = [
        sum(getattr(each, name) for each in minutes) for name in ("allowed", "refused", "banned")
    ]
    assert sums == [4, 4, 1]
    worst = [(each.user, each.count) for each in await control.top()]
    assert worst == [(42, 3), (43, 1), (44, 1)]
    assert [each.count for each in await control.top(1)] == [3]
    assert (await control.show(ANNA)).refused == 3
    assert (await control.show(Subject(user=1))).refused == 0
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
            (messages,) = found.requests
            assert (messages.method, messages.sent > 5, messages.failed) == ("SendMessage", True, 0)
            assert (found.floods, found.waiting > 0) == (1, True)
            (block,) = found.blocks
            assert (block.bot, block.scope, block.what) == (42, "chat", "7")
            assert 20 < block.until - time.time() <= 30
            (running,) = found.broadcasts
            assert (running.total, running.done > 5, running.per_second > 0) == (1_000, True, True)
        lines = " ".join(map(plain, what_is_sent.sheet(ENGLISH, found).lines))
        assert re.search(
            r"Answers 429: 1\. Broadcast: \d+ of 1000 chats \(\d+ %\), .* left, sent \d", lines
        )
        assert re.search(r"Blocked by Telegram until 20.* UTC: messages to chat 7$", lines)
    assert (await control.sending()).broadcasts == ()  # the bot has ended


async def test_a_preview_is_of_the_newest_version(bot: OperatedBot) -> None:
    """Also in the two seconds in which the instances have not read and reported it yet."""
    await bot.control.set_rule("messages", "2/h", shadow=True)
    assert (await bot.control.limits())[0].limit == "3/hour"  # what holds on the instance now
    changed = await bot.control.preview("messages", "1/h")
    assert (changed.before.limit, changed.before.shadow, changed.version) == ("2/hour", True, 1)
    await bot.refresh()
    await bot.control.changes.rollback(0)
    dropped = await bot.control.preview("messages", "1/h")
    assert (dropped.before.limit, dropped.before.shadow) == ("3/hour", False)


async def test_a_rule_that_nobody_reports_now_may_come_back(bot: OperatedBot) -> None:
    """After Redis was emptied the reports are missing for seconds; the error says what to do."""
    await bot.control.clear(everything=True)
    with pytest.raises(ConfigError, match=r"no running bot reports .* repeat it in a few seconds"):
        await bot.control.set_rule("messages", "1/h")


async def test_missing_statistics_are_an_error(bot: OperatedBot) -> None:
    """A bot without statistics: an error with the fix, and no zeros."""
    reader = Limiter(bot.control.limiter.storage, timeout=5, statistics=True)
    outside = Control(reader, "anna", patience=0)
    for control in (outside, bot.control):
        for call in (control.top, control.statistics, control.by_hour, control.use):
            with pytest.raises(ConfigError, match="pass statistics=True"):
                await call()
        assert (await control.show(ANNA)).refused is None


async def test_without_a_report_statistics_may_be_empty(
    environment: pytest.MonkeyPatch, redis_server: Server, client: aioredis.Redis
) -> None:
    """A bot without live limits does not report: then no statistics are shown as zeros."""
    environment.setenv("REDIS_URL", redis_server.url)
    control = Control.from_settings(Settings(), "anna")
    assert await control.top() == ()
    assert {each.allowed for each in await control.by_hour()} == {0}
    assert (await control.show(ANNA)).refused is None
    await control.close()


async def test_a_change_is_previewed(bot: OperatedBot) -> None:
    """Before, after, on how many instances, of which version; nothing is changed."""
    found = await bot.control.preview("messages", "2 per minute", shadow=True)
    assert (found.before.limit, found.after.limit) == ("3/hour", "2/minute")
    assert (found.before.shadow, found.after.shadow, found.after.off) == (False, True, False)
    assert (found.version, found.instances) == (0, 1)
    assert (await bot.control.changes.current()).version == 0
    await bot.control.set_rule("messages", "2/m", shadow=True, if_version=found.version)
    await bot.refresh()
    back = await bot.control.preview("messages", default=True)
    assert (back.before.limit, back.before.shadow) == ("2/minute", True)
    assert (back.after.limit, back.after.shadow, back.version) == ("3/hour", False, 1)
    for wrong in (("chat", None, True), ("massages", "1/h", False), ("messages", "1 h", False)):
        with pytest.raises(ConfigError):
            await bot.control.preview(wrong[0], wrong[1], default=wrong[2])
    with pytest.raises(ConfigError, match="'ban' is a penalty"):
        await bot.control.preview("ban", shadow=True)


async def test_per_bot_counts_need_the_bots_id() -> None:
    """With `per_bot` the subject has to name the bot; otherwise wrong counts would be shown."""
    limiter = Limiter(MemoryStorage())
    control = Control.of(await obeying("3/h", limiter=limiter, per_bot=True), "anna")
    with pytest.raises(ConfigError, match="name the bot's id"):
        await control.show(ANNA)
    count, *_ = (await control.show(ANNA._replace(bot=1))).counts
    assert count.key == "bot:ratelimit:bot:1:42"


async def test_without_live_the_bots_own_rules_are_known(environment: pytest.MonkeyPatch) -> None:
    """In the bot's process, and from its settings, the rules are known without any report."""
    limiter = Limiter(MemoryStorage())
    own = Control.of(RateLimitMiddleware("3/h; 9/d", limiter=limiter), "anna")
    assert [rule.name for rule in await own.limits()] == ["user", "9/day", "bots:member"]
    environment.setenv("RATE_LIMIT", "7/h")
    (rule,) = await Control.from_settings(Settings(), "anna").limits()
    assert (rule.name, rule.limit, rule.origin) == ("user", "7/hour", "environment")
