"""Handlers with their own limits: every form of the `rate_limit` flag."""

from __future__ import annotations

import functools
import re
import runpy
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from aiogram import F, Router, flags
from aiogram.filters import Command
from aiogram.fsm.scene import Scene, SceneRegistry, on
from aiogram.handlers import MessageHandler
from aiogram.types import Message
from fakeredis import FakeAsyncRedis

from bot_ratelimit import Concurrency, ConfigError, Limiter, Penalty, RateLimitMiddleware, Rule
from bot_ratelimit.incoming.flags import read_flag
from bot_ratelimit.storage.base import Storage
from bot_ratelimit.testing import FlakyStorage

from .support import HANDLED, message
from .updates import GROUP, bare, keys_of, limited, used

HERE = "test_flags"
DOC = (Path(__file__).parents[2] / "docs" / "limits.md").read_text("utf-8")


async def order(message: Message) -> str:
    return HANDLED


ORDER = f"{HERE}.order"


@pytest.mark.parametrize(
    ("flag", "handled", "expected"),
    [
        ("3/minute", 3, {f"{ORDER}:42"}),
        ({"limit": "3/minute", "key": "ai", "cost": 2}, 1, {"ai:42"}),
        ({"limit": "3/minute", "key": "ai", "cost": 2, "scope": "chat"}, 1, {"ai:chat:-100"}),
        ({"limit": "3/minute", "scope": "member"}, 3, {f"{ORDER}:member:-100:42"}),
        ({"limit": "3/minute", "shadow": True}, 5, {f"{ORDER}:42"}),
        ({"rate": 60, "key": "something"}, 1, {"something:42"}),
        (60.5, 1, {f"{ORDER}:42"}),
        (Rule("2/m", "chat"), 2, {f"{ORDER}:chat:-100"}),
        (Rule("2/m", name="shared"), 2, {"shared:42"}),
        ({"limit": Rule("4/m", cost=2)}, 2, {f"{ORDER}:42"}),
        ({"limit": "2/m", "scope": lambda subject: "a", "key": "staff"}, 2, {"staff:custom:a"}),
        ("2/m sliding", 2, {f"sliding:{ORDER}:42"}),
        ("3/m; 2/d", 2, {f"{ORDER}:42", f"{ORDER}.2/day:42"}),
        (("3/m", Rule("2/m", "chat")), 2, {f"{ORDER}:42", f"{ORDER}:chat:-100"}),
        ({"limit": ["3/m", Rule("2/m", "chat")], "key": "ai"}, 2, {"ai:42", "ai:chat:-100"}),
        (True, 4, {"42"}),
        (False, 5, set()),
    ],
)
async def test_a_flag_in_every_form(
    flag: Any, handled: int, expected: set[str], fake_client: FakeAsyncRedis
) -> None:
    """The flag is the handler's limit, in place of the middleware's."""
    bot = bare()
    RateLimitMiddleware("4/m", fake_client, on_limited=None, timeout=5).setup(bot.dispatcher)
    bot.dispatcher.message.register(order, flags={"rate_limit": flag})
    await bot.dispatcher.emit_startup()
    results = [await bot.feed(message=message(chat=GROUP)) for _ in range(5)]
    assert results == [HANDLED] * handled + [None] * (5 - handled)
    assert await keys_of(fake_client) == expected


@pytest.mark.parametrize(
    ("flag", "wrong"),
    [
        ({}, "limit= or rate="),
        ([], "at least one rule"),
        ({"key": "ai"}, r"RATE_LIMIT_FILE names, write named_limits=\{'ai'"),
        ({"limit": "3/m", "rate": 2}, "limit= or rate="),
        ({"limit": "3/m", "burst": 5}, "burst"),
        ({"limit": "3/m", "scope": "users"}, "scope='users'"),
        ({"limit": "3/m", "key": "a b"}, "'a b'"),
        ({"limit": "3/m", "shadow": "no"}, "shadow='no'"),
        (["3/m", Penalty("3/m", "1h")], "belongs to the middleware"),
        ({"limit": Concurrency(1)}, "write concurrent=, not limit="),
        ({"concurrent": 0}, "concurrency=0: expected a whole number"),
        ({"concurrent": 1, "cost": 2}, "expected limit= or rate=, and optionally concurrent="),
        ({"concurrent": 1, "key": "slot"}, "key='slot': this name is reserved"),
        ({"collect": ["1s"]}, "collect="),
    ],
)
async def test_an_invalid_flag_names_its_handler(flag: Any, wrong: str, limiter: Limiter) -> None:
    """The error comes at the start, or without `setup` at every update of the handler."""
    error = rf"(?s)flag of tests\.incoming\.test_flags\.order: .*{wrong}"
    bot = limited(limiter=limiter, observers=())
    late = bare()
    late.dispatcher.message.middleware(RateLimitMiddleware(limiter=limiter))
    for each in (bot, late):
        each.dispatcher.message.register(order, flags={"rate_limit": flag})
    with pytest.raises(ConfigError, match=error):
        await bot.dispatcher.emit_startup()
    for _ in range(2):
        with pytest.raises(ConfigError, match=error):
            await late.send("hello")


