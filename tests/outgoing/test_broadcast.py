"""Broadcasts: each chat once, each outcome a value, and resumable after a crash."""

from __future__ import annotations

import asyncio
import gc
import logging
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from io import FileIO
from pathlib import Path
from typing import Any

import pytest
from aiogram import Bot
from aiogram.exceptions import (
    ClientDecodeError,
    TelegramBadRequest,
    TelegramEntityTooLarge,
    TelegramForbiddenError,
    TelegramMigrateToChat,
    TelegramNetworkError,
)
from aiogram.methods import EditMessageText, SendMessage
from aiogram.types import InputMediaPhoto

from bot_ratelimit import (
    ConfigError,
    Journal,
    Limiter,
    MemoryStorage,
    OutgoingLimits,
    Progress,
    Sent,
    Status,
    waiting_up_to,
)
from example_bot.demo.botapi import BotApi
from example_bot.demo.floods import FloodControl
from example_bot.demo.methods import ApiError
from tests.processes import Forked
from tests.servers import PATIENCE
from tests.tables import table

from . import programs
from .virtual import Telegram, no_connection, now, paced, too_many, virtual, virtual_limiter

NO_METHOD: Any = None


def to_each(bot: Bot, **options: Any) -> Callable[[int], Awaitable[Any]]:
    """A `send` that sends one message."""
    return lambda chat: bot.send_message(chat, "x", **options)


async def through(broadcast: AsyncIterator[Sent]) -> list[Status]:
    return [sent.status async for sent in broadcast]


@virtual
async def test_each_chat_gets_it_once_at_the_pace_of_the_budget() -> None:
    """Three hundred chats at 25 a second take 11 seconds, however long each request takes."""
    telegram, bot, outgoing = paced(latency=0.8)

    async def send(chat: int) -> None:
        async with outgoing.broadcasting():  # which changes nothing here
            await bot.send_message(chat, "x")

    found = [sent async for sent in outgoing.broadcast(range(1, 301), send)]
    assert sorted(sent.chat for sent in found) == [*range(1, 301)]
    assert all(found)
    assert {sent.status for sent in found} == {Status.SENT}
    assert telegram.times()[-1] == pytest.approx(11, abs=1)


@virtual
async def test_errors_of_send_are_no_errors_of_telegram(caplog: pytest.LogCaptureFixture) -> None:
    """After its first message nothing is repeated: UNKNOWN. The first bug in `send` is logged with
    its traceback, and is not hidden by an answer that is no JSON, as of Telegram's proxy."""
    telegram = Telegram()
    page = ClientDecodeError("no JSON", ValueError(), "<html>502 Bad Gateway</html>")
    telegram.errors = [None, no_connection(), page]
    _, bot, outgoing = paced(telegram)

    async def send(chat: int) -> None:
        if chat != 4:
            await bot.send_message(chat, "one")
        if chat > 2:
            raise KeyError(chat)
        await bot.send_message(chat, "two")

    found = await through(outgoing.broadcast([1, 2, 3, 4], send, in_flight=1))
    assert found == [Status.UNKNOWN] * 3 + [Status.FAILED]
    assert telegram.texts() == ["one", "one"]
    found = await through(outgoing.broadcast([1, 2], str, in_flight=1))  # which is not async
    assert found == [Status.FAILED] * 2
    lines = [each for each in caplog.records if each.levelno == logging.ERROR]
    said = [f"Broadcast: send({chat}) failed" for chat in (3, 1)]
    assert [line.getMessage()[:25] for line in lines] == said
    assert all(line.exc_info for line in lines)


