"""ChatQueue: the requests to one chat, one at a time, in the order in which they were made."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Iterator
from typing import Any, Final, TypeAlias

from aiogram import Bot

from bot_ratelimit.outgoing.budgets import Chat, Owed
from bot_ratelimit.outgoing.methods import Method, Traffic

Send: TypeAlias = Callable[[Bot, Method], Awaitable[Any]]

YOUR_TURN: Final = object()
"""What a waiting caller is told when it is to send; else it is told the outcome."""

OVERTAKE_AFTER: Final = 5.0
"""Seconds after which others in a chat no longer wait for an answer, as of a long upload."""


class Request:
    """A call that a bot has made."""

    __slots__ = ("bot", "broadcast", "edit", "entry", "future", "method", "send", "traffic")

    def __init__(
        self,
        send: Send,
        bot: Bot,
        method: Method,
        traffic: Traffic,
        *,
        broadcast: bool = False,
        edit: Hashable | None = None,
    ) -> None:
        self.send = send
        self.bot = bot
        self.method = method
        self.traffic = traffic
        self.broadcast = broadcast
        self.edit = edit
        self.entry = Entry(self)
        self.future: asyncio.Future[Any] | None = None


class Entry:
    """A position in a queue: of one request, or of several edits of which the newest is sent."""

    __slots__ = ("edit", "in_flight", "requests")

    def __init__(self, request: Request) -> None:
        self.requests = [request]
        self.edit = request.edit
        self.in_flight = False

    def settle(self, sender: Request, result: Any = None, error: Exception | None = None) -> None:
        """Tell the others who wait for this entry what came of it."""
        for request in self.requests:
            future = request.future
            if request is sender or future is None or future.done():
                continue
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
        self.requests.clear()  # they know each other: without this, it takes a garbage collection


class ChatQueue:
    """The requests of one bot to one chat.

    At any time at most one entry holds the turn. It asks for its permit, sends, and gives the turn
    to the next one: replies first, then broadcasts. All of this is plain bookkeeping: no I/O, no
    clock.

    Args:
        chat: The chat, for messages to people.
    """

    __slots__ = (
        "_broadcasts",
        "_edits",
        "_replies",
        "blocked_until",
        "chat",
        "holder",
        "idle_until",
        "lag",
        "owed",
        "slow",
        "slow_until",
    )

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self.holder: Entry | None = None
        self.owed = Owed(0, 0)
        """What was sent before all of it could be taken: an album larger than the burst."""
        self.lag = 0.0
        """Seconds by which a request of this chat may have arrived later than the fastest does."""
        self.slow = 0
        """How often the pace is halved, after as many 429s."""
        self.slow_until = self.blocked_until = self.idle_until = 0.0
        self._replies: list[Entry] = []  # empty deques would be half of a queue's memory
        self._broadcasts: list[Entry] = []
        self._edits: dict[Hashable, Entry] = {}

    @property
    def waiting(self) -> int:
        """How many entries wait for the turn."""
        return len(self._replies) + len(self._broadcasts)

    def is_idle(self, now: float) -> bool:
        """Whether nothing of it needs to be remembered."""
        return self.holder is None and not self.waiting and now >= self.idle_until

    def entries(self) -> Iterator[Entry]:
        """Everything that has not been answered yet, in order."""
        if self.holder is not None:
            yield self.holder
        yield from self._replies
        yield from self._broadcasts

    def join(self, request: Request) -> asyncio.Future[Any] | None:
        """Take a position; None if it is the request's turn at once, else what will tell it."""
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
        """Whether the request takes the place of one that waits already.

        A different kind of edit of the same message, asked for meanwhile, keeps its own.
        """
        entry = self._edits.get(request.edit) if request.edit is not None else None
        return entry is not None and type(entry.requests[-1].method) is type(request.method)

    def seal(self, entry: Entry) -> Request:
        """The request that is sent now, for all of its entry: later edits need one of their own."""
        if entry.edit is not None and self._edits.get(entry.edit) is entry:
            del self._edits[entry.edit]
        return entry.requests[-1]

    def reopen(self, entry: Entry) -> None:
        """It was not delivered, and will be sent again: newer edits may take its place."""
        if entry.edit is not None:
            self._edits.setdefault(entry.edit, entry)

    def release(self, entry: Entry | None) -> None:
        """Give the turn to the next one."""
        if self.holder is not entry:  # overtaken, or not its turn yet
            return
        self.holder = None
        while self.holder is None and (waiting := self._replies or self._broadcasts):
            self._start(waiting.pop(0))

    def step_back(self, request: Request) -> asyncio.Future[Any] | None:
        """Take the position before all others of its kind; None if it has the turn at once."""
        entry = request.entry
        if self.holder is None or self.holder is entry:
            self.holder = entry
            return None
        (self._broadcasts if request.broadcast else self._replies).insert(0, entry)
        return _awaits(request)

    def leave(self, request: Request) -> None:
        """The caller of a request that was not sent is gone; another of its entry takes over."""
        entry = request.entry
        if request not in entry.requests:  # settled in the moment in which the caller left
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
        """Forget an entry that nobody waits for any more."""
        if entry.edit is not None and self._edits.get(entry.edit) is entry:
            del self._edits[entry.edit]
        for waiting in (self._replies, self._broadcasts):
            if entry in waiting:
                waiting.remove(entry)

    def abandon(self, error: Exception) -> None:
        """Tell everybody who waits for the turn that nothing will be sent."""
        for entry in (*self._replies, *self._broadcasts):
            for request in entry.requests:
                if request.future is not None and not request.future.done():
                    request.future.set_exception(error)
        self._replies.clear()
        self._broadcasts.clear()
        self._edits.clear()

    def _start(self, entry: Entry) -> None:
        """Let the oldest caller of an entry run it: the one that began to run it goes on."""
        for request in entry.requests:
            if request.future is not None and not request.future.done():
                self.holder = entry
                request.future.set_result(YOUR_TURN)
                return


def _awaits(request: Request) -> asyncio.Future[Any]:
    request.future = asyncio.get_running_loop().create_future()
    return request.future


def _has_turn(request: Request) -> bool:
    """Whether this caller was the one to run its entry: from the start, or told so."""
    future = request.future
    if future is None:
        return True
    if not future.done() or future.cancelled() or future.exception() is not None:
        return False
    return future.result() is YOUR_TURN
