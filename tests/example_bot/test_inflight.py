"""InFlight: what shutdown waits for."""

from __future__ import annotations

import asyncio

import pytest
from aiogram import Bot, Dispatcher

from bot_ratelimit import RateLimitMiddleware
from example_bot.bot import build_dispatcher
from example_bot.demo.botapi import TOKEN, BotApi
from example_bot.demo.instances import serve
from example_bot.demo.updates import message
from example_bot.inflight import InFlight


async def under_way(in_flight: InFlight, release: asyncio.Event) -> asyncio.Task[object]:
    """An update whose handler has begun, and ends when it is released."""
    dispatcher = Dispatcher()
    dispatcher.update.outer_middleware(in_flight)
    begun = asyncio.Event()

    @dispatcher.message()
    async def work(*_: object) -> None:
        begun.set()
        await release.wait()
        raise ValueError("a failure ends an update, too")

    task = asyncio.create_task(dispatcher.feed_raw_update(Bot(TOKEN), message(42, "hello")))
    await begun.wait()
    return task


async def test_shutdown_waits_for_what_is_being_handled() -> None:
    """Draining ends when the last handler has, well or badly, and at once if there is none."""
    in_flight, release = InFlight(), asyncio.Event()
    await in_flight.drain()
    updates = [await under_way(in_flight, release) for _ in range(2)]
    draining = asyncio.create_task(in_flight.drain())
    await asyncio.sleep(0)
    assert not draining.done()
    release.set()
    await draining
    assert all(
        isinstance(e, ValueError) for e in await asyncio.gather(*updates, return_exceptions=True)
    )


async def test_shutdown_does_not_wait_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    """A handler that hangs does not keep the process alive; the log says that it was dropped."""
    in_flight, release = InFlight(patience=0.01), asyncio.Event()
    update = await under_way(in_flight, release)
    await in_flight.drain()
    assert caplog.messages == ["1 updates were still being handled at shutdown"]
    update.cancel()


async def test_a_webhook_closes_nothing_that_a_handler_needs(api: BotApi) -> None:
    """The bot's other shutdown callbacks come after the answer to the update under way."""
    dispatcher = build_dispatcher(RateLimitMiddleware("5/minute"))
    done: list[str] = []
    dispatcher.shutdown.register(lambda: done.extend(call.method for call in api.calls))
    runner = await serve(api, dispatcher)
    report = asyncio.create_task(api.deliver(message(42, "/report")))
    await api.called("sendMessage")
    await runner.cleanup()
    assert (await report).ok
    assert done[-1] == "editMessageText"
