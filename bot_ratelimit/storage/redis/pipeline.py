"""Pipeline: an open stream, and the calls on their way over it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import Context
from functools import partial
from typing import Any, Final, Generic
from weakref import finalize, ref

from bot_ratelimit.errors import StorageError
from bot_ratelimit.storage.redis import encoding
from bot_ratelimit.storage.redis.deadline import ListeningClock
from bot_ratelimit.storage.redis.driver import Stream
from bot_ratelimit.storage.redis.request import Call, Item, Request


class Pipeline(Generic[Item]):
    """Writes calls at once, and reads their replies in one task.

    Replies come in the order of the commands, so they need no other identification. A reply that no
    caller waits for any more is read all the same, so the stream stays in step.

    Args:
        stream: An open stream; `close` closes it.
        clock: The clock of time-outs.
        on_replies: Called with a call, all replies to it, and the time.
        on_error: Called when the stream is broken.
        on_cancelled: Called when the program has cancelled the task that reads.
    """

    def __init__(
        self,
        stream: Stream,
        clock: ListeningClock,
        on_replies: Callable[[Call[Item], list[Any], float], None],
        on_error: Callable[[Exception], None],
        on_cancelled: Callable[[], None],
    ) -> None:
        self.stream = stream
        self.clock: Final = clock
        self.calls: deque[Call[Item]] = deque()
        """Those in progress, in the order of their replies."""
        self.batches = 0
        """The number of batches in progress."""
        self.waiting = 0
        """The number of requests in progress."""
        self.opened_at = clock.now()
        self.last_reply_at = self.opened_at
        """When the last call was answered, or the first was written after a pause."""
        self._on_replies = on_replies
        self._on_error = on_error
        self._on_cancelled = on_cancelled
        self._replies: list[Any] = []  # the replies to the first call so far
        self._is_closed = False
        self.reading = asyncio.create_task(_read(stream, ref(self)), context=Context())
        # A task that is cancelled before it has begun runs no line of its code, not even `finally`.
        self.reading.add_done_callback(partial(_ended, ref(self)), context=Context())
        self._finalizer = finalize(self, _cancel, self.reading)
        self._finalizer.atexit = False

    @property
    def requests(self) -> list[Request[Item]]:
        """The requests in progress."""
        return [request for call in self.calls for request in call.requests]

    def write(self, calls: Sequence[Call[Item]]) -> None:
        """Write one batch."""
        now = self.clock.now()
        packed: list[bytes] = []
        if not self.calls:
            self.last_reply_at = now
        for call in calls:
            call.sent = now
            self.waiting += len(call.requests)
            packed += map(encoding.encode_command, call.commands)
        self.calls += calls
        self.batches += 1
        calls[-1].ends_batch = True
        try:
            self.stream.write(b"".join(packed))
        except Exception as error:  # it is closing, and asyncio has not reported it yet
            self._on_error(error)

    def receive(self, reply: Any) -> bool:
        """Handle a reply; return whether to continue reading."""
        if self._is_closed:
            return False
        if not self.calls:
            raise StorageError("a reply without a request")
        replies = self._replies
        replies.append(reply)
        if len(replies) == self.calls[0].replies:
            self._replies = []
            call = self.calls.popleft()
            self.last_reply_at = now = self.clock.now()
            self.waiting -= len(call.requests)
            self.batches -= call.ends_batch
            self._on_replies(call, replies, now)
        return not self._is_closed

    def fail(self, error: Exception) -> None:
        """Report that reading has failed, unless the pipeline was closed before."""
        if not self._is_closed:
            self._on_error(error)

    def cancelled(self) -> None:
        """Report that the reading task was cancelled, unless the pipeline was closed before."""
        if not self._is_closed:
            self._on_cancelled()

    def close(self) -> None:
        """Close the stream, also one of an event loop that has ended."""
        self._is_closed = True
        self._finalizer.detach()
        self.stream.close()
        is_loop_closed = self.reading.get_loop().is_closed()
        if not is_loop_closed and self.reading is not asyncio.current_task():
            self.reading.cancel()


async def _read(stream: Stream, owner: ref[Pipeline[Any]]) -> None:
    """Read replies as long as the stream and its pipeline exist.

    The task holds only a weak reference: a storage that is dropped without `close` must not be kept
    alive by its reading task.
    """
    try:
        while True:
            reply = await stream.read()
            pipeline = owner()
            if pipeline is None or not pipeline.receive(reply):
                return
            del pipeline
    except Exception as error:
        if (pipeline := owner()) is not None:
            pipeline.fail(error)
    finally:
        stream.close()


def _ended(owner: ref[Pipeline[Any]], task: asyncio.Task[None]) -> None:
    if task.cancelled() and (pipeline := owner()) is not None:
        pipeline.cancelled()


def _cancel(task: asyncio.Task[None]) -> None:
    if not task.done():
        with suppress(RuntimeError):  # the event loop may be closed already
            task.get_loop().call_soon_threadsafe(task.cancel)
