"""The flag `concurrent`: how many times a handler may run at once; `BoundDecision`."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest
from aiogram import Router
from aiogram.dispatcher.event.bases import SkipHandler
from aiogram.methods import AnswerCallbackQuery, SendMessage
from aiogram.types import Message, TelegramObject

from bot_ratelimit import (
    BoundDecision,
    Concurrency,
    Decision,
    Limiter,
    MemoryStorage,
    Notices,
    Penalty,
    RateLimitMiddleware,
    Rule,
    Scope,
    Slot,
    Subject,
)
from bot_ratelimit.admin.control import Control
from bot_ratelimit.storage.base import Storage
from bot_ratelimit.testing import FlakyStorage
from tests.benches import eventually
from tests.recorder import Recorder

from .support import HANDLED, callback, message, user
from .updates import Fleet, bare, limited, pre_checkout, used

ONE = {"concurrent": 1}


class Bots:
    """Instances of a bot whose only handler runs until the test ends it."""

    def __init__(self, storage: Storage, flag: Any, count: int = 1, **options: Any) -> None:
        self.end = asyncio.Event()
        self.running = self.most = 0
        self.seen: list[Any] = []
        self.limiters = [Limiter(storage, timeout=5) for _ in range(count)]
        self.bots = [bare() for _ in self.limiters]
        for bot, limiter in zip(self.bots, self.limiters, strict=True):
            RateLimitMiddleware("100/s", limiter=limiter, **options).setup(bot.dispatcher)
            for name in ("message", "callback_query", "pre_checkout_query"):
                flags = {"rate_limit": flag}
                bot.dispatcher.observers[name].register(self.handle, flags=flags)

    async def __aenter__(self) -> Bots:
        return self

    async def __aexit__(self, *_: object) -> None:
        for limiter in self.limiters:
            await limiter._bans.close()

    async def handle(self, event: TelegramObject, rate_limit: Decision | None) -> str:
        self.seen.append(rate_limit)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.end.wait()
        finally:
            self.running -= 1
        return HANDLED

    def feed(self, number: int = 0, **event: Any) -> asyncio.Task[Any]:
        return asyncio.create_task(self.bots[number % len(self.bots)].feed(**event))

    async def start(self, running: int, *events: dict[str, Any]) -> list[asyncio.Task[Any]]:
        """Feed events, and wait until so many of all are running."""
        tasks = [self.feed(**event) for event in events]
        await eventually(lambda: self.running == running)
        return tasks


async def test_ten_at_once_on_two_instances(storage: Storage) -> None:
    """Of ten simultaneous updates one is handled, and the user is notified once."""
    flag = {"limit": "20/day", "concurrent": 1}
    async with Bots(storage, flag, 2, on_limited=Notices(busy="Patience!")) as bots:
        tasks = [bots.feed(i, message=message()) for i in range(10)]
        await eventually(lambda: sum(task.done() for task in tasks) == 9 and len(bots.seen) == 1)
        assert bots.most == 1
        (notice,) = [each for bot in bots.bots for each in bot.session.requests]
        assert isinstance(notice, SendMessage)
        assert notice.text == "Patience!"
        bots.end.set()
        assert sorted(await asyncio.gather(*tasks), key=str) == [None] * 9 + [HANDLED]
        assert await bots.feed(1, message=message()) == HANDLED
        assert [seen.remaining for seen in bots.seen] == [19, 18]  # what ran was charged


async def test_button_presses_are_answered(storage: Storage) -> None:
    """Each press is answered in the user's language, and the client may press again at once.

    Updates that are never refused need no slot, and a handler that ends in any way releases it.
    """
    async with Bots(storage, ONE) as bots:
        (first,) = await bots.start(1, {"callback_query": callback()})
        for language in ("ru", "de"):
            press = callback(**{"from": user(language=language)})
            assert await bots.feed(callback_query=press) is None
        answers: list[Any] = bots.bots[0].session.requests
        assert {type(each) for each in answers} == {AnswerCallbackQuery}
        texts = ["Ваш предыдущий запрос ещё выполняется.", "Your last request is still running."]
        assert [(each.text, each.cache_time) for each in answers] == [(text, 0) for text in texts]
        (paying,) = await bots.start(2, {"pre_checkout_query": pre_checkout()})
        first.cancel()
        await asyncio.wait([first])
        bots.end.set()
        assert await paying == HANDLED
        await asyncio.sleep(0.02)
        assert await bots.feed(message=message()) == HANDLED


@pytest.mark.parametrize(
    ("flag", "at_once"), [(ONE, 3), ({"concurrent": 2, "scope": "global", "key": "all"}, 2)]
)
async def test_users_have_separate_slots(storage: Storage, flag: Any, at_once: int) -> None:
    """Each user has their own slots, unless the flag names another scope."""
    async with Bots(storage, flag) as bots:
        tasks = await bots.start(
            at_once, *({"message": message(**{"from": user(n)})} for n in (11, 12, 13))
        )
        await eventually(lambda: sum(task.done() for task in tasks) == 3 - at_once)
        bots.end.set()
        assert (await asyncio.gather(*tasks)).count(HANDLED) == bots.most == at_once


async def test_one_dispatch_takes_one_slot(limiter: Limiter) -> None:
    """Several middlewares share the slot, and charge the handler's limit once."""
    bot, router, inner = bare(), Router(), Router()
    bot.dispatcher.include_router(router)
    router.include_router(inner)
    rules = [Rule("9/s", name=name) for name in "xyz"]
    for rule, each in zip(rules, (bot.dispatcher, router, inner), strict=True):
        each.message.middleware(RateLimitMiddleware(rule, limiter=limiter))

    async def skip(message: Message) -> None:
        raise SkipHandler

    for handler in (skip, bot._handle):
        flag = {"limit": "9/m", "concurrent": 1, "key": "a"}
        inner.message.register(handler, flags={"rate_limit": flag})
    assert await bot.send("a") == [True]
    assert await used(limiter, Rule("9/m", name="a")) == 2


