"""A broadcast that ends early says how far it came, however it was ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
from aiogram.methods import EditMessageText

from bot_ratelimit import Journal, NotSentError, Progress

from .virtual import Telegram, no_connection, now, paced, virtual


def interrupted(caplog: pytest.LogCaptureFixture) -> str:
    (line,) = (each for each in caplog.messages if each.startswith("Broadcast interrupted: "))
    return line


@virtual
async def test_a_shutdown_of_the_bot_logs_the_progress(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """After SIGTERM the log says how many chats are done, and how to continue."""
    path = tmp_path / "journal"
    telegram, bot, outgoing = paced()
    asyncio.get_running_loop().call_later(1.5, lambda: asyncio.ensure_future(outgoing.close()))
    send = lambda chat: bot.send_message(chat, "x")  # noqa: E731 - as users write it
    with pytest.raises(NotSentError):
        async for _ in outgoing.broadcast(range(1, 101), send, journal=Journal(path)):
            pass
    line = interrupted(caplog)
    assert f"Broadcast interrupted: {len(telegram.log)}: {len(telegram.log)} sent" in line
    assert line.endswith(f". Run it again with {path} to continue")


@virtual
async def test_a_shutdown_ends_a_broadcast_without_a_connection() -> None:
    """It does not wait for its next try, which is up to 30 s away, nor begin to wait for one."""
    for seconds in (16.0, 15.45):  # between two tries, and during one
        _, bot, outgoing = paced(errors=[no_connection()] * 9, latency=0.1)
        asyncio.get_running_loop().call_later(
            seconds, lambda limits: asyncio.ensure_future(limits.close()), outgoing
        )
        began = now()
        with pytest.raises(NotSentError):
            async for _ in outgoing.broadcast([1], lambda chat, b=bot: b.send_message(chat, "x")):
                pass
        assert now() - began == pytest.approx(seconds, abs=0.3)


@virtual
async def test_a_message_of_two_that_a_shutdown_cuts_is_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A chat that got one of two messages may have got what it was sent."""
    _, bot, outgoing = paced(per_chat="1/minute")

    async def send(chat: int) -> None:
        await bot.send_message(chat, "1")
        await bot.send_message(chat, "2")

    asyncio.get_running_loop().call_later(3, lambda: asyncio.ensure_future(outgoing.close()))
    with pytest.raises(NotSentError):
        async for _ in outgoing.broadcast([1, 2], send):
            pass
    assert "; 2 more may have got it" in interrupted(caplog)


@virtual
async def test_a_source_that_fails_ends_a_broadcast(caplog: pytest.LogCaptureFixture) -> None:
    """What was begun is finished, the error is raised, and the log says how far it came."""
    telegram, bot, outgoing = paced()

    async def chats() -> AsyncIterator[int]:
        for chat in range(1, 20):
            yield chat
        raise ConnectionError("database")

    with pytest.raises(ConnectionError, match="database"):
        async for _ in outgoing.broadcast(chats(), lambda chat: bot.send_message(chat, "x")):
            pass
    assert interrupted(caplog).startswith("Broadcast interrupted: 19: 19 sent; ")
    assert len(telegram.log) == 19


@virtual
async def test_closing_a_broadcast_waits_for_what_was_sent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing more is sent, no chat that got it is left in flight, and the log says how far."""
    path, progress = tmp_path / "journal", Progress(999)
    telegram, bot, outgoing = paced(Telegram(latency=1.0))
    send = lambda chat: bot.send_message(chat, "x")  # noqa: E731 - as users write it
    running = outgoing.broadcast(range(1, 1_000), send, journal=Journal(path), progress=progress)
    async with aclosing(running) as outcomes:
        async for _ in outcomes:
            sent = len(telegram.left)
            break
    assert len(telegram.left) == sent > 1
    assert len(telegram.log) == sent
    assert Journal(path).in_flight == ()
    assert interrupted(caplog).startswith(f"Broadcast interrupted: {sent} of 999")
    assert "may have got it" not in interrupted(caplog)


@virtual
async def test_a_progress_that_is_not_shown_holds_up_no_interruption() -> None:
    """Edits that hang let Ctrl-C, or any other cancellation, end a broadcast within 5 s."""
    telegram, bot, outgoing = paced()
    message = (await bot.send_message(500, "0")).as_(bot)
    telegram.latency = lambda: 1e6 if isinstance(telegram.left[-1], EditMessageText) else 0.02

    async def broadcast() -> None:
        send = lambda chat: bot.send_message(chat, "x")  # noqa: E731 - as users write it
        async for _ in outgoing.broadcast(range(1, 999), send, progress=Progress(message=message)):
            pass

    task = asyncio.create_task(broadcast())
    await asyncio.sleep(6)
    assert any(isinstance(each, EditMessageText) for each in telegram.left)
    began = now()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert now() - began == pytest.approx(5)


@virtual
async def test_closing_a_broadcast_does_not_wait_forever(caplog: pytest.LogCaptureFixture) -> None:
    """What has no answer after 5 s is given up and counted."""
    latencies = iter([0.1, *[100.0] * 99])
    telegram, bot, outgoing = paced(Telegram(latency=lambda: next(latencies)))
    loop = asyncio.get_running_loop()
    running = outgoing.broadcast(range(1, 99), lambda chat: bot.send_message(chat, "x"))
    async with aclosing(running) as outcomes:
        async for _ in outcomes:
            began = loop.time()
            break
    assert loop.time() - began == pytest.approx(5)
    assert f"; {len(telegram.left) - 1} more may have got it" in interrupted(caplog)
