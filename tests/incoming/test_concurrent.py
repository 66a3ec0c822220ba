"""The flag `concurrent`: how many times a handler may run at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from aiogram import Bot, Dispatcher, Router, flags
from aiogram.dispatcher.event.bases import SkipHandler
from aiogram.methods import AnswerCallbackQuery, SendMessage
from aiogram.types import Message, PreCheckoutQuery, TelegramObject, Update

from bot_ratelimit import (
    BoundDecision,
    Concurrency,
    ConfigError,
    Decision,
    Limiter,
    MemoryStorage,
    Notices,
    Penalty,
    RateLimitMiddleware,
    Scope,
    Slot,
    Subject,
)
from bot_ratelimit.storage.base import Storage

from .support import RecordingSession, callback, message, user

ids = iter(range(1_000_000, 2_000_000))


class Bots:
    """Instances of a bot whose only handler runs until the test ends it."""

    def __init__(
        self, storage: Storage, flag: dict[str, Any], count: int = 1, **options: Any
    ) -> None:
        self.session = RecordingSession()
        self.bot = Bot("1:TEST", session=self.session)
        self.end = asyncio.Event()
        self.running = self.most = self.runs = 0
        self.seen: list[Any] = []
        self.limiters = [Limiter(storage, timeout=5) for _ in range(count)]
        self.dispatchers = [self._dispatcher(each, flag, options) for each in self.limiters]

    def _dispatcher(
        self, limiter: Limiter, flag: dict[str, Any], options: dict[str, Any]
    ) -> Dispatcher:
        router = Router()
        for observer in (router.message, router.callback_query, router.pre_checkout_query):
            observer.register(self.handle, flags={"rate_limit": flag})
        dispatcher = Dispatcher()
        dispatcher.include_router(router)
        RateLimitMiddleware("100/s", limiter=limiter, **options).setup(dispatcher)
        return dispatcher

    async def handle(self, event: TelegramObject, rate_limit: Decision | None) -> str:
        self.seen.append(rate_limit)
        self.runs += 1
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.end.wait()
        finally:
            self.running -= 1
        return "handled"

    def feed(self, number: int = 0, **event: dict[str, Any]) -> asyncio.Task[Any]:
        data = {"update_id": next(ids), **event}
        update = Update.model_validate(data, context={"bot": self.bot})
        dispatcher = self.dispatchers[number % len(self.dispatchers)]
        return asyncio.create_task(dispatcher.feed_update(self.bot, update))

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():  # noqa: ASYNC110 - the bots decide
                await asyncio.sleep(0.002)

    def said(self) -> list[str]:
        return [r.text for r in self.session.requests if isinstance(r, SendMessage)]

    async def close(self) -> None:
        for limiter in self.limiters:
            await limiter._bans.close()


@pytest.mark.parametrize("flag", [{"concurrent": 1}, {"limit": "20/day", "concurrent": 1}])
async def test_ten_at_once_on_two_instances(storage: Storage, flag: dict[str, Any]) -> None:
    """Of ten simultaneous updates one is handled, and the user is notified once."""
    bots = Bots(storage, flag, 2)
    tasks = [bots.feed(i, message=message()) for i in range(10)]
    await bots.until(lambda: sum(task.done() for task in tasks) == 9 and bots.runs == 1)
    assert (bots.runs, bots.most) == (1, 1)
    assert bots.said() == ["Your last request is still running."]
    bots.end.set()
    results = await asyncio.gather(*tasks)
    assert sorted(results, key=str) == [None] * 9 + ["handled"]
    assert await bots.feed(1, message=message()) == "handled"
    if "limit" in flag:  # what did not run was not charged
        assert [seen.remaining for seen in bots.seen] == [19, 18]
    await bots.close()


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("ru", "Ваш предыдущий запрос ещё выполняется."),
        ("de", "Your last request is still running."),
    ],
)
async def test_button_presses_are_answered(storage: Storage, language: str, text: str) -> None:
    """Each press is answered in the user's language, and the client may press again at once."""
    bots = Bots(storage, {"concurrent": 1})
    first = bots.feed(callback_query=callback())
    await bots.until(lambda: bots.running == 1)
    for _ in range(2):
        assert await bots.feed(callback_query=callback(**{"from": user(language=language)})) is None
    answers = [r for r in bots.session.requests if isinstance(r, AnswerCallbackQuery)]
    assert [(each.text, each.cache_time) for each in answers] == [(text, 0)] * 2
    bots.end.set()
    assert await first == "handled"
    await bots.close()