async def test_a_handler_charges_and_refunds_the_rules_of_its_update(fleet: Fleet) -> None:
    """`rate_limit.charge` and `refund` use the limits that the update was charged to.

    `refund()` gives each limit back what it was charged, also if their costs differ.
    """
    rules = [Rule("2000/h", name="a", cost=3), Rule("2000/d", name="b")]
    penalty, left = Penalty("9/m", 60), []
    bot = limited("9/s", (), limiter=fleet.limiters()[0], penalty=penalty)

    async def handle(message: Message, rate_limit: BoundDecision) -> None:
        for change in (partial(rate_limit.charge, 1_830), partial(rate_limit.refund, 7)):
            left.append([await fleet.used(rule) for rule in rules])
            await change()
        left.append([await fleet.used(rule) for rule in rules])
        await rate_limit.refund()

    bot.dispatcher.message.register(handle, flags={"rate_limit": rules})
    await bot.send("a")
    assert left == [[3, 1], [1833, 1831], [1826, 1824]]
    assert [await fleet.used(rule) for rule in (*rules, "9/s", penalty)] == [1_823, 1_823, 0, 0]


async def test_the_policy_of_a_flag_holds_for_its_slots() -> None:
    """`on_error` of a flag says what happens to `concurrent` in an outage, too."""
    storage = FlakyStorage()
    flag = {"concurrent": 1, "limit": "9/m", "on_error": "allow"}
    bot = limited("9/s", limiter=Limiter(storage, on_error="deny"), flag=flag)
    storage.fail()
    assert await bot.send("a") == [True]


