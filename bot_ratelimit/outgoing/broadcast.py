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
from dataclasses import replace
from typing import Any, Final, Generic, NamedTuple, TypeVar

from aiogram.exceptions import ClientDecodeError, TelegramAPIError, TelegramMigrateToChat

from bot_ratelimit.errors import NotSentError
from bot_ratelimit.outgoing.interrupt import Interrupt
from bot_ratelimit.outgoing.journal import Journal
from bot_ratelimit.outgoing.methods import Method
from bot_ratelimit.outgoing.progress import Progress
from bot_ratelimit.outgoing.scope import BroadcastScope, broadcast_scope
from bot_ratelimit.outgoing.sent import Sent, Status, never_left, status_of
from bot_ratelimit.outgoing.stars import Stars, StarsSpentError

log = logging.getLogger("bot_ratelimit")

T = TypeVar("T", bound="int | str")

# Without a connection nothing was sent, so the same chat is tried again after these seconds.
_RECONNECT: Final = (1, 2, 4, 8, 15, 30, 30, 30)
# The second is a page of its proxy in place of an answer.
_OF_TELEGRAM: Final = (TelegramAPIError, ClientDecodeError)


class Options(NamedTuple):
    """How many chats at the same time, what paid messages may cost, and what is known."""

    in_flight: int
    stars: Stars
    is_set_up: bool
    """Whether a bot is set up, so that the requests of `send` are seen."""


async def run(
    chats: Iterable[T] | AsyncIterable[T],
    send: Callable[[T], Awaitable[Any]],
    *,
    journal: Journal | None,
    progress: Progress | None,
    options: Options,
) -> AsyncGenerator[Sent[T], None]:
    """See `OutgoingLimits.broadcast`."""
    if journal is not None:
        journal.open()
    progress = progress or Progress()
    broadcast = _Broadcast(_iterate(chats), send, journal, progress, options)
    progress.begin()
    interrupt = Interrupt()
    try:
        with interrupt:
            async for sent in broadcast.outcomes():
                progress.add(sent)
                yield sent
    except asyncio.CancelledError:
        if not interrupt.came:
            raise
        await broadcast.stop()
        unknown = f"; {broadcast.unknown} more may have got it" if broadcast.unknown else ""
        # asyncio.run would end with the traceback of a KeyboardInterrupt through this file.
        log.warning("Broadcast interrupted by Ctrl-C: %s%s%s", progress, unknown, _again(journal))
        raise SystemExit(130) from None
    finally:
        await broadcast.stop()
        if journal is not None:
            journal.close()
        await progress.finish()
        if broadcast.floods:
            log.warning("Broadcast: %d requests were answered with 429", broadcast.floods)