@table(
    ("error", "status", "requests", "caught"),
    [
        (*case, caught)
        for caught in ((), (Exception,))
        for case in [
            (TelegramForbiddenError(NO_METHOD, "bot was blocked by the user"), Status.BLOCKED, 1),
            (TelegramForbiddenError(NO_METHOD, "user is deactivated"), Status.GONE, 1),
            (TelegramBadRequest(NO_METHOD, "Bad Request: chat not found"), Status.GONE, 1),
            (TelegramBadRequest(NO_METHOD, "message is too long"), Status.FAILED, 1),
            (TelegramEntityTooLarge(NO_METHOD, "Request Entity Too Large"), Status.FAILED, 1),
            (TelegramNetworkError(NO_METHOD, "Request timeout error"), Status.UNKNOWN, 1),
            (TelegramMigrateToChat(NO_METHOD, "moved", -100_5), Status.MIGRATED, 2),
            (no_connection(), Status.SENT, 2),
            (too_many(90), Status.SENT, 2),
        ]
    ],
)
@virtual
async def test_each_error_has_its_status(
    error: Exception, status: Status, requests: int, caught: Any
) -> None:
    """An error affects only its chat; only what cannot have arrived is repeated.

    If `send` catches the error and nothing has arrived, the outcome is the same, but not FAILED: it
    may have sent the message another way.
    """
    telegram, bot, outgoing = paced(errors=[error])

    async def send(chat: int) -> None:
        with suppress(*caught):
            await bot.send_message(chat, "x")

    run = outgoing.broadcast([-1, 2, 3], send, in_flight=1)
    found = {sent.chat: sent async for sent in run}
    # An answer that was lost may have arrived.
    told = {Status.UNKNOWN: Status.SENT, Status.FAILED: Status.UNKNOWN} if caught else {}
    assert found[-1].status is told.get(status, status)
    assert [found[2].status, found[3].status] == [Status.SENT] * 2
    assert len(telegram.left) == requests + 2
    if status is Status.MIGRATED:
        assert found[-1].moved_to == -100_5
        assert telegram.texts(-100_5) == ["x"]


@table(
    ("errors", "calls"),
    [
        ([None, *[too_many(1)] * 4], "mm"),
        ([None, TelegramMigrateToChat(NO_METHOD, "moved", -100_5)], "mm"),
        ([None, KeyError()], "mm"),
        ([too_many(1)], "a"),
    ],
)
@virtual
async def test_a_chat_that_may_have_got_a_part_is_unknown(errors: list[Any], calls: str) -> None:
    """Whatever ends `send` after its first message; also after the 429 of an album."""
    _, bot, outgoing = paced(errors=errors)

    async def send(chat: int) -> None:
        for call in calls:
            if call == "m":
                await bot.send_message(chat, "x")
            else:
                await bot.send_media_group(chat, [InputMediaPhoto(media="1")] * 2)

    assert await through(outgoing.broadcast([-1], send)) == [Status.UNKNOWN]


@virtual
async def test_a_chat_that_would_wait_too_long_does_not_end_the_broadcast() -> None:
    """A `NotSentError` inside `waiting_up_to` is the outcome of its chat only."""
    _, bot, outgoing = paced(per_chat="1/m")
    await bot.send_message(1, "before")

    async def send(chat: int) -> None:
        with waiting_up_to(1):
            await bot.send_message(chat, "x")

    found = await through(outgoing.broadcast([1, 2], send, in_flight=1))
    assert found == [Status.FAILED, Status.SENT]


@virtual
async def test_a_group_that_moved_is_done_under_both_ids(tmp_path: Path) -> None:
    """The next run skips it, whether its list has the old id or the new one."""
    moved = TelegramMigrateToChat(NO_METHOD, "moved", -100_5)
    _, bot, outgoing = paced(errors=[moved])
    for chats, found in (([-5], [Status.MIGRATED]), ([-5, -100_5], [])):
        journal = Journal(tmp_path / "journal")
        assert await through(outgoing.broadcast(chats, to_each(bot), journal=journal)) == found


@virtual
async def test_an_outage_that_ends_with_a_restart_loses_no_chat(tmp_path: Path) -> None:
    """Without a connection nothing was sent, so no chat is left in flight."""
    telegram, bot, outgoing = paced(errors=[no_connection() for _ in range(99)])

    def run() -> AsyncIterator[Sent]:
        return outgoing.broadcast([1, 2], to_each(bot), journal=Journal(tmp_path / "journal"))

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(10):
            await through(run())
    telegram.errors = []
    assert await through(run()) == [Status.SENT] * 2


