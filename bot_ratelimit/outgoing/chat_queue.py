"""ChatQueue: the requests to one chat, one at a time, in the order in which they were made."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Iterator
from dataclasses import InitVar, dataclass, field
from typing import Any, Final, TypeAlias

from aiogram import Bot

from bot_ratelimit.limiter.observer import RequestOutcome
from bot_ratelimit.outgoing.methods import Method, Traffic
from bot_ratelimit.outgoing.pace import Pace, PaceKey
from bot_ratelimit.outgoing.scope import BroadcastScope

Send: TypeAlias = Callable[[Bot, Method], Awaitable[Any]]

OVERTAKE_AFTER: Final = 5.0
"""Seconds after which the next request of a chat no longer waits for an answer, for example while a
large file is uploaded."""


@dataclass(slots=True, eq=False)
class Request:
    """A request that a bot has made."""

    send: Send
    bot: Bot
    method: Method
    traffic: Traffic
    """What it counts as."""
    broadcast: BroadcastScope | None = None
    """The broadcast that it is part of; None for a reply."""
    patience: InitVar[float | None] = None
    """Seconds that it may wait in all; None without such a bound."""
    may_wait: bool = True
    deadline: float | None = None
    attempts: int = 0
    """How often it was answered with 429."""
    in_flight: bool = False
    """Whether it was sent, and is not answered yet."""
    left_at: float = 0.0
    """When it was sent last; 0.0 if it was not."""
    outcome: RequestOutcome = "unsent"
    """What became of it, for observers."""
    turn: asyncio.Future[None] | None = None

    def __post_init__(self, patience: float | None) -> None:
        if patience is not None:
            self.may_wait = patience > 0
            self.deadline = asyncio.get_running_loop().time() + patience

    @property
    def newest(self) -> Request:
        """The request to send."""
        return self

    @property
    def paid(self) -> bool | None:
        """Whether a broadcast pays for it; None if it is not part of one."""
        found = bool(getattr(self.method, "allow_paid_broadcast", False))
        return None if self.broadcast is None else found

    @property
    def requests(self) -> list[Request]:
        """Those that end with it."""
        return [self]

    def can_wait(self, seconds: float) -> bool:
        """Whether the request may wait for `seconds` more."""
        now = asyncio.get_running_loop().time()
        return self.deadline is None or now + seconds <= self.deadline


@dataclass(slots=True, eq=False)
class Edits:
    """Edits of one message that wait together. The newest is sent, for all of their callers.

    A task of its own sends it, so that it does not matter which of the callers are cancelled.
    """

    key: Hashable
    """Which message is edited."""
    requests: list[Request]
    task: asyncio.Task[Any] = field(init=False)
    in_flight: bool = False
    turn: asyncio.Future[None] | None = None

    @property
    def newest(self) -> Request:
        """The request to send; the others are replaced by it."""
        return self.requests[-1]


Entry: TypeAlias = Request | Edits


class ChatQueue(Pace):
    """The requests of one bot and kind to one chat.

    At any time at most one entry has the turn. It takes a permit, is sent, and passes the turn to
    the next entry: replies first, then broadcasts.
    """

    __slots__ = (
        "_broadcasts",
        "_replies",
        "counted_until",
        "edits",
        "full_at",
        "holder",
        "users",
    )

    def __init__(self, key: PaceKey) -> None:
        super().__init__(key)
        self.holder: Entry | None = None
        self.full_at = self.counted_until = 0.0
        """When the permits taken so far will be refilled, by the loop's clock; and the same as
        Telegram counts it, at the latest."""
        self.edits: dict[Hashable, Edits] = {}
        """Edits that a newer one may still replace."""
        self.users = 0
        """The number of requests that have come and are not answered yet."""
        self._replies: list[Entry] = []  # empty deques would be half of a queue's memory
        self._broadcasts: list[Entry] = []

    @property
    def waiting(self) -> int:
        """The number of entries that wait for the turn."""
        return len(self._replies) + len(self._broadcasts)

    def is_idle(self, now: float) -> bool:
        """Whether the queue can be dropped because nothing of it needs to be remembered."""
        return not self.users and super().is_idle(now)

    def unsent(self) -> Iterator[Request]:
        """What has not left yet, in order."""
        if self.holder is not None and not self.holder.in_flight:
            yield self.holder.newest
        yield from (entry.newest for entry in (*self._replies, *self._broadcasts))

    def replaceable(self, request: Request, edit: Hashable) -> Edits | None:
        """The waiting edits that this one replaces.

        A different kind of edit of the same message keeps a place of its own.
        """
        found = self.edits.get(edit)
        same = found is not None and type(found.newest.method) is type(request.method)
        return found if same else None

    def join(self, entry: Entry, *, first: bool = False) -> None:
        """Add an entry; it has the turn at once if no other has it.

        Args:
            entry: The entry.
            first: Whether it goes before all others of its kind.
        """
        if self.holder is None or self.holder is entry:
            self.holder = entry
            return
        waiting = self._broadcasts if entry.newest.broadcast else self._replies
        waiting.insert(0 if first else len(waiting), entry)
        entry.turn = asyncio.get_running_loop().create_future()

    async def turn(self, entry: Entry) -> None:
        """Wait until an entry that has joined has the turn."""
        if entry.turn is not None:
            try:
                await entry.turn
            except BaseException:
                self.leave(entry)
                raise

    def release(self, entry: Entry) -> None:
        """Pass the turn to the next entry, if this one has it."""
        if self.holder is not entry:
            return
        self.holder = None
        while self.holder is None and (waiting := self._replies or self._broadcasts):
            following = waiting.pop(0)
            if following.turn is not None and not following.turn.done():
                self.holder = following
                following.turn.set_result(None)

    def leave(self, entry: Entry) -> None:
        """Remove an entry that is done, or that nobody waits for any more."""
        self.seal(entry)
        for waiting in (self._replies, self._broadcasts):
            if entry in waiting:
                waiting.remove(entry)
        self.release(entry)

    def seal(self, entry: Entry) -> None:
        """Let no newer edit replace this one."""
        if isinstance(entry, Edits) and self.edits.get(entry.key) is entry:
            del self.edits[entry.key]

    def reopen(self, entry: Entry) -> None:
        """Let newer edits replace this one: it was not delivered and is sent again."""
        if isinstance(entry, Edits):
            self.edits.setdefault(entry.key, entry)

    def abandon(self, error: Exception) -> None:
        """Fail all entries that wait for the turn with this error."""
        waiting = [*self._replies, *self._broadcasts]
        self._replies.clear()
        self._broadcasts.clear()
        for entry in waiting:
            if entry.turn is not None and not entry.turn.done():
                entry.turn.set_exception(error)
