"""InFlight: what a shutdown waits for."""

from __future__ import annotations

import asyncio

import pytest
from aiogram import Bot, Dispatcher, Router

from bot_ratelimit import ConfigError, InFlight
from example_bot.demo.botapi import TOKEN
from example_bot.demo.updates import message


async def under_way(in_flight: InFlight, release: asyncio.Event) -> asyncio.Task[object]:
    """An update whose handler has started and runs until it is released."""
    dispatcher = Dispatcher()
    in_flight.setup(dispatcher)
    begun = asyncio.Event()

    @dispatcher.message()
    async def work(*_: object) -> None:
        begun.set()
        await release.wait()
        raise ValueError("a failure ends an update, too")

    task = asyncio.create_task(dispatcher.feed_raw_update(Bot(TOKEN), message(42, "hello")))
    await begun.wait()
    return task


async def test_shutdown_waits_for_running_handlers() -> None:
    """Draining ends when the last handler has ended, in any way, and at once if there is none."""
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


def test_a_dispatcher_that_is_started_again_waits_again() -> None:
    """The second `asyncio.run` of a process waits at its shutdown as the first one did."""
    in_flight = InFlight()

    async def run() -> bool:
        release = asyncio.Event()
        update = await under_way(in_flight, release)
        asyncio.get_running_loop().call_later(0.01, release.set)
        await in_flight.drain()
        await asyncio.wait([update], timeout=0.01)
        return update.done() and isinstance(update.exception(), ValueError)

    assert [asyncio.run(run()) for _ in range(2)] == [True, True]


async def test_shutdown_does_not_wait_forever(caplog: pytest.LogCaptureFixture) -> None:
    """A handler that hangs does not keep the process alive, and the log reports it."""
    in_flight, release = InFlight(patience=0.01), asyncio.Event()
    update = await under_way(in_flight, release)
    await in_flight.drain()
    assert caplog.messages == ["1 updates were still being handled at shutdown"]
    update.cancel()


async def test_other_shutdown_callbacks_come_after_the_wait() -> None:
    """The wait comes before all other shutdown callbacks, also that of `OutgoingLimits`."""
    dispatcher, release = Dispatcher(), asyncio.Event()
    done: list[str] = []
    dispatcher.shutdown.register(lambda: done.append("closed"))

    @dispatcher.message()
    async def work(*_: object) -> None:
        await release.wait()
        done.append("handled")

    InFlight().setup(dispatcher)
    update = asyncio.create_task(dispatcher.feed_raw_update(Bot(TOKEN), message(42, "hello")))
    await asyncio.sleep(0.01)
    stopping = asyncio.create_task(dispatcher.emit_shutdown())
    await asyncio.sleep(0.01)
    release.set()
    await asyncio.gather(stopping, update)
    assert done == ["handled", "closed"]


@pytest.mark.parametrize("patience", [-1, float("nan"), True, "8"])
def test_invalid_patience_is_an_error(patience: object) -> None:
    """Anything but a number of seconds is an error."""
    with pytest.raises(ConfigError, match="patience="):
        InFlight(patience)  # type: ignore[arg-type]  # a mistake


def test_setup_needs_the_dispatcher() -> None:
    """A router has no shutdown of its own."""
    with pytest.raises(ConfigError, match="Dispatcher"):
        InFlight().setup(Router())  # type: ignore[arg-type]  # a mistake
