"""InFlight: what a shutdown waits for."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Any
from unittest.mock import Mock

import pytest
from aiogram import Dispatcher, F, Router
from aiogram.methods import AnswerCallbackQuery, SendMessage
from aiogram.types import Message, TelegramObject

from bot_ratelimit import (
    Concurrency,
    ConfigError,
    InFlight,
    Limiter,
    Notices,
    RateLimitMiddleware,
    Subject,
)
from bot_ratelimit.incoming.adaptive import AdaptiveLimit
from bot_ratelimit.testing import Clock
from tests.recorder import Recorder
from tests.tables import table

from .support import HANDLED, callback, message, user
from .updates import CHANNEL_POST, GROUP, bare, payment, pre_checkout


class Busy:
    """A bot whose handler runs until the test ends it."""

    def __init__(self, **options: Any) -> None:
        self.release = asyncio.Event()
        self.bot = bare()
        self.updates: list[asyncio.Task[Any]] = []
        self.stopped: list[list[bool]] = []
        self.bot.dispatcher.shutdown.register(self._stop)
        self.in_flight = InFlight(**options).setup(self.bot.dispatcher)
        for name in ("message", "callback_query", "pre_checkout_query", "channel_post"):
            self.bot.dispatcher.observers[name].register(self._work)

    def _stop(self) -> None:
        self.stopped.append([each.done() for each in self.updates])

    async def _work(self, event: TelegramObject) -> str:
        await self.release.wait()
        return HANDLED

    async def start(self, **event: Any) -> asyncio.Task[Any]:
        self.updates.append(asyncio.create_task(self.bot.feed(**event)))
        await asyncio.sleep(0.01)
        return self.updates[-1]


def test_shutdown_waits_for_running_handlers() -> None:
    """The last may end in any way; all other shutdown callbacks come after the wait.

    A dispatcher that is started again, in the second event loop of a process, waits again.
    """
    busy = Busy()

    async def run() -> bool:
        await busy.bot.dispatcher.emit_shutdown()
        busy.release = asyncio.Event()
        updates = [await busy.start(message=message()) for _ in range(2)]
        stopping = asyncio.create_task(busy.bot.dispatcher.emit_shutdown())
        updates[0].cancel()
        await asyncio.sleep(0.01)
        assert not stopping.done()
        busy.release.set()
        await stopping
        return bool(await updates[1] == HANDLED)

    assert [asyncio.run(run()) for _ in range(2)] == [True, True]
    assert busy.stopped == [[], [True] * 2, [True] * 2, [True] * 4]


@pytest.mark.parametrize("fsm", [False, True])
@pytest.mark.parametrize("is_first", [False, True])
async def test_shutdown_waits_for_updates_that_a_guard_decides(is_first: bool, fsm: bool) -> None:
    """It does not matter whether `InFlight` or the guard is set up first."""
    bot = bare()
    bot.dispatcher = Dispatcher(disable_fsm=not fsm)
    in_flight, running = InFlight(), []

    async def by_plan(event: TelegramObject, data: dict[str, Any]) -> str:
        running.append(in_flight._count)
        return "9/m"

    limits = RateLimitMiddleware(by_plan)
    setups = [partial(limits.setup, guard=True), in_flight.setup]
    for setup in reversed(setups) if is_first else setups:
        setup(bot.dispatcher)
    bot.dispatcher.message.register(bot._handle)
    assert await bot.send("a") == [True]
    assert running == [1]


async def test_shutdown_does_not_wait_forever(caplog: pytest.LogCaptureFixture) -> None:
    """A handler that hangs does not keep the process alive, and the log reports it."""
    busy = Busy(patience=0.01)
    update = await busy.start(message=message())
    await busy.in_flight.drain()
    assert caplog.messages == ["1 updates were still being handled at shutdown"]
    update.cancel()


async def test_more_than_the_limit_is_refused_with_a_notice() -> None:
    """Presses are answered, messages get a notice, payments and posts are always handled.

    An update is counted once, however often `setup` was called for its dispatcher.
    """
    recorder = Recorder()
    busy = Busy(limit=2, observer=recorder)
    assert busy.in_flight.setup(busy.bot.dispatcher) is busy.in_flight
    running = [await busy.start(message=message(**{"from": user(n)})) for n in (11, 12)]
    assert await busy.bot.feed(message=message()) is None
    assert await busy.bot.feed(message=message()) is None
    assert await busy.bot.feed(callback_query=callback()) is None
    always = [
        await busy.start(pre_checkout_query=pre_checkout()),
        await busy.start(message=payment()),
        await busy.start(message=message(paid_star_count=1)),
        await busy.start(channel_post=CHANNEL_POST),
    ]
    busy.release.set()
    assert await asyncio.gather(*running, *always) == [HANDLED] * 6
    assert await busy.bot.feed(message=message()) == HANDLED
    notice, answer = busy.bot.session.requests
    assert isinstance(notice, SendMessage)
    assert isinstance(answer, AnswerCallbackQuery)
    assert notice.text == answer.text == "The bot is very busy. Please try again in a moment."
    assert recorder.named("turned_away") == [("turned_away", "busy")] * 3
    assert busy.in_flight.refused == 3
    told = recorder.named("in_flight")
    assert (max(told), told[-1]) == (("in_flight", 6, 2), ("in_flight", 0, 2))


async def test_the_texts_of_notices_are_used() -> None:
    """`on_busy=Notices(...)` sends its texts, not the one about a request that is running."""
    busy = Busy(limit=1, on_busy=Notices("Come back in {wait}."))
    await busy.start(message=message())
    assert await busy.bot.feed(message=message()) is None
    assert await busy.bot.feed(callback_query=callback()) is None
    busy.release.set()
    notice, answer = busy.bot.session.requests
    assert isinstance(notice, SendMessage)
    assert isinstance(answer, AnswerCallbackQuery)
    assert notice.text == answer.text == "Come back in 1 s."


@pytest.mark.parametrize("share", ["per_user", "per_chat"])
async def test_the_share_of_one_user_or_chat_is_bounded(share: str) -> None:
    """One user, or one chat, cannot take all places; `on_busy` takes what `on_limited` takes."""
    told: list[Any] = []
    busy = Busy(limit=9, on_busy=lambda *said: told.append(said), **{share: 2})
    for _ in range(2):
        await busy.start(message=message(chat=GROUP))
    assert await busy.bot.feed(message=message(chat=GROUP)) is None
    other = {"per_user": {"chat": GROUP, "from": user(43)}, "per_chat": {}}[share]
    task = await busy.start(message=message(**other))
    busy.release.set()
    assert await task == HANDLED
    assert await busy.bot.feed(message=message(chat=GROUP)) == HANDLED
    ((event, decision, _),) = told
    assert (type(event), decision.retry_after) == (Message, 1.0)
    assert busy.bot.session.requests == []


class Learning(AdaptiveLimit):
    """The limit of a bot whose handlers take longer if there are more than `workers`."""

    def __init__(self, workers: int) -> None:
        self.clock = Clock()
        super().__init__(10, 1_000, self.clock)
        self.workers, self.latency = workers, 0.1

    def second(self, offered: int) -> float:
        """A second with this many updates at a time, if the limit lets them in."""
        running = min(offered, self.current)
        took = self.latency * max(1.0, running / self.workers)
        for _ in range(20):
            self.clock.move(0.05)
            self.handled(took, running)
        return took


@pytest.mark.parametrize("workers", [15, 60, 200])
def test_an_adaptive_limit_finds_what_a_backend_can_carry(workers: int) -> None:
    """At twice the load, handlers take at most twice as long; without load it grows back."""
    limit = Learning(workers)
    for _ in range(20):
        limit.second(5)
    overloaded = [limit.second(workers * 4) for _ in range(120)]
    assert max(overloaded) <= 2 * limit.latency
    assert limit.current >= workers * 0.9
    assert limit.second(workers) <= 2 * limit.latency


@pytest.mark.parametrize("factor", [1.0, 1.3, 3.0])
def test_an_adaptive_limit_refuses_nobody_without_load(factor: float) -> None:
    """A bot with time for more is not measured again, also one that has become slower."""
    limit = Learning(1_000)
    for _ in range(60):
        limit.second(30)
    limit.latency *= factor
    for _ in range(120):
        limit.second(30)
    refused = []
    for _ in range(600):
        refused.append(limit.current < 30)
        limit.second(30)
    assert not any(refused)


def test_an_adaptive_limit_holds_in_a_mild_overload() -> None:
    """Also if it is just not reached again and again, it does not take the load for the handlers'
    own pace."""
    limit = Learning(50)
    for _ in range(20):
        limit.second(5)
    slowest = max(limit.second(limit.current - i % 2) for i in range(1_800))
    assert slowest <= 2 * limit.latency


def test_an_adaptive_limit_learns_that_all_handlers_became_slower() -> None:
    """Also if more updates than the limit arrive all the time."""
    limit = Learning(1_000)
    for _ in range(30):
        limit.second(2_000)
    limit.latency *= 1.3
    for _ in range(240):
        limit.second(2_000)
    assert limit.current >= 900


async def test_only_what_a_handler_handled_tells_how_slow_handlers_are(limiter: Limiter) -> None:
    """Updates that are refused, too old or without a handler do not move an adaptive limit."""
    bot = bare()
    in_flight = InFlight(adaptive=True).setup(bot.dispatcher)
    assert in_flight._adaptive is not None
    in_flight._adaptive.handled = told = Mock()  # type: ignore[method-assign]
    limits = RateLimitMiddleware("9/h", limiter=limiter, on_limited=None, max_age="1h")
    limits.setup(bot.dispatcher)
    for text, flag in (("a", "1/m"), ("b", {"concurrent": 1, "key": "b"})):
        bot.dispatcher.message.register(bot._handle, F.text == text, flags={"rate_limit": flag})
    now = {"date": int(time.time())}
    assert await bot.send("a", "a", "b", "no handler", **now) == [True, False, True, False]
    assert await bot.send("b", date=1) == [False]
    async with limiter.slot(Concurrency(1, name="b"), Subject(user=42)):
        assert await bot.send("b", **now) == [False]
    assert told.call_count == 2


async def test_handlers_that_block_the_loop_hold_the_limit_down() -> None:
    """What a bot measures of its loop while updates are handled reaches the limit."""
    bot = bare()
    in_flight = InFlight(limit=50, adaptive=True, at_least=25).setup(bot.dispatcher)

    @bot.dispatcher.message()
    async def work(event: Message) -> None:
        await asyncio.sleep(0.05)
        if event.text == "b":
            time.sleep(0.1)  # noqa: ASYNC251 - the mistake

    until = time.monotonic() + 1.2

    async def write(text: str) -> None:
        while time.monotonic() < until:
            await bot.send(text)

    await asyncio.gather(*(write(text) for text in "b" + "a" * 19))
    assert in_flight.limit == 25
    assert InFlight().limit is None


@table(
    "arguments",
    [
        *({"patience": value} for value in (-1, float("nan"), True, "8")),
        *({"limit": 0}, {"on_busy": 5}, {"per_user": 1.5}, {"adaptive": 1}),
        {"at_least": 11, "limit": 10, "adaptive": True},
    ],
)
def test_an_invalid_argument_is_an_error(arguments: dict[str, Any]) -> None:
    """The error names the argument and its value."""
    name, value = next(iter(arguments.items()))
    with pytest.raises(ConfigError, match=f"{name}={value!r}"):
        InFlight(**arguments)
    with pytest.raises(ConfigError, match="Dispatcher"):
        InFlight().setup(Router())  # type: ignore[arg-type]  # a mistake
