"""The position of the middleware: one update is charged once, before or after the filters."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiogram import Dispatcher, Router
from aiogram.dispatcher.event.bases import UNHANDLED, SkipHandler
from aiogram.dispatcher.middlewares.user_context import UserContextMiddleware
from aiogram.fsm.context import FSMContext
from aiogram.fsm.storage.memory import MemoryStorage as FSMStorage
from aiogram.fsm.storage.memory import SimpleEventIsolation
from aiogram.types import Message, TelegramObject

from bot_ratelimit import (
    ConfigError,
    Decision,
    Limiter,
    RateLimitMiddleware,
    Rule,
    Settings,
    Subject,
)
from tests.servers import Server

from .support import HANDLED, Instance, callback, inline_query, message
from .updates import (
    CHANNEL_POST,
    CONTENTS,
    MISSING,
    Fleet,
    bare,
    content,
    listen,
)


async def used(limiter: Limiter, rule: Rule | str = "9/m") -> int:
    rule = rule if isinstance(rule, Rule) else Rule(rule)
    decision = await limiter.peek(rule, Subject(user=42, chat=42))
    return int(rule.limit.capacity - decision.remaining)


def skipping(bot: Instance, router: Router, times: int = 1) -> list[Decision | None]:
    """Handlers that skip to the next one; returns the decisions that they got."""
    seen: list[Decision | None] = []

    async def skip(event: Message, rate_limit: Decision | None) -> None:
        seen.append(rate_limit)
        raise SkipHandler

    for _ in range(times):
        router.message.register(skip)
    return seen


async def test_in_every_position_at_once(fleet: Fleet) -> None:
    """Guard, inner and outer positions, and a second `setup`, are still one charge."""

    def put(bot: Instance, limiter: Limiter) -> None:
        middleware = RateLimitMiddleware("9/m", limiter=limiter)
        for guard in (True, False, True):
            middleware.setup(bot.dispatcher, guard=guard)
        bot.dispatcher.update.middleware(middleware)
        bot.dispatcher.update.outer_middleware(middleware)
        bot.dispatcher.message.outer_middleware(middleware)
        listen(bot, "message", "callback_query")

    bots = fleet.assemble(put)
    for bot in bots:
        assert await bot.send("hello") == [True]
        assert await bot.feed(callback_query=callback()) == HANDLED
    assert await fleet.used("9/m") == 6


@pytest.mark.parametrize("guard", [False, True])
async def test_after_a_skipped_handler(fleet: Fleet, guard: bool) -> None:
    """Handlers that skip each run the middleware, and the update is charged once."""
    seen = []

    def put(bot: Instance, limiter: Limiter) -> None:
        RateLimitMiddleware("9/m", limiter=limiter).setup(bot.dispatcher, guard=guard)
        child = bot.dispatcher.include_router(Router())
        seen.append(skipping(bot, bot.dispatcher, 3))
        seen.append(skipping(bot, child, 2))
        child.message.register(bot._handle)

    bots = fleet.assemble(put)
    assert [await bot.send("hello") for bot in bots] == [[True]] * 3
    assert await fleet.used("9/m") == 3
    assert [len(each) for each in seen] == [3, 2] * 3
    assert {d and d.remaining for d in (*seen[0], *seen[1])} == {8}  # one and the same decision


async def test_a_refused_update_is_not_offered_to_other_handlers(limiter: Limiter) -> None:
    """No further handler or router gets a refused update."""
    bot = bare()
    RateLimitMiddleware("1/m", limiter=limiter, on_limited=None).setup(bot.dispatcher)
    seen = skipping(bot, bot.dispatcher)
    bot.dispatcher.include_router(Router()).message.register(bot._handle)
    assert await bot.send(*"ab") == [True, False]
    assert len(seen) == 1


async def test_nested_updates_are_charged_once_each(limiter: Limiter) -> None:
    """A handler may feed another update; each of the two is charged once."""
    bot = bare()
    RateLimitMiddleware("9/m", limiter=limiter).setup(bot.dispatcher)

    async def feed_another(event: Message) -> None:
        await bot.feed(callback_query=callback())
        raise SkipHandler

    bot.dispatcher.message.register(feed_another)
    listen(bot, "message", "callback_query")
    assert await bot.send("hello") == [True]
    assert await used(limiter) == 2


async def test_behind_a_middleware_that_starts_tasks(limiter: Limiter) -> None:
    """A middleware that runs handlers in separate tasks does not cause a second charge."""
    bot = bare()

    async def deadline(handler: Any, event: TelegramObject, data: dict[str, Any]) -> Any:
        return await asyncio.create_task(handler(event, data))

    bot.dispatcher.message.middleware(deadline)
    RateLimitMiddleware("9/m", limiter=limiter).setup(bot.dispatcher)
    skipping(bot, bot.dispatcher, 2)
    listen(bot, "message")
    assert await bot.send("hello") == [True]
    assert await used(limiter) == 1


async def test_simultaneous_updates_are_charged_separately(fleet: Fleet) -> None:
    """Each of many simultaneous updates is charged once."""

    def put(bot: Instance, limiter: Limiter) -> None:
        RateLimitMiddleware("50/m", limiter=limiter, on_limited=None).setup(
            bot.dispatcher, guard=True
        )
        skipping(bot, bot.dispatcher, 2)
        listen(bot, "message")

    bots = fleet.assemble(put)
    results = await asyncio.gather(*(bot.send("hello") for bot in bots * 20))
    assert results.count([True]) == 50
    assert await fleet.used("50/m") == 50


async def test_two_middlewares_both_charge(limiter: Limiter) -> None:
    """Different middlewares are different limits: each charges, and the stricter one refuses."""
    bot = bare()
    for rule in (Rule("9/m"), Rule("2/m", name="strict")):
        RateLimitMiddleware(rule, limiter=limiter, on_limited=None).setup(bot.dispatcher)
    listen(bot, "message")
    assert await bot.send(*"abc") == [True, True, False]
    assert (await used(limiter), await used(limiter, Rule("2/m", name="strict"))) == (3, 2)


async def test_two_middlewares_before_a_handler_with_its_own_limit(limiter: Limiter) -> None:
    """A handler's own limit is charged once, however many middlewares run before it."""
    bot = bare()
    for name in ("one", "two"):
        RateLimitMiddleware(Rule("9/m", name=name), limiter=limiter).setup(bot.dispatcher)
    listen(bot, "message", flags={"rate_limit": {"limit": "4/m", "key": "own"}})
    await bot.send("hello")
    assert await used(limiter, Rule("4/m", name="own")) == 1


