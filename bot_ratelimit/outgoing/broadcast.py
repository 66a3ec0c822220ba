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
from typing import Any, Final, Generic, TypeVar

from aiogram.exceptions import ClientDecodeError, TelegramAPIError, TelegramMigrateToChat

from bot_ratelimit.errors import NotSentError
from bot_ratelimit.outgoing.journal import Journal
from bot_ratelimit.outgoing.pacing import Pacer, ShuttingDownError
from bot_ratelimit.outgoing.progress import Progress
from bot_ratelimit.outgoing.scope import BroadcastScope, broadcast_scope
from bot_ratelimit.outgoing.sent import Sent, Status, never_left, status_of
from bot_ratelimit.outgoing.stars import Stars, StarsSpentError

log = logging.getLogger("bot_ratelimit")

T = TypeVar("T", bound="int | str")

# Without a connection nothing was sent, so the same chat is tried again after these seconds.
_RECONNECT: Final = (1, 2, 4, 8, 15, 30, 30, 30)
# Seconds for answers when it ends early; as long as `OutgoingLimits.close` waits.
_PATIENCE: Final = 5.0
# These are no bugs of `send`. The second is a page of Telegram's proxy in place of an answer.
_EXPECTED: Final = (TelegramAPIError, ClientDecodeError, NotSentError)


