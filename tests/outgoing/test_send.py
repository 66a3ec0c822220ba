"""What `send` of a broadcast does with the errors of its requests."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from aiogram import Bot
from aiogram.exceptions import (
    TelegramBadRequest,
    TelegramForbiddenError,
    TelegramMigrateToChat,
)

from bot_ratelimit import Journal, NotSentError, Status

from .virtual import no_connection, paced, virtual

NO_METHOD: Any = None
BLOCKED = TelegramForbiddenError(NO_METHOD, "bot was blocked by the user")


def in_group(bot: Bot, **options: Any) -> Callable[[int], Awaitable[None]]:
    """A `send` whose errors are groups of errors."""

    async def send(chat: int) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(bot.send_message(chat, "x", **options))

    return send


def plain(bot: Bot, **options: Any) -> Callable[[int], Awaitable[Any]]:
    """A `send` that lets every error through."""
    return lambda chat: bot.send_message(chat, "x", **options)


def that_catches(bot: Bot, **options: Any) -> Callable[[int], Awaitable[None]]:
    """A `send` that catches every error."""

    async def send(chat: int) -> None:
        with suppress(Exception):
            await bot.send_message(chat, "x", **options)

    return send


def with_own_error(bot: Bot, **options: Any) -> Callable[[int], Awaitable[None]]:
    """A `send` that raises its own error from that of its request."""

    async def send(chat: int) -> None:
        try:
            await bot.send_message(chat, "x", **options)
        except Exception as error:
            raise RuntimeError("not delivered") from error

    return send


@pytest.mark.parametrize("in_flight", [1, 50])
@virtual
async def test_a_send_with_a_task_group_ends(in_flight: int) -> None:
    """A failed `TaskGroup` leaves its task in the state of being cancelled before Python 3.13; the
    broadcast ends all the same, after all chats."""
    _, bot, outgoing = paced(errors=[None, BLOCKED])
    run = outgoing.broadcast(range(1, 6), in_group(bot), in_flight=in_flight)
    assert sorted([sent.chat async for sent in run]) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("to_each", [in_group, with_own_error])
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (BLOCKED, Status.BLOCKED),
        (TelegramBadRequest(NO_METHOD, "message is too long"), Status.FAILED),
        (TelegramMigrateToChat(NO_METHOD, "moved", -100_5), Status.MIGRATED),
        (no_connection(), Status.SENT),
    ],
)
@virtual
async def test_an_error_in_another_form_has_its_status(
    error: Exception, status: Status, to_each: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """It counts as if `send` had let it through, and is no bug that the log would tell of."""
    _, bot, outgoing = paced(errors=[error])
    found = [sent async for sent in outgoing.broadcast([-1, 2], to_each(bot), in_flight=1)]
    assert [sent.status for sent in found] == [status, Status.SENT]
    assert found[0].error is (None if found[0] else error)
    assert not [each for each in caplog.records if each.levelno == logging.ERROR]


@pytest.mark.parametrize("to_each", [plain, that_catches, in_group, with_own_error])
@pytest.mark.parametrize("options", [{}, {"stars": 3, "when_spent": "stop"}])
@virtual
async def test_a_shutdown_ends_it_and_the_journal_resumes_it(
    tmp_path: Path, options: dict[str, Any], to_each: Any
) -> None:
    """So do spent Stars, whatever `send` makes of them; the other chats have no outcome, and the
    next run sends to them, once each."""
    telegram, bot, outgoing = paced()
    send = to_each(bot, allow_paid_broadcast=bool(options))

    async def broadcast(**options: Any) -> None:
        journal = Journal(tmp_path / "journal")
        async for sent in outgoing.broadcast(range(1, 101), send, journal=journal, **options):
            assert sent

    if options:
        await broadcast(**options)
    else:
        asyncio.get_running_loop().call_later(1.5, lambda: asyncio.ensure_future(outgoing.close()))
        with pytest.raises(NotSentError):
            await broadcast()
    assert 0 < len(telegram.log) < 100
    await outgoing.open()
    await broadcast()
    assert Counter(m.chat_id for _, m in telegram.log) == Counter(range(1, 101))  # type: ignore[attr-defined] # all are messages


@virtual
async def test_a_shutdown_between_two_messages_ends_the_broadcast() -> None:
    """Also in another form; `Journal(..., repeat_in_flight=True)` repeats what got a part."""
    _, bot, outgoing = paced(per_chat="1/s")

    async def send(chat: int) -> None:
        await bot.send_message(chat, "one")
        await with_own_error(bot)(chat)

    asyncio.get_running_loop().call_later(0.5, lambda: asyncio.ensure_future(outgoing.close()))
    with pytest.raises(NotSentError):
        assert not [sent async for sent in outgoing.broadcast([1, 2, 3], send)]


@virtual
async def test_a_bug_after_a_refusal_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The chat is still what Telegram said of it."""
    _, bot, outgoing = paced(errors=[BLOCKED])

    async def send(chat: int) -> None:
        try:
            await bot.send_message(chat, "x")
        except TelegramForbiddenError:
            raise KeyError(chat)  # noqa: B904 - a bug in what handles the refusal

    assert [sent.status async for sent in outgoing.broadcast([1], send)] == [Status.BLOCKED]
    (line,) = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert line.exc_info
    assert line.exc_info[0] is KeyError


@virtual
async def test_what_send_awaits_may_be_cancelled() -> None:
    """That is an error of its chat, and the broadcast goes on; nobody has cancelled it."""
    _, bot, outgoing = paced()
    shared = asyncio.create_task(asyncio.sleep(99))
    shared.cancel()

    async def send(chat: int) -> None:
        if chat > 2:
            await bot.send_message(chat, "x")
        if chat < 4:
            await shared

    run = outgoing.broadcast([1, 2, 3, 4], send, in_flight=1)
    failed, unknown, sent = Status.FAILED, Status.UNKNOWN, Status.SENT
    assert [each.status async for each in run] == [failed, failed, unknown, sent]