@pytest.mark.parametrize(
    ("flag", "lacking"),
    [({"concurrent": 1}, "slots"), ({"collect": "1s", "limit": "9/m"}, "collect")],
)
async def test_a_flag_that_the_storage_cannot_serve(flag: Any, lacking: str) -> None:
    """The bot does not start; the error names the handler, the storage and what it lacks."""
    storage = FlakyStorage()
    for name in ("leases", "documents"):
        setattr(storage, name, functools.partial(getattr(Storage, name), storage))
    bot = limited(limiter=Limiter(storage), flag=flag)
    wrong = f"flag of .*_handle: storage is a FlakyStorage, which does not support .*{lacking}"
    with pytest.raises(ConfigError, match=wrong):
        await bot.dispatcher.emit_startup()


class Orders:
    async def buy(self, message: Message) -> str:
        return HANDLED

    def __call__(self, message: Message) -> str:
        return HANDLED


@flags.rate_limit("1/m")
class Reply(MessageHandler):
    async def handle(self) -> Any:
        return HANDLED


def reply_to(text: str) -> Callable[..., Any]:
    async def reply(message: Message) -> str:
        return HANDLED if message.text == text else "?"

    return reply


async def pay(message: Message) -> str:
    return HANDLED


PAIRS = [
    (Reply, "Reply", Orders(), "Orders"),
    (Orders().buy, "Orders.buy", Orders().buy, "Orders.buy#2"),
    (reply_to("a"), "reply_to.<locals>.reply", reply_to("b"), "reply_to.<locals>.reply#2"),
    (functools.wraps(order)(reply_to("a")), "order", pay, "pay"),
    (functools.partial(order), "order", functools.partial(order), "order#2"),
]


@pytest.mark.parametrize(("one", "name", "other", "other_name"), PAIRS)
async def test_every_kind_of_handler_counts_separately(
    one: Any, name: str, other: Any, other_name: str, fake_client: FakeAsyncRedis
) -> None:
    """Without a key in the flag, an operator sees in the Redis key which handler's limit it is."""
    bot = bare()
    RateLimitMiddleware("9/m", fake_client, timeout=5, on_limited=None).setup(bot.dispatcher)
    for text, handler in (("a", one), ("b", other)):
        bot.dispatcher.message.register(handler, F.text == text, flags={"rate_limit": "1/m"})
    answers = [await bot.feed(message=message(text)) for text in "aabb"]
    assert [each is not None for each in answers] == [True, False] * 2
    assert await keys_of(fake_client) == {f"{HERE}.{name}:42", f"{HERE}.{other_name}:42"}


async def test_handlers_of_one_name() -> None:
    """One function has one count, unless its limits differ; two with long names have two."""
    bot = limited(None, ())
    limits = {"a": "2/m", "b": "2/m", "c": "1/h; 5/day"}
    handlers: dict[str, Any] = dict.fromkeys(limits, order) | {x: reply_to(x) for x in "de"}
    for text, handler in handlers.items():
        if text not in limits:
            handler.__qualname__ = "x" * 250 + text
        flag = {"rate_limit": limits.get(text, "1/m")}
        bot.dispatcher.message.register(handler, F.text == text, flags=flag)
    await bot.dispatcher.emit_startup()
    assert await bot.send(*"aba") == [True, True, False]
    assert await bot.send(*"ccddee") == [True, False] * 3


