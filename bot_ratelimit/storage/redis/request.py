"""Request, Call and Codec: what a server is asked, in which commands, and how replies are read."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from bot_ratelimit.storage.redis.encoding import Command


class Request:
    """Something that is asked of a server, with the future of its answer."""

    __slots__ = ("asking", "deadline", "future", "item", "left", "redirected", "timeout")

    def __init__(self, item: Any, timeout: float) -> None:
        self.item = item
        self.timeout = timeout
        """Seconds that its caller waits."""
        self.left = timeout
        """Of these, what the server that is asked next may take."""
        self.deadline = 0.0
        self.future: asyncio.Future[Any] = asyncio.Future()
        self.asking = False
        """Whether the slot is being moved to this server, so that ASKING must be sent first."""
        self.redirected = False

    def answer(self, answer: Any) -> None:
        """Set the answer, unless the caller has given up."""
        if self.future.done():
            return
        if isinstance(answer, Exception):
            self.future.set_exception(answer)
        else:
            self.future.set_result(answer)


class Call:
    """Encoded commands for some requests, and how many replies they produce."""

    __slots__ = ("data", "decides", "repair", "replies", "requests", "sent")

    def __init__(
        self, requests: Sequence[Request], data: bytes, replies: int = 1, *, decides: bool = True
    ) -> None:
        self.requests = requests
        self.data = data
        self.replies = replies
        self.decides = decides
        """Whether these are decisions, which are reported to observers."""
        self.sent = 0.0
        self.repair: Command | None = None
        """A command to send after the replies were read; its own reply does not matter."""


class Redirect(NamedTuple):
    """An answer: nothing was executed, and another server must be asked."""

    slot: int
    address: tuple[str, int]
    asking: bool


AGAIN: Final = object()
"""An answer: nothing was executed, and the same server must be asked again."""


def answer_all(requests: Iterable[Request], answer: Any) -> None:
    """Give all these requests the same answer."""
    for request in requests:
        request.answer(answer)