CARRIED = ("message", "edited_message", "business_message", "guest_message", "message_reaction")
CARRIED += ("inline_query", "chosen_inline_result", "callback_query", "poll_answer")


def test_setup_registers_on_all_observers_of_users(limiter: Limiter) -> None:
    """`setup` registers after the filters of all observers of users, and nowhere else."""
    dispatcher = Dispatcher()
    middleware = RateLimitMiddleware(limiter=limiter)
    assert middleware.setup(dispatcher) is middleware
    seats = {name for name, each in dispatcher.observers.items() if middleware in each.middleware}
    assert set(CARRIED) - MISSING <= seats <= set(dispatcher.observers) - {"update", "error"}
    assert not any(middleware in each.outer_middleware for each in dispatcher.observers.values())


@pytest.mark.parametrize("guard", [False, True])
async def test_excluded_observers_are_not_limited(limiter: Limiter, guard: bool) -> None:
    """An observer in `exclude` has no limit, and its events are not charged."""
    bot = bare()
    RateLimitMiddleware("1/m", limiter=limiter, on_limited=None).setup(
        bot.dispatcher, guard=guard, exclude=["inline_query", "callback_query"]
    )

    async def answer(event: TelegramObject) -> str:
        return HANDLED

    for name in ("message", "inline_query", "callback_query"):
        bot.dispatcher.observers[name].register(answer)
    for _ in range(3):
        assert await bot.feed(inline_query=inline_query()) == HANDLED
        assert await bot.feed(callback_query=callback()) == HANDLED
    assert await bot.send(*"ab") == [True, False]