@virtual
async def test_a_chat_that_is_none_is_only_its_own_failure() -> None:
    """A NULL of the database is FAILED, and the chats after it get the message."""
    _, bot, outgoing = paced()
    chats: list[Any] = [1, None, 2]
    found = await through(outgoing.broadcast(chats, to_each(bot), in_flight=1))
    assert found == [Status.SENT, Status.FAILED, Status.SENT]


@virtual
async def test_a_send_that_sends_nothing_is_not_believed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without `await` nothing is sent: each chat is UNKNOWN, the log says what to check, and no
    further run repeats what another bot may have sent. What is not seen is believed."""

    async def returns_a_method(chat: int) -> Any:
        return SendMessage(chat_id=chat, text="forgotten")

    _, bot, outgoing = paced()
    path = tmp_path / "journal"
    found = await through(outgoing.broadcast([1, 2], returns_a_method, journal=Journal(path)))
    assert found == [Status.UNKNOWN] * 2
    assert caplog.text.count("sent nothing through this bot: ") == 1
    assert "or an await is missing" in caplog.text
    assert await through(outgoing.broadcast([1, 2], to_each(bot), journal=Journal(path))) == []
    unseen = OutgoingLimits(limiter=virtual_limiter())  # without `setup`
    assert await through(unseen.broadcast([1], returns_a_method)) == [Status.SENT]


@virtual
async def test_leaving_the_loop_or_cancelling_ends_the_broadcast(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """After a `break` or a cancellation, which is raised, nothing more is sent."""
    telegram, bot, outgoing = paced()

    async def broadcast(*, leaves: bool) -> None:
        async with aclosing(outgoing.broadcast(range(1, 999), to_each(bot))) as outcomes:
            async for _ in outcomes:
                if leaves:
                    break

    await broadcast(leaves=True)
    seen = len(telegram.left)
    await asyncio.sleep(10)
    assert len(telegram.left) == seen <= 50
    task = asyncio.create_task(broadcast(leaves=False))
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    among = len(telegram.left)
    await asyncio.sleep(10)
    assert seen < len(telegram.left) == among < 98
    assert "Ctrl-C" not in caplog.text


@virtual
async def test_memory_is_constant() -> None:
    """After 800 chats a broadcast uses no more memory than after 200."""

    class Nothing(list[Any]):
        def append(self, _: Any) -> None:
            pass

    async def many() -> AsyncIterator[int]:
        for chat in range(1, 901):
            yield chat

    telegram = Telegram()
    telegram.log, telegram.left = Nothing(), Nothing()
    limiter = Limiter(MemoryStorage(100, clock=now), clock=now)
    _, bot, outgoing = paced(telegram, limiter=limiter, broadcast="100/s")
    held, total = {}, 0
    async for sent in outgoing.broadcast(many(), to_each(bot)):
        total += sent.status is Status.SENT
        if total in (200, 800):
            gc.collect()
            held[total] = len(gc.get_objects())
    assert total == 900
    assert held[800] < held[200] + 100


@virtual
async def test_a_journal_repeats_only_what_failed(tmp_path: Path) -> None:
    """A run with the same journal skips chats that are sent, permanently rejected or in flight.

    Progress counts what was in flight, and does not call it done.
    """
    path = tmp_path / "journal"
    journal = Journal(path)
    for chat, status in ((1, Status.SENT), (2, Status.FAILED), (3, Status.BLOCKED)):
        journal.write(chat, "leaving")
        journal.write(chat, status.value)
    journal.write(4, "leaving")
    journal.write("@news", "leaving")
    journal.write(6, "leaving")
    journal.write(6, "refused")  # a 429: it did not get it
    journal.close()
    with path.open("ab") as file:
        file.write(b"77 leav")  # killed in the middle of a line
    again, progress = Journal(path), Progress(8)
    _, bot, outgoing = paced()
    chats: list[int | str] = [1, 2, 3, 4, 5, 6, 77, "@news"]
    run = outgoing.broadcast(chats, to_each(bot), journal=again, progress=progress)
    assert sorted([sent.chat async for sent in run]) == [2, 5, 6, 77]
    assert again.in_flight == (4, "@news")
    assert str(progress).startswith("8 of 8 (100 %): 4 sent, 4 in earlier runs")
    assert "\n77 leaving\n" in path.read_text()
    assert 4 not in Journal(path, repeat_in_flight=True)
    (other := tmp_path / "other").write_text("something else\n")
    with pytest.raises(ConfigError, match="line 1 is not a line of a journal"):
        Journal(other)


@virtual
async def test_a_full_disk_ends_a_broadcast_before_it_sends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chat that the journal cannot name gets nothing, and no half line is left in the file."""

    class Full(FileIO):
        def write(self, line: Any) -> int:
            return super().write(line[:5])

    monkeypatch.setattr("bot_ratelimit.outgoing.journal.FileIO", Full)
    telegram, bot, outgoing = paced()
    path = tmp_path / "journal"
    with pytest.raises(OSError, match="No space left"):
        await through(outgoing.broadcast([1, 2], to_each(bot), journal=Journal(path)))
    assert not telegram.left
    assert path.read_bytes() == b""


