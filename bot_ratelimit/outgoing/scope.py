"""BroadcastScope: what is sent in a context belongs to a broadcast."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final

from bot_ratelimit.outgoing.journal import LEAVING, REFUSED, Journal
from bot_ratelimit.outgoing.methods import Method, traffic_of
from bot_ratelimit.outgoing.stars import Stars


class BroadcastScope:
    """The requests to one chat of a broadcast, or all inside of `broadcasting()`."""

    def __init__(
        self, chat: int | str = "", journal: Journal | None = None, stars: Stars | None = None
    ) -> None:
        self.left = 0
        """How many requests Telegram may have taken, without those that it refused."""
        self.error: Exception | None = None
        """The last error of a request; `send` may have caught it."""
        self.caught = False
        """Whether `send` has returned, in spite of that error."""
        self.floods = 0
        """How many were answered with 429."""
        self._chat, self._journal, self._stars = chat, journal, stars

    def leaving(self) -> None:
        """A request is about to be sent, and Telegram may get it."""
        if not self.left and self._journal is not None:
            self._journal.write(self._chat, LEAVING)
        self.left += 1

    def refused(self) -> None:
        """Telegram did not take a request after all."""
        self.left -= 1
        if not self.left and self._journal is not None:
            self._journal.write(self._chat, REFUSED)

    def priced(self, method: Method) -> Method:
        """The request to send now: the same, or an unpaid one if the Stars are spent.

        Raises:
            NotSentError: The Stars are spent, and the broadcast stops.
        """
        if self._stars is None or not getattr(method, "allow_paid_broadcast", False):
            return method
        if self._stars.pay(traffic_of(type(method)).cost(method)):
            return method
        return method.model_copy(update={"allow_paid_broadcast": False})


broadcast_scope: Final[ContextVar[BroadcastScope | None]] = ContextVar(
    "bot_ratelimit_broadcast", default=None
)
"""The broadcast that requests of this context are part of; None for replies."""
