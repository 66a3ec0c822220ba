"""Bots: what a middleware adds to the handling of an update by aiogram."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import islice
from typing import Any, Final

from aiogram import Bot, Dispatcher
from aiogram.types import Message, TelegramObject, Update

from benchmarks import hand_written, ours, peers
from benchmarks.candidate import AMOUNT, Entry, Setting, allowance, client, visitors
from benchmarks.comparison import Benchmark, Measurements, Run, compare
from benchmarks.measure import EARLIER, WARM_UP, Figures, check, drive
from benchmarks.records import Records
from benchmarks.tables import Column, Table, grid
from bot_ratelimit import RateLimitMiddleware

AT_A_TIME: Final = (1, 100)
# As many as the fastest candidate can handle in one measurement, so that no update is used twice.
UPDATES: Final = 8_000
FLOODS: Final = (1_000, 5_000)
TOKEN: Final = "42:" + "A" * 35

# -------------------------------------------------------------------------------------------------
# What stands before the handler

Handler = Callable[[TelegramObject, dict[str, Any]], Awaitable[Any]]
Guard = Callable[[Dispatcher, Setting], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def _nobody(dispatcher: Dispatcher, setting: Setting) -> AsyncIterator[None]:
    yield


@asynccontextmanager
async def _waiting(dispatcher: Dispatcher, setting: Setting) -> AsyncIterator[None]:
    """The least that a middleware that waits costs: one turn of the event loop."""
    loop = asyncio.get_running_loop()

    async def wait(handler: Handler, event: TelegramObject, data: dict[str, Any]) -> Any:
        turn: asyncio.Future[None] = loop.create_future()
        loop.call_soon(turn.set_result, None)
        await turn
        return await handler(event, data)

    dispatcher.message.middleware(wait)
    yield


def _ours(on_redis: bool) -> Guard:
    @asynccontextmanager
    async def guard(dispatcher: Dispatcher, setting: Setting) -> AsyncIterator[None]:
        redis = client(setting) if on_redis else None
        middleware = RateLimitMiddleware(f"{AMOUNT}/d", redis, "bench", on_limited=None)
        dispatcher.message.middleware(middleware)
        yield
        await middleware.close()
        if redis is not None:
            await redis.aclose()

    return guard


def _wrapped(entry: Entry) -> Guard:
    """The shortest middleware around a candidate."""

    @asynccontextmanager
    async def guard(dispatcher: Dispatcher, setting: Setting) -> AsyncIterator[None]:
        candidate = entry()
        await candidate.setup(setting)

        async def throttle(handler: Handler, event: TelegramObject, data: dict[str, Any]) -> Any:
            if not isinstance(event, Message) or event.from_user is None:
                return await handler(event, data)
            if await candidate.hit(event.from_user.id):
                return await handler(event, data)
            return None

        dispatcher.message.middleware(throttle)
        yield
        await candidate.close()

    return guard


NOBODY: Final = "no middleware"
WAITS: Final = "a middleware that only waits"
OURS_ON_REDIS: Final = f"{ours.NAME}, Redis"
OURS_IN_MEMORY: Final = f"{ours.NAME}, memory"
UNLIMITED: Final = (NOBODY, WAITS)
GUARDS: Final[dict[str, Guard]] = {
    NOBODY: _nobody,
    WAITS: _waiting,
    f"{ours.NAME}, memory": _ours(on_redis=False),
    OURS_ON_REDIS: _ours(on_redis=True),
    "limits": _wrapped(peers.LimitsOnRedis),
    hand_written.Multi.name: _wrapped(hand_written.Multi),
    "aiogram-sentinel": _wrapped(peers.SentinelOnRedis),
}


class Receiver:
    """A dispatcher with a middleware and one handler that counts."""

    def __init__(self, who: str, setting: Setting) -> None:
        self.handled = 0
        self.dispatcher = Dispatcher()
        self.guarded = GUARDS[who](self.dispatcher, setting)
        self.dispatcher.message.register(self._count)

    async def _count(self, message: Message) -> None:
        self.handled += 1


def raw_update(number: int, user: int) -> dict[str, Any]:
    """A text message in a private chat, as Telegram sends it."""
    person = {"id": user, "is_bot": False, "first_name": "Ada", "language_code": "en"}
    chat = {"id": user, "type": "private", "first_name": "Ada"}
    message = {"message_id": number, "date": 1_700_000_000, "chat": chat, "from": person}
    return {"update_id": number, "message": message | {"text": f"text {number}"}}


# -------------------------------------------------------------------------------------------------
# feed_update, without a network


def case(at_a_time: int) -> str:
    return f"feed_update, {at_a_time} at a time"


def flood(updates: int) -> str:
    return f"{updates:,} at once"


def _updates(bot: Bot, users: Iterable[int], first: int = 0) -> list[Update]:
    return [
        Update.model_validate(raw_update(first + i, 1 + user), context={"bot": bot})
        for i, user in enumerate(users)
    ]


def _measure(run: Run) -> Measurements:
    bot = Bot(TOKEN)
    earlier = _updates(bot, islice(visitors(EARLIER), 500), EARLIER)
    now = _updates(bot, islice(visitors(), UPDATES))
    gc.collect()
    gc.freeze()  # so that the garbage collector skips these objects

    async def feed(who: str, at_a_time: int) -> Figures:
        receiver = Receiver(who, Setting(run.server.url, at_a_time))

        async def act(update: Update) -> None:
            await receiver.dispatcher.feed_update(bot, update)

        async with receiver.guarded:
            await drive(act, earlier, at_a_time, WARM_UP)
            run.server.flush()
            gc.collect()
            receiver.handled = 0
            done = await drive(act, now, at_a_time, run.seconds)
        check(receiver.handled, done.calls if who in UNLIMITED else allowance(done.calls))
        return done.figures()

    cases = {case(n): n for n in AT_A_TIME}
    starters = {at: [*GUARDS] for at in cases}
    return compare(run, "bots", starters, lambda at, who: asyncio.run(feed(who, cases[at])))


def _measure_flood(run: Run) -> Measurements:
    bot = Bot(TOKEN)
    flooders, (other,) = _updates(bot, [7] * max(FLOODS)), _updates(bot, [8])
    gc.collect()
    gc.freeze()

    async def measure_flood(who: str, size: int) -> Figures:
        receiver = Receiver(who, Setting(run.server.url, 1_000))
        feed, clock = receiver.dispatcher.feed_update, time.perf_counter
        async with receiver.guarded:
            await feed(bot, other)
            await asyncio.sleep(WARM_UP)
            run.server.flush()
            gc.collect()
            receiver.handled, began, cpu = 0, clock(), time.process_time()
            tasks = [asyncio.create_task(feed(bot, update)) for update in flooders[:size]]
            await asyncio.create_task(feed(bot, other))
            waited = clock() - began
            await asyncio.gather(*tasks)
            took, cpu = clock() - began, time.process_time() - cpu
        return {
            "handled": receiver.handled - 1,
            "ms": took * 1e3,
            "other_ms": waited * 1e3,
            "cpu_us": cpu / size * 1e6,
        }

    cases = {flood(n): n for n in FLOODS}
    starters = {at: [who for who in GUARDS if who != WAITS] for at in cases}
    return compare(
        run, "flood", starters, lambda at, who: asyncio.run(measure_flood(who, cases[at]))
    )


def _tables(records: Records) -> list[Table]:
    return [grid(records, "bots", "Updates without a network", columns(case), ADDED)]


ADDED: Final = (
    "Added: the difference to no middleware. The time is what one update waits for longer, by the "
    "medians, one at a time; the CPU is that of the bot's process."
)


def columns(case: Callable[[int], str]) -> list[Column]:
    """The costs that a middleware adds, and its rate compared with the bare bot."""
    one, many = map(case, AT_A_TIME)
    return [
        Column("µs added, 1 at a time", one, "p50_us", minus=NOBODY),
        Column("µs of CPU added, 1 at a time", one, "cpu_us", minus=NOBODY),
        Column("µs of CPU added, 100 at a time", many, "cpu_us", minus=NOBODY),
        Column("updates a second, 100 at a time", many),
        Column("of the bare bot's", many, over=NOBODY),
        Column("p99, ms", many, "p99_us", 1e-3),
    ]


def _tables_of_flood(records: Records) -> list[Table]:
    shown = [
        Column(f"{title}, {flood(n)}", flood(n), figure)
        for title, figure in (
            ("handled", "handled"),
            ("ms for all", "ms"),
            ("another user waits, ms", "other_ms"),
            ("µs of CPU for each", "cpu_us"),
        )
        for n in FLOODS
    ]
    note = f"The limit is {AMOUNT}. The other user's update comes just after the flood."
    return [grid(records, "flood", "Updates of one user, all at once", shown, note)]


BOTS: Final = Benchmark("bots", _measure, _tables)
FLOOD: Final = Benchmark("flood", _measure_flood, _tables_of_flood)
