"""Handlers with their own limits: every form of the `rate_limit` flag."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiogram import Dispatcher, F, flags
from aiogram.filters import Command
from aiogram.fsm.scene import Scene, SceneRegistry, on
from aiogram.fsm.storage.memory import MemoryStorage as StateStorage
from aiogram.handlers import MessageHandler
from aiogram.types import Message
from fakeredis import FakeAsyncRedis

from bot_ratelimit import (
    Concurrency,
    ConfigError,
    Limit,
    Limiter,
    MemoryStorage,
    Penalty,
    RateLimitMiddleware,
    Rule,
    Scope,
    Subject,
)

from .support import HANDLED, Instance, callback, message
from .updates import GROUP, Fleet, bare, payment

HERE = "test_flags"
DOC = (Path(__file__).parents[2] / "docs" / "limits.md").read_text("utf-8")


async def keys(fake_client: FakeAsyncRedis) -> set[str]:
    return {key.decode().removeprefix("bot:ratelimit:") for key in await fake_client.keys()}


def limited(limiter: Limiter, rate_limit: Any = "1000/h", **options: Any) -> Instance:
    """A bot with a middleware on all observers, and no handlers yet."""
    bot = bare()
    options = {"on_limited": None} | options
    guard = options.pop("guard", False)
    RateLimitMiddleware(rate_limit, limiter=limiter, **options).setup(bot.dispatcher, guard=guard)
    return bot


async def order(message: Message) -> str:
    return HANDLED


ORDER = f"{HERE}.order"


@pytest.mark.parametrize(
    ("flag", "handled", "expected"),
    [
        ("3/minute", 3, {f"{ORDER}:42"}),
        ({"limit": "3/minute"}, 3, {f"{ORDER}:42"}),
        ({"limit": "3/minute", "key": "ai"}, 3, {"ai:42"}),
        ({"limit": "3/minute", "key": "ai", "cost": 2}, 1, {"ai:42"}),
        ({"limit": "3/minute", "key": "ai", "cost": 2, "scope": "chat"}, 1, {"ai:chat:-100"}),
        ({"limit": "3/minute", "scope": "member"}, 3, {f"{ORDER}:member:-100:42"}),
        ({"limit": "3/minute", "scope": Scope.GLOBAL}, 3, {f"{ORDER}:global"}),
        ({"limit": "3/minute", "scope": "topic"}, 5, set()),
        ({"limit": "3/minute", "shadow": True}, 5, {f"{ORDER}:42"}),
        ({"rate": 60, "key": "something"}, 1, {"something:42"}),
        ({"rate": 60}, 1, {f"{ORDER}:42"}),
        (60, 1, {f"{ORDER}:42"}),
        (60.5, 1, {f"{ORDER}:42"}),
        (Limit(2, 60), 2, {f"{ORDER}:42"}),
        ({"limit": Limit(2, 60), "key": "ai"}, 2, {"ai:42"}),
        (Rule("2/m", Scope.CHAT), 2, {f"{ORDER}:chat:-100"}),
        ({"limit": Rule("4/m", cost=2)}, 2, {f"{ORDER}:42"}),
        (Rule(lambda subject: "2/m" if subject.user == 42 else None), 2, {f"{ORDER}:42"}),
        (
            {"limit": "9/m", "scope": lambda subject: "shift1", "key": "staff"},
            5,
            {"staff:custom:shift1"},
        ),
        ("2/m sliding", 2, {f"sliding:{ORDER}:42"}),
        ("1/m burst 4", 4, {f"bucket:{ORDER}:42"}),
        ("3/m; 2/d", 2, {f"{ORDER}:42", f"{ORDER}.2/day:42"}),
        ({"limit": "3/m; 2/d", "key": "ai"}, 2, {"ai:42", "ai.2/day:42"}),
        (["3/m", Rule("2/d", name="daily")], 2, {f"{ORDER}:42", f"{ORDER}.daily:42"}),
        (("3/m", Rule("2/m", Scope.CHAT)), 2, {f"{ORDER}:42", f"{ORDER}:chat:-100"}),
        (
            {"limit": [Rule("3/m"), Rule("5/m", Scope.CHAT)], "key": "ai", "cost": 2},
            1,
            {"ai:42", "ai:chat:-100"},
        ),
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
    "flag",
    [
        "often",
        "",
        0,
        -1,
        None,
        {},
        {"key": "ai"},
        {"limit": "3/m", "rate": 2},
        {"limit": "3/m", "burst": 5},
        {"limit": None},
        {"limit": "3/m", "cost": 4},
        {"limit": "3/m", "cost": "2"},
        {"limit": "3/m", "scope": "users"},
        {"limit": "3/m", "scope": 5},
        {"limit": "3/m", "key": "a b"},
        {"limit": "3/m", "key": "a:b"},
        {"limit": "3/m", "key": "ban"},
        {"limit": "3/m", "key": "global"},
        {"rate": "soon"},
        {"rate": True},
        {"limit": "3/m", "shadow": "no"},
        [],
        Penalty("3/m", "1h"),
        ["3/m", Penalty("3/m", "1h")],
        Concurrency(1),
        {"limit": Concurrency(1)},
        object(),
    ],
)
async def test_an_invalid_flag_names_its_handler(flag: Any, limiter: Limiter) -> None:
    """It is an error that names the handler, at the start or at the first update."""
    bot = limited(limiter)
    bot.dispatcher.message.register(order, flags={"rate_limit": flag})
    with pytest.raises(ConfigError, match=r"flag of tests\.incoming\.test_flags\.order: "):
        await bot.dispatcher.emit_startup()

    late = Instance(RateLimitMiddleware(limiter=limiter), ())
    late.dispatcher.message.middleware(RateLimitMiddleware(limiter=limiter))
    late.dispatcher.message.register(order, flags={"rate_limit": flag})
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"flag of tests\.incoming\.test_flags\.order: "):
            await late.send("hello")


async def test_handlers_with_one_key_share_a_limit(fleet: Fleet) -> None:
    """Messages and buttons with one key share a limit, on all instances."""

    def put(bot: Instance, limiter: Limiter) -> None:
        RateLimitMiddleware(limiter=limiter, on_limited=None).setup(bot.dispatcher)

        @bot.dispatcher.message(Command("draw"))
        @flags.rate_limit(limit="3/m", key="ai")
        async def draw(message: Message) -> str:
            return HANDLED

        @bot.dispatcher.callback_query()
        @flags.rate_limit(limit="3/m", key="ai")
        async def draw_again(event: Any) -> str:
            return HANDLED

    bots = fleet.assemble(put)
    results = [await bots[0].feed(message=message("/draw"))]
    results += [await bot.feed(callback_query=callback()) for bot in bots]
    assert results == [HANDLED] * 3 + [None]
    assert await fleet.used(Rule("3/m", name="ai")) == 3
    assert await fleet.used("1/s") == 0


async def test_handlers_without_a_key_count_separately(fleet: Fleet) -> None:
    """The same limit on several handlers is several counts, the same on all instances."""

    def put(bot: Instance, limiter: Limiter) -> None:
        RateLimitMiddleware(limiter=limiter, on_limited=None).setup(bot.dispatcher)

        @bot.dispatcher.message(F.text == "a")
        @flags.rate_limit("2/m")
        async def a(message: Message) -> str:
            return HANDLED

        @bot.dispatcher.message(F.text == "b")
        @flags.rate_limit("2/m")
        async def b(message: Message) -> str:
            return HANDLED

    bots = fleet.assemble(put)
    handled = [(await bot.send(text))[0] for text in "ab" for bot in bots]
    assert handled == [True, True, False] * 2


class Orders:
    async def buy(self, message: Message) -> str:
        return HANDLED

    @staticmethod
    async def sell(message: Message) -> str:
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


def same_name() -> tuple[Callable[..., Any], Callable[..., Any]]:
    async def handler(message: Message) -> str:
        return HANDLED

    first = handler

    async def handler(message: Message) -> str:  # type: ignore[no-redef]  # on purpose
        return HANDLED

    return first, handler


# fmt: off
LAMBDAS = (lambda message: HANDLED, lambda message: HANDLED)  # on one line, as a table may have it
# fmt: on

PAIRS = {
    "functions": (order, pay),
    "methods": (Orders().buy, Orders.swap),
    "static methods": (Orders.sell, order),
    "inner functions of one name": same_name(),
    "lambdas": (
        lambda message: HANDLED,
        lambda message: HANDLED,
    ),
    "lambdas on one line": LAMBDAS,
    "functions of a factory": (reply_to("a"), reply_to("b")),
    "decorated functions": (tidied(order), tidied(pay)),
    "functions under a decorator that hides them": (untidied(order), untidied(pay)),
    "partials of different functions": (functools.partial(order), functools.partial(pay)),
    "partials of one function": (
        functools.partial(parting, way="a"),
        functools.partial(parting, way="b"),
    ),
    "methods of two objects": (Orders().buy, Orders().buy),
    "callable objects and functions": (CallableOrder(), order),
    "callable objects of one class": (CallableOrder(), CallableOrder()),
    "class-based handlers": (Reply, OtherReply),
}


@pytest.mark.parametrize("fleet", ["memory"], indirect=True)
@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
async def test_every_kind_of_handler_counts_separately(pair: Any, fleet: Fleet) -> None:
    """Functions, lambdas, partials and classes have separate counts without a key."""

    def put(bot: Instance, limiter: Limiter) -> None:
        RateLimitMiddleware(limiter=limiter, on_limited=None).setup(bot.dispatcher)
        for text, handler in zip("ab", pair, strict=True):
            flag = {"rate_limit": "2/m"}
            bot.dispatcher.message.register(handler, F.text == text, flags=flag)

    bots = fleet.assemble(put)
    handled = dict.fromkeys("ab", 0)
    for text in "ab":
        for bot in bots:
            handled[text] += await bot.feed(message=message(text)) is not None
    expected = 1 if pair == (Reply, OtherReply) else 2  # they bring a flag of their own
    assert handled == {"a": expected, "b": expected}


@pytest.mark.parametrize(
    ("handler", "name"),
    [
        (order, "order"),
        (Orders().buy, "Orders.buy"),
        (Orders.swap, "Orders.swap"),
        (functools.partial(functools.partial(parting), way="a"), "parting"),
        (tidied(pay), "pay"),
        (CallableOrder(), "CallableOrder"),
        (Reply, "Reply"),
        (reply_to("a"), "reply_to.<locals>.reply"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_key_names_its_handler(
    handler: Any, name: str, fake_client: FakeAsyncRedis
) -> None:
    """An operator can see in the key which handler's limit it is."""
    bot = bare()
    RateLimitMiddleware("4/m", fake_client, timeout=5).setup(bot.dispatcher)
    bot.dispatcher.message.register(handler, flags={"rate_limit": "1/m"})
    await bot.send("a")
    assert await keys(fake_client) == {f"{HERE}.{name}:42"}