@virtual
async def test_progress_is_shown() -> None:
    """Progress is an edit every few seconds, and a summary at the end."""
    telegram, bot, outgoing = paced()
    message = (await bot.send_message(500, "0")).as_(bot)
    progress = Progress(500, message=message)

    async def send(chat: int) -> None:
        if chat % 100 == 0:
            raise TelegramForbiddenError(NO_METHOD, "blocked")
        await bot.send_message(chat, "x")

    await through(outgoing.broadcast(range(1, 501), send, progress=progress))
    edits = [m.text for _, m in telegram.log if isinstance(m, EditMessageText)]
    assert len(edits) == 4
    assert edits[0].startswith("127 of 500 (25 %): 126 sent, 1 blocked; 2")
    assert edits[0].endswith("/s, 15 s left")
    assert edits[-1].startswith("500 of 500 (100 %): 495 sent, 5 blocked; ")
    assert edits[-1] == str(progress)


# Processes against a Telegram over HTTP.


class Refusing(FloodControl):
    """Refuses the first two requests."""

    def check(self, method: str, params: Mapping[str, str]) -> None:
        if self.refused < 2:
            self.refused += 1
            raise ApiError(429, "Too Many Requests", retry_after=60)


async def start(api: BotApi, journal: Path, chats: int) -> Forked:
    return await Forked.start("tests.outgoing.programs", "broadcast", api.url, journal, chats)


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
async def test_a_broadcast_that_is_ended_and_resumed(
    tmp_path: Path, end: signal.Signals, caplog: pytest.LogCaptureFixture
) -> None:
    """No chat gets it twice; only chats named in flight lack it, and none that got a 429."""
    path, chats = tmp_path / "journal", 400
    async with BotApi(Refusing()) as api:
        process = await start(api, path, chats)
        await api.called("sendMessage", 98, timeout=PATIENCE)
        process.send_signal(end)
        _, log = await process.communicate()
        await asyncio.sleep(0.05)
        before = len(api.calls)
        named = set(Journal(path).in_flight)
        await programs.broadcast(api.url, str(path), str(chats))
    got = Counter(call.chat_id for call in api.calls)
    assert before < chats
    assert set(got.values()) == {1}
    assert {call.chat_id for call in api.refused} <= set(got)
    assert len(api.refused) == 2
    assert {*range(1, chats + 1)} - set(got) <= named
    assert len(named) <= 50
    assert not named or "may have got the message" in caplog.text
    if end is signal.SIGINT:
        assert process.returncode == -signal.SIGINT  # a shell says 130
        unknown = re.search(rb"Broadcast interrupted: .*; (\d+) more may have got it", log)
        assert len(named) == int(unknown[1] if unknown else 0)
        assert b"Run it again with" in log
        assert b"Broadcast: 2 requests were answered with 429" in log


@virtual
async def test_two_broadcasts_cannot_share_a_journal(tmp_path: Path) -> None:
    """If an admin presses twice, the second broadcast is an error, and no chat gets it twice."""
    telegram, bot, outgoing = paced()
    journal = Journal(tmp_path / "journal")
    runs = (outgoing.broadcast(range(1, 40), to_each(bot), journal=journal) for _ in range(2))
    first, second = await asyncio.gather(*map(through, runs), return_exceptions=True)
    assert first == [Status.SENT] * 39
    assert isinstance(second, ConfigError)
    assert len(telegram.left) == 39
    journal.write(40, "sent")  # of a request that came late: nobody is locked out
    again = Journal(tmp_path / "journal")
    again.open()
    again.close()
    assert 40 in again


