"""A bot at twice the load that it can carry, with and without `InFlight(adaptive=True)`.

Run with `python -m benchmarks.overload`. Handlers wait for one of 20 connections of a data base and
use it for 50 ms, so 400 updates a second are what the bot can carry. Updates of many users arrive
at random intervals, first at a twentieth of that, then at twice. The latency of an update is the
time from its arrival to the end of its handler.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from itertools import count
from time import perf_counter

from aiogram import Bot, Dispatcher
from aiogram.types import Chat, Message, Update, User

from bot_ratelimit import InFlight

CONNECTIONS, WORK = 20, 0.05
CAPACITY = CONNECTIONS / WORK

_numbers = count(1)


def update() -> Update:
    """A message of one of a million users."""
    user = random.randrange(2, 1_000_000)
    message = Message(
        message_id=next(_numbers),
        date=0,  # type: ignore[arg-type]  # aiogram parses it
        chat=Chat(id=user, type="private"),
        from_user=User(id=user, is_bot=False, first_name="A"),
        text="hello",
    )
    return Update(update_id=message.message_id, message=message)


async def arrivals(rate: float, seconds: float) -> AsyncIterator[None]:
    """Yield at random times, `rate` times a second."""
    due = start = perf_counter()
    while due - start < seconds:
        due += random.expovariate(rate)
        await asyncio.sleep(max(0.0, due - perf_counter()))
        yield


async def load(dispatcher: Dispatcher, bot: Bot, rate: float, seconds: float) -> list[float]:
    """Return the sorted latencies of the updates that were handled."""
    found: list[float] = []

    async def feed() -> None:
        began = perf_counter()
        if await dispatcher.feed_update(bot, update()) == "handled":
            found.append(perf_counter() - began)

    async with asyncio.TaskGroup() as tasks:
        async for _ in arrivals(rate, seconds):
            tasks.create_task(feed())
    return sorted(found)


def p99(latencies: list[float]) -> float:
    """The 99th percentile in milliseconds."""
    return 1_000 * latencies[len(latencies) * 99 // 100]


async def measure(in_flight: InFlight | None, seconds: float) -> None:
    """Print the latencies of one bot."""
    dispatcher, bot = Dispatcher(disable_fsm=True), Bot("1:TEST")
    if in_flight is not None:
        in_flight.setup(dispatcher)
    data_base = asyncio.Semaphore(CONNECTIONS)

    @dispatcher.message()
    async def handle(message: Message) -> str:
        async with data_base:
            await asyncio.sleep(WORK)
        return "handled"

    idle = await load(dispatcher, bot, CAPACITY / 20, seconds)
    await load(dispatcher, bot, CAPACITY * 2, seconds)  # so long it may take to learn
    busy = await load(dispatcher, bot, CAPACITY * 2, seconds)
    print(
        f"{'without' if in_flight is None else 'with'} InFlight: p99 idle {p99(idle):.0f} ms, "
        f"at twice the load {p99(busy):.0f} ms, {len(busy) / seconds:.0f} handled a second"
        + ("" if in_flight is None else f", limit {in_flight.limit}")
    )
    await bot.session.close()


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    asyncio.run(measure(None, 10))
    asyncio.run(measure(InFlight(limit=1_000, adaptive=True, on_busy=None), 10))