async def test_excluding_polls_excludes_no_messages(limiter: Limiter) -> None:
    """`poll` names an observer here, although a message may contain a poll too."""
    bot = bare()
    RateLimitMiddleware("1/m", limiter=limiter, on_limited=None).setup(
        bot.dispatcher, guard=True, exclude="poll"
    )
    with_poll = content(poll=CONTENTS["poll"])
    assert [await bot.feed(message=with_poll) for _ in range(2)] == [UNHANDLED, None]


class WatchedStorage(FSMStorage):
    """An FSM storage that counts its reads."""

    reads = 0

    async def get_state(self, *args: Any, **kwargs: Any) -> str | None:
        self.reads += 1
        return await super().get_state(*args, **kwargs)


class WatchedIsolation(SimpleEventIsolation):
    locks = 0

    def lock(self, *args: Any, **kwargs: Any) -> Any:
        self.locks += 1
        return super().lock(*args, **kwargs)


@pytest.mark.parametrize("guard", [False, True])
async def test_the_guard_runs_before_fsm_and_filters(limiter: Limiter, guard: bool) -> None:
    """An update refused by the guard reads no state, takes no lock and reaches no filter."""
    bot = bare()
    storage, isolation = WatchedStorage(), WatchedIsolation()
    bot.dispatcher = Dispatcher(storage=storage, events_isolation=isolation)
    filtered = []

    async def check(event: Message, state: FSMContext) -> bool:
        filtered.append(event)
        return True

    # Middlewares that a bot registers before `setup` also run after the guard.
    outer: list[TelegramObject] = []

    async def outermost(handler: Any, event: TelegramObject, data: dict[str, Any]) -> Any:
        outer.append(event)
        return await handler(event, data)

    bot.dispatcher.update.outer_middleware(outermost)
    RateLimitMiddleware("1/m", limiter=limiter, on_limited=None).setup(bot.dispatcher, guard=guard)
    bot.dispatcher.message.register(bot._handle, check)
    assert await bot.send(*"abc") == [True, False, False]
    met = 1 if guard else 3
    assert (storage.reads, isolation.locks, len(filtered), len(outer)) == (met,) * 4


def test_the_guard_runs_after_the_user_context(limiter: Limiter) -> None:
    """The guard knows user and chat, and its errors are handled; FSM and the rest follow."""
    dispatcher = Dispatcher()
    before = list(dispatcher.update.outer_middleware)
    middleware = RateLimitMiddleware(limiter=limiter).setup(dispatcher, guard=True)
    after = list(dispatcher.update.outer_middleware)
    assert [each for each in after if each is not middleware] == before
    assert isinstance(after[after.index(middleware) - 1], UserContextMiddleware)
    assert after[after.index(middleware) + 1] is dispatcher.fsm


@pytest.mark.parametrize("guard", [False, True])
async def test_a_bot_may_use_the_name_dispatcher(limiter: Limiter, guard: bool) -> None:
    """aiogram lets a bot put its own object under `dispatcher`; the limit works all the same."""
    bot = bare()
    RateLimitMiddleware("1/m", limiter=limiter).setup(bot.dispatcher, guard=guard)
    bot.dispatcher["dispatcher"] = object()
    listen(bot, "message")
    assert await bot.send(*"ab") == [True, False]


@pytest.mark.parametrize("guard", [False, True])
async def test_updates_without_a_handler(limiter: Limiter, guard: bool) -> None:
    """The guard counts updates without a handler; the inner position does not."""
    bot = bare()
    RateLimitMiddleware("2/m", limiter=limiter, on_limited=None).setup(bot.dispatcher, guard=guard)
    results = [await bot.feed(message=message()) for _ in range(3)]
    results += [await bot.feed(channel_post=CHANNEL_POST)]
    assert results == [UNHANDLED, UNHANDLED, None if guard else UNHANDLED, UNHANDLED]
    assert await used(limiter, "2/m") == (2 if guard else 0)