class _Broadcast(Generic[T]):
    """Workers that take chats from one source and put outcomes into one bounded queue."""

    def __init__(
        self,
        chats: AsyncIterator[T],
        send: Callable[[T], Awaitable[Any]],
        journal: Journal | None,
        progress: Progress,
        options: Options,
    ) -> None:
        self.floods = 0
        """How many requests were answered with 429."""
        self.unknown = 0
        """How many chats may have got something when their worker was stopped."""
        self.journal = journal
        self.stars = options.stars
        self._is_set_up = options.is_set_up
        self._chats = chats
        self._send = send
        self._progress = progress
        self._turn = asyncio.Lock()
        self._outcomes: asyncio.Queue[Sent[T] | None] = asyncio.Queue(options.in_flight)
        self._workers = [asyncio.create_task(self._work()) for _ in range(options.in_flight)]
        self._warned = self._has_failed = False

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
        try:
            while not self.stars.has_stopped and (chat := await self._next()) is not None:
                if (sent := await self._serve(chat)) is not None:
                    await self._outcomes.put(sent)
        finally:
            if (task := asyncio.current_task()) and not task.cancelling():
                await self._outcomes.put(None)

    async def _next(self) -> T | None:
        async with self._turn:  # an async generator allows one caller at a time
            async for chat in self._chats:
                if self.journal is None or chat not in self.journal:
                    return chat
                self._progress.skipped += 1
        return None

    async def _serve(self, chat: T) -> Sent[T] | None:
        """Send to one chat; return None if the Stars were spent before anything was sent."""
        requests = _Requests(self, chat)
        broadcast_scope.set(requests)  # of this worker only
        try:
            sent = await self._attempt(chat, requests)
        except asyncio.CancelledError:
            self.unknown += requests.left > 0
            raise
        if sent is None:
            return None
        if sent and not requests.left:
            if not self._warned:
                self._warned = True
                log.warning(
                    "send(%r) sent nothing through this bot: call outgoing.setup(bot), "
                    "or an await is missing",
                    chat,
                )
            if self._is_set_up:  # or another bot sent it: a second message would be worse
                sent = replace(sent, status=Status.UNKNOWN)
        if self.journal is not None:
            self.journal.finished(chat, sent.status)
        return sent

    async def _attempt(self, chat: T, requests: _Requests) -> Sent[T] | None:
        """Send; send again only if nothing can have arrived, so after one request at most."""
        target: Any = chat
        moved: int | None = None
        before = 0
        waits = iter(_RECONNECT)
        while True:
            try:
                result = await self._send(target)
            except StarsSpentError as error:
                return Sent(chat, Status.UNKNOWN, None, error) if requests.left else None
            except NotSentError:
                raise
            except TelegramMigrateToChat as error:
                if moved is not None or requests.left - before > 1:
                    return Sent(chat, Status.FAILED, None, error, error.migrate_to_chat_id)
                target = moved = error.migrate_to_chat_id
            except Exception as error:
                if not isinstance(error, _OF_TELEGRAM) and not self._has_failed:
                    self._has_failed = True
                    log.error(
                        "Broadcast: send(%r) failed; only the first error is logged",
                        chat,
                        exc_info=error,
                    )
                again = never_left(error) and requests.left - before <= 1
                if not again or (wait := next(waits, None)) is None:
                    status = _status(error, requests.left - before)
                    return Sent(chat, status, None, error, moved)
                await asyncio.sleep(wait)
            else:
                return Sent(chat, Status.MIGRATED if moved else Status.SENT, result, None, moved)
            before = requests.left


class _Requests(BroadcastScope):
    """The requests that are sent to one chat of a broadcast."""

    def __init__(self, broadcast: _Broadcast[Any], chat: int | str) -> None:
        self.left = 0
        """How many requests Telegram may have got; those answered with 429 do not count."""
        self._broadcast = broadcast
        self._chat = chat

    def leaving(self) -> None:
        """See `BroadcastScope.leaving`."""
        if not self.left and self._broadcast.journal is not None:
            self._broadcast.journal.leaving(self._chat)
        self.left += 1

    def refused(self) -> None:
        """See `BroadcastScope.refused`."""
        self._broadcast.floods += 1
        self.left -= 1
        if not self.left and self._broadcast.journal is not None:
            self._broadcast.journal.refused(self._chat)

    def priced(self, method: Method) -> Method:
        """See `BroadcastScope.priced`."""
        if not getattr(method, "allow_paid_broadcast", False) or self._broadcast.stars.pay():
            return method
        return method.model_copy(update={"allow_paid_broadcast": False})


def _status(error: Exception, left: int) -> Status:
    """The status for an error after `left` requests were sent: only the last one was refused."""
    status = status_of(error)
    refused = left <= 0 or (left == 1 and isinstance(error, TelegramAPIError))
    return Status.UNKNOWN if status is Status.FAILED and not refused else status


async def _iterate(chats: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    if isinstance(chats, AsyncIterable):
        async for chat in chats:
            yield chat
    else:
        for chat in chats:
            yield chat


def _again(journal: Journal | None) -> str:
    return "" if journal is None else f". Run it again with {journal.path} to continue"
