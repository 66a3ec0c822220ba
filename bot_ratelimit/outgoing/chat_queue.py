"""ChatQueue: the requests to one chat, one at a time, in the order in which they were made."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Iterator
from typing import Any, Final, TypeAlias

from aiogram import Bot

from bot_ratelimit.outgoing.budgets import NOTHING
from bot_ratelimit.outgoing.methods import Method, Traffic
from bot_ratelimit.outgoing.pace import Pace, PaceKey
from bot_ratelimit.outgoing.scope import BroadcastScope

Send: TypeAlias = Callable[[Bot, Method], Awaitable[Any]]

YOUR_TURN: Final = object()
"""The result of a waiting caller's future when it is its turn to send; otherwise the outcome."""

OVERTAKE_AFTER: Final = 5.0
"""Seconds after which the next request of a chat no longer waits for an answer, for example while a
large file is uploaded."""


class Request:
    """A request that a bot has made.

    Args:
        send: Sends it.
        bot: The bot.
        method: What is sent.
        traffic: What it counts as.
        broadcast: The broadcast that it is part of; None for a reply.
        edit: Which message it edits; None if no other request can replace it.
        patience: Seconds that it may wait in all; None without such a bound.
    """

    __slots__ = (
        "attempts",
        "bot",
        "broadcast",
        "deadline",
        "edit",
        "entry",
        "future",
        "may_wait",
        "method",
        "send",
        "traffic",
    )

    def __init__(
        self,
        send: Send,
        bot: Bot,
        method: Method,
        traffic: Traffic,
        *,
        broadcast: BroadcastScope | None = None,
        edit: Hashable | None = None,
        patience: float | None = None,
    ) -> None:
        self.send = send
        self.bot = bot
        self.method = method
        self.traffic = traffic
        self.broadcast = broadcast
        self.edit = edit
        self.may_wait = patience is None or patience > 0
        self.deadline = None
        if patience is not None:
            self.deadline = asyncio.get_running_loop().time() + patience
        self.attempts = 0
        """How often it was answered with 429."""
        self.entry = Entry(self)
        self.future: asyncio.Future[Any] | None = None

    def can_wait(self, seconds: float) -> bool:
        """Whether the request may wait for `seconds` more."""
        now = asyncio.get_running_loop().time()
        return self.deadline is None or now + seconds <= self.deadline


class Entry:
    """One request of a queue, or several edits of one message, of which the newest is sent."""

    __slots__ = ("edit", "in_flight", "requests")

    def __init__(self, request: Request) -> None:
        self.requests = [request]
        self.edit = request.edit
        self.in_flight = False

    @property
    def newest(self) -> Request:
        """The request to send; the others are replaced by it."""
        return self.requests[-1]

    def settle(self, sender: Request, result: Any = None, error: Exception | None = None) -> None:
        """Give the outcome to the other callers that wait for this entry."""
        for request in self.requests:
            future = request.future
            if request is sender or future is None or future.done():
                continue
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
        self.requests.clear()  # breaks a reference cycle, so that no garbage collection is needed