@pytest.mark.parametrize("flag", [{"concurrent": 1}, {"concurrent": 1, "limit": "9/m"}])
@pytest.mark.parametrize("policy", ["allow", "deny"])
async def test_the_policy_answers_for_a_scope_that_fails(
    flag: Any, policy: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Also if only the slots have this scope, and the log names the error."""
    limiter = Limiter(MemoryStorage(), on_error=policy)
    bot = limited("9/s", limiter=limiter, flag=flag | {"scope": {}.__getitem__, "key": "a"})
    assert await bot.send("a") == [policy == "allow"]
    assert "KeyError" in caplog.text


async def test_a_ban_is_reported_before_a_taken_slot(storage: Storage) -> None:
    """A custom function gets the slot as the decision, but for banned users the ban."""
    told: list[Any] = []
    flag = {"concurrent": 1, "key": "mine"}
    async with Bots(storage, flag, on_limited=lambda *said: told.append(said)) as bots:
        (first,) = await bots.start(1, {"message": message()})
        assert await bots.feed(message=message()) is None
        await bots.limiters[0].ban(Subject(user=42), "1h")
        assert await bots.feed(message=message()) is None
        bots.end.set()
        await first
    (_, slot, data), (_, ban, _) = told
    assert isinstance(slot, Slot)
    assert slot is data["rate_limit"]
    assert slot.rule == Concurrency(1, name="mine")
    assert ban.banned


async def test_a_ban_that_was_lifted_elsewhere_leaves_the_slots_in_force(storage: Storage) -> None:
    """An instance without updates for a minute may not know it yet; its first ones take slots."""
    async with Bots(storage, ONE, 2) as bots:
        await bots.limiters[0].ban(Subject(user=42))
        await bots.limiters[0].ban(Subject(user=43))
        await bots.limiters[0]._bans.close()  # as after a minute
        await bots.limiters[1].unban(Subject(user=42))
        tasks = await bots.start(1, *[{"message": message()}] * 3)
        await eventually(lambda: sum(task.done() for task in tasks) == 2)
        bots.end.set()
        assert sorted(await asyncio.gather(*tasks), key=str) == [None] * 2 + [HANDLED]


async def test_a_pause_suspends_the_slots(storage: Storage) -> None:
    """While operators have switched all limits off, a handler runs as often as it is asked."""
    async with Bots(storage, ONE, live=True) as bots:
        middleware = bots.bots[0].dispatcher.message.middleware[0]
        assert isinstance(middleware, RateLimitMiddleware)
        assert middleware.live is not None
        await Control.of(middleware, "anna").changes.pause("1h")
        await middleware.live.refresh()
        tasks = await bots.start(3, *[{"message": message()}] * 3)
        bots.end.set()
        assert await asyncio.gather(*tasks) == [HANDLED] * 3
        await middleware.live.stop()


async def test_no_slot_is_held_while_the_user_is_told(limiter: Limiter) -> None:
    """What the limit refuses runs nothing, so the next request is refused by the limit, too."""
    told: list[Any] = []
    bot = bare()

    async def tell(event: TelegramObject, decision: Decision, data: dict[str, Any]) -> None:
        told.append(decision.rule)
        if len(told) == 1:  # a notice that takes a while
            assert await bot.send("c") == [False]

    RateLimitMiddleware("9/s", limiter=limiter, on_limited=tell).setup(bot.dispatcher)
    rule = Rule("1/m", name="ask")
    flag = {"limit": rule, "concurrent": 1, "key": "ask"}
    bot.dispatcher.message.register(bot._handle, flags={"rate_limit": flag})
    assert await bot.send("a", "b") == [True, False]
    assert [each.limit for each in told] == [rule.limit] * 2


async def test_refusals_of_slots_are_counted() -> None:
    """Observers, the summary in the log and statistics see who floods a handler that is running."""
    recorder = Recorder()
    limiter = Limiter(MemoryStorage(), observer=recorder, statistics=True)
    bot = limited("9/s", limiter=limiter, flag={"concurrent": 1, "key": "ask"})
    async with limiter.slot(Concurrency(1, name="ask"), Subject(user=42)):
        assert await bot.send("a", "b") == [False] * 2
    assert await bot.send("c") == [True]
    told = [(said.rule.label, said.allowed) for _, said, *_ in recorder.named("decided")]
    assert told == [("slot:ask", False)] * 2 + [("user", True)]
    assert await limiter.refused(42) == 2


async def test_a_concurrency_in_the_flag(limiter: Limiter) -> None:
    """`concurrent=Concurrency(...)` keeps its lease and scope, and shares slots by its name."""
    shared = Concurrency(1, Scope.CHAT, "shared", lease=60)
    bot = limited("9/s", limiter=limiter, flag={"concurrent": shared})
    async with limiter.slot(shared, Subject(user=1, chat=42)):
        assert await bot.send("a") == [False]
    assert await bot.send("a") == [True]
