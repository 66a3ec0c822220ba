"""Broadcast: sends to many chats at a steady pace and yields the outcome for each."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
)
from typing import Any, Final, Generic, TypeVar

from aiogram.exceptions import TelegramAPIError, TelegramMigrateToChat

from bot_ratelimit.errors import NotSentError
from bot_ratelimit.outgoing.delivery import before_send, broadcasting
from bot_ratelimit.outgoing.journal import Journal
from bot_ratelimit.outgoing.progress import Progress
from bot_ratelimit.outgoing.sent import Sent, Status, never_left, status_of

log = logging.getLogger("bot_ratelimit")

T = TypeVar("T", bound="int | str")

# Without a connection nothing was sent, so the same chat is tried again after these seconds.
_RECONNECT: Final = (1, 2, 4, 8, 15, 30, 30, 30)
_NAMED: Final = 20


async def run(
    chats: Iterable[T] | AsyncIterable[T],
    send: Callable[[T], Awaitable[Any]],
    *,
    journal: Journal | None,
    progress: Progress | None,
    in_flight: int,
) -> AsyncGenerator[Sent[T], None]:
    """See `OutgoingLimits.broadcast`."""
    if journal is not None and journal.in_flight:
        _name_in_flight(journal)
    broadcast = _Broadcast(_iterate(chats), send, journal, progress, in_flight)
    if progress is not None:
        progress.begin()
    try:
        async for sent in broadcast.outcomes():
            if progress is not None:
                progress.add(sent)
            yield sent
    finally:
        await broadcast.stop()
        if journal is not None:
            journal.close()
        if progress is not None:
            await progress.finish()


class _Broadcast(Generic[T]):
    """Workers that take chats from one source and put outcomes into one bounded queue."""

    def __init__(
        self,
        chats: AsyncIterator[T],
        send: Callable[[T], Awaitable[Any]],
        journal: Journal | None,
        progress: Progress | None,
        in_flight: int,
    ) -> None:
        self._chats = chats
        self._send = send
        self._journal = journal
        self._progress = progress
        self._turn = asyncio.Lock()
        self._outcomes: asyncio.Queue[Sent[T] | None] = asyncio.Queue(in_flight)
        self._workers = [asyncio.create_task(self._work()) for _ in range(in_flight)]
        self._warned = False

    async def outcomes(self) -> AsyncIterator[Sent[T]]:
        """Yield each outcome as it comes, until all workers have finished.

        Raises:
            Exception: The source of the chats failed, or the bot is shutting down.
        """
        running = len(self._workers)
        while running:
            sent = await self._outcomes.get()
            if sent is None:
                running -= 1
            else:
                yield sent
        for worker in self._workers:
            await worker

    async def stop(self) -> None:
        """Stop the workers; requests in progress get no outcome."""
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)

    async def _work(self) -> None:
        broadcasting.set(True)  # of this task only
        try:
            while (chat := await self._next()) is not None:
                await self._outcomes.put(await self._serve(chat))
        finally:
            if (task := asyncio.current_task()) and not task.cancelling():
                await self._outcomes.put(None)

    async def _next(self) -> T | None:
        async with self._turn:  # an async generator allows one caller at a time
            async for chat in self._chats:
                if self._journal is None or chat not in self._journal:
                    return chat
                if self._progress is not None:
                    self._progress.skipped += 1
        return None

    async def _serve(self, chat: T) -> Sent[T]:
        left = 0

        def on_before_send() -> None:
            nonlocal left
            if not left and self._journal is not None:
                self._journal.leaving(chat)
            left += 1

        before_send.set(on_before_send)
        sent = await self._attempt(chat, lambda: left)
        if sent and not left and not self._warned:
            self._warned = True
            log.warning("send(%r) sent nothing through this bot: call outgoing.setup(bot)", chat)
        if self._journal is not None:
            self._journal.finished(chat, sent.status)
        return sent

    async def _attempt(self, chat: T, left: Callable[[], int]) -> Sent[T]:
        """Send; send again only if nothing can have arrived, so after one request at most."""
        target: Any = chat
        moved: int | None = None
        before = 0
        waits = iter(_RECONNECT)
        while True:
            try:
                result = await self._send(target)
            except NotSentError:
                raise
            except TelegramMigrateToChat as error:
                if moved is not None or left() - before > 1:
                    return Sent(chat, Status.FAILED, None, error, error.migrate_to_chat_id)
                target = moved = error.migrate_to_chat_id
            except Exception as error:
                again = never_left(error) and left() - before <= 1
                if not again or (wait := next(waits, None)) is None:
                    return Sent(chat, _status(error, left() - before), None, error, moved)
                await asyncio.sleep(wait)
            else:
                return Sent(chat, Status.MIGRATED if moved else Status.SENT, result, None, moved)
            before = left()


def _status(error: Exception, left: int) -> Status:
    """The status for an error after `left` requests were sent: only the last one was refused."""
    status = status_of(error)
    refused = left == 0 or (left == 1 and isinstance(error, TelegramAPIError))
    return Status.UNKNOWN if status is Status.FAILED and not refused else status


async def _iterate(chats: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    if isinstance(chats, AsyncIterable):
        async for chat in chats:
            yield chat
    else:
        for chat in chats:
            yield chat


def _name_in_flight(journal: Journal) -> None:
    named = ", ".join(map(str, journal.in_flight[:_NAMED]))
    more = len(journal.in_flight) - _NAMED
    log.warning(
        "%s: %d chats were in flight when the last run ended. They may have got the message and "
        "are skipped (repeat_in_flight=True sends it again): %s%s",
        journal.path,
        len(journal.in_flight),
        named,
        f" and {more} more" if more > 0 else "",
    )