@pytest.mark.slow
async def test_two_processes_cannot_share_a_journal(tmp_path: Path) -> None:
    """The second one ends at once, and says why; later it may use the file."""
    path = tmp_path / "journal"
    journal = Journal(path)
    journal.open()
    async with BotApi() as api:
        second = await start(api, path, 9)
        _, error = await second.communicate()
        assert not api.calls
        journal.write(1, "sent")
        journal.close()
        await programs.broadcast(api.url, str(path), "9")
    assert second.returncode == 1
    assert b"another broadcast is using it" in error
    assert {call.chat_id for call in api.calls} == {*range(2, 10)}


@virtual
async def test_stars_bound_what_a_broadcast_costs(tmp_path: Path) -> None:
    """The first 30 a second are free; when the Stars are spent, the rest is sent unpaid, or left to
    the next run with the journal. What was refused costs nothing."""
    telegram, bot, outgoing = paced()
    send = to_each(bot, allow_paid_broadcast=True)
    found = await through(outgoing.broadcast(range(1, 301), send, in_flight=300, stars=10))
    assert Counter(found) == {Status.SENT: 300}
    paid = [at for at, m in telegram.log if m.allow_paid_broadcast]  # type: ignore[attr-defined] # all are messages
    assert len(paid) == 30 + 100
    assert paid[-1] - paid[0] < 0.1
    assert telegram.times()[-1] == pytest.approx(170 / 25 - 1, abs=0.5)
    await asyncio.sleep(2)
    telegram.errors = [too_many(1)]
    for stars, count in ((1, 40), (100, 60)):
        spent = {"journal": Journal(tmp_path / "journal"), "stars": stars, "when_spent": "stop"}
        assert len(await through(outgoing.broadcast(range(301, 401), send, **spent))) == count
    assert Counter(m.chat_id for _, m in telegram.log) == Counter(range(1, 401))  # type: ignore[attr-defined] # all are messages


@virtual
async def test_an_album_costs_stars_for_each_item() -> None:
    """Three albums of ten are free, and one Star pays for a fourth."""
    telegram, bot, outgoing = paced()
    album = [InputMediaPhoto(media="1")] * 10

    async def send(chat: int) -> None:
        await bot.send_media_group(chat, album, allow_paid_broadcast=True)

    await through(outgoing.broadcast(range(1, 10), send, stars=1))
    assert sum(m.allow_paid_broadcast for _, m in telegram.log) == 4  # type: ignore[attr-defined] # all are albums


@table(
    ("argument", "told"),
    [
        ({"chats": None}, "chats is a NoneType: expected ids"),
        ({"chats": "@news"}, "chats is a str: expected ids"),
        ({"send": "hi"}, "send is a str: expected an async function"),
        ({"journal": "x.j"}, r"journal is a str: expected Journal\('news.journal'\)"),
        ({"progress": 5}, r"progress is a int: expected Progress\(\)"),
        ({"stars": -1}, "stars"),
        ({"stars": "5"}, "stars"),
        ({"when_spent": "never"}, "when_spent"),
    ],
)
def test_wrong_arguments_of_a_broadcast_are_named(argument: dict[str, Any], told: str) -> None:
    """The call itself raises, before anything is sent."""
    outgoing = OutgoingLimits(limiter=Limiter(MemoryStorage()))
    with pytest.raises(ConfigError, match=told):
        outgoing.broadcast(**({"chats": [1], "send": asyncio.sleep} | argument))
    for make, said in (
        (lambda: Journal(5), "path=5: expected the path of a file"),
        (lambda: Journal("x", repeat_in_flight=5), "repeat_in_flight=5: expected True or"),
        (lambda: Progress("5"), "total='5': expected a whole number"),
        (lambda: Progress(every="5"), "every='5': expected seconds from 1 up"),
        (lambda: Progress(message="5"), "message is a str: expected a message"),
    ):
        with pytest.raises(ConfigError, match=said):
            make()