class Broadcast(Generic[T]):
    """Workers that take chats from one source and put outcomes into one bounded queue.

    Args:
        send: Sends to a chat.
        journal: Knows which chats are done.
        progress: Counts the outcomes.
        stars: Pays for messages.
        pacer: Ends waits when the bot shuts down.
        is_set_up: Whether a bot is set up, so that the requests of `send` are seen.
    """

    def __init__(
        self,
        send: Callable[[T], Awaitable[Any]],
        journal: Journal | None,
        progress: Progress,
        stars: Stars,
        pacer: Pacer,
        *,
        is_set_up: bool,
    ) -> None:
        self._send = send
        self._journal = journal
        self._progress = progress
        self._stars = stars
        self._pacer = pacer
        self._is_set_up = is_set_up
        self._floods = 0  # how many requests were answered with 429
        self._unknown = 0  # how many chats may have got something when their worker was stopped
        self._turn = asyncio.Lock()
        self._workers: list[asyncio.Task[None]] = []
        self._serving: dict[asyncio.Task[Any] | None, BroadcastScope] = {}
        self._warned = self._has_failed = self._is_ending = False

    async def run(
        self, chats: Iterable[T] | AsyncIterable[T], in_flight: int
    ) -> AsyncGenerator[Sent[T], None]:
        """See `OutgoingLimits.broadcast`."""
        if self._journal is not None:
            self._journal.open()
        self._progress.begin()
        outcomes: asyncio.Queue[Sent[T] | None] = asyncio.Queue(in_flight)
        source = _iterate(chats)
        self._workers += [
            asyncio.create_task(self._work(source, outcomes)) for _ in range(in_flight)
        ]
        ended = asyncio.gather(*self._workers, return_exceptions=True)
        ended.add_done_callback(lambda _: _wake_up(outcomes))
        patience: float | None = None
        try:
            while not (ended.done() and outcomes.empty()):
                if (sent := await outcomes.get()) is not None:
                    yield sent
            for worker in self._workers:
                await worker  # which raises if the source failed, or the bot is shutting down
        except BaseException as error:
            patience = _PATIENCE
            if isinstance(error, GeneratorExit):
                await self._finish()
            await self._stop()
            unknown = f"; {self._unknown} more may have got it" if self._unknown else ""
            again = f". Run it again with {self._journal.path} to continue" if self._journal else ""
            log.warning("Broadcast interrupted: %s%s%s", self._progress, unknown, again)
            raise
        finally:
            await self._stop()
            if self._journal is not None:
                self._journal.close()
            await self._progress.finish(patience)
            if self._floods:
                log.warning("Broadcast: %d requests were answered with 429", self._floods)

    async def _finish(self) -> None:
        """Begin no further chat, and wait for each `send` that has sent something."""
        self._is_ending = True
        for worker in self._workers:
            if (requests := self._serving.get(worker)) is None or not requests.left:
                worker.cancel()
        await asyncio.wait(self._workers, timeout=_PATIENCE)

    async def _stop(self) -> None:
        """Stop the workers; requests in progress get no outcome."""
        self._is_ending = True
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)

    async def _work(self, chats: AsyncIterator[T], outcomes: asyncio.Queue[Sent[T] | None]) -> None:
        while not self._stars.has_stopped and (found := await self._next(chats)):
            if (sent := await self._serve(*found)) is not None:
                self._progress.add(sent)
                if self._is_ending:  # nobody asks for outcomes any more
                    return
                await outcomes.put(sent)

    async def _next(self, chats: AsyncIterator[T]) -> tuple[T] | None:
        """The next chat; None at the end, because a chat that is None gets an outcome, too."""
        async with self._turn:  # an async generator allows one caller at a time
            async for chat in chats:
                if self._journal is None or chat not in self._journal:
                    return (chat,)
                self._progress.skipped += 1
        return None

    async def _serve(self, chat: T) -> Sent[T] | None:
        """Send to one chat; return None if the Stars were spent before anything was sent."""
        requests = BroadcastScope(chat, self._journal, self._stars)
        broadcast_scope.set(requests)  # of this worker only
        self._serving[asyncio.current_task()] = requests
        try:
            sent = await self._attempt(chat, requests)
        except (asyncio.CancelledError, ShuttingDownError):
            self._unknown += requests.left > 0
            raise
        finally:
            del self._serving[asyncio.current_task()]
            self._floods += requests.floods
            requests.error = None  # which knows this frame, and so itself
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
        if self._journal is not None:
            self._journal.write(chat, sent.status.value)
            if sent.moved_to is not None:  # under which the next run may name the chat
                self._journal.write(sent.moved_to, sent.status.value)
        return sent

    async def _attempt(self, chat: T, requests: BroadcastScope) -> Sent[T] | None:
        """Send; send again only if Telegram has taken nothing."""
        target: Any = chat
        moved: int | None = None
        waits = iter(_RECONNECT)
        while True:
            try:
                result = await self._call(target, requests)
            except StarsSpentError as error:
                return Sent(chat, Status.UNKNOWN, None, error) if requests.left else None
            except ShuttingDownError:
                raise
            except TelegramMigrateToChat as error:
                if moved is not None or requests.left:
                    status = _status(error, requests)
                    return Sent(chat, status, None, error, error.migrate_to_chat_id)
                target = moved = error.migrate_to_chat_id
            except Exception as error:
                again = never_left(error) and not requests.left
                if not again or (wait := next(waits, None)) is None:
                    return Sent(chat, _status(error, requests), None, error, moved)
                await self._pacer.sleep(0 if self._pacer.closed else wait)
            else:
                return Sent(chat, Status.MIGRATED if moved else Status.SENT, result, None, moved)

    async def _call(self, chat: T, requests: BroadcastScope) -> Any:
        """Call `send`; if the chat got nothing, raise the error of its request, if it had one.

        `send` may have caught that error, or raised another one in its place.
        """
        requests.error, result = None, None
        try:
            result = await _run(self._send(chat))
        except _EXPECTED:
            raise
        except Exception as error:
            self._log(chat, error)
            if isinstance(requests.error, ShuttingDownError):
                raise requests.error from None
            if requests.error is None or requests.left:
                raise
        else:
            requests.caught = True
        if requests.error is not None and not requests.left:
            raise requests.error
        return result

    def _log(self, chat: T, error: Exception) -> None:
        """Log the first bug of `send`, which is not an error of Telegram in another form."""
        if isinstance(error, ExceptionGroup):  # of a TaskGroup
            is_bug = error.split(_EXPECTED)[1] is not None
        else:
            is_bug = not isinstance(error.__cause__, _EXPECTED)
        if is_bug and not self._has_failed:
            self._has_failed = True
            log.error(
                "Broadcast: send(%r) failed; only the first error is logged", chat, exc_info=error
            )


async def _run(sending: Awaitable[Any]) -> Any:
    """Await; what is cancelled in there is an error like others, unless this worker is stopped."""
    worker: Any = asyncio.current_task()
    stops, is_stopped = worker.cancelling(), False
    try:
        return await sending
    except asyncio.CancelledError as error:
        if is_stopped := worker.cancelling() > stops:
            raise
        raise RuntimeError("send awaited something cancelled") from error
    finally:
        # Before Python 3.13 a TaskGroup that failed leaves its task as if it was being cancelled.
        while not is_stopped and worker.cancelling() > stops:
            worker.uncancel()


def _status(error: Exception, requests: BroadcastScope) -> Status:
    """The status after an error: UNKNOWN if the chat may have got a part, or it another way."""
    status, unclear = status_of(error), requests.left or requests.caught
    return Status.UNKNOWN if status is Status.FAILED and unclear else status


def _wake_up(outcomes: asyncio.Queue[Sent[T] | None]) -> None:
    """Let a consumer that waits for an outcome see that there will be none."""
    if outcomes.empty():
        outcomes.put_nowait(None)


async def _iterate(chats: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    if isinstance(chats, AsyncIterable):
        async for chat in chats:
            yield chat
    else:
        for chat in chats:
            yield chat
