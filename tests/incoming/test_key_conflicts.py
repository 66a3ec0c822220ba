"""One key, one limit: what middlewares and flags may share; `reset`."""

from __future__ import annotations

from typing import Any

import pytest
import redis.asyncio as aioredis
from aiogram import Dispatcher, Router
from aiogram.dispatcher.event.bases import SkipHandler
from aiogram.types import CallbackQuery, Message
from fakeredis import FakeAsyncRedis, FakeServer

from bot_ratelimit import (
    ConfigError,
    Limiter,
    MemoryStorage,
    Penalty,
    RateLimitMiddleware,
    RedisStorage,
    Rule,
    Scope,
    Subject,
)
from bot_ratelimit.admin.control import Control
from bot_ratelimit.storage.base import Storage
from bot_ratelimit.testing import Clock

from .support import HANDLED, Instance, callback, message, user
from .updates import bare, limited, listen, used


def make(
    storage: Storage, rate_limit: Any, key_prefix: str = "bot", **options: Any
) -> RateLimitMiddleware:
    limiter = Limiter(storage, key_prefix=key_prefix, timeout=5)
    return RateLimitMiddleware(rate_limit, limiter=limiter, on_limited=None, **options)


def nested(outer: RateLimitMiddleware, inner: RateLimitMiddleware) -> Instance:
    """A bot with a middleware of the dispatcher, and one of the router with the handler."""
    bot, router = bare(), Router()
    bot.dispatcher.message.middleware(outer)
    router.message.middleware(inner)
    router.message.register(bot._handle)
    bot.dispatcher.include_router(router)
    return bot


async def press(bot: Instance) -> bool:
    return bool(await bot.feed(callback_query=callback()) == HANDLED)


@pytest.mark.parametrize("setup", [False, True])
@pytest.mark.parametrize(
    ("one", "other", "fix"),
    [
        ("10/minute", "3/minute", r"Rule\('3/minute', name='slow'\)"),
        ("5/m", "5/m bucket", "name="),
        (Rule("5/m", name="a"), Rule("3/s", name="a"), "name="),
        (Rule(lambda subject: "9/m"), Rule(lambda subject: "9/m"), "name="),
        (["1/s", Penalty("2/m", "1h")], ["1/s", Penalty("2/m", "2h")], "another scope"),
    ],
)
async def test_middlewares_with_different_limits_under_one_key_are_an_error(
    one: Any, other: Any, fix: str, setup: bool
) -> None:
    """The error names both limits and the fix, at the start or at every update.

    Two that count in memory are checked as if they shared a server.
    """
    bot = listen(bare(), "message", "callback_query")
    for name, limit in (("message", one), ("callback_query", other)):
        middleware = make(MemoryStorage(), limit)
        if setup:
            middleware.setup(bot.dispatcher, exclude=set(bot.dispatcher.observers) - {name})
        else:
            bot.dispatcher.observers[name].middleware(middleware)
    error = f"different limits under one key.*{fix}"
    if setup:
        with pytest.raises(ConfigError, match=error):
            await bot.dispatcher.emit_startup()
    for _ in range(2):
        with pytest.raises(ConfigError, match=error):
            await press(bot)


@pytest.mark.parametrize(
    ("outer", "inner", "allowed"),
    [
        ("4/m", "4/m", 4),
        ("4/m", "4/m; 9/h", 4),
        ("4/m; 9/h", "4/m; 3/d", 3),
        (["4/m", Rule("3/h", Scope.CHAT)], ["4/m", Rule("2/h", Scope.MEMBER)], 2),
    ],
)
@pytest.mark.parametrize("penalty", [None, Penalty("9/m", "1h")], ids=["", "penalty"])
async def test_middlewares_that_share_a_rule_charge_it_once(
    storage: Storage, outer: Any, inner: Any, allowed: int, penalty: Penalty | None
) -> None:
    """What only one of them counts is charged as well."""
    bot = nested(make(storage, outer), make(storage, inner, penalty=penalty))
    assert await bot.send(*"abcde") == [True] * allowed + [False] * (5 - allowed)
    assert [each is not None and each.allowed for each in bot.decisions] == [True] * allowed


async def test_a_penalty_counts_refusals_beside_a_shared_rule(storage: Storage) -> None:
    """A rule that was charged before does not keep the ban from being counted."""
    banning = make(storage, "9/m; 1/h", penalty=Penalty("2/m", "1h"))
    assert await nested(make(storage, "9/m"), banning).send(*"abc") == [True, False, False]
    assert (await banning.limiter.peek(banning.rules, Subject(user=42, chat=42))).banned