async def test_one_function_under_two_filters(limiter: Limiter) -> None:
    """A function that is registered twice is one handler with one count."""
    bot = limited(limiter)

    @bot.dispatcher.message(Command("order"))
    @bot.dispatcher.message(F.text == "Order")
    @flags.rate_limit("1/m")
    async def handler(message: Message) -> str:
        return HANDLED

    assert await bot.send("/order", "Order") == [True, False]


async def test_class_based_handlers(fleet: Fleet) -> None:
    """A flag on a class-based handler is its limit."""

    def put(bot: Instance, limiter: Limiter) -> None:
        RateLimitMiddleware(limiter=limiter, on_limited=None).setup(bot.dispatcher)
        bot.dispatcher.message.register(Reply)

    bots = fleet.assemble(put)
    assert [await bot.send("a") for bot in bots] == [[True], [False], [False]]
    assert await fleet.used(Rule("1/m", name=f"{HERE}.Reply")) == 1


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


async def test_a_scene_names_its_handlers(limiter: Limiter) -> None:
    """Errors and keys name the method of the scene, not aiogram's wrapper."""
    bot = limited(limiter)
    SceneRegistry(bot.dispatcher).add(Exam)
    with pytest.raises(ConfigError, match=r"flag of tests\.incoming\.test_flags\.Exam\.answer: "):
        await bot.dispatcher.emit_startup()