class ChatQueue(Pace):
    """The requests of one bot and kind to one chat.

    At any time at most one entry has the turn. It takes a permit, sends, and passes the turn to the
    next entry: replies first, then broadcasts. The queue is pure bookkeeping: it does no I/O and
    waits for nothing.

    Args:
        key: Which requests these are.
    """

    __slots__ = (
        "_broadcasts",
        "_edits",
        "_replies",
        "counted_until",
        "full_at",
        "holder",
        "owed",
        "refill",
    )

    def __init__(self, key: PaceKey) -> None:
        super().__init__(key)
        self.holder: Entry | None = None
        self.owed = NOTHING
        """Permits not yet taken for what was sent, for example for an album that exceeds the
        burst."""
        self.full_at = self.counted_until = self.refill = 0.0
        """When the permits taken so far will be refilled, by the loop's clock; the same as Telegram
        counts it, at the latest; and the seconds for one permit."""
        self._replies: list[Entry] = []  # empty deques would be half of a queue's memory
        self._broadcasts: list[Entry] = []
        self._edits: dict[Hashable, Entry] = {}

    @property
    def waiting(self) -> int:
        """The number of entries that wait for the turn."""
        return len(self._replies) + len(self._broadcasts)

    def is_idle(self, now: float) -> bool:
        """Whether the queue can be dropped because nothing of it needs to be remembered."""
        return self.holder is None and not self.waiting and super().is_idle(now)

    def entries(self) -> Iterator[Entry]:
        """All entries that have not been answered yet, in order."""
        if self.holder is not None:
            yield self.holder
        yield from self._replies
        yield from self._broadcasts

    def join(self, request: Request) -> asyncio.Future[Any] | None:
        """Add a request; return None if it has the turn at once, otherwise a future to await."""
        edit, entry = request.edit, request.entry
        if self.is_merging(request):
            entry = request.entry = self._edits[edit]
            entry.requests.append(request)
            return _awaits(request)
        if edit is not None:
            self._edits[edit] = entry
        if self.holder is None:
            self.holder = entry
            return None
        (self._broadcasts if request.broadcast else self._replies).append(entry)
        return _awaits(request)

    def is_merging(self, request: Request) -> bool:
        """Whether the request replaces one that already waits.

        A different kind of edit of the same message keeps an entry of its own.
        """
        entry = self._edits.get(request.edit) if request.edit is not None else None
        return entry is not None and type(entry.newest.method) is type(request.method)

    def seal(self, entry: Entry) -> Request:
        """Return the request to send now for this entry; later edits get an entry of their own."""
        if entry.edit is not None and self._edits.get(entry.edit) is entry:
            del self._edits[entry.edit]
        return entry.newest

    def reopen(self, entry: Entry) -> None:
        """Allow newer edits to replace the request: it was not delivered and is sent again."""
        if entry.edit is not None:
            self._edits.setdefault(entry.edit, entry)

    def release(self, entry: Entry | None) -> None:
        """Pass the turn to the next entry."""
        if self.holder is not entry:  # it was overtaken, or does not have the turn yet
            return
        self.holder = None
        while self.holder is None and (waiting := self._replies or self._broadcasts):
            self._start(waiting.pop(0))

    def step_back(self, request: Request) -> asyncio.Future[Any] | None:
        """Put the request before all others of its kind; return None if it has the turn at once."""
        entry = request.entry
        if self.holder is None or self.holder is entry:
            self.holder = entry
            return None
        (self._broadcasts if request.broadcast else self._replies).insert(0, entry)
        return _awaits(request)

    def leave(self, request: Request) -> None:
        """Remove a request whose caller is gone; another caller of its entry takes over."""
        entry = request.entry
        if request not in entry.requests:  # settled at the same moment
            return
        entry.requests.remove(request)
        holds = self.holder is entry
        if not entry.requests:
            self.forget(entry)
            if holds:
                self.release(entry)
        elif _has_turn(request):
            self._replies.insert(0, entry)
            self.release(entry if holds else None)

    def forget(self, entry: Entry) -> None:
        """Remove an entry that nobody waits for any more."""
        if entry.edit is not None and self._edits.get(entry.edit) is entry:
            del self._edits[entry.edit]
        for waiting in (self._replies, self._broadcasts):
            if entry in waiting:
                waiting.remove(entry)

    def abandon(self, error: Exception) -> None:
        """Fail all entries that wait for the turn with this error."""
        for entry in (*self._replies, *self._broadcasts):
            for request in entry.requests:
                if request.future is not None and not request.future.done():
                    request.future.set_exception(error)
        self._replies.clear()
        self._broadcasts.clear()
        self._edits.clear()

    def _start(self, entry: Entry) -> None:
        """Give the turn to the oldest caller of an entry that still waits."""
        for request in entry.requests:
            if request.future is not None and not request.future.done():
                self.holder = entry
                request.future.set_result(YOUR_TURN)
                return


def _awaits(request: Request) -> asyncio.Future[Any]:
    request.future = asyncio.get_running_loop().create_future()
    return request.future


def _has_turn(request: Request) -> bool:
    """Whether this caller runs its entry: from the start, or because it was given the turn."""
    future = request.future
    if future is None:
        return True
    if not future.done() or future.cancelled() or future.exception() is not None:
        return False
    return future.result() is YOUR_TURN
