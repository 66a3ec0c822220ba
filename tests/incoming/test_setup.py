"""The position of the middleware: one update is charged once, before or after the filters."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from aiogram import Dispatcher, Router
from aiogram.dispatcher.event.bases import UNHANDLED, SkipHandler
from aiogram.dispatcher.middlewares.user_context import UserContextMiddleware
from aiogram.fsm.storage.memory import MemoryStorage as FSMStorage
from aiogram.fsm.storage.memory import SimpleEventIsolation
from aiogram.types import Message, TelegramObject

from bot_ratelimit import (
    ConfigError,
    Debounce,
    Decision,
    Limiter,
    MemoryStorage,
    Penalty,
    RateLimitMiddleware,
    Rule,
    Settings,
)
from tests.tables import table

from .support import HANDLED, Instance, callback, inline_query, message
from .updates import CHANNEL_POST, POLL, VOTE, Fleet, bare, content, limited, listen, used


def skipping(router: Router, times: int = 1) -> list[Decision | None]:
    """Handlers that skip to the next one; returns the decisions that they got."""
    seen: list[Decision | None] = []

    async def skip(event: Message, rate_limit: Decision | None) -> None:
        seen.append(rate_limit)
        raise SkipHandler

    for _ in range(times):
        router.message.register(skip)
    return seen


@pytest.mark.parametrize("where", ["setup", "guard", "everywhere"])
async def test_an_update_is_charged_once(fleet: Fleet, where: str) -> None:
    """Also if handlers skip, each of which runs the middleware, and in every position at once.

    A middleware that runs handlers in separate tasks does not cause a second charge.
    """
    seen = []

    async def in_a_task(handler: Any, event: TelegramObject, data: dict[str, Any]) -> Any:
        return await asyncio.create_task(handler(event, data))

    def put(bot: Instance, limiter: Limiter) -> None:
        bot.dispatcher.message.middleware(in_a_task)
        middleware = RateLimitMiddleware("50/m", limiter=limiter, on_limited=None)
        middleware.setup(bot.dispatcher, guard=where == "guard")
        if where == "everywhere":
            middleware.setup(bot.dispatcher, guard=True)
            bot.dispatcher.update.middleware(middleware)
            bot.dispatcher.update.outer_middleware(middleware)
            bot.dispatcher.message.outer_middleware(middleware)
        child = bot.dispatcher.include_router(Router())
        seen.append(skipping(bot.dispatcher, 3))
        seen.append(skipping(child, 2))
        child.message.register(bot._handle)

    bots = fleet.assemble(put)
    assert await bots[0].send("hello") == [True]
    assert await fleet.used("50/m") == 1
    assert [len(each) for each in seen[:2]] == [3, 2]
    assert {d and d.remaining for d in (*seen[0], *seen[1])} == {49}  # one and the same decision
    results = await asyncio.gather(*(bot.send("hello") for bot in bots * 20))
    assert results.count([True]) == 49
    assert await fleet.used("50/m") == 50
    assert sum(map(len, seen)) == 50 * 5  # a refused update is not offered to other handlers


async def test_a_rule_of_the_guard_and_a_flag_is_charged_once(limiter: Limiter) -> None:
    """Also a `Debounce`, which otherwise would refuse the event that the guard has just counted."""
    rules = [Rule("4/m", name="ai"), Debounce("2s")]
    bot = limited(rules, limiter=limiter, guard=True, flag=rules)
    await bot.dispatcher.emit_startup()
    assert await bot.send(*"abccde") == [True, True, True, False, True, False]
    outer = RateLimitMiddleware(rules, limiter=Limiter(MemoryStorage()), on_limited=None)
    bot = limited("9/h", limiter=outer.limiter, flag=rules)  # or of two middlewares
    bot.dispatcher.message.outer_middleware(outer)
    assert await bot.send(*"abccde") == [True, True, True, False, True, False]


@pytest.mark.parametrize("guard", [False, True])
async def test_excluded_observers_are_not_limited(limiter: Limiter, guard: bool) -> None:
    """`poll` names an observer here, although a message may contain a poll too.

    Of two guards on one dispatcher, each counts what the other excludes.
    """
    bot, middleware = bare(), RateLimitMiddleware("1/m", limiter=limiter, on_limited=None)
    for name in ("message", "inline_query", "callback_query"):
        bot.dispatcher.observers[name].register(lambda event: HANDLED)
    excluded = ["inline_query", "callback_query", "poll", "poll_answer"]
    middleware.setup(bot.dispatcher, guard=guard, exclude=excluded)
    for _ in range(2):
        assert await bot.feed(inline_query=inline_query()) == HANDLED
        assert await bot.feed(callback_query=callback()) == HANDLED
    results = [await bot.feed(message=content(poll=POLL)) for _ in range(2)]
    assert results == [HANDLED, None]
    if guard:
        both = ["inline_query", "edited_message"]
        middleware.setup(bot.dispatcher, guard=True, exclude=both)
        assert await bot.feed(inline_query=inline_query()) == HANDLED
        vote = await bot.feed(poll_answer=VOTE)  # neither has a handler
        assert [vote, await bot.feed(edited_message=message(edit_date=1))] == [None, None]


@pytest.mark.parametrize("fsm", [False, True])
@pytest.mark.parametrize("guard", [False, True])
async def test_the_guard_runs_first(limiter: Limiter, guard: bool, fsm: bool) -> None:
    """An update refused by the guard reads no state, takes no lock and reaches no filter.

    aiogram lets a bot put its own object under `dispatcher`; the limit works all the same.
    """
    bot, storage, isolation = bare(), FSMStorage(), SimpleEventIsolation()
    options = {"storage": storage, "events_isolation": isolation, "disable_fsm": not fsm}
    bot.dispatcher = Dispatcher(**options, dispatcher=object())
    read, lock = Mock(wraps=storage.get_state), Mock(wraps=isolation.lock)
    storage.get_state, isolation.lock = read, lock  # type: ignore[method-assign]
    met: list[TelegramObject] = []

    async def check(event: Message) -> bool:
        met.append(event)
        return True

    async def outermost(handler: Any, event: TelegramObject, data: dict[str, Any]) -> Any:
        met.append(event)
        return await handler(event, data)

    # Middlewares that a bot registers before `setup` also run after the guard.
    bot.dispatcher.update.outer_middleware(outermost)
    before = list(bot.dispatcher.update.outer_middleware)
    middleware = RateLimitMiddleware("1/m", limiter=limiter, on_limited=None)
    middleware.setup(bot.dispatcher, guard=guard)
    bot.dispatcher.message.register(bot._handle, check)
    assert await bot.send(*"abc") == [True, False, False]
    times = 1 if guard else 3
    assert (read.call_count, lock.call_count) == (times * fsm, times * fsm)
    assert len(met) == 2 * times
    after = list(bot.dispatcher.update.outer_middleware)
    assert [each for each in after if each is not middleware] == before
    if guard:  # it knows user and chat
        assert isinstance(after[after.index(middleware) - 1], UserContextMiddleware)


@pytest.mark.parametrize("guard", [False, True])
async def test_updates_without_a_handler(limiter: Limiter, guard: bool) -> None:
    """The guard counts updates without a handler; the inner position does not."""
    bot = limited("2/m", (), limiter=limiter, guard=guard)
    results = [await bot.feed(message=message()) for _ in range(3)]
    results += [await bot.feed(channel_post=CHANNEL_POST)]
    assert results == [UNHANDLED, UNHANDLED, None if guard else UNHANDLED, UNHANDLED]
    assert await used(limiter, "2/m") == (2 if guard else 0)


@table(
    ("options", "wrong"),
    [
        ({"exclude": ["inline_querry"]}, r"inline_querry.*it has message, edited"),
        ({"exclude": None}, r"exclude=None.*\['inline_query'\]"),
        ({"guard": "yes"}, r"guard='yes': expected True or False"),
        ({"dispatcher": Router(name="a")}, "setup needs the Dispatcher, not a Router:"),
        ({"dispatcher": Dispatcher}, "setup needs the Dispatcher, not the class Dispatcher:"),
    ],
)
def test_an_invalid_setup_is_an_error(options: dict[str, Any], wrong: str) -> None:
    """The error names the argument, and nothing is registered."""
    dispatcher, middleware = Dispatcher(), RateLimitMiddleware()
    with pytest.raises(ConfigError, match=wrong):
        middleware.setup(**{"dispatcher": dispatcher} | options)
    assert middleware not in dispatcher.message.middleware


@pytest.mark.parametrize("given", [True, False])
async def test_operators_see_where_a_limit_comes_from(given: bool, tmp_path: Path) -> None:
    """Limits that are given as arguments are those of the code, as always that of other bots; the
    others are of the file."""
    file = tmp_path / "limits.toml"
    penalty = '[penalty]\nafter = "3/h"\nban = "1h"\n'
    file.write_text(f'rate_limit = "9/m"\n[limits]\nai = "5/minute"\n{penalty}')
    arguments: dict[str, Any] = {"named_limits": {"ai": "5/minute"}, "rate_limit": "9/m"}
    arguments = arguments | {"penalty": Penalty("3/h", "1h")} if given else {}
    settings = Settings(rate_limit_file=str(file))
    middleware = RateLimitMiddleware.from_settings(settings, **arguments)
    bot = listen(bare(), "message", flags={"rate_limit": {"key": "ai"}})
    middleware.setup(bot.dispatcher)
    await bot.dispatcher.emit_startup()
    rules = middleware.inventory()["rules"]
    origins = {each["name"]: each["from"] for each in rules}
    assert origins.pop("bots:member") == "code"
    assert set(origins.values()) == {"code" if given else "file"}
    where = {each["name"]: each["where"].rpartition(".")[2] for each in rules}
    assert where.pop("bots:member") == "messages of other bots"
    assert where == {"user": "every handler", "ban": "every handler", "ai": "_handle"}


async def test_what_the_bot_keeps_under_a_name_of_ours_is_its_own() -> None:
    """aiogram passes what a bot keeps to everything that starts and ends; none of it is for us."""
    kept = dict.fromkeys(("deadline", "timeout", "seconds", "limiter", "exclude"), object())
    dispatcher = Dispatcher(**kept)
    RateLimitMiddleware("5/10s", live=True).setup(dispatcher, guard=True)
    await dispatcher.emit_startup(**dispatcher.workflow_data)
    await dispatcher.emit_shutdown(**dispatcher.workflow_data)
