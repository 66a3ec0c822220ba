"""Requests: what a server is asked, in which commands, and what its replies amount to."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

from bot_ratelimit.storage.encoding import Command

Item = TypeVar("Item")


class Request(Generic[Item]):
    """Something a server is asked, and who waits for the answer."""

    __slots__ = (
        "alone",
        "asking",
        "deadline",
        "future",
        "item",
        "number",
        "redirected",
        "slot",
        "timeout",
        "weight",
    )

    def __init__(
        self,
        item: Item,
        weight: int,
        timeout: float,
        future: asyncio.Future[Any],
        slot: int | None = None,
    ) -> None:
        self.item = item
        self.weight = weight
        self.timeout = timeout
        self.future = future
        self.slot = slot
        """Of a Redis Cluster, where only what is in one slot can share a command."""
        self.deadline = 0.0
        self.number = 0
        """Its place among the requests of a connection."""
        self.redirected = False
        self.asking = False
        """Whether the slot is on its way to this server, which has to be told that we know."""
        self.alone = False
        """Whether it must not share a command: of the keys of its slot some have moved already."""

    def answer(self, answer: Any) -> None:
        """Give the answer to the one who waits, if anybody still does."""
        if self.future.done():
            return
        if isinstance(answer, Exception):
            self.future.set_exception(answer)
        else:
            self.future.set_result(answer)


class Call(Generic[Item]):
    """Commands that ask about some requests, and how many replies they bring."""

    __slots__ = ("commands", "deadline", "decides", "ends_batch", "replies", "requests", "sent")

    def __init__(
        self,
        requests: Sequence[Request[Item]],
        commands: Sequence[Command],
        *,
        decides: bool = True,
    ) -> None:
        self.decides = decides
        """Whether these are decisions, of which observers hear."""
        self.requests = requests
        self.commands = commands
        self.replies = len(commands)
        self.sent = 0.0
        if len(requests) == 1:  # as most are on a Redis Cluster
            self.deadline = requests[0].deadline
        else:
            self.deadline = min((request.deadline for request in requests), default=0.0)
        self.ends_batch = False


class Redirect(NamedTuple):
    """An answer: nothing has run, another server is to be asked."""

    address: tuple[str, int]
    asking: bool

    def seen_from(self, host: str) -> Redirect:
        """The redirect as a client reads it that asked this host.

        A node that knows no name for another one leaves the host out, or puts a question mark: the
        host is the one that was asked, only the port is another.
        """
        named, port = self.address
        return self if named not in ("", "?") else Redirect((host, port), self.asking)


class Again:
    """An answer: nothing has run, and the same server is to be asked again."""


AGAIN: Final = Again()


class ParsedReplies(NamedTuple):
    """What the replies to a call amount to."""

    answers: Sequence[Any]
    """For each request its answer: a value, an exception to raise, a `Redirect`, or `AGAIN`."""
    repairs: Sequence[Command] = ()
    """Commands to be sent next, whose replies do not matter."""
    disconnect: str = ""
    """Why this server is not the one to ask any more."""


class Codec(Protocol[Item]):
    """How requests are put to a server. Each connection has its own."""

    def weigh(self, item: Item) -> int:
        """How much work an item is for the server; a batch has `MAX_WEIGHT` at most."""
        ...

    def calls(self, requests: Sequence[Request[Item]]) -> Sequence[Call[Item]]:
        """The commands that ask about these requests."""
        ...

    def read(self, call: Call[Item], replies: list[Any]) -> ParsedReplies:
        """What the replies to a call say."""
        ...