async def test_users_have_separate_slots(storage: Storage) -> None:
    """Each user has their own slots, unless the flag names another scope."""
    bots = Bots(storage, {"concurrent": 1})
    tasks = [bots.feed(message=message(**{"from": user(n)})) for n in (11, 12, 13)]
    await bots.until(lambda: bots.running == 3)
    bots.end.set()
    assert await asyncio.gather(*tasks) == ["handled"] * 3
    everybody = Bots(storage, {"concurrent": 2, "scope": "global", "key": "all"})
    tasks = [everybody.feed(message=message(**{"from": user(n)})) for n in (11, 12, 13)]
    await everybody.until(lambda: everybody.running == 2 and any(task.done() for task in tasks))
    assert everybody.most == 2
    everybody.end.set()
    await asyncio.gather(*tasks)
    await bots.close()
    await everybody.close()


async def test_a_failing_handler_releases_its_slot(storage: Storage) -> None:
    """The exception reaches aiogram unchanged, and the next update is handled."""
    bots = Bots(storage, {"concurrent": 1})
    first = bots.feed(message=message())
    await bots.until(lambda: bots.running == 1)
    first.cancel()
    await asyncio.wait([first])
    bots.end.set()
    await asyncio.sleep(0.02)
    assert await bots.feed(message=message()) == "handled"
    await bots.close()


async def test_a_payment_needs_no_slot(storage: Storage) -> None:
    """Updates that are never refused pass, however many handlers run."""
    bots = Bots(storage, {"concurrent": 1})
    first = bots.feed(message=message())
    await bots.until(lambda: bots.running == 1)
    paying = PreCheckoutQuery.model_validate(
        {"id": "1", "from": user(), "currency": "XTR", "total_amount": 1, "invoice_payload": "x"}
    )
    second = bots.feed(pre_checkout_query=paying.model_dump(by_alias=True, exclude_none=True))
    await bots.until(lambda: bots.running == 2)
    bots.end.set()
    assert await asyncio.gather(first, second) == ["handled"] * 2
    await bots.close()


async def test_one_dispatch_takes_one_slot() -> None:
    """Several middlewares in one dispatch share the slot and do not deadlock."""
    limiter = Limiter(MemoryStorage())
    dispatcher, router, inner = Dispatcher(), Router(), Router()
    dispatcher.include_router(router)
    router.include_router(inner)
    for each in (dispatcher, router, inner):
        each.message.middleware(RateLimitMiddleware("9/s", limiter=limiter))

    @inner.message(flags={"rate_limit": {"concurrent": 1, "key": "a"}})
    async def skip(message: Message) -> None:
        raise SkipHandler

    @inner.message(flags={"rate_limit": {"concurrent": 1, "key": "a"}})
    async def handle(message: Message) -> str:
        return "handled"

    bot = Bot("1:TEST", session=RecordingSession())
    update = Update.model_validate({"update_id": 1, "message": message()}, context={"bot": bot})
    assert await dispatcher.feed_update(bot, update) == "handled"


async def test_custom_busy_texts(storage: Storage) -> None:
    """`Notices(busy=...)` and custom functions replace the text."""
    told: list[Any] = []
    bots = Bots(storage, {"concurrent": 1}, on_limited=Notices(busy="Patience!"))
    mine = Bots(
        storage,
        {"concurrent": 1, "key": "mine"},
        on_limited=lambda event, decision, data: told.append((decision, data["rate_limit"])),
    )
    for each in (bots, mine):
        first = each.feed(message=message())
        await each.until(lambda each=each: each.running == 1)  # type: ignore[misc]  # bound at once
        assert await each.feed(message=message()) is None
        each.end.set()
        await first
        await each.close()
    assert bots.said() == ["Patience!"]
    ((decision, data),) = told
    assert isinstance(decision, Slot)
    assert (decision is data, decision.rule) == (True, Concurrency(1, name="mine"))


class Till(Limiter):
    """Records charges and refunds."""

    def __init__(self) -> None:
        super().__init__(MemoryStorage())
        self.booked: list[Any] = []

    async def charge(self, *booked: Any) -> Decision:
        self.booked.append(("charge", *booked))
        return await self.peek(*booked[:2])

    async def refund(self, *booked: Any) -> Decision:
        self.booked.append(("refund", *booked))
        return await self.peek(*booked[:2])