async def test_equal_middlewares_charge_once_in_every_dispatch() -> None:
    """Also for a handler that skips and has a limit of its own, and if one exempts the user.

    One of them may belong to another dispatcher too, where no other has the same limit.
    """

    async def skip(event: Message) -> None:
        raise SkipHandler

    for exempt in ([], [42]):
        storage, bot, second = MemoryStorage(clock=Clock()), bare(), listen(bare(), "message")
        first = make(storage, "4/m")
        bot.dispatcher.message.outer_middleware(first)
        bot.dispatcher.message.middleware(make(storage, "4/m", exempt=exempt))
        bot.dispatcher.message.register(skip, flags={"rate_limit": "9/m"})
        second.dispatcher.message.middleware(first)
        sent = await listen(bot, "message").send("a")
        sent += [*await second.send("b"), *await bot.send(*"cde")]
        assert sent == [True] * 4 + [False]


@pytest.mark.parametrize("other", ["prefix", "storage", "per_bot"])
async def test_rules_without_a_conflict(other: str) -> None:
    """There is no conflict with another prefix, another server, or separate counts per bot."""
    storage, bot = RedisStorage(FakeAsyncRedis(server=FakeServer())), listen(bare(), "message")
    bot.dispatcher.message.middleware(make(storage, "5/m"))
    second = MemoryStorage() if other == "storage" else storage
    options = {"prefix": {"key_prefix": "other"}, "per_bot": {"per_bot": True}}.get(other, {})
    bot.dispatcher.message.middleware(make(second, "3/m", **options))
    assert await bot.send(*"abcd") == [True] * 3 + [False]


async def test_which_storages_share_their_keys() -> None:
    """Clients of one address and database use one server; everything else is separate."""
    url = "redis://h:7000/1"
    one = RedisStorage(aioredis.Redis.from_url(url)).key_space
    assert one == RedisStorage(aioredis.Redis(host="h", port=7000, db=1, password="p")).key_space
    for different in ("redis://h:7000/2", "redis://h:7001/1", "redis://g:7000/1", "unix:///h"):
        assert one != RedisStorage(aioredis.Redis.from_url(different)).key_space
    servers = [FakeServer(), FakeServer()]
    fakes = [RedisStorage(FakeAsyncRedis(server=each)).key_space for each in servers + servers]
    assert fakes[0] == fakes[2] != fakes[1]
    assert MemoryStorage().key_space != MemoryStorage().key_space


def drawing(limit: Any, **more: Any) -> dict[str, Any]:
    return {"rate_limit": {"limit": limit, "key": "ai", **more}}


async def draw(event: Message) -> str:
    return HANDLED


async def paint(event: CallbackQuery) -> str:
    return HANDLED


@pytest.mark.parametrize("setup", [False, True])
@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        ({"limit": "3/day"}, {"limit": "9/hour"}, "(?=.*3/day)(?=.*9/hour)"),
        ({"concurrent": 1}, {"concurrent": 2}, "(?=.*1 at a time)(?=.*2 at a time)"),
    ],
)
async def test_one_key_with_two_limits_is_an_error(
    one: dict[str, Any], other: dict[str, Any], told: str, setup: bool
) -> None:
    """Two flags with one key and different limits are an error that names both handlers."""
    bot, middleware = bare(), make(MemoryStorage(), "9/s")
    child = bot.dispatcher.include_router(Router())
    bot.dispatcher.message.register(draw, flags={"rate_limit": {"key": "ai", **one}})
    child.callback_query.register(paint, flags={"rate_limit": {"key": "ai", **other}})
    both = r"(?=.*test_key_conflicts\.draw)(?=.*test_key_conflicts\.paint)" + told
    if setup:
        middleware.setup(bot.dispatcher)
        with pytest.raises(ConfigError, match=both):
            await bot.dispatcher.emit_startup()
    else:
        for name in ("message", "callback_query"):
            bot.dispatcher.observers[name].middleware(middleware)
    for event in ({"message": message()}, {"callback_query": callback()}) * 2:
        with pytest.raises(ConfigError, match=both):
            await bot.feed(**event)


async def test_a_flag_and_a_middleware_with_one_key_are_an_error() -> None:
    bot = limited(Rule("9/m", name="ai"), flag={"limit": "3/day", "key": "ai"})
    with pytest.raises(ConfigError, match=r"_handle \(3/day.*a middleware \(9/minute"):
        await bot.dispatcher.emit_startup()