async def test_a_flag_of_a_filter(limiter: Limiter) -> None:
    """A filter may set the flag of its handlers, as aiogram allows."""

    class Dear(Command):
        def update_handler_flags(self, flags: dict[str, Any]) -> None:
            super().update_handler_flags(flags)
            flags["rate_limit"] = "1/m"

    bot = limited(limiter)
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
    bot = limited(limiter, staff, guard=guard)
    flag = {"limit": Rule(Shift("2/m"), name="own"), "scope": Shift("late"), "key": "a"}
    bot.dispatcher.message.register(order, F.text == "a", flags={"rate_limit": flag})
    bot.dispatcher.message.register(order, F.text == "b")
    assert await bot.send(*"aaa") == [True, True, False]
    left = 1 if guard else 4
    assert await bot.send(*"bbbbb") == [True] * left + [False] * (5 - left)


async def test_the_handler_sees_the_decision_of_its_own_limit(limiter: Limiter) -> None:
    """`rate_limit` in a flagged handler is the flag's decision, or None without a limit."""
    bot = limited(limiter)
    for text, flag in {"a": {"limit": "3/m", "key": "a"}, "b": False}.items():
        bot.dispatcher.message.register(bot._handle, F.text == text, flags={"rate_limit": flag})
    await bot.send("a", "b")
    a, b = bot.decisions
    assert a is not None
    assert (a.rule, a.remaining) == (Rule("3/m", name="a"), 2)
    assert b is None