async def test_the_handler_finds_the_decision_of_the_guard(limiter: Limiter) -> None:
    """If only the guard counts, the handler gets its decision."""
    bot = bare()
    middleware = RateLimitMiddleware("5/m", limiter=limiter)
    bot.dispatcher.update.outer_middleware(middleware)
    listen(bot, "message")
    await bot.send(*"ab")
    assert [d and d.remaining for d in bot.decisions] == [4, 3]


def nonsense_on(router: Router) -> None:
    async def too_fast(event: Message) -> None: ...

    router.message.register(too_fast, flags={"rate_limit": "fast"})


@pytest.mark.parametrize("deep", [False, True])
async def test_flags_are_checked_when_the_bot_starts(limiter: Limiter, deep: bool) -> None:
    """An invalid flag stops the bot at its start, with the handler's name."""
    dispatcher = Dispatcher()
    # Routers and handlers may come after `setup`.
    RateLimitMiddleware(limiter=limiter).setup(dispatcher)
    router = dispatcher
    if deep:
        router = dispatcher.include_router(Router()).include_router(Router())  # type: ignore[assignment]
    nonsense_on(router)
    with pytest.raises(ConfigError, match=r"test_setup\.nonsense_on\.<locals>\.too_fast.*'fast'"):
        await dispatcher.emit_startup()


async def test_setup_closes_at_the_shutdown(
    redis_server: Server, connected: Callable[[int], Awaitable[None]]
) -> None:
    """The middleware's connection is closed with the dispatcher, even if no handler ever ran."""
    bot = bare()
    settings = Settings(redis_url=f"{redis_server.url}?client_name=ours", rate_limit_timeout=5)
    RateLimitMiddleware.from_settings(settings).setup(bot.dispatcher, guard=True)
    await bot.send("hello")
    await connected(1)
    await bot.dispatcher.emit_shutdown()
    await connected(0)


def test_setup_registers_one_shutdown(limiter: Limiter) -> None:
    """The middleware is closed once, however often it is set up."""
    dispatcher = Dispatcher()
    before = len(dispatcher.shutdown.handlers)
    middleware = RateLimitMiddleware("1/m")
    for _ in range(3):
        middleware.setup(dispatcher)
    assert len(dispatcher.shutdown.handlers) == before + 1
    RateLimitMiddleware("1/m", limiter=limiter).setup(dispatcher)  # it closes nothing
    assert len(dispatcher.shutdown.handlers) == before + 1


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"exclude": ["inline_querry"]}, r"inline_querry.*it has message, edited"),
        ({"exclude": "Message"}, r"Message.*it has message, edited"),
        ({"exclude": None}, r"exclude=None.*\['inline_query'\]"),
        ({"guard": "yes"}, r"guard='yes': expected True or False"),
        ({"guard": None}, r"guard=None: expected True or False"),
    ],
    ids=str,
)
def test_an_invalid_setup_is_an_error(
    options: dict[str, Any], wrong: str, limiter: Limiter
) -> None:
    """The error names the argument, and nothing is registered."""
    dispatcher, middleware = Dispatcher(), RateLimitMiddleware(limiter=limiter)
    with pytest.raises(ConfigError, match=wrong):
        middleware.setup(dispatcher, **options)
    assert middleware not in dispatcher.message.middleware


@pytest.mark.parametrize("given", [True, False])
async def test_operators_see_where_a_named_limit_comes_from(given: bool, tmp_path: Path) -> None:
    """A limit of `named_limits` is one of the code; that of the file is one of the file."""
    file = tmp_path / "limits.toml"
    file.write_text('[limits]\nai = "5/minute"\n')
    settings = Settings(rate_limit_file=str(file))
    arguments = {"named_limits": {"ai": "5/minute"}} if given else {}
    middleware = RateLimitMiddleware.from_settings(settings, **arguments)
    dispatcher = Dispatcher()
    dispatcher.message.register(_ignored, flags={"rate_limit": {"key": "ai"}})
    middleware.setup(dispatcher)
    await dispatcher.emit_startup()
    (rule,) = (each for each in middleware.inventory()["rules"] if each["name"] == "ai")
    assert rule["from"] == ("code" if given else "file")
    await dispatcher.emit_shutdown()


async def _ignored(message: Message) -> None:
    """Does nothing."""