async def test_flags_that_may_share_a_key() -> None:
    """The same limit, or another scope or name, is not a conflict."""
    dispatcher = Dispatcher()
    make(MemoryStorage(), "9/s").setup(dispatcher)
    for observer, flags in {
        "message": drawing("3/day; 1/s"),
        "edited_message": drawing("3/day; 2/s", cost=2),
        "callback_query": drawing("9/hour", scope="chat"),
        "inline_query": {"rate_limit": "9/hour"},
        "poll_answer": {"rate_limit": Rule("3/day", name="ai")},
    }.items():
        dispatcher.observers[observer].register(draw, flags=flags)
    await dispatcher.emit_startup()


@pytest.mark.parametrize("per_bot", [False, True])
async def test_reset_deletes_all_counts_of_a_user(storage: Storage, per_bot: bool) -> None:
    """These are rules' counts, the ban, flags' own counts, and counts per bot.

    Counts of another user and of all users together stay.
    """
    bot, everybody = bare(), Rule("9/h", Scope.GLOBAL)
    rules, penalty = ["1/h", "5/day", everybody], Penalty("2/m", "1h")
    middleware = make(storage, rules, penalty=penalty, per_bot=per_bot)
    middleware.setup(bot.dispatcher)
    listen(bot, "message")
    bot.dispatcher.callback_query.register(paint, flags=drawing("1/h", scope="member"))
    assert [await press(bot) for _ in range(2)] == [True, False]
    assert await bot.send(*"abcd") == [True, False, False, False]
    assert await bot.send("a", **{"from": user(43)}) == [True]
    private = callback(message=message("menu", chat={"id": 42, "type": "private"}))
    assert await bot.feed(callback_query=private) is None
    who = Subject(user=42, chat=42, bot=bot.bot.id)
    assert await middleware.reset(who)
    assert not await middleware.reset(who)
    assert await press(bot)
    assert await bot.send(*"ab") == [True, False]
    assert await bot.send("b", **{"from": user(43)}) == [False]
    for wrong in ("42", None, True):
        with pytest.raises(ConfigError, match=r"reset: .* is not a user: pass an id"):
            await middleware.reset(wrong)  # type: ignore[arg-type] # a mistake
    if per_bot:
        with pytest.raises(ConfigError, match="name the bot"):
            await middleware.reset(42)
    else:
        assert await used(middleware.limiter, everybody) == 3
        assert await middleware.reset(42)
        assert await bot.send("hello") == [True]


async def test_reset_deletes_what_operators_added(storage: Storage) -> None:
    """A ban by a penalty, and the limit of a handler, that were added while the bot runs."""
    bot, middleware = bare(), make(storage, "9/h", live=True)
    middleware.setup(bot.dispatcher)
    bot.dispatcher.message.register(draw)
    await bot.dispatcher.emit_startup()
    assert middleware.live is not None
    control = Control.of(middleware, by="anna")
    await control.set_rule("test_key_conflicts.draw", limit="1/h")
    await control.changes.set_penalty("2/h", "1h")
    await middleware.live.refresh()
    for _ in range(2):
        assert await bot.send(*"abcd") == [True] + [False] * 3
        assert [ban.by for ban in await middleware.limiter.bans()] == ["penalty"]
        assert await middleware.reset(42)
        assert await middleware.limiter.bans() == []
    await bot.dispatcher.emit_shutdown()


@pytest.mark.parametrize("start", ["startup", "event"])
async def test_a_registered_class_is_an_error(start: str) -> None:
    """A class instead of an instance is an error at the start or at the first event."""
    bot = limited("1/s") if start == "startup" else listen(bare(), "message")
    bot.dispatcher.message.middleware(RateLimitMiddleware)  # type: ignore[arg-type] # the mistake
    error = r"dp\.message\.middleware\(RateLimitMiddleware\(\.\.\.\)\)"
    with pytest.raises(ConfigError, match=error):
        await (bot.dispatcher.emit_startup() if start == "startup" else bot.send("hello"))


@pytest.mark.parametrize("flag", [False, "1/h"])
@pytest.mark.parametrize("guard", [False, True])
async def test_data_of_the_bot_does_not_reach_the_handler(flag: Any, guard: bool) -> None:
    """A handler's `rate_limit` is a Decision or None, even if the dispatcher has such a key."""
    bot = limited("9/h", guard=guard, flag=flag)
    bot.dispatcher["rate_limit"] = "5/m"
    await bot.send("a")
    (decision,) = bot.decisions
    assert (decision is None) == (flag is False and not guard)
    assert decision is None or decision.allowed