async def test_a_handler_charges_the_rules_of_its_update() -> None:
    """`rate_limit.charge` and `refund` use the limits that the update was charged to."""
    limiter = Till()
    dispatcher = Dispatcher()

    @dispatcher.message()
    @flags.rate_limit(limit="2000/day", key="ask", concurrent=1, cost=3)
    async def ask(message: Message, rate_limit: BoundDecision) -> None:
        assert isinstance(await rate_limit.charge(1830), Decision)
        await rate_limit.refund()
        await rate_limit.refund(7)

    RateLimitMiddleware("9/s", limiter=limiter, penalty=Penalty("9/m", 60)).setup(dispatcher)
    bot = Bot("1:TEST", session=RecordingSession())
    update = Update.model_validate({"update_id": 1, "message": message()}, context={"bot": bot})
    await dispatcher.feed_update(bot, update)
    (rule,) = limiter.booked[0][1]
    assert rule.key("bot", Subject(42)) == "bot:ratelimit:ask:42"
    who = Subject(user=42, chat=42)
    assert limiter.booked == [
        ("charge", (rule,), who, 1830),
        ("refund", (rule,), who, 3),
        ("refund", (rule,), who, 7),
    ]


async def test_a_ban_is_reported_before_a_taken_slot() -> None:
    """A ban by hand refuses before a slot is requested, even while the slot is taken."""
    limiter = Limiter(MemoryStorage())
    dispatcher, decisions = Dispatcher(), []
    taken = asyncio.Event()

    @dispatcher.message()
    @flags.rate_limit(concurrent=1)
    async def work(message: Message) -> None:
        await taken.wait()

    async def on_limited(_: object, decision: Decision, __: object) -> None:
        decisions.append(decision)

    RateLimitMiddleware("9/s", limiter=limiter, on_limited=on_limited).setup(dispatcher)
    bot = Bot("1:TEST", session=RecordingSession())

    def update(number: int) -> Update:
        found = {"update_id": number, "message": message()}
        return Update.model_validate(found, context={"bot": bot})

    first = asyncio.create_task(dispatcher.feed_update(bot, update(1)))
    await asyncio.sleep(0.01)
    await limiter.ban(Subject(user=42), "1h")
    await dispatcher.feed_update(bot, update(2))
    taken.set()
    await first
    assert [(d.banned, isinstance(d.rule, Concurrency)) for d in decisions] == [(True, False)]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ({"concurrent": 0}, r"flag of .*handle: concurrency=0: expected how many"),
        ({"concurrent": 1, "cost": 2}, "expected limit= or rate=, and optionally concurrent="),
        ({"concurrent": 1, "scope": "moon"}, "scope='moon': expected one of"),
        ({"concurrent": 1, "key": "slot"}, "name='slot': this name is reserved"),
    ],
)
async def test_an_invalid_flag_stops_the_start(flag: dict[str, Any], message: str) -> None:
    """The bot does not start, and the error names the handler, the value and the fix."""
    bots = Bots(MemoryStorage(), flag)
    with pytest.raises(ConfigError, match=message):
        await bots.dispatchers[0].emit_startup()


async def test_one_key_one_number_of_slots() -> None:
    """Two handlers with one key and different numbers of slots are an error at the start."""
    dispatcher = Dispatcher()

    async def one(message: Message) -> None: ...

    async def two(message: Message) -> None: ...

    dispatcher.message.register(one, flags={"rate_limit": {"concurrent": 1, "key": "k"}})
    dispatcher.message.register(two, flags={"rate_limit": {"concurrent": 2, "key": "k"}})
    RateLimitMiddleware("9/s").setup(dispatcher)
    with pytest.raises(ConfigError, match=r"one .*1 at a time.*two .*2 at a time.*different keys"):
        await dispatcher.emit_startup()


async def test_a_concurrency_in_the_flag_keeps_its_lease() -> None:
    """`concurrent=Concurrency(...)` keeps its lease and scope, and shares slots by its name."""
    limiter = Limiter(MemoryStorage())
    shared = Concurrency(1, Scope.CHAT, "shared", lease=60)
    bots = Bots(limiter.storage, {"concurrent": shared})
    async with limiter.slot(shared, Subject(user=1, chat=42)):
        assert await bots.feed(message=message()) is None
    bots.end.set()
    assert await bots.feed(message=message()) == "handled"