async def test_the_start_reads_each_flag_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many handlers have one: a start that takes the square of it takes seconds."""
    read = Mock(wraps=read_flag)
    monkeypatch.setattr("bot_ratelimit.incoming.flags.read_flag", read)
    bot = limited(None, ())
    for number in range(50):
        flag = {"limit": "1/m", "key": f"handler{number}"}
        bot.dispatcher.message.register(order, flags={"rate_limit": flag})
    await bot.dispatcher.emit_startup()
    assert await bot.send("a") == [True]
    assert read.call_count < 50 * 10


async def test_a_handler_may_be_replaced_by_one_with_another_limit() -> None:
    """A plugin that is reloaded keeps its key; the handler that is gone is no conflict."""
    bot = limited(None, ())
    handlers = bot.dispatcher.message.handlers
    for text in ("1/m", "2/m"):
        handlers.clear()
        bot.dispatcher.message.register(order, flags={"rate_limit": {"limit": text, "key": "k"}})
        await bot.dispatcher.emit_startup()
        assert await bot.send("a") == [True]
    handlers.clear()
    bot.dispatcher.message.register(order, flags={"rate_limit": {"limit": "3/m", "key": "k"}})
    assert await bot.send("a") == [True]  # without a restart, too


class Quiz(Scene, state="quiz"):
    @on.message.enter()
    async def begin(self, message: Message) -> None: ...

    @on.message()
    @flags.rate_limit("2/m")
    async def answer(self, message: Message) -> str:
        return HANDLED


async def test_handlers_of_a_scene(fake_client: FakeAsyncRedis) -> None:
    """A handler of a scene has its own limit, under its name and not that of aiogram's wrapper."""
    bot = bare()
    RateLimitMiddleware(None, fake_client, timeout=5, on_limited=None).setup(bot.dispatcher)
    SceneRegistry(bot.dispatcher).add(Quiz)
    bot.dispatcher.message.register(Quiz.as_handler(), Command("quiz"))
    await bot.feed(message=message("/quiz"))
    assert await bot.send(*"abc") == [True, True, False]
    assert await keys_of(fake_client) == {f"{HERE}.Quiz.answer:42"}


@pytest.mark.parametrize("guard", [False, True])
async def test_a_flag_replaces_the_middlewares_rules_but_not_the_guards(
    guard: bool, limiter: Limiter
) -> None:
    """A handler's own limit is the one that it is told of; the guard still counts."""
    bot, rule = limited("5/m", (), limiter=limiter, guard=guard), Rule("3/m", name="a")
    for text, flag in {"a": {"limit": "3/m", "key": "a"}, "b": False, "c": True}.items():
        handler = functools.partial(bot._handle)
        bot.dispatcher.message.register(handler, F.text == text, flags={"rate_limit": flag})
    assert await bot.send(*"aaaa") == [True, True, True, False]
    assert [(each.rule, each.remaining) for each in bot.decisions if each] == [
        *((rule, 2), (rule, 1), (rule, 0))
    ]
    assert await used(limiter, "5/m") == (4 if guard else 0)
    assert await bot.send(*"bb") == [True, not guard]
    assert (bot.decisions[3] is None) == (not guard)
    assert await bot.send(*"cccccc") == [not guard] * 5 + [False]


async def test_the_flags_in_the_doc(limiter: Limiter) -> None:
    """The handlers in docs/limits.md pass the check at the start of a bot."""
    _, _, section = DOC.partition("\n## A handler's own limit\n")
    code = section.partition("```python\n")[2].partition("```")[0]
    shown: dict[str, Any] = {"__name__": "shop.handlers"}
    exec(code, shown)
    bot = limited("1/m", (), limiter=limiter)
    bot.dispatcher.include_router(shown["router"])
    await bot.dispatcher.emit_startup()
    assert [await bot.feed(message=message("/help")) for _ in range(3)] == [None] * 3
    assert await used(limiter, "1/m") == 0


async def test_a_decorator_above_the_registration(caplog: pytest.LogCaptureFixture) -> None:
    """A flag that comes too late stops the start; without `setup` a warning names the handler."""
    late = bare()
    late.dispatcher.message.middleware(RateLimitMiddleware("9/m"))
    for bot in (limited("9/m", ()), late):

        @flags.rate_limit("1/h")
        @bot.dispatcher.message()
        async def lost(message: Message) -> str:
            return HANDLED

        if bot is not late:
            with pytest.raises(ConfigError, match=r"<locals>\.lost has no effect: move .* below"):
                await bot.dispatcher.emit_startup()
    assert await late.send(*"ab") == [True, True]
    assert sum("lost has no effect" in each for each in caplog.messages) == 1


