"""Handlers with their own limits: every form of the `rate_limit` flag."""

from __future__ import annotations

import functools
import re
import runpy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiogram import Dispatcher, F, Router, flags
from aiogram.filters import Command
from aiogram.fsm.scene import Scene, SceneRegistry, on
from aiogram.fsm.storage.memory import MemoryStorage as StateStorage
from aiogram.handlers import MessageHandler
from aiogram.types import Message, TelegramObject
from fakeredis import FakeAsyncRedis

from bot_ratelimit import (
    Concurrency,
    ConfigError,
    Limit,
    Limiter,
    Penalty,
    RateLimitMiddleware,
    Rule,
    Scope,
    Subject,
)

from .support import HANDLED, Instance, callback, message
from .updates import GROUP, Fleet, bare, limited, listen, payment

HERE = "test_flags"
DOC = (Path(__file__).parents[2] / "docs" / "limits.md").read_text("utf-8")


async def keys(fake_client: FakeAsyncRedis) -> set[str]:
    return {key.decode().removeprefix("bot:ratelimit:") for key in await fake_client.keys()}


async def order(message: Message) -> str:
    return HANDLED


ORDER = f"{HERE}.order"
BOTH = [Rule("3/m"), Rule("5/m", Scope.CHAT)]


@pytest.mark.parametrize(
    ("flag", "handled", "expected"),
    [
        ("3/minute", 3, {f"{ORDER}:42"}),
        ({"limit": "3/minute", "key": "ai"}, 3, {"ai:42"}),
        ({"limit": "3/minute", "key": "ai", "cost": 2}, 1, {"ai:42"}),
        ({"limit": "3/minute", "key": "ai", "cost": 2, "scope": "chat"}, 1, {"ai:chat:-100"}),
        ({"limit": "3/minute", "scope": "member"}, 3, {f"{ORDER}:member:-100:42"}),
        ({"limit": "3/minute", "scope": Scope.GLOBAL}, 3, {f"{ORDER}:global"}),
        ({"limit": "3/minute", "scope": "topic"}, 5, set()),
        ({"limit": "3/minute", "shadow": True}, 5, {f"{ORDER}:42"}),
        ({"rate": 60, "key": "something"}, 1, {"something:42"}),
        (60.5, 1, {f"{ORDER}:42"}),
        (Limit(2, 60), 2, {f"{ORDER}:42"}),
        (Rule("2/m", Scope.CHAT), 2, {f"{ORDER}:chat:-100"}),
        (Rule("2/m", name="shared"), 2, {"shared:42"}),
        ({"limit": Rule("4/m", cost=2)}, 2, {f"{ORDER}:42"}),
        (Rule(lambda subject: "2/m" if subject.user == 42 else None), 2, {f"{ORDER}:42"}),
        ({"limit": "9/m", "scope": lambda subject: "a", "key": "staff"}, 5, {"staff:custom:a"}),
        ("2/m sliding", 2, {f"sliding:{ORDER}:42"}),
        ("1/m burst 4", 4, {f"bucket:{ORDER}:42"}),
        ("3/m; 2/d", 2, {f"{ORDER}:42", f"{ORDER}.2/day:42"}),
        (["3/m", Rule("2/d", name="daily")], 2, {f"{ORDER}:42", f"{ORDER}.daily:42"}),
        (("3/m", Rule("2/m", Scope.CHAT)), 2, {f"{ORDER}:42", f"{ORDER}:chat:-100"}),
        ({"limit": BOTH, "key": "ai", "cost": 2}, 1, {"ai:42", "ai:chat:-100"}),
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
    assert await keys(fake_client) == expected


@pytest.mark.parametrize(
    ("flag", "wrong"),
    [
        ("often", "'often'"),
        (0, "0"),
        (None, "None"),
        ({}, "limit= or rate="),
        ([], "at least one rule"),
        (object(), "object"),
        ({"key": "ai"}, r"RATE_LIMIT_FILE names, write named_limits=\{'ai'"),
        ({"limit": "3/m", "rate": 2}, "limit= or rate="),
        ({"limit": "3/m", "burst": 5}, "burst"),
        ({"limit": None}, "None"),
        ({"limit": "3/m", "cost": 4}, "cost=4"),
        ({"limit": "3/m", "cost": "2"}, "cost='2'"),
        ({"limit": "3/m", "scope": "users"}, "scope='users'"),
        ({"limit": "3/m", "scope": 5}, "scope=5"),
        ({"limit": "3/m", "key": "a b"}, "'a b'"),
        ({"limit": "3/m", "key": "ban"}, "'ban'"),
        ({"limit": "3/m", "key": "global"}, "'global'"),
        ({"rate": "soon"}, "'soon'"),
        ({"rate": True}, "a bool"),
        ({"limit": "3/m", "shadow": "no"}, "shadow='no'"),
        (["3/m", Penalty("3/m", "1h")], "belongs to the middleware"),
        ({"limit": Concurrency(1)}, "write concurrent=, not limit="),
        ({"concurrent": 0}, "concurrency=0: expected how many"),
        ({"concurrent": 1, "cost": 2}, "expected limit= or rate=, and optionally concurrent="),
        ({"concurrent": 1, "scope": "moon"}, "scope='moon': expected one of"),
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


async def test_handlers_with_one_key_share_a_limit(fleet: Fleet) -> None:
    """Messages and buttons with one key share a limit on all instances, others do not."""
    flag = {"limit": "3/m", "key": "ai"}

    def put(bot: Instance, limiter: Limiter) -> None:
        RateLimitMiddleware(limiter=limiter, on_limited=None).setup(bot.dispatcher)
        listen(bot, "message", "callback_query", flags={"rate_limit": flag})
        listen(bot, "edited_message", flags={"rate_limit": "3/m"})

    bots = fleet.assemble(put)
    results = [await bots[0].feed(message=message("/draw"))]
    results += [await bot.feed(callback_query=callback()) for bot in bots]
    assert results == [HANDLED] * 3 + [None]
    assert await fleet.used(Rule("3/m", name="ai")) == 3
    assert await fleet.used("1/s") == 0
    edit = message(edit_date=1)
    assert [await bot.feed(edited_message=edit) for bot in (*bots, bots[0])][2:] == [HANDLED, None]


class Orders:
    async def buy(self, message: Message) -> str:
        return HANDLED

    @classmethod
    async def swap(cls, message: Message) -> str:
        return HANDLED


class CallableOrder:
    def __call__(self, message: Message) -> str:
        return HANDLED


@flags.rate_limit("1/m")
class Reply(MessageHandler):
    async def handle(self) -> Any:
        return HANDLED


@flags.rate_limit("1/m")
class OtherReply(MessageHandler):
    async def handle(self) -> Any:
        return HANDLED


def tidied(handler: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(handler)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return await handler(*args, **kwargs)

    return wrapper


def untidied(handler: Callable[..., Any]) -> Callable[..., Any]:
    async def wrapper(message: Message) -> Any:
        return await handler(message)

    return wrapper


def reply_to(text: str) -> Callable[..., Any]:
    async def reply(message: Message) -> str:
        return HANDLED if message.text == text else "?"

    return reply


async def pay(message: Message) -> str:
    return HANDLED


async def parting(message: Message, way: str) -> str:
    return HANDLED


def parting_by(way: str) -> Callable[..., Any]:
    return functools.partial(parting, way=way)


# fmt: off
LAMBDAS = (lambda message: HANDLED, lambda message: HANDLED)  # on one line, as a table may have it
# fmt: on

PAIRS = [
    (order, "order", pay, "pay"),
    (Orders().buy, "Orders.buy", Orders.swap, "Orders.swap"),
    (Orders().buy, "Orders.buy", Orders().buy, "Orders.buy#2"),
    (LAMBDAS[0], "<lambda>", LAMBDAS[1], "<lambda>#2"),
    (reply_to("a"), "reply_to.<locals>.reply", reply_to("b"), "reply_to.<locals>.reply#2"),
    (tidied(order), "order", tidied(pay), "pay"),
    (untidied(order), "untidied.<locals>.wrapper", untidied(pay), "untidied.<locals>.wrapper#2"),
    (functools.partial(order), "order", functools.partial(functools.partial(pay)), "pay"),
    (parting_by("a"), "parting", parting_by("b"), "parting#2"),
    (CallableOrder(), "CallableOrder", order, "order"),
    (CallableOrder(), "CallableOrder", CallableOrder(), "CallableOrder#2"),
    (Reply, "Reply", OtherReply, "OtherReply"),
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
    assert await keys(fake_client) == {f"{HERE}.{name}:42", f"{HERE}.{other_name}:42"}


async def test_one_function_under_two_filters(limiter: Limiter) -> None:
    """A function that is registered twice is one handler with one count."""
    bot = limited(limiter=limiter, observers=())
    for filter_ in (Command("order"), F.text == "Order"):
        bot.dispatcher.message.register(order, filter_, flags={"rate_limit": "1/m"})
    assert await bot.send("/order", "Order") == [True, False]


class Quiz(Scene, state="quiz"):
    @on.message.enter()
    async def begin(self, message: Message) -> None: ...

    @on.message(F.text == "a")
    @flags.rate_limit("2/m")
    async def a(self, message: Message) -> str:
        return HANDLED

    @on.message(F.text == "b")
    @flags.rate_limit("2/m")
    async def b(self, message: Message) -> str:
        return HANDLED


class Exam(Scene, state="exam"):
    @on.message()
    @flags.rate_limit("often")
    async def answer(self, message: Message) -> None: ...


async def test_handlers_of_a_scene(fleet: Fleet) -> None:
    """Each handler of a scene has its own limit, the same on all instances."""
    states = StateStorage()  # shared by the instances, as the counts are

    def put(bot: Instance, limiter: Limiter) -> None:
        bot.dispatcher = Dispatcher(storage=states)
        RateLimitMiddleware(limiter=limiter, on_limited=None).setup(bot.dispatcher)
        SceneRegistry(bot.dispatcher).add(Quiz)
        bot.dispatcher.message.register(Quiz.as_handler(), Command("quiz"))

    bots = fleet.assemble(put)
    await bots[0].feed(message=message("/quiz"))
    handled = [(await bot.send(text))[0] for text in "ab" for bot in bots]
    assert handled == [True, True, False] * 2
    SceneRegistry(bots[0].dispatcher).add(Exam)
    with pytest.raises(ConfigError, match=r"flag of tests\.incoming\.test_flags\.Exam\.answer: "):
        await bots[0].dispatcher.emit_startup()  # not of aiogram's wrapper


async def test_a_flag_of_a_filter(limiter: Limiter) -> None:
    """A filter may set the flag of its handlers, as aiogram allows."""

    class Dear(Command):
        def update_handler_flags(self, flags: dict[str, Any]) -> None:
            super().update_handler_flags(flags)
            flags["rate_limit"] = "1/m"

    bot = limited("9/m", (), limiter=limiter)
    bot.dispatcher.message.register(order, Dear("draw"))
    assert await bot.send("/draw", "/draw") == [True, False]


@pytest.mark.parametrize("guard", [False, True])
async def test_a_flag_replaces_the_middlewares_rules_but_not_the_guards(
    guard: bool, fleet: Fleet
) -> None:
    """A handler's own limit replaces the middleware's; the guard still counts."""

    def put(bot: Instance, limiter: Limiter) -> None:
        middleware = RateLimitMiddleware("5/m", limiter=limiter, on_limited=None)
        middleware.setup(bot.dispatcher, guard=guard)
        for text, flag in {"a": {"limit": "3/m", "key": "a"}, "b": False, "c": True}.items():
            handler = functools.partial(order)
            bot.dispatcher.message.register(handler, F.text == text, flags={"rate_limit": flag})

    bots = fleet.assemble(put)
    assert await bots[0].send(*"aaaa") == [True, True, True, False]
    assert await fleet.used(Rule("3/m", name="a")) == 3
    assert await fleet.used("5/m") == (4 if guard else 0)
    assert await bots[1].send(*"bb") == [True, not guard]
    assert await bots[2].send(*"cccccc") == [not guard] * 5 + [False]


@dataclass
class Shift:
    """A scope or a limit with settings; like this dataclass, it may have no hash."""

    answer: str

    def __call__(self, subject: Subject) -> str:
        return self.answer


@pytest.mark.parametrize("guard", [False, True])
async def test_callable_objects_as_scopes_and_limits(guard: bool, limiter: Limiter) -> None:
    """Every callable can be a scope or a limit, in a flag and in the middleware."""
    staff = Rule("4/m", Shift("early"), "staff")
    bot = limited(staff, (), limiter=limiter, guard=guard)
    flag = {"limit": Rule(Shift("2/m"), name="own"), "scope": Shift("late"), "key": "a"}
    bot.dispatcher.message.register(order, F.text == "a", flags={"rate_limit": flag})
    bot.dispatcher.message.register(order, F.text == "b")
    assert await bot.send(*"aaa") == [True, True, False]
    left = 1 if guard else 4
    assert await bot.send(*"bbbbb") == [True] * left + [False] * (5 - left)


async def test_the_handler_sees_the_decision_of_its_own_limit(limiter: Limiter) -> None:
    """`rate_limit` in a flagged handler is the flag's decision, or None without a limit."""
    bot = limited("9/m", (), limiter=limiter)
    for text, flag in {"a": {"limit": "3/m", "key": "a"}, "b": False}.items():
        bot.dispatcher.message.register(bot._handle, F.text == text, flags={"rate_limit": flag})
    await bot.send("a", "b")
    a, b = bot.decisions
    assert a is not None
    assert (a.rule, a.remaining) == (Rule("3/m", name="a"), 2)
    assert b is None


async def test_refusals_of_a_handlers_limit_count_for_the_penalty(limiter: Limiter) -> None:
    """A user who keeps sending to a handler with its own limit is banned from the whole bot."""
    bot = limited("9/m", (), limiter=limiter, penalty=Penalty("2/m", "1h"))
    bot.dispatcher.message.register(order, F.text == "a", flags={"rate_limit": "1/m"})
    bot.dispatcher.message.register(order, F.text == "b")
    assert await bot.send(*"ababab") == [True, True, False, True, False, False]


async def test_payments_pass_a_handlers_own_limit() -> None:
    bot = limited("9/m", flag="1/m")
    assert [await bot.feed(message=payment()) for _ in range(3)] == [HANDLED] * 3
    assert await bot.send(*"ab") == [True, False]


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
    assert (await limiter.peek("1/m", Subject(user=42))).remaining == 1


@pytest.mark.parametrize("setup", [False, True])
async def test_a_decorator_above_the_registration_is_found(
    setup: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A flag that comes too late stops the start; without `setup` a warning names the handler."""
    bot = limited("9/m", ()) if setup else bare()
    if not setup:
        bot.dispatcher.message.middleware(RateLimitMiddleware("9/m"))

    @flags.rate_limit("1/h")
    @bot.dispatcher.message()
    async def lost(message: Message) -> str:
        return HANDLED

    if setup:
        with pytest.raises(ConfigError, match=r"<locals>\.lost has no effect: move .* below"):
            await bot.dispatcher.emit_startup()
    else:
        assert await bot.send(*"ab") == [True, True]
        assert sum("lost has no effect" in each for each in caplog.messages) == 1


@pytest.mark.parametrize("left_over", ["throttling_key", "ratelimit", "rate_limits"])
async def test_flags_that_nothing_reads_are_named(
    left_over: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Left-over and misspelled flags, and numbered counts, are told at the start."""
    bot = limited(observers=())
    bot.dispatcher.message.register(order, flags={left_over: "spin"})
    for factory in "ab":
        bot.dispatcher.message.register(reply_to(factory), flags={"rate_limit": "1/m"})
    await bot.dispatcher.emit_startup()
    (line,) = [each for each in caplog.messages if f"the flag {left_over} of" in each]
    assert "test_flags.order" in line
    assert "named_limits={" in line
    (numbered,) = [each for each in caplog.messages if "numbered in the order" in each]
    assert numbered.endswith("test_flags.reply_to.<locals>.reply#2")


UNREAD = r"the flag rate_limit of .*test_flags\.order is read by no limit: "


async def test_an_outer_middleware_says_that_it_reads_no_flags(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """At the first event a warning names the handlers; an inner middleware anywhere reads them."""
    for inner in (False, True):
        caplog.clear()
        bot, router = bare(), Router()
        bot.dispatcher.include_router(router)
        router.message.register(order, flags={"rate_limit": "1/m"})
        middleware = RateLimitMiddleware("9/m", on_limited=None)
        bot.dispatcher.message.outer_middleware(middleware)
        if inner:
            bot.dispatcher.message.middleware(middleware)
        assert await bot.send(*"ab") == [True, not inner]
        warned = [bool(re.search(UNREAD + r"write setup\(dp\)", each)) for each in caplog.messages]
        assert sum(warned) == (not inner)


@pytest.mark.parametrize(
    ("observer", "flag", "is_told"),
    [
        ("pre_checkout_query", "1/m", True),
        ("channel_post", "1/m", True),
        ("pre_checkout_query", False, False),
        ("edited_message", "1/m", False),
    ],
)
async def test_flags_of_updates_that_never_count_are_named(
    observer: str, flag: Any, is_told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A limit for what is never refused or has no sender is told at the start."""
    bot = limited(observers=())
    bot.dispatcher.observers[observer].register(order, flags={"rate_limit": flag})
    await bot.dispatcher.emit_startup()
    told = [re.search(UNREAD + "such updates are never counted", each) for each in caplog.messages]
    assert any(told) == is_told


def by_event(event: TelegramObject, data: dict[str, Any], limit: str = "1/m") -> str:
    return limit


@pytest.mark.parametrize("limit", [by_event, lambda _, any_name: "1/m", lambda subject: "1/m"])
async def test_a_function_of_the_event_is_a_limit(limit: Any) -> None:
    """A lambda is one, and a function with an argument `data`, which no handler has."""
    bot = limited(None, ())

    @bot.dispatcher.message()
    @flags.rate_limit(limit)
    async def handler(message: Message) -> str:
        return HANDLED

    assert await bot.send(*"ab") == [True, False]


@pytest.mark.parametrize("handler", ["2/m", None, flags.rate_limit("1/m")])
async def test_a_handler_that_is_no_function_is_an_error(handler: Any) -> None:
    """This is what `@flags.rate_limit(f)` leaves if it took f for the handler."""
    bot = limited(None, ())
    bot.dispatcher.message.register(handler)
    with pytest.raises(
        ConfigError, match=r"(?s)handler is .*: expected a function.*limit=function"
    ):
        await bot.dispatcher.emit_startup()


@pytest.mark.parametrize(
    ("values", "fields", "fix"),
    [
        (("2/m",), {"concurrent": 1, "key": "ai"}, "write limit='2/m', concurrent=1, key='ai'$"),
        (("2/m", 1), {}, "write limit='2/m', concurrent=1$"),
        ((0,), {"key": "ai"}, "write limit=0, key='ai'$"),
    ],
)
def test_a_flag_takes_one_value_or_names(values: Any, fields: Any, fix: str) -> None:
    with pytest.raises(ConfigError, match=fix):
        flags.rate_limit(*values, **fields)


async def test_collect_needs_a_handler_that_takes_messages() -> None:
    """Otherwise all messages but the first would be lost; `**data` takes them too."""
    bot = limited(None, ())
    bot.dispatcher.message.register(Reply, F.text == "a", flags={"rate_limit": {"collect": True}})
    bot.dispatcher.message.register(bot._handle, flags={"rate_limit": {"collect": True}})
    await bot.dispatcher.emit_startup()
    bot.dispatcher.message.register(order, flags={"rate_limit": {"collect": True}})
    with pytest.raises(ConfigError, match=r"test_flags\.order: .* the argument messages"):
        await bot.dispatcher.emit_startup()


BOT = """
import asyncio
from aiogram import Dispatcher, flags
from bot_ratelimit import Limiter, MemoryStorage, RateLimitMiddleware

dp = Dispatcher()
middleware = RateLimitMiddleware(None, limiter=Limiter(MemoryStorage())).setup(dp)

@dp.message()
@flags.rate_limit("1/m")
async def order(message): ...

if __name__ == "__main__":
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