async def test_refusals_of_a_handlers_limit_count_for_the_penalty(fleet: Fleet) -> None:
    """A user who keeps sending to a handler with its own limit is banned from the whole bot."""

    def put(bot: Instance, limiter: Limiter) -> None:
        RateLimitMiddleware(
            "9/m", limiter=limiter, penalty=Penalty("2/m", "1h"), on_limited=None
        ).setup(bot.dispatcher)
        bot.dispatcher.message.register(
            order, F.text == "a", flags={"rate_limit": {"limit": "1/m", "key": "a"}}
        )
        bot.dispatcher.message.register(order, F.text == "b")

    bots = fleet.assemble(put)
    assert await bots[0].send(*"aba") == [True, True, False]
    assert await bots[1].send(*"ba") == [True, False]
    assert await bots[2].send(*"ba") == [False, False]


async def test_payments_pass_a_handlers_own_limit(limiter: Limiter) -> None:
    """A payment passes a handler's own limit too."""
    bot = limited(limiter)
    bot.dispatcher.message.register(order, flags={"rate_limit": "1/m"})
    assert [await bot.feed(message=payment()) for _ in range(3)] == [HANDLED] * 3
    assert await bot.send(*"ab") == [True, False]


async def test_the_flags_in_the_doc(limiter: Limiter) -> None:
    """The handlers in docs/limits.md pass the check at the start of a bot."""
    _, _, section = DOC.partition("\n## A handler's own limit\n")
    code = section.partition("```python\n")[2].partition("```")[0]
    shown: dict[str, Any] = {"__name__": "shop.handlers"}
    exec(code, shown)
    bot = limited(limiter, "1/m")
    bot.dispatcher.include_router(shown["router"])
    await bot.dispatcher.emit_startup()
    assert [await bot.feed(message=message("/help")) for _ in range(3)] == [None] * 3
    assert (await limiter.peek("1/m", Subject(user=42))).remaining == 1


def test_a_middleware_has_no_slots() -> None:
    """A Concurrency in place of a limit is an error when the middleware is made."""
    with pytest.raises(ConfigError, match=r"does not count events: .*concurrent=1"):
        RateLimitMiddleware([Rule("1/m"), Concurrency(1)])


@pytest.mark.parametrize("setup", [False, True])
async def test_a_decorator_above_the_registration_is_found(
    setup: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A flag that comes too late stops the start; without `setup` a warning names the handler."""
    bot = bare()
    middleware = RateLimitMiddleware("9/m", limiter=Limiter(MemoryStorage()))
    (middleware.setup if setup else lambda dp: dp.message.middleware(middleware))(bot.dispatcher)

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


async def test_flags_that_nothing_reads_are_named(
    limiter: Limiter, caplog: pytest.LogCaptureFixture
) -> None:
    """Left-over flags of hand-written throttles, and numbered counts, are told at the start."""
    bot = limited(limiter)
    bot.dispatcher.message.register(order, flags={"throttling_key": "spin"})
    for factory in "ab":
        bot.dispatcher.message.register(reply_to(factory), flags={"rate_limit": "1/m"})
    await bot.dispatcher.emit_startup()
    (left_over,) = [each for each in caplog.messages if "throttling_key" in each]
    assert "test_flags.order" in left_over
    assert "named_limits={" in left_over
    (numbered,) = [each for each in caplog.messages if "numbered in the order" in each]
    assert numbered.endswith("test_flags.reply_to.<locals>.reply#2")


async def test_an_unknown_key_names_both_places(limiter: Limiter) -> None:
    """A key without a limit could be in the limits file or in `named_limits`."""
    bot = limited(limiter)
    bot.dispatcher.message.register(order, flags={"rate_limit": {"key": "ai"}})
    with pytest.raises(ConfigError, match=r"RATE_LIMIT_FILE names, write named_limits=\{'ai'"):
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


@pytest.mark.parametrize(
    ("folder", "command"),
    [
        ("shop", ["bot.py"]),
        (".", ["-m", "shop.bot"]),
        ("/", ["{}/shop/bot.py"]),
    ],
    ids=["its folder", "a module", "elsewhere"],
)
def test_the_name_of_a_count_does_not_depend_on_the_start(
    folder: str, command: list[str], tmp_path: Path
) -> None:
    """However the bot is started, its unnamed flag counts under one name."""
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").touch()
    (tmp_path / "shop" / "bot.py").write_text(BOT)
    found = subprocess.run(
        [sys.executable, *(part.format(tmp_path) for part in command)],
        cwd=tmp_path / folder,
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout == "bot.order\n"