async def test_flags_that_nothing_reads_are_named(caplog: pytest.LogCaptureFixture) -> None:
    """Left-over and misspelled flags, and numbered counts, are told at the start."""
    bot, names = limited(observers=()), ("throttling_key", "ratelimit", "rate_limits")
    bot.dispatcher.message.register(order, flags=dict.fromkeys(names, "spin"))
    for factory in "ab":
        bot.dispatcher.message.register(reply_to(factory), flags={"rate_limit": "1/m"})
    await bot.dispatcher.emit_startup()
    for name in names:
        (line,) = [each for each in caplog.messages if f"the flag {name} of" in each]
        assert "test_flags.order" in line
        assert "named_limits={" in line
    (numbered,) = [each for each in caplog.messages if "numbered in the order" in each]
    assert numbered.endswith("test_flags.reply_to.<locals>.reply#2")


@pytest.mark.parametrize("inner", [False, True])
async def test_flags_that_no_middleware_reads_are_named(
    inner: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """An outer middleware says so at the first event; an inner one anywhere reads them.

    Limits for what is never refused, or has no sender, are named too.
    """
    bot, router = bare(), Router()
    bot.dispatcher.include_router(router)
    router.message.register(order, flags={"rate_limit": "1/m"})
    router.edited_message.register(order, flags={"rate_limit": "1/m"})
    router.pre_checkout_query.register(order, flags={"rate_limit": False})
    router.shipping_query.register(order, flags={"rate_limit": "1/m"})
    router.channel_post.register(order, flags={"rate_limit": "1/m"})
    middleware = RateLimitMiddleware("9/m", on_limited=None)
    for name in ("message", "edited_message"):
        bot.dispatcher.observers[name].outer_middleware(middleware)
        if inner:
            bot.dispatcher.observers[name].middleware(middleware)
    assert await bot.send(*"ab") == [True, not inner]
    told = re.findall(r"rate_limit of .*test_flags\.order is read by no limit: (\w+)", caplog.text)
    assert sorted(told) == ["such"] * 2 + ["write"] * (0 if inner else 2)


async def test_mistakes_with_the_decorator_are_errors() -> None:
    """A flag takes one value, or names; what is left if it took f for the handler is no function.

    To collect, a handler takes messages, or all but the first would be lost; `**data` does too.
    """
    with pytest.raises(ConfigError, match=r"write limit='2/m', concurrent=1, key='ai'$"):
        flags.rate_limit("2/m", concurrent=1, key="ai")
    with pytest.raises(ConfigError, match=r"write limit='2/m', concurrent=1$"):
        flags.rate_limit("2/m", 1)
    for handler in ("2/m", None, flags.rate_limit("1/m")):
        bot = limited(None, ())
        with suppress(TypeError):  # aiogram before 3.22 tells of the first two by itself
            bot.dispatcher.message.register(handler)  # type: ignore[arg-type] # the mistake
        if not bot.dispatcher.message.handlers:
            continue
        error = r"(?s)handler is .*: expected a function.*limit=function"
        with pytest.raises(ConfigError, match=error):
            await bot.dispatcher.emit_startup()
    bot = limited(None, ())
    bot.dispatcher.message.register(Reply, F.text == "a", flags={"rate_limit": {"collect": True}})
    bot.dispatcher.message.register(bot._handle, flags={"rate_limit": {"collect": True}})
    await bot.dispatcher.emit_startup()
    bot.dispatcher.message.register(order, flags={"rate_limit": {"collect": True}})
    with pytest.raises(ConfigError, match=r"test_flags\.order: .* the argument messages"):
        await bot.dispatcher.emit_startup()


BOT = """
from aiogram import Dispatcher, flags
from bot_ratelimit import RateLimitMiddleware

dp = Dispatcher()
middleware = RateLimitMiddleware(None).setup(dp)

@dp.message()
@flags.rate_limit("1/m")
async def order(message): ...

print(middleware.inventory()["rules"][-1]["name"])
"""


def test_the_name_of_a_count_does_not_depend_on_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """However the bot is started, its unnamed flag counts under one name."""
    shop = tmp_path / "shop"
    shop.mkdir()
    (shop / "__init__.py").touch()
    (shop / "bot.py").write_text(BOT)
    monkeypatch.chdir(shop)
    monkeypatch.syspath_prepend(tmp_path)
    runpy.run_path("bot.py", run_name="__main__")
    runpy.run_path(f"{shop}/bot.py", run_name="__main__")
    runpy.run_module("shop.bot", run_name="__main__", alter_sys=True)
    del sys.modules["shop"]
    assert capsys.readouterr().out == "bot.order\n" * 3
