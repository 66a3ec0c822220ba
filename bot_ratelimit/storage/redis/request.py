"""Request, Call and Codec: what a server is asked, in which commands, and how replies are read."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

from bot_ratelimit.storage.redis.encoding import Command

Item = TypeVar("Item")


class Request(Generic[Item]):
    """A request to a server, with the future of its answer."""

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
        """The slot in a Redis Cluster, where only keys of one slot can share a command."""
        self.deadline = 0.0
        self.number = 0
        """Its number in the order of the requests of a connection."""
        self.redirected = False
        self.asking = False
        """Whether the slot is being moved to this server, so that ASKING must be sent first."""
        self.alone = False
        """Whether it needs a command of its own: some keys of its slot have been moved already."""

    def answer(self, answer: Any) -> None:
        """Set the answer, unless the caller has given up."""
        if self.future.done():
            return
        if isinstance(answer, Exception):
            self.future.set_exception(answer)
        else:
            self.future.set_result(answer)


class Call(Generic[Item]):
    """The commands for some requests, and how many replies they produce."""

    __slots__ = ("commands", "deadline", "decides", "ends_batch", "replies", "requests", "sent")

    def __init__(
        self,
        requests: Sequence[Request[Item]],
        commands: Sequence[Command],
        *,
        decides: bool = True,
    ) -> None:
        self.decides = decides
        """Whether these are decisions, which are reported to observers."""
        self.requests = requests
        self.commands = commands
        self.replies = len(commands)
        self.sent = 0.0
        if len(requests) == 1:  # the usual case on a Redis Cluster
            self.deadline = requests[0].deadline
        else:
            self.deadline = min((request.deadline for request in requests), default=0.0)
        self.ends_batch = False


class Redirect(NamedTuple):
    """An answer: nothing was executed, and another server must be asked."""

    address: tuple[str, int]
    asking: bool

    def seen_from(self, host: str) -> Redirect:
        """Return the redirect with the missing host replaced by the host that was asked.

        A node that knows no name of another node leaves the host out or sends a question mark. Then
        only the port differs from the server that was asked.
        """
        named, port = self.address
        return self if named not in ("", "?") else Redirect((host, port), self.asking)


class Again:
    """An answer: nothing was executed, and the same server must be asked again."""


AGAIN: Final = Again()


class ParsedReplies(NamedTuple):
    """The result of reading the replies to a call."""

    answers: Sequence[Any]
    """The answer to each request: a value, an exception to raise, a `Redirect`, or `AGAIN`."""
    repairs: Sequence[Command] = ()
    """Commands to send next, whose replies do not matter."""
    disconnect: str = ""
    """Why the connection to this server must be replaced; empty if it is kept."""


class Codec(Protocol[Item]):
    """Encodes requests as commands and reads the replies. Each connection has its own."""

    def weigh(self, item: Item) -> int:
        """Return how much work an item is for the server; a batch has `MAX_WEIGHT` at most."""
        ...

    def calls(self, requests: Sequence[Request[Item]]) -> Sequence[Call[Item]]:
        """Return the commands for these requests."""
        ...

    def read(self, call: Call[Item], replies: list[Any]) -> ParsedReplies:
        """Read the replies to a call."""
        ...
